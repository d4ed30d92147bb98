"""Corruption of the history that training shows, so that it looks like what a generator has behind it.

Real latents are cleaner than those a model has made. Noise of a random strength hides the difference; so
does a history of which the model itself made a part, or one of few codewords (``packing.discretisation``).

Legend: B samples, C latent channels, N frames, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch

from framepack.conditioning.embeds import Conditioning
from framepack.data.latents import send
from framepack.data.ranges import AMOUNT, COUNT, SHARE, check
from framepack.errors import InputError, UnknownNameError
from framepack.models.shift import Shift
from framepack.packing.context import Fetch, PackedContext
from framepack.packing.noising import noisy, told
from framepack.packing.schedule import Kernel
from framepack.planning.method import Method
from framepack.planning.sections import Section
from framepack.sampling.section import Model
from framepack.sampling.shown import shown
from framepack.training.draw import Draw
from framepack.training.rollout import fill

PER = ("sample", "frame")
KINDS = ("add", "mix")


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """Noise on the history.

    Args:
        noise: largest strength; strengths are uniform below it.
        levels: the strengths themselves, in place of ``noise``, each as likely as the others.
        share: of the samples, or frames, that have noise at all.
        per: ``sample``, all of a sample's history has one strength; ``frame``, each frame has its own
            (Chen and others 2024, "Diffusion Forcing").
        kind: ``add``, x + s * spread * noise with the standard deviation of each channel for spread;
            ``mix``, (1 - s) x + s * noise, the flow's own path, for which s is a sigma, on what generation
            puts noise on: see ``packing.noising``.
        told: the timestep of a sample's history is that of its sigma; of kind ``mix``, per ``sample``.

    Raises:
        InputError: values out of range, a ``mix`` with sigmas above 1, or ``told`` what cannot be.
    """

    noise: float = 0.15
    levels: tuple[float, ...] = ()
    share: float = 0.5
    per: str = "sample"
    kind: str = "add"
    told: bool = False

    def __post_init__(self) -> None:
        check(self, AMOUNT, "noise")
        check(self, SHARE, "share")
        for what, value, choices in (("per", self.per, PER), ("kind", self.kind, KINDS)):
            if value not in choices:
                raise UnknownNameError(f"corruption.{what}", str(value), choices)
        object.__setattr__(self, "levels", tuple(self.levels))  # a configuration from text has lists
        if not all(0 <= level < float("inf") for level in self.levels):
            raise InputError(f"corruption.levels {self.levels} must each be {AMOUNT}: change them")
        if self.kind == "mix" and max((self.noise, *self.levels) if not self.levels else self.levels) > 1:
            raise InputError("corruption of kind 'mix' has sigmas from 0 to 1: lower noise or levels")
        if self.told and (self.kind, self.per) != ("mix", "sample"):
            raise InputError(
                f"corruption of kind '{self.kind}' per {self.per} has no sigma that could be told: "
                "set kind=mix and per=sample, or told=false"
            )


def strengths(rng: np.random.Generator, config: CorruptionConfig, samples: int, frames: int) -> torch.Tensor:
    """How strong the noise of every frame is: (B, N), or (B, 1) where a sample's frames share it."""
    shape: int | tuple[int, int] = samples if config.per == "sample" else (samples, frames)
    if config.levels:
        strength = rng.choice(np.array(config.levels), shape)
    else:
        strength = rng.uniform(0, config.noise, shape)
    strength = strength * (rng.random(shape) < config.share)
    return torch.as_tensor(strength.reshape(samples, -1), dtype=torch.float32)


def check_noise(method: Method, corruption: CorruptionConfig) -> None:
    """Raises InputError: both of them would put noise of kind ``mix`` on the history."""
    if method.history_noise and corruption.kind == "mix":
        raise InputError(
            f"method '{method}' has history noise {method.history_noise:g}, and corruption of kind 'mix' "
            "puts noise on noise: teach it with history noise 0, or set objective.corruption.kind=add"
        )


def added(
    history: torch.Tensor, strength: torch.Tensor, spread: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """The history (B, C, N, h, w) with ``noise`` of its shape, as kind ``add``.

    Args:
        strength: (B, N) or (B, 1). spread: (C,).
    """
    return history + noise * (strength[:, None] * spread[:, None])[..., None, None]


def corrupt(
    rng: np.random.Generator, history: torch.Tensor, config: CorruptionConfig, spread: torch.Tensor
) -> torch.Tensor:
    """The history (B, C, N, h, w) as configured, before it is packed; ``spread`` (C,) is on its device."""
    if config.kind == "mix":  # once it is packed
        return history
    strength = send(strengths(rng, config, len(history), history.shape[2]), history.device)
    noise = torch.randn(history.shape, generator=noise_from(rng, history.device), device=history.device)
    return added(history, strength, spread, noise)


def seen(
    rng: np.random.Generator,
    draw: Draw,
    fetch: Fetch,
    target: torch.Tensor,
    config: CorruptionConfig,
    *,
    aligned: bool,
    centroids: torch.Tensor | None,
) -> PackedContext:
    """What a draw's section is shown, with noise of kind ``mix``; arguments as of ``sampling.shown``."""
    section, device = draw.section, target.device
    noise = noise_from(rng, device) if draw.method.history_noise else torch.Generator()
    context = shown(
        section, draw.method, fetch, target, aligned=aligned, generator=noise, centroids=centroids
    )
    if config.kind == "add":
        return context
    # A sigma for each frame, and one for a tail.
    strength = strengths(rng, config, len(target), len(needed(section)) + 1)
    strength = send(strength, device)
    sigmas = repeat(strength[:, 0]) if config.per == "sample" else iter(strength.unbind(1))
    context = noisy(context, section, sigmas, noise_from(rng, device))
    return told(context, section, strength[:, 0]) if config.told else context


def noise_from(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """Of noise on ``device``: drawn elsewhere it would have to be waited for."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**31)))


# History that the model made ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Samples whose history the model made itself, from real latents before it.

    Args:
        share: of the draws. depth: sections made one after the other before the one that is learnt.
        steps: of sampling each of them, without guidance.
    """

    share: float = 0.0
    depth: int = 1
    steps: int = 4

    def __post_init__(self) -> None:
        check(self, SHARE, "share")
        check(self, COUNT, "depth", "steps")


MakeHistory = Callable[[Draw, Fetch, Callable[[Section], Conditioning]], Mapping[int, torch.Tensor]]
"""A draw, its real latents by timeline index, what steers a section -> latents (B, C, h, w) by index."""


def sections_to_make(draw: Draw, depth: int) -> tuple[Section, ...]:
    """The last ``depth`` sections before a draw's own that it sees something of, in the order of the plan."""
    seen = set(draw.section.context_frames)
    return tuple(section for section in draw.before if seen & set(section.frames))[-depth:]


def own_history(
    rng: np.random.Generator,
    model: Model,
    config: RolloutConfig,
    *,
    shift: Shift,
    base_kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    centroids: torch.Tensor | None = None,
) -> MakeHistory:
    """What replaces frames of the history by those that ``model`` makes in their place.

    Each section to make sees real latents, and of earlier ones what was made.

    Args:
        shift, base_kernel: as in ``rollout``. centroids: (K, C), for methods with discretised history.
    """
    seed = int(rng.integers(2**31))

    def make(
        draw: Draw, fetch: Fetch, prompts: Callable[[Section], Conditioning]
    ) -> Mapping[int, torch.Tensor]:
        sections = sections_to_make(draw, config.depth)
        if not sections:
            return {}
        wanted = sorted({frame for section in sections for frame in needed(section)})
        first = fetch(sections[0].frames[:1])
        real = fetch(wanted).cpu().unbind(2) if wanted else ()
        held = dict(zip(wanted, real, strict=True))
        batch, channels, _, h, w = first.shape
        fill(
            model,
            draw.method,
            sections,
            held,
            prompts,
            None,
            shape=(batch, channels, h, w),
            seed=seed,
            steps=config.steps,
            guidance=1.0,
            shift=shift,
            base_kernel=base_kernel,
            device=device,
            dtype=dtype,
            centroids=centroids,
        )
        # Made in inference mode, whose tensors have no part in a gradient; copies have.
        made = {frame for section in sections for frame in section.frames}
        return {frame: held[frame].clone().to(first.device) for frame in made}

    return make


def needed(section: Section) -> Sequence[int]:
    """All frames that packing a section's context asks for, in order of time."""
    sides = {frame for frame in (*section.past, *section.future) if frame is not None}
    return sorted(sides.union(section.context_frames))

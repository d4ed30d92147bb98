"""One section of a run: what it is made of, and its latents.

Legend: C latent channels, T frames of the section, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from framepack.conditioning.embeds import Conditioning, mixed
from framepack.generation.clock import Clock
from framepack.generation.config import RunConfig
from framepack.generation.devices import Sample, sample
from framepack.generation.hashing import hash_json, section_seed
from framepack.generation.store import Edit, RunStore
from framepack.generation.tail import Tails
from framepack.models.bundle import Bundle
from framepack.models.step_cache import StepCache, step_cache
from framepack.packing.context import LevelPlan
from framepack.planning.method import Method
from framepack.planning.script import Mix
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.sampling.grids import section_sigmas
from framepack.sampling.guidance import cfg_zero_star, classifier_free
from framepack.sampling.shown import history_generator, shown, without_history
from framepack.sampling.solvers import solver_of

if TYPE_CHECKING:
    from PIL.Image import Image

OnStep = Callable[[int, int], None]


class Latents(Protocol):
    """A timeline that a section's context is taken from, such as a ``RunStore``."""

    tails: Tails

    def fetch(self, frames: Sequence[int]) -> torch.Tensor: ...


def prompts_of(config: RunConfig, section: Section, edit: Edit, timeline: Timeline) -> Mix:
    """What a section is told: the mix of its place in the script, unless it has a prompt of its own."""
    if edit.prompt is None:
        return config.script.mix(section.spans[0], timeline)
    return ((edit.prompt, 1.0),)


def section_key(
    config: RunConfig, section: Section, edit: Edit, told: Mix, store: RunStore, *, sees_picture: bool
) -> str:
    """Hash of all that makes a section: its row, noise, prompts, weights, sampling and context latents.

    ``told``: of ``prompts_of``. Of the script no more than that is in it, so that a change of a later scene
    leaves what was made before it.
    ``sees_picture``: the conditioner looks at the start picture, so that it belongs to what makes a section.
    """
    sides = {frame for frame in (*section.past, *section.future) if frame is not None}
    levels = [level for level in section.context if level.role != "tail"]
    seen = sides.union(*(level.present for level in levels))
    tails = [level for level in section.context if level.role == "tail"]
    return hash_json(
        {
            "sampling": config.sampling(),
            "row": section_row(section),
            "noise": noise_seed(config, section, edit),
            "prompt": told[0][0] if len(told) == 1 else told,
            "picture": config.image if sees_picture else None,
            "context": {str(frame): store.reference(frame) for frame in seen},
            "tail": [store.tails.reference(section.far_first(level.frames)) for level in tails],
        }
    )


def noise_seed(config: RunConfig, section: Section, edit: Edit) -> int:
    """Of a section's noise; under a seed of its own it is the same in every take."""
    if edit.seed is not None:
        return section_seed(edit.seed, section.index)
    return section_seed(config.seed, section.index, edit.take)


def tail_latents(section: Section, level: LevelPlan, store: Latents) -> torch.Tensor:
    """The latents (1, C, N, h, w) of a section's tail, in order of time; N is 1 where it is averaged."""
    frames = section.far_first(level.frames)
    if level.pool is None:
        return store.tails.mean(frames)
    latents = store.tails.pooled(frames, level.pool)
    return latents if frames == level.frames else latents.flip(2)


def section_row(section: Section) -> dict[str, Any]:
    """A settled section as JSON: what was chosen stands in its levels, what it was chosen from nowhere."""
    return {name: value for name, value in section.to_json().items() if name != "candidates"}


class SectionMaker:
    """Makes the sections of one run; each prompt is encoded once, with the start picture.

    Args:
        changed: prompts of sections that have one of their own.
        sample: from noise to latents, here or on several devices.
    """

    def __init__(
        self,
        config: RunConfig,
        bundle: Bundle,
        clock: Clock,
        picture: Image | None = None,
        changed: Iterable[str] = (),
        sample: Sample = sample,
    ) -> None:
        self.config, self.bundle, self.clock, self.picture = config, bundle, clock, picture
        negative = [config.negative_prompt] if config.guidance != 1.0 else []
        others = (prompt for prompt in changed if prompt != config.prompt)
        self.prompts = list(dict.fromkeys([*config.script.prompts, *others, *negative]))
        self.device, self.dtype = bundle.device, bundle.transformer.dtype
        self.sample = sample
        self._prompts: dict[str, Conditioning] = {}

    def make(self, section: Section, edit: Edit, told: Mix, store: Latents, on_step: OnStep) -> torch.Tensor:
        """Latents (C, T, h, w), float32, of a section whose context is on the timeline of ``store``.

        ``told`` is that of its key, ``prompts_of``; ``on_step`` is told (finished steps, all steps).
        """
        config, model, spec = self.config, self.bundle.transformer, self.bundle.spec
        pyramid, kernel = spec.pyramid, spec.base_kernel
        method = Method.from_json(config.method)
        steps = config.steps if pyramid is None else pyramid.steps_of(section.index, config.steps)
        with self.clock("pack"):
            noise = self._noise(section, edit)
            book = self.bundle.codebook
            context = shown(
                section,
                method,
                store.fetch,
                noise,
                aligned=model.config.aligned,
                generator=history_generator(noise_seed(config, section, edit)),
                centroids=None if book is None else book.centroids,
                tail=lambda level: tail_latents(section, level, store),
            ).to(self.device, self.dtype)
            prompt = mixed([(self._encode(prompt), weight) for prompt, weight in told])
            negative = self._encode(config.negative_prompt) if config.guidance != 1.0 else None
        cache = None if config.step_cache is None else StepCache.from_json(config.step_cache)
        with self.clock("sample"), step_cache(model, cache, steps):
            given = {
                "noise": noise.to(self.device),
                "positions": torch.tensor(section.positions),
                "context": context,
                "prompt": prompt,
                "negative": negative,
                "guidance": config.guidance,
                "sigmas": section_sigmas(steps, config.shift, noise.shape[2:], kernel, config.sigmas),
                "guide": cfg_zero_star if pyramid is not None and pyramid.cfg_zero else classifier_free,
                "history_guidance": method.history_guidance,
                "without": without_history(context, method),
                "attention": self.bundle.attention,
            }
            make_solver = partial(solver_of, config.solver, spec, config.guidance)
            latents = self.sample(model, make_solver, given, on_step)
            return latents[0].float().cpu()

    def forget(self, kept: Iterable[str]) -> None:
        """Drop what was encoded of all prompts but these and the negative one."""
        wanted = {*kept, self.config.negative_prompt}
        self._prompts = {prompt: made for prompt, made in self._prompts.items() if prompt in wanted}

    def _noise(self, section: Section, edit: Edit) -> torch.Tensor:
        """(1, C, T, h, w), float32, drawn on the CPU: the same on every device."""
        spec = self.bundle.spec
        grid = (self.config.height // spec.spatial_stride, self.config.width // spec.spatial_stride)
        generator = torch.Generator().manual_seed(noise_seed(self.config, section, edit))
        return torch.randn(1, spec.latent_channels, len(section.frames), *grid, generator=generator)

    @torch.inference_mode()
    def _encode(self, prompt: str) -> Conditioning:
        if not self._prompts:
            self.bundle.conditioner.prepare(self.prompts, self.picture)
        if prompt not in self._prompts:
            conditioning = self.bundle.conditioner.encode([prompt], self.picture)
            guided = replace(conditioning, guidance=self.config.embedded_guidance)
            self._prompts[prompt] = guided.to(self.device, self.dtype)
        return self._prompts[prompt]

"""The samplers of Helios, around diffusers' schedulers.

Helios-Base is solved by UniPC (bh2, order 2) on a grid of its own. Helios-Mid and -Distilled work in a
pyramid: the noise is halved until it is small, each stage solves a part of the way at its size, and what it
ends on is doubled and noised again for the next (diffusers' ``HeliosPyramidPipeline``).

Legend: B batch, C latent channels, T target frames, h w latent grid.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from framepack.models.shift import UNCAPPED, Shift, shift_for
from framepack.sampling.flow import shift_sigmas
from framepack.sampling.multistep import Multistep, multistep

if TYPE_CHECKING:
    from framepack.models.pyramid import Pyramid
    from framepack.sampling.solvers import Denoise, Solver

HIGHEST_SIGMA = 0.999
Stepper = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(flow, timestep, x) -> x at the next noise level."""


def helios_sigmas(steps: int, noisy_tokens: int, shift: Shift) -> torch.Tensor:
    """``steps`` + 1 noise levels, float64: from 0.999 down to 0, and then shifted.

    The grid differs from ``flow.make_sigmas`` by up to 0.001 before the shift.
    """
    grid = torch.linspace(HIGHEST_SIGMA, 0, steps + 1, dtype=torch.float64)
    return shift_sigmas(grid, shift_for(shift, noisy_tokens))


def unipc2(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """UniPC (bh2, order 2, with corrector) as Helios-Base has it; diffusers' scheduler."""
    from diffusers import HeliosScheduler

    scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], solver_type="bh2", solver_order=2)
    scheduler.set_timesteps(len(sigmas) - 1)
    # At exactly 1 the log signal-to-noise ratio is minus infinity.
    scheduler.sigmas = sigmas.to("cpu", torch.float64).clamp(max=1 - 1e-6)
    return multistep(scheduler, denoise, x)


def scheduler_of(pyramid: Pyramid) -> Any:
    """diffusers' scheduler of a pyramid."""
    from diffusers import HeliosDMDScheduler, HeliosScheduler

    return (HeliosDMDScheduler if pyramid.distilled else HeliosScheduler)(
        stages=pyramid.stages,
        stage_range=list(pyramid.stage_range),
        gamma=pyramid.gamma,
        use_dynamic_shifting=pyramid.time_shift is not None,
        time_shift_type=pyramid.time_shift or "exponential",
    )


def pyramid(
    scheduler: Any,
    *,
    patch: tuple[int, int, int] = (1, 2, 2),
    zero_steps: int = 0,
    generator: torch.Generator | None = None,
) -> Solver:
    """A solver in stages, each of half the size of the next; the sigmas it is given say only how many steps.

    Args:
        scheduler: ``HeliosDMDScheduler`` of Helios-Distilled or ``HeliosScheduler`` of Helios-Mid, of
            several stages; its own noise levels are used. The steps are shared out equally; twice as many
            are what Helios calls an amplified first chunk.
        patch: the base kernel, in whose blocks the noise between stages is correlated.
        zero_steps: at the beginning, steps of the first stage for which the flow is taken as zero, unasked.
        generator: of the noise between stages; None takes one seeded with the section's own noise.

    The steps must be a multiple of the stages, and h and w of 2^(stages - 1) patches.
    """
    stages = scheduler.config.stages

    def solve(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        steps, rest = divmod(len(sigmas) - 1, stages)
        assert steps and not rest, f"{len(sigmas) - 1} steps for {stages} stages"
        draw = generator or _generator_of(x)
        for _ in range(stages - 1):
            x = 2 * _resized(x, 0.5, "bilinear")  # twice the mean of four, of variance 1 again
        for stage in range(stages):
            # By the tokens of the stage before, as Helios counts them.
            tokens = math.prod(x.shape[2:]) // math.prod(patch)
            if stage:
                x = _entered(_resized(x, 2, "nearest"), stage, scheduler, patch, draw)
            scheduler.set_timesteps(steps, stage, mu=UNCAPPED.mu(tokens))
            step = _stepper(scheduler, x)
            for i, t in enumerate(scheduler.timesteps):
                index = stage * steps + i
                if stage == 0 and i < zero_steps:
                    flow = torch.zeros_like(x)
                else:
                    # Helios truncates timesteps; at 0 the flow could not be told from the data.
                    sigma = max(int(t), 1) / 1000.0
                    flow = (x - denoise(x, sigma, index)) / sigma
                x = step(flow, t, x)
        return x

    return solve


def _stepper(scheduler: Any, start: torch.Tensor) -> Stepper:
    """One step of either scheduler; the distilled one noises its data again, with what the stage began on."""
    from diffusers import HeliosDMDScheduler

    if not isinstance(scheduler, HeliosDMDScheduler):
        steps, levels = Multistep(scheduler), iter(scheduler.sigmas.tolist())
        return lambda flow, t, x: steps.step(x - next(levels) * flow, x)
    at = iter(range(len(scheduler.timesteps)))
    # Brought over once, and not by every step.
    sigmas, timesteps = scheduler.sigmas.to(start.device), scheduler.timesteps.to(start.device)
    return lambda flow, t, x: scheduler.step(
        flow,
        t,
        x,
        return_dict=False,
        cur_sampling_step=next(at),
        dmd_noisy_tensor=start,
        dmd_sigmas=sigmas,
        dmd_timesteps=timesteps,
        all_timesteps=scheduler.timesteps,
    )[0]


def _resized(x: torch.Tensor, factor: float, mode: str) -> torch.Tensor:
    """(B, C, T, h, w), each frame by itself."""
    size = [int(side * factor) for side in x.shape[3:]]
    frames = F.interpolate(x.transpose(1, 2).flatten(0, 1), size=size, mode=mode)
    return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def _entered(
    x: torch.Tensor, stage: int, scheduler: Any, patch: tuple[int, int, int], draw: torch.Generator
) -> torch.Tensor:
    """What a stage begins on: ``x``, doubled, with noise that hides its blocks.

    Jin and others 2024 (pyramidal flow matching), equation 15: signal and noise as the stage expects them.
    """
    gamma = scheduler.config.gamma
    signal = 1 - scheduler.ori_start_sigmas[stage]
    alpha = 1 / (math.sqrt(1 + 1 / gamma) * (1 - signal) + signal)
    beta = alpha * (1 - signal) / math.sqrt(gamma)
    return alpha * x + beta * block_noise(x.shape, patch[1:], gamma, draw).to(x)


def block_noise(
    shape: Sequence[int], block: tuple[int, int], gamma: float, generator: torch.Generator
) -> torch.Tensor:
    """Noise (B, C, T, h, w) of variance 1 whose values within a block have covariance -gamma."""
    *outer, h, w = shape
    rows, columns = block
    size = rows * columns
    # Singular but for the 1e-8, at which single precision fails; Helios has it so.
    unit = torch.eye(size, dtype=torch.float64)
    factor = torch.linalg.cholesky(unit * (1 + gamma + 1e-8) - gamma).float()
    blocks = math.prod(outer) * (h // rows) * (w // columns)
    drawn = torch.randn(blocks, size, generator=generator, device=generator.device).cpu()
    noise = drawn @ factor.T
    return noise.view(*outer, h // rows, w // columns, rows, columns).transpose(-3, -2).reshape(*shape)


def _generator_of(noise: torch.Tensor) -> torch.Generator:
    """Seeded with the section's noise, which follows from the run's seed and the section."""
    digest = hashlib.sha256(noise.detach().to("cpu", torch.float32).numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))

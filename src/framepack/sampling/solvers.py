"""Solvers of the flow ODE: ``solver(denoise, x, sigmas) -> data``.

``denoise(x, sigma, index) -> data`` gives the clean latent at noise level ``sigma`` (a float);
solvers know no models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from framepack.errors import InputError, UnknownNameError
from framepack.models.spec import ModelSpec
from framepack.sampling.helios import pyramid, scheduler_of, unipc2
from framepack.sampling.multistep import multistep

Denoise = Callable[[torch.Tensor, float, int], torch.Tensor]
Solver = Callable[[Denoise, torch.Tensor, torch.Tensor], torch.Tensor]


def euler(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """First order."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        data = denoise(x, sigma, i)
        x = data + (x - data) * (following / sigma)
    return x


def unipc(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """UniPC (bh1, order 3, with corrector) as the released FramePack sampler has it; diffusers' scheduler."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        solver_order=3,
        solver_type="bh1",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.set_begin_index(0)
    # The scheduler's own grid ignores the shift rule: put in ours.
    # At exactly 1 the log signal-to-noise ratio is minus infinity, and the corrector's system singular.
    scheduler.sigmas = sigmas.to("cpu", torch.float32).clamp(max=1 - 1e-6).double()
    return multistep(scheduler, denoise, x)


SOLVERS: dict[str, Solver] = {"euler": euler, "unipc": unipc, "unipc2": unipc2}


def solver_named(name: str) -> Solver:
    """Look a solver up.

    Raises:
        UnknownNameError: no such solver.
    """
    if name not in SOLVERS:
        raise UnknownNameError("solver", name, list(SOLVERS))
    return SOLVERS[name]


def check_solver(name: str, spec: ModelSpec) -> None:
    """See that a model can be solved so.

    Raises:
        UnknownNameError: no such solver. InputError: a model sampled in a pyramid has its own alone.
    """
    if spec.pyramid is None:
        solver_named(name)
    elif name != spec.solver:
        raise InputError(f"solver '{name}': {spec.name} is sampled in a pyramid, leave the solver out")


def solver_of(name: str, spec: ModelSpec, guidance: float) -> Solver:
    """The solver of a model's sections; errors as of `check_solver`."""
    check_solver(name, spec)
    if spec.pyramid is None:
        return solver_named(name)
    # Without guidance there is no CFG-Zero*, and so none of its steps that go nowhere.
    zero_steps = spec.pyramid.zero_steps if guidance != 1.0 else 0
    return pyramid(scheduler_of(spec.pyramid), patch=spec.base_kernel, zero_steps=zero_steps)

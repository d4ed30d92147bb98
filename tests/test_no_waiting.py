"""No step of a section waits for the device, and after the first one nothing is brought to it.

The device is PyTorch's ``meta``, which has shapes and no values: whatever looks at a value fails there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import HeliosDMDScheduler, HeliosScheduler, UniPCMultistepScheduler
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framepack.models import hunyuan_video as hunyuan_room
from framepack.models.step_cache import step_cache
from framepack.packing.context import ContextTensors, PackedContext
from framepack.sampling.flow import make_sigmas
from framepack.sampling.helios import pyramid, unipc2
from framepack.sampling.section import sample_section
from framepack.sampling.solvers import SOLVERS, euler, unipc
from test_step_cache import CHANNELS, GRID, KERNELS, STEPS, cache_of, hunyuan, said, wan
from tiny import BASE, tiny_bundle

META = torch.device("meta")
pytestmark = pytest.mark.usefixtures("one_thread")


class Waited(Exception):
    pass


class Watch(TorchDispatchMode):
    """Refuses, once ``on``, what would move between the CPU and the device, or look at its result there."""

    on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        seen = {leaf.device for leaf in tree_leaves((args, made)) if isinstance(leaf, torch.Tensor)}
        moves = len(seen) > 1 and func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if self.on and (moves or ("linalg" in func.name() and META in seen)):
            raise Waited(func.name())
        return made


class Brought(TorchFunctionMode):
    """The same of values that Python has."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.watch.on and func in (torch.tensor, torch.as_tensor) and made.device == META:
            raise Waited(func.__name__)
        return made


def all_used(mask: torch.Tensor) -> tuple[torch.Tensor, None]:
    """In the place of the one look at the mask that a section takes, see `test_once_a_section`."""
    return torch.arange(mask.shape[1], device=mask.device), None


def on_meta(
    model: Any, grid: tuple[int, int], kernels: Any, steps: int = 5, **changes: Any
) -> dict[str, Any]:
    """A section of the model with history at every kernel, all of it on the device."""
    levels = [
        ContextTensors(torch.randn(1, CHANNELS, 2, *grid), torch.tensor([2 * i, 2 * i + 1]), kernel)
        for i, kernel in enumerate(reversed(kernels))
    ]
    own = model.config.get("isolated_history") or model.config.get("image_condition_type") == "token_replace"
    aligned = torch.randn(1, 2 * CHANNELS + 2, 2, *grid) if model.config.aligned else None
    context = PackedContext(tuple(levels), aligned, 0.0 if own else None)
    settings: dict[str, Any] = {
        "noise": torch.randn(1, CHANNELS, 2, *grid, device=META),
        "positions": torch.tensor([6, 7]),
        "context": context.to(META),
        "prompt": said(5).to(META),
        "negative": said(3).to(META),
        "guidance": 2.0,
        "sigmas": make_sigmas(steps, 3.0),
        "solver": euler,
    }
    return settings | changes


FAMILIES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    "wan, isolated": lambda: wan(isolated_history=True),
    "wan, causal": lambda: wan(isolated_history=True, causal_history=True),
    "wan, scaled": lambda: wan(history_scale="per_head", guided_cross_attention=True),
    "hunyuan video": hunyuan,
    "hunyuan video, history at 0": lambda: hunyuan("zero"),
}


def watched(model: Any, settings: dict[str, Any]) -> None:
    """Sample; after the first step nothing waits."""
    watch = Watch()

    def told(done: int, steps: int) -> None:
        watch.on = True

    with Brought(watch), watch:
        made = sample_section(model.to(META), **settings, on_step=told)
    assert made.device == META and watch.on


@pytest.mark.parametrize(
    ("family", "solver"), [*((family, "euler") for family in FAMILIES), ("wan", "unipc"), ("wan", "unipc2")]
)
def test_no_step_waits(family: str, solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunyuan_room, "_used", all_used)
    model = FAMILIES[family]()
    watched(model, on_meta(model, GRID, KERNELS, solver=SOLVERS[solver]))


def test_no_step_of_the_bundled_kind_waits() -> None:
    model = tiny_bundle().transformer
    copy = type(model).from_config(model.config).eval()
    watched(copy, on_meta(copy, (4, 4), (BASE, (2, 2, 2), (4, 4, 4))))


@pytest.mark.parametrize("scheduler", [HeliosScheduler, HeliosDMDScheduler])
def test_no_step_within_a_stage_of_a_pyramid_waits(scheduler: type) -> None:
    """Between stages there is noise, which is drawn on the CPU."""
    watch, noise = Watch(), torch.randn(1, CHANNELS, 2, 16, 16)

    def denoise(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        watch.on = index % 4 != 3
        return torch.tanh(x)

    solve = pyramid(scheduler(use_dynamic_shifting=True), generator=torch.Generator())
    with Brought(watch), watch:
        made = solve(denoise, noise.to(META), torch.zeros(1 + 3 * 4))
    assert made.device == META and made.shape == noise.shape


@pytest.mark.parametrize("text", ["mag=0.06", "taylorseer=2"])
def test_no_step_waits_for_these_caches(text: str) -> None:
    model = wan().to(META)
    with step_cache(model, cache_of(text), STEPS):
        watched(model, on_meta(model, GRID, KERNELS, STEPS))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.mean().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.flatten().tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: print(x.sum().cpu()),
        lambda x: x + torch.ones(2, 1).to(x.device),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.linalg.solve(torch.eye(2, device=x.device), torch.ones(2, device=x.device)),
    ],
)
def test_a_step_that_waits_is_found(look: Callable[[torch.Tensor], Any]) -> None:
    model = wan()

    def waiting(denoise: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        def looked(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
            if index == 1:
                look(x)
            return denoise(x, sigma, index)

        return euler(looked, x, sigmas)

    with pytest.raises((Waited, RuntimeError, NotImplementedError, TypeError)):
        watched(model, on_meta(model, GRID, KERNELS, solver=waiting))


# --- the solvers whose arithmetic is on the CPU for it ---


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 25])
@pytest.mark.parametrize("name", ["unipc", "unipc2"])
def test_multistep_is_the_scheduler_stepped_on_samples(name: str, steps: int) -> None:
    """diffusers' schedulers on the samples themselves, for a denoiser that is not linear."""
    noise = torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    sigmas = make_sigmas(steps, 3.0)

    def denoise(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        return torch.tanh(2 * x) * (1 - sigma) + 0.1 * x.roll(1, -1)

    scheduler: Any
    if name == "unipc":
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            solver_order=3,
            solver_type="bh1",
            final_sigmas_type="zero",
        )
    else:
        scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], solver_type="bh2", solver_order=2)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas.to(torch.float32 if name == "unipc" else torch.float64).clamp(max=1 - 1e-6)
    scheduler.timesteps, x = torch.arange(steps), noise
    for i, sigma in enumerate(scheduler.sigmas[:-1].tolist()):
        data = denoise(x, sigma, i)
        last = i == steps - 1  # there bh1 divides 0 by 0
        x = data if last else scheduler.step((x - data) / sigma, i if name == "unipc" else None, x)[0]
    made = {"unipc": unipc, "unipc2": unipc2}[name](denoise, noise, sigmas)
    assert (made - x).abs().max() < 1e-5 * x.abs().max()

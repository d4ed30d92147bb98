"""Step caches: some denoising steps reuse what earlier steps of the section computed, so they cost little.

They are diffusers' caches, placed on the blocks of a packed transformer for one section and taken off after
it, so that nothing of one section is left to the next. Each branch of guidance has a state of its own under
``cache_context``; branches that go as one batch share their decisions.

    first-block  computes the first block, and skips the others while its residual changes by less than the
                 threshold (diffusers' ``FirstBlockCacheConfig``). The mean is over all tokens: clean context,
                 which hardly changes, dilutes it.
    mag          skips by how much the residual of all blocks changes from step to step in this model
                 (``MagCacheConfig``; Ma and others 2025), which was measured before: its magnitude ratios.
    taylorseer   computes one step in so many, and extrapolates the output in between
                 (``TaylorSeerCacheConfig`` in lite mode; Liu and others 2025).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framepack.errors import InputError, ModelError, UnknownNameError

if TYPE_CHECKING:
    from framepack.models.spec import ModelSpec

RATIOS_FILE = "mag_ratios.json"
"""In a model's folder: magnitude ratios, one a step, see `calibrating`."""
_STACKS = ("blocks", "transformer_blocks", "single_transformer_blocks")


@dataclass(frozen=True)
class Kind:
    """A kind of step cache.

    default: of its value. least, most: what the value may be. whole: it counts steps.
    says: what the value is. hooks: what the names of diffusers' hooks begin with.
    """

    default: float
    least: float
    most: float
    says: str
    hooks: str
    whole: bool = False


KINDS: dict[str, Kind] = {
    "first-block": Kind(0.05, 0.0, 10.0, "threshold of change", "fbc_"),
    "mag": Kind(0.06, 0.0, 10.0, "threshold of accumulated error", "mag_cache_"),
    "taylorseer": Kind(2, 2, 100, "steps of which one is computed", "taylorseer_", whole=True),
}


@dataclass(frozen=True, kw_only=True)
class StepCache:
    """A kind of `KINDS` with its value; ``ratios`` are the model's, of ``mag`` alone."""

    kind: str
    value: float
    ratios: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> StepCache:
        """Read ``first-block``, ``first-block=0.1``, ``taylorseer=3`` ...

        Raises:
            UnknownNameError: no such kind. InputError: a value that it cannot have.
        """
        name, given, said = text.partition("=")
        if name not in KINDS:
            raise UnknownNameError("step cache", name, list(KINDS))
        kind = KINDS[name]
        try:
            value = float(said) if given else kind.default
        except ValueError:
            value = math.nan
        if not kind.least <= value <= kind.most or (kind.whole and value != int(value)):
            number = "a whole number from" if kind.whole else "from"
            raise InputError(
                f"step cache '{text}': the {kind.says} is {number} {kind.least:g} to {kind.most:g}, "
                f"such as {name}={kind.default:g}"
            )
        return cls(kind=name, value=value)

    def to_json(self) -> dict[str, Any]:
        told = asdict(self) | {"ratios": list(self.ratios)}
        return told if self.kind == "mag" else {"kind": self.kind, "value": self.value}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> StepCache:
        return cls(kind=told["kind"], value=told["value"], ratios=tuple(told.get("ratios", ())))

    def of(self, spec: ModelSpec, ratios: tuple[float, ...]) -> StepCache:
        """The same with what it needs of a model.

        Raises:
            InputError: a model that is sampled in a pyramid; ``mag`` for one without magnitude ratios.
        """
        check_stages(self.kind, spec)
        if self.kind != "mag":
            return self
        if not ratios:
            raise InputError(
                f"step cache 'mag': {spec.name} has no {RATIOS_FILE}, which says how its residual changes: "
                "take first-block or taylorseer, or make it with FramePackPipeline.calibrate_step_cache"
            )
        return replace(self, ratios=ratios)

    def _config(self, steps: int) -> Any:
        import torch
        from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

        if self.kind == "first-block":
            return FirstBlockCacheConfig(threshold=self.value)
        if self.kind == "mag":
            return MagCacheConfig(
                threshold=self.value, num_inference_steps=steps, mag_ratios=list(self.ratios)
            )
        # Without lite mode it keeps two tensors for every attention, which no GPU has room for, and finds
        # none of Wan's.
        return TaylorSeerCacheConfig(
            cache_interval=int(self.value), taylor_factors_dtype=torch.float32, use_lite_mode=True
        )


def check_stages(kind: str, spec: ModelSpec) -> None:
    """Raises InputError: a model whose steps are of several sizes."""
    if spec.pyramid is not None:
        raise InputError(
            f"step cache '{kind}': {spec.name} is sampled in stages of several sizes, of which none can "
            "reuse another's: leave the step cache out"
        )


@contextmanager
def step_cache(model: Any, cache: StepCache | None, steps: int) -> Iterator[None]:
    """The model with a cache for one section of ``steps`` steps; None leaves it as it is.

    Raises:
        InputError: the model has a cache already. ModelError: the cache cannot be placed on its blocks.
    """
    if cache is None:
        yield
        return
    with _placed(model, cache._config(steps), KINDS[cache.kind].hooks, cache.kind):
        yield


@contextmanager
def calibrating(model: Any, steps: int) -> Iterator[Callable[[], list[list[float]]]]:
    """The model with every step computed and measured, see `step_cache`.

    Yields:
        What gives the ratios so far of the section under way, by branch of guidance: the residual's norm over
        that of the step before, mean over tokens, 1 first (diffusers' ``MagCacheHeadHook``).
    """
    from diffusers import MagCacheConfig

    # At the end of all its steps diffusers prints the ratios and forgets them: there is one more than come.
    config = MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)
    with _placed(model, config, KINDS["mag"].hooks, "mag"):
        hook = model.get_submodule(_block_names(model)[0])._diffusers_hook.get_hook(
            "mag_cache_leader_block_hook"
        )
        states = hook.state_manager._state_cache
        yield lambda: [list(state.calibration_ratios) for state in states.values()]


@contextmanager
def _placed(model: Any, config: Any, hooks: str, name: str) -> Iterator[None]:
    if model.is_cache_enabled:
        raise InputError(f"step cache '{name}': the model has a cache already: call its disable_cache first")
    blocks = _block_names(model)
    if len(blocks) < 2:
        raise ModelError(
            f"step cache '{name}' skips blocks after the first, and this model has {len(blocks)}"
        )
    try:
        try:
            model.enable_cache(config)
        except ValueError as error:  # a class of block that diffusers does not know
            raise ModelError(f"step cache '{name}' does not fit this model: {error}") from error
        wanted = [*blocks, "proj_out"] if name == "taylorseer" else blocks
        missed = [at for at in wanted if not _is_hooked(model.get_submodule(at), hooks)]
        if missed:
            raise ModelError(
                f"step cache '{name}' found no place on {len(missed)} of {len(wanted)} modules of this "
                f"model, such as {missed[0]}: leave it out"
            )
        yield
    finally:
        model._cache_config = config  # of a cache that was placed in part as well
        model.disable_cache()


def _block_names(model: Any) -> list[str]:
    return [
        f"{name}.{index}"
        for name, stack in model.named_children()
        if name in _STACKS
        for index in range(len(stack))
    ]


def _is_hooked(module: Any, hooks: str) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and any(name.startswith(hooks) for name in registry.hooks)


# Magnitude ratios ---------------------------------------------------------------------------------------


def read_ratios(folder: Path) -> tuple[float, ...]:
    """The ratios of a model's folder; none where it has no such file.

    Raises:
        ModelError: a file that does not hold them.
    """
    file = folder / RATIOS_FILE
    if not file.is_file():
        return ()
    try:
        ratios = tuple(float(ratio) for ratio in json.loads(file.read_text(encoding="utf-8")))
        if len(ratios) < 2 or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
            raise ValueError("it wants two ratios or more, all above 0")
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"'{file}' holds no magnitude ratios ({error}): make it anew, or remove it"
        ) from error
    return ratios


def write_ratios(ratios: tuple[float, ...], folder: Path) -> None:
    """The reverse of `read_ratios`."""
    (folder / RATIOS_FILE).write_text(json.dumps(list(ratios)) + "\n", encoding="utf-8")

"""The pyramid that Helios-Mid and -Distilled are sampled in, as numbers; ``sampling.helios`` is the work.

A checkpoint's scheduler tells which of the two it is, or that it is Helios-Base, which has no pyramid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from framepack.errors import InputError, ModelError, UnknownNameError

TIME_SHIFTS = ("exponential", "linear")
MAX_STAGES = 8


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Stages of sampling, each at twice the height and width of the one before; the last is whole.

    distilled: a few steps that noise their data again (``HeliosDMDScheduler``), not UniPC.
    stage_range: where each stage begins in the noise levels, from 0 to 1, and 1.
    gamma: minus the covariance, within a block, of the noise added between stages.
    time_shift: how a stage's noise levels are shifted, one of `TIME_SHIFTS`; None leaves them.
    cfg_zero: guidance is CFG-Zero* (Fan and others 2025), and the first ``zero_steps`` steps, which it
        takes to go nowhere, do not ask the model.
    first_factor: the first section takes so many times the steps.

    Raises:
        InputError: values that no pyramid can have.
    """

    distilled: bool
    stage_range: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    gamma: float = 1 / 3
    time_shift: str | None = None
    cfg_zero: bool = False
    zero_steps: int = 0
    first_factor: int = 1

    def __post_init__(self) -> None:
        ends = self.stage_range
        rising = all(low < high for low, high in itertools.pairwise(ends))
        if not (3 <= len(ends) <= MAX_STAGES + 1 and ends[0] == 0 and ends[-1] == 1 and rising):
            raise InputError(f"stages {ends} must rise from 0 to 1, by 2 to {MAX_STAGES} stages")
        if not (math.isfinite(self.gamma) and 0 < self.gamma <= 1 / 3):
            raise InputError(f"gamma {self.gamma!r} must be above 0 and at most 1/3")
        if self.time_shift not in (None, *TIME_SHIFTS):
            raise UnknownNameError("time shift", str(self.time_shift), TIME_SHIFTS)
        if self.zero_steps < 0 or self.first_factor < 1:
            raise InputError(f"zero_steps {self.zero_steps} and first_factor {self.first_factor} are too few")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Pyramid:
        """What ``dataclasses.asdict`` wrote. Raises InputError for what it can't have written."""
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"a pyramid has no {', '.join(sorted(unknown))}")
        try:
            return cls(**{**data, "stage_range": tuple(data["stage_range"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"a pyramid of {dict(data)} lacks values, or has wrong ones") from error

    @property
    def stages(self) -> int:
        return len(self.stage_range) - 1

    def check(self, steps: int, grid: Sequence[int], patch: Sequence[int]) -> None:
        """See that the stages can share ``steps`` and halve a latent ``grid`` (h, w) of patches (t, h, w).

        Raises:
            InputError: they cannot.
        """
        if steps % self.stages:
            raise InputError(
                f"{steps} steps: this model shares them out to {self.stages} stages, "
                f"give a multiple of {self.stages}"
            )
        for side, size in zip(grid, patch[1:], strict=True):
            unit = size * 2 ** (self.stages - 1)
            if side % unit:
                raise InputError(
                    f"a latent grid of {grid[1]} x {grid[0]}: this model halves it {self.stages - 1} times, "
                    f"both sides must be multiples of {unit}; choose another size"
                )

    def steps_of(self, section: int, steps: int) -> int:
        """Steps of a section, by its place in the order of generation."""
        return steps * self.first_factor if section == 0 else steps


def pyramid_of(scheduler: Mapping[str, Any], pipeline: Mapping[str, Any] | None) -> Pyramid | None:
    """The pyramid of a Helios checkpoint, None for Helios-Base.

    Args:
        scheduler: of its ``scheduler/scheduler_config.json``.
        pipeline: its ``model_index.json``, if there is one.

    Raises:
        ModelError: a scheduler that none of the releases has.
    """
    name = scheduler.get("_class_name")
    if name not in ("HeliosScheduler", "HeliosDMDScheduler"):
        raise ModelError(
            f"the scheduler is a {name}, Helios has HeliosScheduler or HeliosDMDScheduler: fetch it again"
        )
    distilled = name == "HeliosDMDScheduler"
    facts = {"num_train_timesteps": 1000, "shift": 1.0, "prediction_type": "flow_prediction"}
    if not distilled:
        facts |= {"scheduler_type": "unipc", "solver_type": "bh2", "solver_order": 2, "predict_x0": True}
        facts |= {"lower_order_final": True, "disable_corrector": [], "thresholding": False}
    for fact, wanted in facts.items():
        if scheduler.get(fact, wanted) != wanted:
            raise ModelError(
                f"the scheduler's {fact} is {scheduler[fact]!r}, that of the Helios releases {wanted!r}: "
                "fetch it again"
            )
    shift = scheduler.get("time_shift_type", "linear" if distilled else "exponential")
    if scheduler.get("stages", 3) == 1:
        if distilled or shift != "exponential":
            raise ModelError(f"a {name} of one stage with {shift} shift is none of Helios: fetch it again")
        return None
    # CFG-Zero* is the pipeline's to say; Helios-Mid's says yes.
    zero = not distilled and bool((pipeline or {"is_cfg_zero_star": True}).get("is_cfg_zero_star", False))
    try:
        return Pyramid(
            distilled=distilled,
            stage_range=tuple(scheduler.get("stage_range", (0.0, 1 / 3, 2 / 3, 1.0))),
            gamma=scheduler.get("gamma", 1 / 3),
            time_shift=shift if scheduler.get("use_dynamic_shifting", False) else None,
            cfg_zero=zero,
            # HeliosPyramidPipeline: zero_steps=1, compared with "at most".
            zero_steps=2 if zero else 0,
            first_factor=2 if distilled else 1,
        )
    except (InputError, TypeError) as error:
        raise ModelError(f"the scheduler is none of Helios's ({error}): fetch it again") from error

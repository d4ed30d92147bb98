"""The suites of the lab: which rows are compared, and under what names.

``rivals`` has the other architectures beside FramePack (its table 3), the others vary one thing of FramePack
itself. All rows of a suite start from one checkpoint, learn from the same clips, and have the same budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from framepack.packing.schedule import SCHEDULES, Kernel, PackingSchedule, Tail, released
from framepack.planning.method import Importance, Method, named_method
from framepack.recipes.rivals import rivals
from framepack.recipes.rows import Row

ORDERS = ("vanilla", "f1", "anti-drifting", "inverted", "inverted-plain", "planned")
SIZES = (1, 4, 9)
CODEWORDS = (16, 128, 1024)
NOISE = "objective.corruption.noise"
PLAIN = (f"{NOISE}=0",)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the rows of a suite have in common: base kernel and section size of the model, the largest gap
    that its methods keep, and the frames of a clip."""

    base: Kernel
    section_size: int
    max_gap: int
    frames: int

    def named(self, name: str, section_size: int | None = None) -> Method:
        return named_method(name, self.base, section_size or self.section_size, max_gap=self.max_gap)


def _rivals(bench: Bench) -> tuple[Row, ...]:
    return rivals(bench.base, bench.section_size, bench.frames, bench.max_gap)


def _orders(bench: Bench) -> tuple[Row, ...]:
    notes = {
        "vanilla": "forward in time",
        "f1": "forward, the first frame kept, the same time indices for every section",
        "anti-drifting": "first and last section together, then the gap",
        "inverted": "from the end back to the start picture, time indices as released",
        "inverted-plain": "from the end back to the start picture, true time indices",
        "planned": "several endpoints, far ones first, then the gaps",
    }
    drifts = {
        "vanilla": {"clarity drift": 3.18, "motion drift": 3.42, "semantic drift": 7.45, "ELO": 1074.0},
        # Of a range over configurations, its middle.
        "inverted-plain": {"clarity drift": 2.27, "motion drift": 1.96, "semantic drift": 2.7, "ELO": 1226.0},
    }
    return tuple(
        Row(name=name, method=bench.named(name), note=notes[name], paper=drifts.get(name, {}))
        for name in ORDERS
    )


def _sections(bench: Bench) -> tuple[Row, ...]:
    return tuple(
        Row(
            name=f"{name}, sections of {size}",
            method=bench.named(name, size),
            note=f"{size} latent frames at a time",
        )
        for name in ("vanilla", "inverted-plain")
        for size in SIZES
    )


def _schedules(bench: Bench) -> tuple[Row, ...]:
    vanilla = bench.named("vanilla")
    notes = {
        "temporal": "the released levels: 1, then 2, then 16 frames",
        "geometric": "1, 1/2, 1/4, 1/8, 1/16: lambda 2",
        "duplicated": "1, three of 1/4, three of 1/16",
        "start-frame": "geometric, the first frame at the base kernel",
        "symmetric": "geometric from both ends",
    }
    rows = [
        Row(
            name=name,
            method=vanilla.with_schedule(PackingSchedule.from_spec(name, bench.base)),
            note=notes[name],
        )
        for name in SCHEDULES
        if name in notes
    ]
    budgets = {"lite": 4 / 3, "extended": 2.5}
    rows += [
        Row(
            name=f"{name} budget",
            method=vanilla.with_schedule(PackingSchedule.from_budget(budget, bench.base)),
            note=f"history of {budget:.3g} L_f",
        )
        for name, budget in budgets.items()
    ]
    return tuple(rows)


def _ablation(bench: Bench) -> tuple[Row, ...]:
    vanilla = bench.named("vanilla")
    drifts = {"clarity drift": 3.18, "motion drift": 3.42, "semantic drift": 7.45, "anatomy drift": 18.05}
    discretised = {
        "clarity drift": 2.30,
        "motion drift": 2.49,
        "semantic drift": 4.12,
        "anatomy drift": 14.11,
    }
    rows = [
        Row(
            name="vanilla",
            method=vanilla,
            note="forward, clean history in training",
            settings=PLAIN,
            paper={**drifts, "ELO": 1074.0},
        ),
        Row(
            name="vanilla, noise in training",
            method=vanilla,
            note="noise on all of the history while it is trained",
            settings=(f"{NOISE}=0.3", "objective.corruption.share=1"),
        ),
        *(
            Row(
                name=f"vanilla +D, K = {size}",
                method=replace(vanilla, discretized=True),
                note=f"history in {size} codewords",
                settings=(*PLAIN, f"codewords={size}"),
                # The paper's text recommends 128, its table has 256.
                paper={**discretised, "ELO": 1222.0} if size == 128 else {},
            )
            for size in CODEWORDS
        ),
    ]
    for tail, note in (
        (Tail.APPEND, "older frames pooled and kept"),
        (Tail.COMPRESS, "older frames as a mean"),
    ):
        method = vanilla.with_schedule(replace(released(bench.base), tail=tail))
        rows.append(Row(name=f"vanilla, tail {tail}", method=method, note=note, settings=PLAIN))
    for kind in ("similarity", "hybrid"):
        method = replace(vanilla, importance=Importance(kind=kind))
        rows.append(
            Row(
                name=f"vanilla, importance by {kind}",
                method=method,
                note=f"history ranked by {kind} before it is packed; the weights are vanilla's",
                weights="vanilla",
            )
        )
    return tuple(rows)


def _shift(bench: Bench) -> tuple[Row, ...]:
    shifts = {"low": "1", "released anchors": "{}", "the model's own": "2.5", "extreme": "7"}
    return tuple(
        Row(
            name=f"shift {name}",
            method=bench.named("vanilla"),
            note=f"flow shift {value}, in training and in sampling"
            if value != "{}"
            else "balanced flow shift",
            settings=(f"objective.shift={value}",),
        )
        for name, value in shifts.items()
    )


SUITES: dict[str, Callable[[Bench], tuple[Row, ...]]] = {
    "rivals": _rivals,
    "ablation": _ablation,
    "orders": _orders,
    "sections": _sections,
    "schedules": _schedules,
    "shift": _shift,
}

TITLES = {
    "rivals": "FramePack and other architectures for long video",
    "ablation": "FramePack, one part at a time",
    "orders": "Sampling orders",
    "sections": "Latent frames of a section",
    "schedules": "Packing schedules",
    "shift": "Flow shift",
}

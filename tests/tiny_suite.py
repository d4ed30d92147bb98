"""Suites with scores drawn at random, and differences that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framepack.evaluation.results import ClipScores, Revisit, RowResult, SuiteResult


@dataclass(frozen=True, kw_only=True)
class Info:
    """What the table of metrics tells of one."""

    title: str
    unit: str = ""
    better: str = "higher"
    source: str = "a paper"
    stands_for: str = ""
    per: str = "frame"


METRICS = {
    "sharpness": Info(title="Sharpness", unit="levels²", stands_for="clarity (MUSIQ)"),
    "noise": Info(title="Blockiness", better="lower", stands_for="aesthetic"),
    "flow": Info(title="Motion", unit="px/frame", better="neither", stands_for="dynamic degree", per="pair"),
}


def row(
    name: str,
    *,
    drift: float = 0.0,
    level: float = 0.0,
    clips: int = 12,
    wanted: int | None = None,
    frames: int = 20,
    metrics: Sequence[str] = tuple(METRICS),
    forgets: float | None = None,
    seed: int = 0,
    spread: float = 1.0,
    own: float = 0.3,
    **more,
) -> RowResult:
    """A row whose scores fall (or rise, where lower is better) by about ``drift`` from start to end.

    All rows of a seed share what is particular to a clip; ``own`` is the size of what is not shared.
    forgets: growth of the revisit error with frames away; None for a row without revisits.
    """
    own_rng = np.random.default_rng([seed, *name.encode()])
    scored = []
    for n in range(clips):
        shared = np.random.default_rng([seed, n])
        base = shared.normal(size=len(METRICS)) * spread + 10 + level
        tilt = shared.normal(size=len(METRICS)) * spread + own_rng.normal(size=len(METRICS)) * own - drift
        values = {}
        for k, metric in enumerate(METRICS):
            count = frames - (METRICS[metric].per == "pair")
            line = base[k] + tilt[k] * np.linspace(0, 1, count) + own_rng.normal(size=count) * 0.05
            if metric in metrics:
                values[metric] = tuple(line.tolist())
        scored.append(ClipScores(clip=f"clip-{n:03d}", values=values))
    walks = []
    if forgets is not None:
        for n in range(clips):
            shared = np.random.default_rng([seed, 1, n]).normal() * 0.1
            away = (8, 16, 32, 64)
            error = [1 + shared + forgets * a / 64 + own_rng.normal() * 0.1 for a in away]
            walks.append(Revisit(clip=f"walk-{n:03d}", away=away, error=tuple(error)))
    more.setdefault("notation", "td_f16k4f2k2f1k1_g9")
    return RowResult(
        name=name,
        clips=tuple(scored),
        wanted=clips if wanted is None else wanted,
        revisits=tuple(walks),
        **more,
    )


def suite(*rows: RowResult, **more) -> SuiteResult:
    settings: Mapping[str, object] = {"model": "bundled", "seed": 0, "clips": 12, "budget": {"steps": 300}}
    more = {"settings": settings, "machine": "a test's", **more}
    return SuiteResult(
        suite="orders",
        title="Sampling orders",
        command="framepack evaluate --suite orders",
        rows=rows,
        **more,
    )

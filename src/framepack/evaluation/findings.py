"""What was found, as sentences made from the numbers: differences beyond chance, no others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from framepack.evaluation.analysis import LEVEL, REVISIT, Estimate, Measure, Measured
from framepack.evaluation.cells import digits_of, number
from framepack.evaluation.paper import Agreement, Pair, agreements, kendall
from framepack.metrics.significance import FEWEST

NAMED, PAIRS = 4, 3
"""Of longer lists of rows, and of pairs of them, so many are named."""
HIGHER = ("is higher", "are higher")


@dataclass(frozen=True)
class Finding:
    """One sentence or two on a topic: state, drift, scores, forgetting, paradox or paper."""

    topic: str
    text: str


def findings(found: Measured) -> Iterator[Finding]:
    """All of them, the most important first."""
    waiting = [row.name for row in found.rows if not row.finished]
    if waiting:
        yield Finding("state", f"Not finished, and not compared: {listed(waiting)}.")
    if found.rows and len(waiting) == len(found.rows):
        return
    if found.of("beyond"):
        yield from _kind(found, "drift", "beyond")
        yield from _most(found, "drift", "drift")
    else:
        yield from _kind(found, "drift", "drift")
    yield from _kind(found, "scores", "value")
    yield from _forgetting(found)
    yield from _paradox(found)
    for agreement in agreements(found):
        yield Finding("paper", _agreement(found, agreement))


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """a, b and c; of a long list the first, and how many more."""
    names = list(names)
    if len(names) > most + 1:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def told(estimate: Estimate, digits: int | None = None, *, signed: bool = False) -> str:
    """A mean with its interval, in a sentence."""
    digits = digits_of([estimate]) if digits is None else digits
    value = number(estimate.value, digits, signed=signed)
    if math.isnan(estimate.low):
        return value
    low, high = (number(bound, digits, signed=signed) for bound in (estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


# Best rows ---------------------------------------------------------------------------------------------


def _kind(found: Measured, topic: str, kind: str) -> Iterator[Finding]:
    """In how many metrics which row is best, then each metric."""
    yield from _most(found, topic, kind)
    bests = _bests(found, kind)
    if _clips(bests) >= FEWEST and any(_any_difference(measure) for measure, _ in bests):
        for measure, best in bests:
            if _any_difference(measure):
                yield Finding(topic, _best(found, measure, best))
        alike = [measure.title for measure, _ in bests if not _any_difference(measure)]
        if alike:
            yield Finding(topic, f"No difference found in {listed(alike, most=len(alike))}.")


def _most(found: Measured, topic: str, kind: str) -> Iterator[Finding]:
    """In how many metrics which row is best, if there are differences at all."""
    bests = _bests(found, kind)
    if not bests:
        return
    what = {"drift": "Drift", "beyond": "Drift beyond the world's", "value": "Scores"}[kind]
    metrics = "1 metric" if len(bests) == 1 else f"{len(bests)} metrics"
    if _clips(bests) < FEWEST:
        yield Finding(topic, f"{what}: with fewer than {FEWEST} clips nothing is claimed.")
        return
    if not any(_any_difference(measure) for measure, _ in bests):
        rows = max(len(measure.compared()) for measure, _ in bests)
        yield Finding(topic, f"{what}: no difference found between {rows} rows, in {metrics}.")
        return
    count = {row: sum(best == row for _, best in bests) for _, row in bests}
    top = [row for row in count if count[row] == max(count.values())]
    names = listed([found.name(row) for row in top])
    if len(top) > 1:
        yield Finding(topic, f"{what}: {names} are best in {count[top[0]]} of {metrics} each.")
        return
    alone = sum(best == top[0] and not measure.not_told_apart(best) for measure, best in bests)
    sure = f"in {alone or 'none'} of them it is told apart from every other row"
    yield Finding(topic, f"{what}: {names} is best in {count[top[0]]} of {metrics}; {sure}.")


def _bests(found: Measured, kind: str) -> list[tuple[Measure, int]]:
    return [(measure, best) for measure in found.of(kind) if (best := measure.best()) is not None]


def _clips(bests: Sequence[tuple[Measure, int]]) -> int:
    return max((e.clips for measure, _ in bests for e in measure.estimates), default=0)


def _best(found: Measured, measure: Measure, best: int) -> str:
    """The best row of a measure, what is not told apart from it, and how many rows are."""
    head = f"{measure.title}:"
    if not _any_difference(measure):
        return f"{head} no difference found."
    way, one, many = {
        "value": ("is highest", "is lower", "are lower") if measure.sign > 0 else ("is lowest", *HIGHER),
        "revisit": ("errs least", "errs more", "err more"),
    }.get(measure.kind, ("drifts least", "drifts more", "drift more"))
    first = f"{found.name(best)} {way}, {told(measure.estimates[best])}"
    near, others = measure.not_told_apart(best), len(measure.compared()) - 1
    if len(near) == others:
        return f"{head} {first}, but is not told apart from any other row; others differ."
    rest = others - len(near)
    more = f"{'the other row' if rest == 1 else f'the other {rest} rows'} {one if rest == 1 else many}"
    if not near:
        return f"{head} {first}; {more}."
    return f"{head} {first}; not told apart from it: {listed([found.name(row) for row in near])}; {more}."


def _any_difference(measure: Measure) -> bool:
    return bool((measure.p < LEVEL).any())


def _title(measure: Measure) -> str:
    after = {"drift": "drift of {}", "beyond": "drift of {} beyond the world's"}.get(measure.kind, "{}")
    return after.format(measure.title)


# Forgetting, and drift ---------------------------------------------------------------------------------


def _forgetting(found: Measured) -> Iterator[Finding]:
    measure = found.measures.get(("revisit", REVISIT))
    if measure is None or (best := measure.best()) is None:
        return
    if max(estimate.clips for estimate in measure.estimates) < FEWEST:
        yield Finding("forgetting", f"{measure.title}: with fewer than {FEWEST} walks nothing is claimed.")
        return
    yield Finding("forgetting", _best(found, measure, best))
    rows = measure.compared()
    grown = [row for row in rows if found.growth and found.growth[row][1] < LEVEL]
    up = [row for row in grown if found.growth[row][0].value > 0]
    if not found.growth:
        return
    span = f"from near ({found.bins[0][0]} frames away) to far ({found.bins[-1][0]})"
    if up:
        worst = max(up, key=lambda row: found.growth[row][0].value)
        which = listed([found.name(row) for row in up])
        where = f"all {len(rows)} rows" if len(up) == len(rows) else f"{len(up)} of {len(rows)} rows: {which}"
        text = f"{measure.title}s grow {span} in {where}"
        text += f"; most in {found.name(worst)}, by {told(found.growth[worst][0])}"
        rest = [row for row in rows if row not in grown]
        text += f". No growth found in {listed([found.name(row) for row in rest])}." if rest else "."
    else:
        text = f"No growth of the error found {span}, in any of {len(rows)} rows."
    yield Finding("forgetting", text)


def paradox_measures(found: Measured) -> tuple[Measure, Measure] | None:
    """Drift (beyond the world's where there is that) of the first metric, and the revisit error."""
    drifts = found.of("beyond") or found.of("drift")
    revisit = found.measures.get(("revisit", REVISIT))
    return (drifts[0], revisit) if drifts and revisit else None


def _paradox(found: Measured) -> Iterator[Finding]:
    """Whether rows that forget less drift more."""
    if (pair := paradox_measures(found)) is None:
        return
    drift, revisit = pair
    rows = [row for row in drift.compared() if row in revisit.compared()]
    if len(rows) < 4:
        return
    x, y = ([measure.estimates[row].value for row in rows] for measure in pair)
    tau, p = kendall(x, y)
    what = f"forgetting and {_title(drift)}"
    if np.isnan(tau) or p >= LEVEL:
        text = f"No relation found between {what} over {len(rows)} rows"
    else:
        way = "less" if tau > 0 else "more"
        text = f"Rows that forget less drift {way} ({what}, {len(rows)} rows)"
    if not np.isnan(tau):
        text += f": Kendall's tau {number(tau, 2, signed=True)}, p {number(p, 3)}"
    front = frontier(x, y)
    names = listed([found.name(rows[n]) for n in front], most=8)
    text += f". By their means {names} {'are' if len(front) > 1 else 'is'} beaten by no row in both."
    yield Finding("paradox", text)


def frontier(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Points that no other one is below in one and not above in the other, by ascending x."""
    points = list(zip(x, y, strict=True))
    kept = [
        n
        for n, (a, b) in enumerate(points)
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in points)
    ]
    return sorted(kept, key=lambda n: points[n])


# The paper ---------------------------------------------------------------------------------------------


def _agreement(found: Measured, agreement: Agreement) -> str:
    here = f"{'the nearest' if agreement.near else 'what stands for it'} here, {_title(agreement.measure)}"
    text = f"The paper's {agreement.figure} and {here}, {len(agreement.rows)} rows: "
    if not math.isnan(agreement.tau):
        text += f"Kendall's tau {number(agreement.tau, 2, signed=True)}, p {number(agreement.p, 3)}; "
    kept = agreement.pairs - len(agreement.turned)
    text += (
        f"{kept} of {agreement.pairs} pairs are in the paper's order, {agreement.kept} by more than chance"
    )
    if not agreement.turned:
        return f"{text}."
    text += f"; {len(agreement.turned)} in the other, "
    if not agreement.sure:
        return f"{text}none by more than chance."
    sure = sorted(agreement.sure, key=lambda pair: -_apart(found, agreement, pair))
    turned = [_turned(found, agreement, pair) for pair in sure[:PAIRS]]
    if len(sure) > PAIRS:
        turned.append(f"{len(sure) - PAIRS} more")
    return f"{text}{len(sure)} by more than chance: {'; '.join(turned)}."


def _apart(found: Measured, agreement: Agreement, pair: Pair) -> float:
    """How far the paper has the two from each other."""
    first, second = (found.rows[row].paper[agreement.figure] for row in (pair.first, pair.second))
    return abs(first - second)


def _turned(found: Measured, agreement: Agreement, pair: Pair) -> str:
    theirs = [found.rows[row].paper[agreement.figure] for row in (pair.first, pair.second)]
    first, second = found.name(pair.first), found.name(pair.second)
    by = told(_positive(agreement.measure.difference(pair.first, pair.second)))
    return f"there {first} ({theirs[0]:g}) is before {second} ({theirs[1]:g}), here {second} leads by {by}"


def _positive(difference: Estimate) -> Estimate:
    if difference.value >= 0:
        return difference
    return Estimate(-difference.value, -difference.high, -difference.low, difference.clips)

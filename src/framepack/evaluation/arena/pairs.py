"""Which pair a judge is given next, and how far they are."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from typing import NamedTuple

from framepack.evaluation.arena.folder import ArenaFolder, Matchup
from framepack.evaluation.arena.log import JudgementLog, Pair

OPEN_SECONDS = 600.0
"""A pair that was given and not judged counts as judged for so long: it is on somebody's screen."""


class Progress(NamedTuple):
    """``done`` of ``total`` matchups in this round, ``judged`` in all, skipped ones included.

    A judge's second round begins when they have seen every matchup once.
    """

    judged: int
    done: int
    total: int
    round: int


def next_pair(
    arena: ArenaFolder, log: JudgementLog, *, judge: str, question: str, seed: int, now: float
) -> Pair:
    """Choose at random: first rows with the fewest judgements together, of all judges; then clip and sides.

    A judge sees no matchup again before they have seen all. The same log and seed give the same choice.

    Args:
        log: up to date, see ``JudgementLog.held``. now: seconds since 1970.
    """
    seen: Counter[Matchup] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for pair in log.pairs.values():
        if pair.question != question:
            continue
        judgement, matchup = log.judgements.get(pair.id), _matchup(pair)
        fresh = judgement is None and now - pair.time < OPEN_SECONDS
        if pair.judge == judge:
            seen[matchup] += judgement is not None or fresh
        together[matchup.rows] += fresh if judgement is None else judgement.choice != "skip"

    rng = random.Random(f"{seed} {len(log.pairs)}")
    least_seen = _least(arena.matchups, {m: seen[m] for m in arena.matchups})
    least_judged = _least(least_seen, {m: together[m.rows] for m in least_seen})
    # Rows before clips: a pair of rows with many clips is to be no likelier than one with few.
    rows = rng.choice(sorted({m.rows for m in least_judged}))
    clip = rng.choice([m.clip for m in least_judged if m.rows == rows])
    left, right = rng.sample(rows, 2)
    return Pair(
        id=secrets.token_urlsafe(9),
        judge=judge,
        question=question,
        clip=clip,
        left=left,
        right=right,
        time=now,
    )


def progress(arena: ArenaFolder, log: JudgementLog, *, judge: str, question: str) -> Progress:
    """How far a judge is with a question."""
    seen = Counter(
        _matchup(judgement.pair)
        for judgement in log.judgements.values()
        if judgement.pair.judge == judge and judgement.pair.question == question
    )
    rounds = min(seen[m] for m in arena.matchups)
    done = sum(seen[m] > rounds for m in arena.matchups)
    return Progress(seen.total(), done, len(arena.matchups), rounds + 1)


def _matchup(pair: Pair) -> Matchup:
    first, second = sorted((pair.left, pair.right))
    return Matchup((first, second), pair.clip)


def _least(matchups: tuple[Matchup, ...], counts: dict[Matchup, int]) -> tuple[Matchup, ...]:
    least = min(counts.values())
    return tuple(m for m in matchups if counts[m] == least)

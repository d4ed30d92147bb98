"""Ratings: ELO by hand, Bradley-Terry against what was planted, and what holds for any judgements."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.evaluation.arena.ratings import Comparison, bradley_terry, elo, ranks

ROWS = ("a", "b", "c", "d", "e")
PLANTED = dict(zip(ROWS, (1240.0, 1110.0, 1000.0, 900.0, 750.0), strict=True))

scores = st.sampled_from((1.0, 0.5, 0.0))
comparisons = st.lists(
    st.tuples(st.permutations(ROWS), scores).map(lambda drawn: Comparison(*drawn[0][:2], drawn[1])),
    min_size=1,
    max_size=40,
)


def turned(one: Comparison) -> Comparison:
    """The same judgement with the sides exchanged."""
    return Comparison(one.right, one.left, 1 - one.score)


def opposite(one: Comparison) -> Comparison:
    """The contrary judgement of the same pair."""
    return Comparison(one.left, one.right, 1 - one.score)


def draw(rng: np.random.Generator, count: int, ties: float) -> list[Comparison]:
    """Judgements of every two rows by Davidson's model, ``ties`` being his nu."""
    found = []
    for left, right in combinations(ROWS, 2):
        a, b = (10 ** (PLANTED[row] / 400) for row in (left, right))
        weights = np.array([a, ties * np.sqrt(a * b), b])
        drawn = rng.choice([1.0, 0.5, 0.0], size=count, p=weights / weights.sum())
        found += [Comparison(left, right, float(score)) for score in drawn]
    return found


def test_elo_by_hand() -> None:
    first = Comparison("a", "b", 1.0)  # equal before it: half of 32 changes hands
    assert elo([first]) == {"a": 1016.0, "b": 984.0}
    # b, 32 behind, is expected to win 0.45408; a tie brings it 32 x 0.04592 = 1.46950.
    tied = elo([first, Comparison("b", "a", 0.5)])
    assert tied == {"a": pytest.approx(1014.53050, abs=1e-5), "b": pytest.approx(985.46950, abs=1e-5)}
    # A newcomer that loses to a, 14.53050 ahead of it, which was expected to win 0.52090.
    third = elo([first, Comparison("b", "a", 0.5), Comparison("a", "c", 1.0)])
    assert third["a"] == pytest.approx(1029.86183, abs=1e-4)
    assert third["c"] == pytest.approx(984.66875, abs=1e-4)


def test_differences_within_16_share_a_rank() -> None:
    assert ranks({"a": 1050, "b": 1034, "c": 1033, "d": 900}) == {"a": 1, "b": 1, "c": 2, "d": 4}


@pytest.mark.parametrize("ties", [0.0, 0.6])
def test_bradley_terry_recovers_what_was_planted(ties: float) -> None:
    found = bradley_terry(draw(np.random.default_rng(0), 2000, ties))
    for row, strength in found.items():
        assert strength.rating == pytest.approx(PLANTED[row], abs=12)
        assert strength.high - strength.low < 30


def test_intervals_hold_what_was_planted_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(150):
        found = bradley_terry(draw(rng, 40, 0.4))
        hits += [found[row].low <= PLANTED[row] <= found[row].high for row in ROWS]
    assert 0.92 < np.mean(hits) < 0.975


def test_the_score_equations_of_the_maximum() -> None:
    """Davidson (1970): at the maximum a row has as many wins, ties counting half, as are expected of it."""
    games = draw(np.random.default_rng(2), 60, 0.5)
    found = bradley_terry(games, prior=1e7)
    share = sum(game.score == 0.5 for game in games) / len(games)
    won = {row: sum(g.score if g.left == row else 1 - g.score for g in games if row in g[:2]) for row in ROWS}
    strength = {row: 10 ** (found[row].rating / 400) for row in ROWS}

    def expected(nu: float) -> tuple[dict[str, float], float]:
        wins, tied = dict.fromkeys(ROWS, 0.0), 0.0
        for a, b in combinations(ROWS, 2):
            root = nu * (strength[a] * strength[b]) ** 0.5
            whole = strength[a] + strength[b] + root
            wins[a] += 60 * (strength[a] + root / 2) / whole
            wins[b] += 60 * (strength[b] + root / 2) / whole
            tied += 60 * root / whole
        return wins, tied / len(games)

    low, high = 0.0, 10.0  # the nu that explains the ties there are
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle)[1] < share else (low, middle)
    assert expected(low)[0] == pytest.approx(won, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(games=comparisons, seed=st.integers(0, 99))
def test_order_says_nothing_to_bradley_terry(games: list[Comparison], seed: int) -> None:
    shuffled = random.Random(seed).sample(games, len(games))
    assert bradley_terry(shuffled) == bradley_terry(games)


@settings(max_examples=40, deadline=None)
@given(games=comparisons)
def test_contrary_judgements_mirror_ratings(games: list[Comparison]) -> None:
    contrary = [opposite(game) for game in games]
    mirrored = {row: 2000 - rating for row, rating in elo(games).items()}
    assert elo(contrary) == pytest.approx(mirrored)
    there, back = bradley_terry(games), bradley_terry(contrary)
    for row in there:
        assert back[row].rating == pytest.approx(2000 - there[row].rating, abs=1e-6)
        assert back[row].low == pytest.approx(2000 - there[row].high, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(games=comparisons)
def test_sides_say_nothing(games: list[Comparison]) -> None:
    sides = [turned(game) for game in games]
    assert elo(sides) == pytest.approx(elo(games))
    assert bradley_terry(sides) == bradley_terry(games)


@settings(max_examples=40, deadline=None)
@given(games=comparisons, shift=st.floats(-500, 500))
def test_only_differences_count(games: list[Comparison], shift: float) -> None:
    shifted = elo(games, start=1000 + shift)
    assert shifted == pytest.approx({row: rating + shift for row, rating in elo(games).items()})
    assert np.mean(list(elo(games).values())) == pytest.approx(1000)
    found = bradley_terry(games).values()
    for group in {strength.group for strength in found}:
        assert np.mean([s.rating for s in found if s.group == group]) == pytest.approx(1000)


def test_ties_alone_leave_all_equal() -> None:
    games = [Comparison(a, b, 0.5) for a, b in combinations(ROWS, 2)] * 5
    assert elo(games) == pytest.approx(dict.fromkeys(ROWS, 1000.0))
    assert all(s.rating == pytest.approx(1000) for s in bradley_terry(games).values())


def test_who_won_everything_stays_finite() -> None:
    games = [Comparison("a", "b", 1.0)] * 50 + [Comparison("b", "c", 1.0)] * 50
    found = bradley_terry(games)
    assert found["a"].rating > found["b"].rating > found["c"].rating
    assert found["a"].rating < 2000 and found["a"].high - found["a"].low > 300
    assert np.isfinite([found["a"].low, found["c"].high]).all()


def test_rows_never_compared_are_told_apart() -> None:
    games = [Comparison("a", "b", score) for score in (1.0, 1.0, 0.5, 0.0)] * 20
    games += [Comparison("c", "d", score) for score in (0.0, 0.5, 0.0)] * 2
    found = bradley_terry(games)
    assert [found[row].group for row in "abcd"] == [0, 0, 1, 1]
    alone = bradley_terry(games[:80])
    assert found["a"].rating == pytest.approx(alone["a"].rating, abs=5)
    linked = bradley_terry([*games, Comparison("d", "a", 1.0)])
    assert {strength.group for strength in linked.values()} == {0}


def test_more_judgements_are_surer() -> None:
    few, many = (bradley_terry(draw(np.random.default_rng(3), count, 0.3)) for count in (10, 160))
    for row in ROWS:
        ratio = (few[row].high - few[row].low) / (many[row].high - many[row].low)
        assert ratio == pytest.approx(4, rel=0.25)  # sixteen times as many


def test_nothing_judged() -> None:
    assert elo([]) == {} and bradley_terry([]) == {}

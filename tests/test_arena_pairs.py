"""What is found in a folder, and which pair comes next."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from framepack.errors import InputError
from framepack.evaluation.arena.folder import ArenaFolder, read_folder
from framepack.evaluation.arena.log import Choice, JudgementLog, Pair
from framepack.evaluation.arena.pairs import OPEN_SECONDS, next_pair, progress


def make(folder: Path, rows: dict[str, str], inside: str = "{row}/{clip}.mp4") -> Path:
    """A folder with rows of clips; files that look like videos to the eye alone."""
    for row, clips in rows.items():
        for clip in clips:
            file = folder / inside.format(row=row, clip=clip)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    return folder


class Judge:
    """Asks for pairs and judges them, one second after the other."""

    def __init__(self, arena: ArenaFolder, log: JudgementLog, name: str = "ann", seed: int = 0) -> None:
        self.arena, self.log, self.name, self.seed = arena, log, name, seed
        self.now = 1000.0

    def ask(self) -> Pair:
        with self.log.held():
            pair = next_pair(
                self.arena, self.log, judge=self.name, question="better?", seed=self.seed, now=self.now
            )
            self.log.give(pair)
        return pair

    def answer(self, pair: Pair, choice: Choice | None = "left") -> None:
        self.now += 1
        with self.log.held():
            self.log.judge(pair.id, choice, self.now)

    def both(self, choice: Choice = "left") -> Pair:
        pair = self.ask()
        self.answer(pair, choice)
        return pair


def matchup(pair: Pair) -> tuple[frozenset[str], str]:
    return frozenset((pair.left, pair.right)), pair.clip


@pytest.fixture
def arena(tmp_path: Path) -> ArenaFolder:
    return read_folder(make(tmp_path, {"a": "1234", "b": "1234", "c": "1234", "d": "34"}))


@pytest.mark.parametrize("inside", ["rows/{row}/clips/{clip}.mp4", "{row}/{clip}.mp4"])
def test_rows_of_a_suite_and_of_any_folder(tmp_path: Path, inside: str) -> None:
    make(tmp_path, {"a": "12", "b": "23", "c": "9"}, inside)
    (tmp_path / "suite.json").write_text("{}")
    (tmp_path / "rows").mkdir(exist_ok=True) if inside.startswith("rows") else (tmp_path / "empty").mkdir()
    hidden = tmp_path / inside.format(row="a", clip=".3-x.part")
    hidden.write_bytes(b"")
    found = read_folder(tmp_path)
    assert {row: list(clips) for row, clips in found.rows.items()} == {
        "a": ["1.mp4", "2.mp4"],
        "b": ["2.mp4", "3.mp4"],
        "c": ["9.mp4"],
    }
    assert found.matchups == ((("a", "b"), "2.mp4"),) and found.alone == ("c",)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({}, "no videos"),
        ({"a": "12"}, "one row with videos, 'a'"),
        ({"a": "12", "b": "34"}, "have a video of one name (a/1.mp4, b/3.mp4)"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, rows: dict[str, str], words: str) -> None:
    make(tmp_path, rows)
    with pytest.raises(InputError) as error:
        read_folder(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        read_folder(tmp_path / "file")


def test_every_matchup_once_before_any_twice(arena: ArenaFolder) -> None:
    judge = Judge(arena, JudgementLog(arena.own))
    total = 3 * 4 + 3 * 2
    for number in range(2):
        seen = Counter(matchup(judge.both(("left", "tie", "skip")[k % 3])) for k in range(total))
        assert set(seen.values()) == {1} and len(seen) == total
        told = progress(arena, judge.log, judge="ann", question="better?")
        assert told == (total * (number + 1), 0, total, number + 2)


def test_rows_with_the_fewest_judgements_come_first(arena: ArenaFolder) -> None:
    log = JudgementLog(arena.own)
    judges = [Judge(arena, log, name) for name in ("ann", "ben", "cleo")]
    together: Counter[frozenset[str]] = Counter()
    for number in range(24):
        together[matchup(judges[number % 3].both())[0]] += 1
        assert max(together.values()) - (min(together.values()) if len(together) == 6 else 0) <= 1
    # One judge alone comes to the end of what d has in common with others; the others are asked on.
    assert sum(together.values()) == 24 and len(together) == 6


def test_skipped_pairs_are_made_up_for(arena: ArenaFolder) -> None:
    judge = Judge(arena, JudgementLog(arena.own))
    skipped = matchup(judge.both("skip"))[0]
    counted = Counter(matchup(judge.both())[0] for _ in range(6))
    assert counted[skipped] == 1 and set(counted.values()) == {1}


def test_sides_are_drawn(arena: ArenaFolder) -> None:
    judge = Judge(arena, JudgementLog(arena.own))
    sides = [(pair.left, pair.right) for pair in (judge.both() for _ in range(180))]
    in_order = sum(left < right for left, right in sides)
    assert 60 < in_order < 120


def test_two_tabs_of_one_judge_get_different_pairs(arena: ArenaFolder) -> None:
    judge = Judge(arena, JudgementLog(arena.own))
    given = [judge.ask() for _ in range(18)]
    assert len({matchup(pair) for pair in given}) == 18
    judge.now += OPEN_SECONDS  # closed tabs give back what they had
    judge.answer(given[0])
    again = [judge.ask() for _ in range(17)]
    assert {matchup(pair) for pair in again} == {matchup(pair) for pair in given[1:]}


def test_the_same_seed_chooses_alike(tmp_path: Path) -> None:
    def play(folder: Path, seed: int) -> list[tuple[str, str, str]]:
        make(folder, {"a": "12345", "b": "12345", "c": "12345"})
        arena = read_folder(folder)
        judge = Judge(arena, JudgementLog(arena.own), seed=seed)
        return [(pair.left, pair.right, pair.clip) for pair in (judge.both() for _ in range(15))]

    assert play(tmp_path / "x", 1) == play(tmp_path / "y", 1) != play(tmp_path / "z", 2)


def test_other_questions_are_other_judgements(arena: ArenaFolder) -> None:
    log = JudgementLog(arena.own)
    judge = Judge(arena, log)
    for _ in range(7):
        judge.both()
    assert progress(arena, log, judge="ann", question="which is sharper?") == (0, 0, 18, 1)
    assert progress(arena, log, judge="ben", question="better?") == (0, 0, 18, 1)


def test_undone_pairs_count_no_longer(arena: ArenaFolder) -> None:
    judge = Judge(arena, JudgementLog(arena.own))
    pair = judge.both()
    judge.answer(pair, None)
    assert progress(arena, judge.log, judge="ann", question="better?").done == 0
    judge.answer(pair, "tie")
    assert [one.choice for one in judge.log.judgements.values()] == ["tie"]

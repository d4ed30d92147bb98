"""The log of judgements: several writers at once, and a writer that is killed in the middle of a line."""

from __future__ import annotations

import io
import json
import multiprocessing
from pathlib import Path

import pytest
from rich.console import Console

from framepack.cli.arena_view import print_standings
from framepack.errors import InputError, OutputError
from framepack.evaluation.arena.log import NAME, JudgementLog, Pair
from framepack.evaluation.arena.standings import export, save_standings, standings

WRITERS, EACH = 4, 40


def pair(number: object, judge: str = "ann", left: str = "a", right: str = "b", question: str = "?") -> Pair:
    return Pair(
        id=f"{judge}-{number}", judge=judge, question=question, clip="1.mp4", left=left, right=right, time=1.0
    )


def write(folder: Path, judge: str, count: int) -> None:
    log = JudgementLog(folder)
    for number in range(count):
        with log.held():
            log.give(pair(number, judge))
        with log.held():
            log.judge(f"{judge}-{number}", "left", float(number))


def read(folder: Path) -> JudgementLog:
    log = JudgementLog(folder)
    log.refresh()
    return log


def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    spawned = multiprocessing.get_context("spawn")
    writers = [spawned.Process(target=write, args=(tmp_path, f"judge{n}", EACH)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(180)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    lines = (tmp_path / NAME).read_text().splitlines()
    assert len(lines) == 2 * WRITERS * EACH and all(json.loads(line) for line in lines)
    log = read(tmp_path)
    assert len(log.pairs) == len(log.judgements) == WRITERS * EACH
    for n in range(WRITERS):  # each writer's own order is kept
        own = [one.time for one in log.judgements.values() if one.pair.judge == f"judge{n}"]
        assert own == list(range(EACH))


def test_two_readers_follow_each_other(tmp_path: Path) -> None:
    one, other = JudgementLog(tmp_path), JudgementLog(tmp_path)
    with one.held():
        one.give(pair(1))
    with other.held():
        assert list(other.pairs) == ["ann-1"]
        other.judge("ann-1", "tie", 2.0)
    with one.held():
        assert one.judgements["ann-1"].choice == "tie"


@pytest.mark.parametrize("torn", [b'{"kind": "judgement", "pair": "ann-0', b"{}}\n", b"\0\0\0\0\n", b"[1]\n"])
def test_a_torn_last_line_is_as_if_never_written(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, "ann", 3)
    path = tmp_path / NAME
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    log = read(tmp_path)
    assert len(log.judgements) == 3 and path.read_bytes() == whole + torn  # who only reads repairs nothing
    with log.held():
        assert path.read_bytes() == whole
        log.judge("ann-0", "tie", 9.0)
    assert [one.choice for one in read(tmp_path).judgements.values()] == ["left", "left", "tie"]


def test_every_cut_leaves_what_was_whole(tmp_path: Path) -> None:
    """Wherever a writer is killed, what is on disk up to the last line feed counts, and the next goes on."""
    write(tmp_path / "all", "ann", 2)
    data = (tmp_path / "all" / NAME).read_bytes()
    for end in range(len(data)):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / NAME).write_bytes(data[:end])
        log = JudgementLog(folder)
        with log.held():
            log.give(pair("new"))
        lines = (folder / NAME).read_bytes().splitlines()
        assert len(lines) == data[:end].count(b"\n") + 1 and all(json.loads(line) for line in lines)


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    write(tmp_path, "ann", 2)
    path = tmp_path / NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + b"".join(lines[2:]))
    with pytest.raises(OutputError, match=f"damaged after {len(lines[0])} bytes"):
        read(tmp_path)
    with pytest.raises(OutputError, match="damaged"), JudgementLog(tmp_path).held():
        pass
    assert path.read_bytes().count(b"\n") == 4  # nothing is thrown away


def test_a_log_that_was_replaced_is_told(tmp_path: Path) -> None:
    write(tmp_path, "ann", 2)
    log = read(tmp_path)
    (tmp_path / NAME).write_bytes(b"")
    with pytest.raises(OutputError, match="shorter"), log.held():
        pass


def test_what_is_so_already_is_not_recorded_again(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path)
    with log.held():
        log.give(pair(1))
        for choice in ("left", "left", "tie", None, None):
            log.judge("ann-1", choice, 5.0)
    choices = [json.loads(line).get("choice", "-") for line in (tmp_path / NAME).read_text().splitlines()]
    assert choices == ["-", "left", "tie", None] and not log.judgements


def test_a_full_disk_leaves_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JudgementLog(tmp_path)
    with log.held():
        log.give(pair(1))
    before = (tmp_path / NAME).read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, log.held():
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            log.judge("ann-1", "left", 2.0)
    assert (tmp_path / NAME).read_bytes() == before and not log.judgements
    with log.held():
        log.judge("ann-1", "left", 2.0)
    assert len(read(tmp_path).judgements) == 1


def test_standings_and_their_files(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path)
    choices = [
        ("a", "b", "left"),
        ("b", "a", "right"),
        ("b", "c", "tie"),
        ("a", "c", "left"),
        ("c", "b", "skip"),
    ]
    with log.held():
        for number, (left, right, choice) in enumerate(choices):
            log.give(pair(number, "ann" if number % 2 else "ben", left, right))
            log.judge(f"{'ann' if number % 2 else 'ben'}-{number}", choice, 60.0 * number)
    found = standings(log)
    assert [(s.row, s.tally.wins, s.tally.losses, s.tally.ties) for s in found.rows] == [
        ("a", 3, 0, 0),
        ("c", 0, 1, 1),
        ("b", 0, 2, 1),
    ]
    assert (found.judgements, found.skipped, found.fewest, found.groups) == (4, 1, 1, 1)
    assert found.judges == {"ann": 2, "ben": 2}
    assert (found.against["a", "b"].wins, found.against["b", "a"].losses) == (2, 2)
    save_standings(found, tmp_path)
    told = json.loads((tmp_path / "ratings.json").read_text())
    table = (tmp_path / "ratings.csv").read_text().splitlines()
    assert table[0].startswith("row,rating,low,high,group,elo,elo_rank,judgements") and len(table) == 4
    assert table[1].split(",")[:2] == ["a", str(told["rows"][0]["rating"])]
    assert {(t["row"], t["other"]): t["ties"] for t in told["against"]}["c", "b"] == 1
    assert export(log, tmp_path / "all.csv") == 5
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert rows[1] == "1970-01-01T00:00:00.000+00:00,ben,?,1.mp4,a,b,left,a"
    assert rows[5].endswith("c,b,skip,")


def test_questions_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no judgements yet"):
        standings(read(tmp_path))
    log = JudgementLog(tmp_path)
    with log.held():
        for number, question in enumerate(("better?", "sharper?")):
            log.give(pair(number, question=question))
            log.judge(f"ann-{number}", "left" if number else "right", 1.0)
    with pytest.raises(InputError, match=r"'better\?', 'sharper\?'"):
        standings(log)
    assert standings(log, "better?").rows[0].row == "b"
    assert standings(log, "sharper?").rows[0].row == "a"
    with pytest.raises(InputError, match="no judgements of 'smoother"):
        standings(log, "smoother?")


def test_what_the_command_shows_of_rows_never_compared(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path)
    with log.held():
        for number, (left, right) in enumerate(("ab", "ab", "cd")):
            log.give(pair(number, left=left, right=right))
            log.judge(f"ann-{number}", "left", 1.0)
    shown = io.StringIO()
    print_standings(standings(log), Console(file=shown, width=80))
    lines = shown.getvalue().splitlines()
    assert "Not comparable, for no judgement links them: a, b; c, d" in lines
    assert [line.split()[1] for line in lines if line.endswith(("2-0-0", "0-2-0", "1-0-0", "0-1-0"))][:4] == [
        *("a", "b", "c", "d")
    ]
    assert "Two rows have only 0 judgements together; the paper has 100 or more." in lines
    assert not any("…" in line for line in lines)

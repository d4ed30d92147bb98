"""A suite from its rows to its tables, on a tiny model: stopped, gone on with, added to, refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from framepack.errors import InputError, OutputError, UnknownNameError
from framepack.evaluation import choose
from framepack.evaluation.budget import Budget, operations
from framepack.evaluation.choose import Choice, chosen
from framepack.evaluation.folder import begin, claim, link_others, row_folder
from framepack.evaluation.gather import count_told, gather
from framepack.evaluation.results import RowResult
from framepack.evaluation.revisit import FEWEST
from framepack.evaluation.run import agenda, carry_out
from framepack.evaluation.suite import FORGOTTEN, REFERENCE, Suite, train_config
from framepack.evaluation.worker import Worker
from framepack.models.loading import load_bundle
from framepack.packing.schedule import HUNYUAN_BASE
from framepack.recipes.lab import SUITES, Bench
from framepack.recipes.rows import Row
from framepack.training.config import NetworkConfig
from tiny import look_alike, pictures_of, save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

METRICS = ("sharpness", "colourfulness")
TINY = Budget(samples=32, cached=4, clips=2, revisits=1, sections=2, steps=1)


ORPHAN = """
import multiprocessing, time
from framepack.generation.helper import end_with_parent

def child(told):
    end_with_parent()
    told.put(1)
    time.sleep(120)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=child, args=(told,))
    process.start()
    told.get()
    print(process.pid, flush=True)
    time.sleep(120)
"""


class Silent:
    def __init__(self) -> None:
        self.tasks: list[str] = []

    def begun(self, worker, task):
        self.tasks.append(f"{task.kind} {task.row}".strip())

    def progress(self, worker, task, done, total): ...

    def finished(self, worker, task): ...


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def suite(model) -> Suite:
    return suite_of(model)


def suite_of(model: Path, **changes) -> Suite:
    bench = Bench(base=(1, 1, 1), section_size=3, max_gap=8, frames=FEWEST)
    vanilla, f1 = bench.named("vanilla"), bench.named("f1")
    rows = (
        Row(name="vanilla", method=vanilla, note="forward"),
        Row(name="+D", method=replace(vanilla, discretized=True), settings=("codewords=4",)),
        Row(name="noised", method=replace(vanilla, history_noise=0.5), weights="vanilla"),
        Row(name="f1", method=f1),
    )
    plain = Suite(
        name="trial",
        title="A trial",
        rows=rows,
        budget=TINY,
        model=str(model),
        digest="",
        size=(32, 32),
        frames=FEWEST,
        seed=0,
        metrics=METRICS,
        world=True,
    )
    return replace(plain, **changes)


def run(suite: Suite, out: Path) -> list[str]:
    watcher = Silent()
    begin(out, suite)
    carry_out(suite, out, ("cpu",), watcher)
    return watcher.tasks


def result_of(suite: Suite, out: Path):
    return gather(suite, out, "framepack evaluate", "here", {})


def assert_same(one: RowResult, other: RowResult) -> None:
    """The same videos, as far as x264 gives the same bytes for them."""
    assert one.name == other.name and len(one.clips) == len(other.clips) > 0
    assert [revisit.away for revisit in one.revisits] == [revisit.away for revisit in other.revisits]
    for first, second in zip((*one.clips, *one.revisits), (*other.clips, *other.revisits), strict=True):
        assert look_alike(pictures_of(first.video), pictures_of(second.video)), first.clip


def test_every_row_is_made_and_scored(suite, tmp_path):
    tasks = run(suite, tmp_path)
    assert tasks[0] == "encode" and [task for task in tasks if task.startswith("train")] == [
        "train vanilla",
        "train +D",
        "train f1",
    ]
    found = result_of(suite, tmp_path)
    assert [row.name for row in found.rows] == [REFERENCE, FORGOTTEN, "vanilla", "+D", "noised", "f1"]
    assert found.rows[1].finished and not found.rows[1].clips and len(found.rows[1].revisits) == 1
    for row in (found.rows[0], *found.rows[2:]):
        assert row.finished and len(row.clips) == 2 and len(row.revisits) == 1, row.name
        for clip in row.clips:
            assert set(clip.values) == set(METRICS) and all(len(v) == FEWEST for v in clip.values.values())
            assert clip.video is not None and len(pictures_of(clip.video)) == FEWEST
    rows = {row.name: row for row in found.rows}
    assert rows[REFERENCE].reference and rows[REFERENCE].training is None
    assert rows["noised"].training == rows["vanilla"].training
    assert "training_seconds" not in rows["noised"].cost and rows["vanilla"].cost["samples"] == 32
    assert rows["vanilla"].cost["context_tokens"] > 0 == rows[REFERENCE].cost["context_tokens"]
    # Another method on the same weights makes another video of the same scene.
    clips = [pictures_of(rows[name].clips[0].video) for name in ("vanilla", "noised")]
    assert not look_alike(*clips)
    assert run(suite, tmp_path) == []
    assert count_told(suite, tmp_path) == 5 * 3 + 1
    assert not any(path.name.startswith(".") for path in row_folder(tmp_path, "f1").rglob("*"))


def test_stopped_and_gone_on_equals_uninterrupted(suite, tmp_path, monkeypatch):
    suite = replace(suite, rows=(suite.rows[0],), budget=replace(TINY, samples=64))
    run(suite, tmp_path / "whole")

    class Stopped(Exception): ...

    real, calls = Worker.do, []

    def dying(self, task, tell):
        calls.append(task)

        def stop(done, total):
            tell(done, total)
            if calls.count(task) == 1 and (task.kind, task.row, done) in (
                ("train", "vanilla", 2),
                ("make", "vanilla", 1),
            ):
                raise Stopped

        real(self, task, stop)

    monkeypatch.setattr(Worker, "do", dying)
    monkeypatch.setattr("framepack.evaluation.suite.SAVE_EVERY", 1)
    for _ in range(5):
        try:
            run(suite, tmp_path / "cut")
            break
        except Stopped:
            continue
    whole, cut = (result_of(suite, tmp_path / name).rows[2] for name in ("whole", "cut"))
    assert len(calls) > len(set(calls)) and cut.finished
    assert_same(whole, cut)


def test_more_clips_are_added_and_other_settings_refused(suite, tmp_path):
    suite = replace(suite, rows=(suite.rows[0],))
    run(suite, tmp_path)
    before = row_folder(tmp_path, "vanilla") / "clips" / "clip-000.mp4"
    stamp = before.stat().st_mtime_ns
    more = replace(suite, budget=replace(TINY, clips=3))
    assert run(more, tmp_path) == ["make the world", "make vanilla"]
    assert before.stat().st_mtime_ns == stamp and count_told(more, tmp_path) == 9
    # A further metric scores the videos that are there.
    scored = replace(more, metrics=(*METRICS, "colour-shift"))
    assert set(run(scored, tmp_path)) == {"make the world", "make vanilla"}
    assert before.stat().st_mtime_ns == stamp
    for changed, told in (
        ({"seed": 1}, "other seed"),
        ({"digest": "of other weights"}, "other weights"),
        ({"budget": replace(TINY, steps=2)}, "other budget"),
        ({"rows": (replace(suite.rows[0], settings=("rate=1",)),)}, "other row 'vanilla'"),
    ):
        with pytest.raises(OutputError, match=told):
            claim(tmp_path, replace(suite, **changed))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no suite"):
        claim(tmp_path / "taken", suite)


def test_what_is_not_finished_says_so(suite, tmp_path):
    claim(tmp_path, suite)
    found = result_of(suite, tmp_path)
    assert not any(row.finished for row in found.rows)
    assert [row.wanted for row in found.rows] == [2, 0, 2, 2, 2, 2]
    assert agenda(suite, tmp_path, 2).left > 5


def test_videos_made_elsewhere_are_a_row(suite, model, tmp_path):
    run(replace(suite, rows=(suite.rows[0],)), tmp_path / "ours")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for number, name in enumerate(("a", "b")):
        source = row_folder(tmp_path / "ours", "vanilla") / "clips" / f"clip-{number:03d}.mp4"
        (theirs / f"{name}.mp4").write_bytes(source.read_bytes())
    other = replace(suite, rows=(suite.rows[0],), others=(("theirs", theirs),), trains=False)
    run(other, tmp_path / "both")
    found = {row.name: row for row in result_of(other, tmp_path / "both").rows}
    same = {row.name: row for row in result_of(suite, tmp_path / "ours").rows}["vanilla"]
    assert [c.values for c in found["theirs"].clips] == [c.values for c in same.clips]
    assert found["theirs"].finished and found["vanilla"].training is None
    (theirs / "b.mp4").unlink()
    with pytest.raises(InputError, match="has 1 videos for 2 clips"):
        link_others(tmp_path / "third", other)


def test_two_workers_make_what_one_makes(suite, tmp_path):
    suite = replace(suite, rows=(suite.rows[0], suite.rows[3]))
    run(suite, tmp_path / "one")
    claim(tmp_path / "two", suite)
    carry_out(suite, tmp_path / "two", ("cpu", "cpu"), Silent())
    one, two = (result_of(suite, tmp_path / name) for name in ("one", "two"))
    for first, second in zip((one.rows[0], *one.rows[2:]), (two.rows[0], *two.rows[2:]), strict=True):
        assert_same(first, second)


def test_what_fails_in_a_worker_is_told_with_its_row(suite, tmp_path):
    suite = replace(suite, rows=(replace(suite.rows[0], settings=("rate=0",)),))
    with pytest.raises(Exception, match="rate"):
        carry_out(suite, tmp_path, ("cpu", "cpu"), Silent())


def test_all_rows_have_the_same_budget(model):
    """A context of many tokens is paid for with samples."""
    bundle = load_bundle(str(model))
    bench = Bench(base=(1, 1, 1), section_size=3, max_gap=8, frames=40)
    rows = SUITES["rivals"](bench)
    suite = suite_of(model, rows=rows, frames=40, budget=replace(TINY, samples=16_000))
    steps = {row.name: train_config(suite, row, bundle, "codec").steps for row in rows if row.weights is None}
    assert steps["FramePack vanilla"] == 1000
    assert steps["repeating image-to-video"] > 1000 > 3 * steps["full history"]
    assert steps["FramePack vanilla +D"] == 1000


def test_operations_by_hand():
    network = NetworkConfig(
        heads=1,
        head_dim=8,
        layers=2,
        ffn=16,
        base_kernel=(1, 1, 1),
        kernels=((1, 1, 1),),
        prompt_width=8,
        prompt_length=4,
    )
    # 10 tokens: 384 multiply-adds in projections, 256 in the feed-forward, 160 in attention, each twice.
    assert operations(10, network) == 2 * 10 * (6 * 64 + 2 * 8 * 16 + 2 * 8 * 10)


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("base", [(1, 1, 1), HUNYUAN_BASE])
def test_rows_of_a_suite_are_distinct_and_use_weights_that_there_are(name, base):
    rows = SUITES[name](Bench(base=base, section_size=9, max_gap=48, frames=109))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) == len({row_folder(Path(), name) for name in names})
    trained = {row.name for row in rows if row.weights is None}
    assert {row.weights for row in rows if row.weights} <= trained


def test_a_choice_becomes_a_suite(model, tmp_path):
    suite, devices, absent = chosen(Choice(suite="sections", model=str(model), budget="quick", device="cpu"))
    assert suite.frames == 1 + 12 * 9 and suite.size == (32, 32) and suite.world
    assert len(devices) >= 1 and set(devices) == {"cpu"}
    assert "clarity" in absent and "sharpness" in suite.metrics
    assert json.loads(json.dumps(suite.to_json())) == suite.to_json()
    fewer, devices, _ = chosen(
        Choice(suite="orders", model=str(model), clips=3, only=("f1",), workers=3, device="cpu")
    )
    assert (fewer.budget.clips, fewer.frames, fewer.budget.revisits) == (3, 37, 0) and [
        r.name for r in fewer.rows
    ] == ["f1"]
    assert devices == ("cpu",) * 3


def test_choices_that_cannot_be(model, tmp_path):
    def refused(kind, match, **changes):
        with pytest.raises(kind, match=match):
            chosen(replace(Choice(suite="orders", model=str(model), device="cpu"), **changes))

    refused(UnknownNameError, "unknown suite 'order'.*nearest is orders", suite="order")
    refused(UnknownNameError, "unknown row 'vanila'", only=("vanila",))
    refused(InputError, "no .mp4 files", others=(("x", tmp_path),))
    refused(UnknownNameError, "unknown metric", metrics=("beauty",))
    refused(InputError, "0 prompts", prompts=tmp_path, clips=1)
    assert choose.SUITES is SUITES


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    with subprocess.Popen([sys.executable, tmp_path / "orphan.py"], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}/stat")
        if not child.exists():
            parent.kill()
            pytest.skip("this system has no /proc to look for the process in")
        parent.kill()
    until = time.monotonic() + 20
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until, "the worker lives on"
        time.sleep(0.1)

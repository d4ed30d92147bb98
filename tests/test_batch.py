"""Lists of videos: read, checked, queued as jobs, gone on with after a stop or a change, and put in place."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from framepack.cli import app
from framepack.cli.batch_view import Watch
from framepack.errors import FramePackError, InputError, OutputError
from framepack.serving import engines
from framepack.serving.batch import Batch, Video, carry_out, check, read_batch, videos_of
from framepack.serving.config import ServiceConfig
from framepack.serving.jobs import Job, Status, Wish
from framepack.serving.places import ServiceFolder
from framepack.serving.progress import Progress
from framepack.serving.rows import NAMES, read_rows
from framepack.serving.store import JobStore
from framepack.serving.worker import Worker
from framepack.video.io import read_video

pytestmark = pytest.mark.usefixtures("one_thread")

HEART, STAR = "A red heart moves right over green hills.", "A blue star moves up over snow."
QUICK = {"seconds": 1.5, "steps": 1, "guidance": 1.0}
PATIENCE = 120.0


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def config_of(out: Path) -> ServiceConfig:
    return ServiceConfig(data=out, store=ServiceFolder(out).default_store, threads=1, niceness=0)


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def prompts(folder: Path, *texts: str) -> Path:
    return written(folder, "list.txt", "\n".join(texts) + "\n")


class Instant:
    """Workers that give each job a file at once; of prompts with ``fail``, a failure."""

    def __init__(self, store: JobStore, config: ServiceConfig, *_: object) -> None:
        self.store, self.places = store, ServiceFolder(config.data)
        self.made: list[str] = []

    processes: tuple[int, ...] = ()

    def start(self) -> None:
        while taken := self.store.lease("instant"):
            lease, job = taken
            if "fail" in job.prompt:
                error = {"code": "failed", "message": "it was told to"}
                self.store.finish(lease, Status.FAILED, {}, error=error)
                continue
            self.made.append(job.prompt)
            video = self.places.job(job.id).video
            video.write_text(f"{job.prompt} {job.asked.get('seed', 0)}")
            video.with_suffix(".json").write_text("{}")
            progress = Progress(stage="done", frames=12, fps=8.0, work=1.0).to_json()
            self.store.finish(lease, Status.COMPLETED, progress)

    def close(self) -> None:
        pass


class Threaded:
    """A real worker in a thread; ``after`` so many videos whose first section is there, it is interrupted."""

    processes: tuple[int, ...] = ()

    def __init__(self, store: JobStore, config: ServiceConfig) -> None:
        self._stop = threading.Event()
        worker = Worker(store, config, f"thread-{id(self)}", "cpu", self._stop.is_set)
        self._thread = threading.Thread(target=worker.run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


class Told:
    """What a batch tells, kept; ``see`` is called with what is being made."""

    def __init__(self, see: Callable[[list[tuple[Video, Job]]], None] = lambda jobs: None) -> None:
        self.running = see
        self.jobs: dict[str, Job | None] = {}

    def ended(self, video: Video, job: Job | None) -> None:
        self.jobs[video.name] = job


def made(listed: Path, out: Path, **defaults: object) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Carry a list out at once: what it came to beside what was there, and the prompts that were made."""
    config = config_of(out)
    batch = Batch(read_batch(listed, {**QUICK, **defaults}, config, 0), config, out)
    try:
        begun = batch.begin()
        engine = Instant(batch.store, config)
        carry_out(batch, engine, Told())
    finally:
        batch.close()
    found = {name: value for name, value in vars(begun).items() if value}
    return found, engine.made


def results(out: Path) -> dict[str, str]:
    return {place.stem: place.read_text() for place in sorted(out.glob("*.mp4"))}


# Lists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", f"\ufeff# seconds are given beside\n\n{HEART}\n  {STAR}  \n"),
        ("a.csv", f'prompt,seed,image\n"{HEART}",,\n\n{STAR},,\n'),
        ("a.jsonl", json.dumps({"prompt": HEART}) + "\n\n" + json.dumps({"prompt": STAR})),
        ("a.yaml", f"# two\n\n- {HEART}\n- prompt: {STAR}\n"),
        ("a.json", f'["{HEART}",\n {{"prompt": "{STAR}"}}]'),
    ],
)
def test_all_kinds_of_lists_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    rows = read_rows(written(tmp_path, name, text), QUICK)
    assert [row.video.prompt for row in rows] == [HEART, STAR]
    assert {(row.video.seconds, row.video.steps, row.video.guidance) for row in rows} == {(1.5, 1, 1.0)}
    assert all("seed" not in row.video.model_fields_set for row in rows)
    lines = text.splitlines()
    assert [lines[row.line - 1].count(prompt) for row, prompt in zip(rows, (HEART, STAR), strict=True)] == [
        1,
        1,
    ]


ROW = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)},
    optional={
        "seconds": st.floats(0.5, 60),
        "seed": st.integers(0, 2**63 - 1),
        "steps": st.integers(1, 1000),
        "guidance": st.floats(0, 100),
        "method": st.sampled_from(["vanilla", "inverted"]),
        "loop": st.booleans(),
        "loras": st.lists(
            st.fixed_dictionaries({"name": st.just("a"), "weight": st.floats(-2, 2)}), max_size=2
        ),
    },
)


@settings(deadline=None, max_examples=25)
@given(st.lists(ROW, min_size=1, max_size=4))
def test_tables_and_objects_say_the_same(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    import csv

    folder = tmp_path_factory.mktemp("lists")
    with (folder / "a.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", *NAMES[1:]])
        table.writeheader()
        for row in rows:
            loras = {"loras": json.dumps(row["loras"])} if "loras" in row else {}
            table.writerow({**row, **loras})
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [[row.video for row in read_rows(folder / f"a.{kind}", QUICK)] for kind in ("csv", "jsonl")]
    assert found[0] == found[1]
    for video, row in zip(found[1], rows, strict=True):
        assert video.model_fields_set == {*row, *QUICK}


def test_pictures_are_found_beside_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lists"
    (folder / "in").mkdir(parents=True)
    for name in ("start.png", "door.png"):
        Image.new("RGB", (64, 48), "red").save(folder / "in" / name)
    keyframes = '"[{""at"": 1, ""picture"": ""in/door.png""}]"'
    listed = written(folder, "a.csv", f"prompt,image,keyframes\n{HEART},in/start.png,{keyframes}\n")
    monkeypatch.chdir(tmp_path)
    (video,) = read_batch(Path("lists/a.csv"), QUICK, config_of(tmp_path / "out"), 0)
    assert video.row.files["image"].samefile(folder / "in" / "start.png")
    assert not (tmp_path / "out").exists()
    made(listed, tmp_path / "out")
    (folder_of_job,) = (tmp_path / "out" / "jobs").iterdir()
    assert {"start.png", "key-0.png"} <= {place.name for place in folder_of_job.iterdir()}
    (job,) = JobStore(config_of(tmp_path / "out").store).listed()
    assert (job.asked["image"], job.asked["keyframes"]) == ("start.png", [[1.0, "key-0.png"]])
    # Another picture under the same name is another video.
    Image.new("RGB", (64, 48), "blue").save(folder / "in" / "start.png")
    (other,) = read_batch(listed, QUICK, config_of(tmp_path / "out"), 0)
    assert other.id != video.id


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.docx", HEART, "ends in '.docx': give a file that ends in .txt, .csv"),
        ("a.txt", "\n# nothing\n", "has no rows"),
        ("a.csv", "prompt,sed\na,1\n", "line 1: unknown column 'sed'.*nearest is seed"),
        ("a.csv", "seed\n1\n", "line 2: prompt: field required"),
        ("a.csv", 'prompt,seed\n"a\nb",1\nc,x\n', "line 4: seed: input should be a valid integer"),
        ("a.csv", "prompt\na,b\n", "line 2: 2 cells for 1 columns"),
        ("a.csv", "prompt,prompt\na,b\n", "line 1: a column is there twice"),
        ("a.csv", 'prompt\n"a"b\n', "line 2: it is no CSV"),
        ("a.csv", "prompt,loras\na,style\n", "line 2: loras is no JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": }\n', "line 2: the line is no JSON"),
        ("a.jsonl", '{"prompt": "a"}\n\n"b"\n', "line 3: the line is no object"),
        ("a.jsonl", '{"prompt": "a", "outt": 1}', "line 1: unknown name 'outt'"),
        ("a.jsonl", '{"prompt": "a", "fps": 0}', "line 1: fps"),
        ("a.yaml", "- a\n- prompt: b\n  image: gone.png\n", "line 2: image 'gone.png' does not exist"),
        ("a.yaml", "- a\n- image: [1]\n  prompt: b\n", "line 2: image: give the path"),
        ("a.yaml", "prompt: a\n", "line 1: it is no list"),
        ("a.yaml", "- a\n- [b]\n", "line 2: a video is written as"),
        ("a.yaml", "- a\n- 'b\n", "line 3: it is no YAML"),
        ("a.txt", f"{HEART}\n" + "b" * 10_001, "line 2: prompt"),
    ],
)
def test_a_fault_of_a_list_names_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as told:
        read_rows(written(tmp_path, name, text), {})
    assert "\n" not in str(told.value)


def test_lists_that_are_no_text_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_rows(tmp_path / "a.txt", {})
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "gone.txt", {})


def test_what_cannot_be_made_is_refused_before_anything_is(tmp_path: Path, out: Path) -> None:
    rows = [f'{{"prompt": "{HEART}", "method": "nonsense"}}', f'{{"prompt": "{STAR}"}}']
    rows += [f'{{"prompt": "{STAR}", "size": "7x7"}}', '{"prompt": "[0s: a] [", "model": "other"}']
    (tmp_path / "pic.png").write_text("no picture")
    rows.append(f'{{"prompt": "{HEART}", "image": "pic.png"}}')
    listed = written(tmp_path, "a.jsonl", "\n".join(rows))
    config = config_of(out)
    for line in (1, 3, 4, 5):
        alone = [row for row in read_rows(listed, QUICK) if row.line == line]
        with pytest.raises(InputError, match=f"line {line}: ") as told:
            check(videos_of(alone, config, 0), config)
        assert "/tmp" not in str(told.value)
    with pytest.raises(InputError, match=r"a.jsonl' line 1: .*nonsense.*; 3 more of 5 rows have faults"):
        read_batch(listed, QUICK, config, 0)
    assert not out.exists()


# What is asked for -----------------------------------------------------------------------------------------


def test_rows_that_are_alike_get_seeds_of_their_own(tmp_path: Path, out: Path) -> None:
    def seeds(*texts: str) -> list[tuple[str, int]]:
        videos = read_batch(prompts(tmp_path, *texts), QUICK, config_of(out), 7)
        assert len({video.id for video in videos}) == len(videos)
        return [(video.name, video.seed) for video in videos]

    heart, star = "a-red-heart-moves-right-over-green-hills", "a-blue-star-moves-up-over-snow"
    assert seeds(HEART, STAR, HEART) == [(f"001-{heart}", 7), (f"002-{star}", 7), (f"003-{heart}", 8)]
    ids = [video.id for video in read_batch(prompts(tmp_path, HEART, STAR), QUICK, config_of(out), 7)]
    moved = read_batch(prompts(tmp_path, "A green ring.", STAR, HEART), QUICK, config_of(out), 7)
    assert [video.id for video in moved][1:] == ids[::-1]


def test_the_same_twice_is_refused(tmp_path: Path, out: Path) -> None:
    listed = written(tmp_path, "a.csv", f"prompt,seed\n{HEART},\n{STAR},0\n{HEART},0\n")
    with pytest.raises(InputError, match="line 4 asks for the same as line 2"):
        read_batch(listed, QUICK, config_of(out), 0)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("../../etc/passwd", "001-etc-passwd"),
        ("[0s: a dog runs] [2s: a cat]", "001-a-dog-runs-a-cat"),
        ("赤いハートが右へ動く", "001-赤いハートが右へ動く"),
        ("!?", "001-video"),
        ("one two three four five six seven eight nine ten", "001-one-two-three-four-five-six-seven-eight"),
        ("x" * 300, "001-" + "x" * 40),
    ],
)
def test_names_of_results_can_be_read(tmp_path: Path, out: Path, prompt: str, name: str) -> None:
    (video,) = videos_of(read_rows(prompts(tmp_path, prompt), QUICK), config_of(out), 0)
    assert video.name == name


# Goes on ---------------------------------------------------------------------------------------------------


def test_a_changed_list_drops_and_adds_nothing_silently(tmp_path: Path, out: Path) -> None:
    one, two = "001-a-red-heart-moves-right-over-green-hills", "002-a-blue-star-moves-up-over-snow"
    assert made(prompts(tmp_path, HEART, STAR), out) == ({"new": (one, two)}, [HEART, STAR])
    first = results(out)
    assert first == {one: f"{HEART} 0", two: f"{STAR} 0"}
    assert (out / f"{one}.json").is_file()
    assert made(prompts(tmp_path, HEART, STAR), out) == ({"done": (one, two)}, [])
    assert results(out) == first

    # A row before it: the others are kept, under their new numbers.
    ring, heart, star = "001-a-green-ring", f"002-{one[4:]}", f"003-{two[4:]}"
    found, again = made(prompts(tmp_path, "A green ring.", HEART, STAR), out)
    assert (found, again) == ({"new": (ring,), "done": (heart, star)}, ["A green ring."])
    assert results(out) == {ring: "A green ring. 0", heart: f"{HEART} 0", star: f"{STAR} 0"}

    # Rows that are gone, and one that takes the place of another.
    found, again = made(prompts(tmp_path, "A green ring.", STAR), out)
    assert (found, again) == ({"done": (ring, two), "dropped": (heart,)}, [])
    assert results(out) == {ring: "A green ring. 0", two: f"{STAR} 0"}
    (away,) = (out / "dropped").glob("*.mp4")
    assert away.name.startswith(heart) and away.read_text() == f"{HEART} 0"

    # Other settings are other videos, and what was there is kept apart.
    found, again = made(prompts(tmp_path, "A green ring.", STAR), out, steps=2)
    assert (found, again) == ({"new": (ring, two), "dropped": (ring, two)}, ["A green ring.", STAR])
    assert len(list((out / "dropped").glob("*.mp4"))) == 3

    # Asked for again, it is there, and no longer among the dropped.
    found, again = made(prompts(tmp_path, HEART), out)
    assert found["done"] == (one,) and again == []
    assert results(out) == {one: f"{HEART} 0"}
    assert not list((out / "dropped").glob("*heart*"))


def test_what_waits_and_is_no_longer_wanted_is_not_made(tmp_path: Path, out: Path) -> None:
    config = config_of(out)
    batch = Batch(read_batch(prompts(tmp_path, HEART, STAR), QUICK, config, 0), config, out)
    assert len(batch.begin().new) == batch.waiting == 2
    with pytest.raises(OutputError, match="in use by another batch"):
        Batch([], config, out)
    batch.close()  # as one that is stopped
    found, again = made(prompts(tmp_path, STAR), out)
    assert [len(names) for names in found.values()] == [1, 1] and set(found) == {"kept", "dropped"}
    assert again == [STAR]
    store = JobStore(config.store)
    assert {job.prompt: job.status for job in store.listed()} == {
        HEART: Status.CANCELLED,
        STAR: Status.COMPLETED,
    }
    store.close()
    assert made(prompts(tmp_path, STAR, HEART), out)[1] == [HEART]


def test_what_is_wanted_again_in_time_is_not_cancelled(tmp_path: Path, out: Path) -> None:
    """Its worker was killed, so that nobody has heard that it was no longer wanted."""
    config = config_of(out)

    def begun(*texts: str) -> list[Job]:
        batch = Batch(read_batch(prompts(tmp_path, *texts), QUICK, config, 0), config, out)
        batch.begin()
        batch.store.lease("killed")
        found = batch.store.queue()
        batch.close()
        return found

    (job,) = begun(HEART)
    assert job.status is Status.RUNNING and job.wish is None
    assert {job.prompt: job.wish for job in begun(STAR)} == {HEART: Wish.CANCEL, STAR: None}
    assert {job.prompt: job.wish for job in begun(HEART)} == {HEART: None, STAR: Wish.CANCEL}


def test_what_is_not_ours_is_left_alone(tmp_path: Path, out: Path) -> None:
    out.mkdir()
    mine = written(out, "001-a-blue-star-moves-up-over-snow.mp4", "mine")
    with pytest.raises(OutputError, match="is no video of this batch"):
        made(prompts(tmp_path, STAR), out)
    assert mine.read_text() == "mine"
    # A store with another folder's videos: its files are not here.
    theirs, config = tmp_path / "theirs", config_of(tmp_path / "theirs")
    other = Batch(read_batch(prompts(tmp_path, HEART), QUICK, config, 0), config, theirs)
    other.begin()
    other.close()
    config = ServiceConfig(data=tmp_path / "third", store=config.store)
    third = Batch(read_batch(prompts(tmp_path, STAR), QUICK, config, 0), config, tmp_path / "third")
    with pytest.raises(InputError, match="give each batch its own"):
        third.begin()
    third.close()


def test_interrupted_in_the_middle_it_goes_on_there(tmp_path: Path, out: Path) -> None:
    """By the real worker: sections that were there are kept, and the result is that of an undisturbed one."""
    listed, config = prompts(tmp_path, HEART), config_of(out)
    given = {**QUICK, "seconds": 6.0, "steps": 12}  # time to be seen at work

    def interrupt(jobs: list[tuple[Video, Job]]) -> None:
        if any(job.progress.get("section", 0) >= 1 for _, job in jobs):
            raise KeyboardInterrupt

    batch = Batch(read_batch(listed, given, config, 0), config, out)
    batch.begin()
    with pytest.raises(KeyboardInterrupt):
        carry_out(batch, Threaded(batch.store, config), Told(interrupt))
    batch.close()
    assert results(out) == {}

    batch, told = Batch(read_batch(listed, given, config, 0), config, out), Told()
    begun = batch.begin()
    assert len(begun.kept) == 1 and not begun.new
    carry_out(batch, Threaded(batch.store, config), told)
    (job,) = told.jobs.values()
    assert job is not None and job.status is Status.COMPLETED and job.progress["kept"] >= 1
    (video,) = out.glob("*.mp4")
    assert len(list(read_video(video).frames)) == 48
    assert video.samefile(batch.service.places.job(job.id).video)
    batch.close()

    plain = tmp_path / "plain"
    other = Batch(read_batch(listed, given, config_of(plain), 0), config_of(plain), plain)
    other.begin()
    carry_out(other, Threaded(other.store, config_of(plain)), Told())
    other.close()
    assert next(iter(plain.glob("*.mp4"))).read_bytes() == video.read_bytes()


# The command -----------------------------------------------------------------------------------------------


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(engines.ENGINES, "processes", Instant)
    yield


def command(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["batch", *map(str, arguments)])
    if isinstance(done.exception, FramePackError):
        return 2, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_the_command_lists_what_failed(tmp_path: Path, out: Path, instant: None) -> None:
    listed = prompts(tmp_path, HEART, "to fail", STAR)
    code, said, told = command(listed, "--out", out, "--seconds", 1.5, "--json")
    assert code == 1, told
    lines = told.splitlines()
    assert lines[0] == "3 videos" and f"done 2 of 3 videos in {out}" in lines
    assert lines[-1] == "failed line 2, 002-to-fail: it was told to"
    summary = json.loads(said)
    assert (summary["made"], summary["there"]) == (2, 0)
    assert [video["line"] for video in summary["videos"]] == [1, 3]
    assert all(Path(video["out"]).is_file() for video in summary["videos"])
    assert summary["failed"] == [{"line": 2, "name": "002-to-fail", "reason": "it was told to"}]
    # It is tried again, and what is done is not.
    code, said, told = command(listed, "--out", out, "--seconds", 1.5, "--json")
    assert code == 1 and json.loads(said)["there"] == 2 and "2 done already, 1 gone on with" in told
    code, said, told = command(prompts(tmp_path, STAR), "--out", out, "--seconds", 1.5)
    assert code == 0 and said == "" and "no longer in the list" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "slurm"), "unknown engine 'slurm': choose one of processes, ray"),
        (("--max-workers", 3), "--max-workers is of Ray's workers"),
        (("--engine", "ray", "--workers", 4, "--max-workers", 3), "--workers 4 is more than"),
        (("--method", "nonsense"), "line 1: .*nonsense"),
        (("--store", "mysql://x/y"), "job store"),
    ],
)
def test_options_that_cannot_be_met(
    tmp_path: Path, out: Path, instant: None, arguments: tuple[object, ...], said: str
) -> None:
    import re

    code, _, told = command(prompts(tmp_path, HEART), "--out", out, *arguments)
    assert code == 2 and re.search(said, told), told
    assert not list(out.glob("*.mp4"))


def test_bars_tell_what_is_made_and_how_long_it_takes(tmp_path: Path, out: Path) -> None:
    config = config_of(out)
    batch = Batch(read_batch(prompts(tmp_path, HEART, STAR), QUICK, config, 0), config, out)
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, width=140)
    with Watch(out, console) as watch:
        watch.begun(batch.begin(), 2)
        taken = batch.store.lease("w")
        assert taken is not None
        progress = Progress(stage="sampling", section=1, sections=4, step=0, steps=5, seconds_left=42.0)
        batch.store.renew(taken[0], progress.to_json())
        watch.running(batch.running())
        watch.bars.refresh()
        seen = shown.getvalue()
        assert "0 of 2" in seen and "section 2 of 4, 42 s left" in seen and "001-a-red-heart" in seen
        total = watch.bars.tasks[0]
        assert total.completed == pytest.approx(taken and progress.fraction, abs=1e-3)
        batch.store.finish(taken[0], Status.CANCELLED, {})
        for video, job in batch.ended():
            watch.ended(video, job)
        watch.running(batch.running())
        assert len(watch.bars.tasks) == 1 and watch.bars.tasks[0].completed == 1
    watch.done()
    assert "it was cancelled" in shown.getvalue()
    batch.close()


def test_a_store_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    config = config_of(out)
    batch = Batch(read_batch(prompts(tmp_path, STAR), QUICK, config, 0), config, out)
    batch.begin()
    queue, asked = batch.store.queue, [0]

    def away() -> list[Job]:
        asked[0] += 1
        if asked[0] == 1:
            raise OperationalError("select", {}, Exception("gone"))
        return queue()

    monkeypatch.setattr(batch.store, "queue", away)
    began = time.monotonic()
    carry_out(batch, Instant(batch.store, config), Told())
    assert asked[0] >= 2 and time.monotonic() >= began
    assert len(results(out)) == 1
    batch.close()

"""Walks through VizDoom's maze: repeatable, truly described, and back where they were."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from framepack.cli import data as verbs
from framepack.data import vizdoom
from framepack.data.clips import cutting_for, survey
from framepack.data.videos import find
from framepack.data.vizdoom import ACTIONS, ROUND, TURN, VIEW, Held, Maze
from framepack.errors import InputError, OutputError
from framepack.evaluation.revisit import view_revisits
from framepack.models.source import resolve_model
from framepack.planning.prompts import read_prompt
from framepack.planning.script import Script
from framepack.video.io import read_video

pytestmark = pytest.mark.usefixtures("one_thread")
installed = importlib.util.find_spec("vizdoom") is not None
needs_vizdoom = pytest.mark.skipif(not installed, reason="VizDoom is not installed: framepack-ai[vizdoom]")
SIZE = (48, 64)


@pytest.fixture(scope="module")
def maze() -> Iterator[Maze]:
    with vizdoom.maze(SIZE) as started:
        yield started


@needs_vizdoom
def test_a_walk_follows_from_its_seed_alone(maze):
    first, other = vizdoom.wander(maze, 0, 0, 60), vizdoom.wander(maze, 0, 1, 60)
    with vizdoom.maze(SIZE) as another:
        again = vizdoom.wander(another, 0, 0, 60)
    assert (first.frames == again.frames).all() and first.held == again.held
    assert first.frames.shape == (60, *SIZE, 3) and first.frames.dtype == np.uint8
    assert not np.array_equal(first.frames, other.frames)


@needs_vizdoom
def test_actions_follow_one_another_and_do_what_they_are_called(maze):
    seen = set()
    for clip in range(3):
        walk = vizdoom.wander(maze, 1, clip, 80)
        assert walk.held[0].start == 0 and walk.held[-1].stop == 79
        for before, after in zip(walk.held, walk.held[1:], strict=False):
            assert before.stop == after.start and before.action != after.action
        assert walk.caption == f"In a maze, the camera {', then '.join(h.action for h in walk.held)}."
        seen |= {held.action for held in walk.held}
    assert seen >= set(ACTIONS) - {"stands still"}
    for action, (turn, step) in ACTIONS.items():
        maze.begin(11)
        places = [maze.place]
        for _ in range(4):
            assert maze.step(action) is not None
            places.append(maze.place)
        (x0, y0, a0), (x1, y1, a1) = places[0], places[-1]
        # The game counts angles to the left.
        assert (a0 - a1 + 180) % 360 - 180 == pytest.approx(4 * TURN * np.sign(turn), abs=1e-3)
        ahead = (x1 - x0) * np.cos(np.radians(a0)) + (y1 - y0) * np.sin(np.radians(a0))
        assert np.sign(round(ahead, 3)) == np.sign(step)


@needs_vizdoom
def test_a_walk_gives_up_at_a_wall(maze):
    """Ahead of every walker there is one; who went on would see the same frame again and again."""
    for clip in range(2):
        walk = vizdoom.wander(maze, 2, clip, 100)
        for held in walk.held:
            if ACTIONS[held.action][1]:
                frames = walk.frames[held.start : held.stop].astype(int)
                assert (np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)) > 0).all()


@needs_vizdoom
@pytest.mark.parametrize("turn", [None, 20, 36])
def test_views_come_back_as_they_were(maze, turn):
    path = vizdoom.revisit_path(maze, 4, 73, turn=turn)
    frames = path.walk.frames
    assert len(frames) == 73 and len(path.pairs) == {None: 9, 20: 5, 36: 21}[turn]
    found = view_revisits(frames, path.pairs, clip="maze")
    # A vest may blink far away.
    assert max(found.error) < 0.5 and found.at == tuple(now for now, _ in path.pairs)
    assert min(found.away) >= 2 * VIEW and max(found.away) == (ROUND if turn is None else 2 * min(turn, 36))
    # Two places of the walk that are no pair differ, and a video that forgot has their error.
    far = view_revisits(frames, [(now, then + VIEW) for now, then in path.pairs])
    assert np.mean(far.error) > 5 and far.error[0] > 10 * found.error[0]
    script = read_prompt(path.prompt)
    assert isinstance(script, Script)
    assert [cue.at for cue in script.cues] == ([0] if turn is None else [0, turn / 8])


@needs_vizdoom
def test_a_path_too_short_to_come_back_is_refused(maze):
    for frames, turn in ((64, None), (33, 12), (20, 18)):
        with pytest.raises(InputError, match="frames: a view is gone and back in 65"):
            vizdoom.revisit_path(maze, 4, frames, turn=turn)
    walk = vizdoom.follow(maze, 4, (Held("pans left", 0, ROUND),))
    assert np.abs(walk.frames[0].astype(int) - walk.frames[-1]).mean() < 0.1


@needs_vizdoom
@pytest.mark.parametrize("by_action", [False, True])
def test_the_command_writes_what_check_reads(tmp_path, by_action):
    out = tmp_path / "walks"
    options = ["--clips", "2", "--frames", "41", "--size", "64x48", *(["--by-action"] if by_action else [])]
    done = CliRunner().invoke(verbs.app, ["vizdoom", str(out), *options])
    assert done.exit_code == 0, done.output
    files = sorted(out.glob("*.mp4"))
    assert [len(list(read_video(file).frames)) for file in files] == [41, 41]
    found = find(out)
    assert not found.rejected
    looked = survey(out, found, cutting_for(resolve_model("bundled").spec))
    captions = [video.caption.strip() for video in found.videos]
    if by_action:
        assert len(found.videos) > 2 and all(", then " not in caption for caption in captions)
        assert found.videos[0].start == 0 and all(v.stop <= 41 / 8 for v in found.videos)
    else:
        assert captions == [file.with_suffix(".txt").read_text().strip() for file in files]
        assert len(looked.clips) == 2 and not looked.rejected
    with pytest.raises(OutputError, match="is there and not empty"):
        list(vizdoom.write_walks(out, 1, 10, SIZE, 0))


def test_numbers_that_make_no_walks_are_refused_and_nothing_is_written(tmp_path):
    for clips, frames, size in ((0, 9, SIZE), (1, 1, SIZE), (1, 9, (8, 64))):
        with pytest.raises(InputError, match="there must be 1 clip of 2 frames"):
            list(vizdoom.write_walks(tmp_path / "out", clips, frames, size, 0))
    done = CliRunner().invoke(verbs.app, ["vizdoom", str(tmp_path / "out"), "--size", "64"])
    assert isinstance(done.exception, InputError) and "give WIDTHxHEIGHT" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_without_vizdoom_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'framepack-ai\[vizdoom\]'"):
        list(vizdoom.write_walks(tmp_path / "out", 1, 9, SIZE, 0))

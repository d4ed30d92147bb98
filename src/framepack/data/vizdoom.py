"""Walks through VizDoom's maze of rooms: clips whose captions are the actions, and views that come back.

The maze is VizDoom's scenario "my way home": textured rooms and no monsters. What is seen follows from the
seed and the actions alone, to the byte, and a turn that is taken back shows the same view again, but for a
vest at the exit that blinks.
"""

from __future__ import annotations

import csv
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framepack.errors import InputError, OutputError
from framepack.planning.script import Cue, Script
from framepack.video.io import write_video
from framepack.video.resize import to_bucket

FPS = 8
"""Of the files; the game's time is a little faster, 35 / `TICS` views a second."""
TICS = 4
TURN = 5.625
"""Degrees from one frame to the next. Of such steps 64 are a full turn, exactly, and 16 a whole view."""
ROUND, VIEW = 64, 16
ACTIONS: dict[str, tuple[float, float]] = {
    "pans left": (-TURN / TICS, 0.0),
    "pans right": (TURN / TICS, 0.0),
    "moves forward": (0.0, 16.0),
    "moves back": (0.0, -16.0),
    "stands still": (0.0, 0.0),
}
"""What the camera does, as captions say it, and the game's turn and step a tic."""
SHARES = (0.3, 0.3, 0.25, 0.1, 0.05)
HELD = (12, 32)
"""Fewest and most frames of an action."""
BLOCKED = 2.0
"""A step shorter than this, in units of the map, has hit a wall; free ones are 10 and more."""
LIST = "actions.csv"


@dataclass(frozen=True)
class Held:
    """From frame ``start`` to frame ``stop`` the camera does ``action``."""

    action: str
    start: int
    stop: int


@dataclass(frozen=True)
class Walk:
    """frames: uint8 (N, H, W, 3). held: what leads from each frame to the next, in order."""

    frames: NDArray[np.uint8]
    held: tuple[Held, ...]

    @property
    def caption(self) -> str:
        """One sentence on all of it."""
        return f"In a maze, the camera {', then '.join(held.action for held in self.held)}."


@dataclass(frozen=True)
class RevisitPath:
    """A walk on which views come back.

    prompt: as ``framepack generate`` takes it. pairs: (now, then) of frames that show the same, ``then`` the
        earlier, where between them nothing of the view was in sight.
    """

    walk: Walk
    prompt: str
    pairs: tuple[tuple[int, int], ...]


class Maze:
    """A running game. ``size`` is (H, W) of its frames."""

    def __init__(self, game: Any, size: tuple[int, int]) -> None:
        self._game, self.size = game, size

    def begin(self, seed: int) -> NDArray[np.uint8]:
        """Stand somewhere in the maze; the first frame."""
        self._game.set_seed(seed)
        self._game.new_episode()
        frame = self._frame()
        assert frame is not None
        return frame

    def step(self, action: str) -> NDArray[np.uint8] | None:
        """The next frame; None where the game ends, as it does at the maze's exit."""
        self._game.make_action(list(ACTIONS[action]), TICS)
        return self._frame()

    @property
    def place(self) -> tuple[float, float, float]:
        """x, y in units of the map, angle in degrees."""
        x, y, angle = self._game.get_state().game_variables
        return float(x), float(y), float(angle)

    def _frame(self) -> NDArray[np.uint8] | None:
        state = self._game.get_state()
        if state is None:
            return None
        return np.asarray(to_bucket(Image.fromarray(state.screen_buffer), self.size))


@contextmanager
def maze(size: tuple[int, int]) -> Iterator[Maze]:
    """The maze, without a window. Starting it takes a second or more, so keep it.

    Raises:
        InputError: VizDoom is not installed.
    """
    if importlib.util.find_spec("vizdoom") is None:
        raise InputError(
            "the maze needs VizDoom, which is not installed: pip install 'framepack-ai[vizdoom]'"
        )
    import vizdoom

    game = vizdoom.DoomGame()
    game.set_doom_scenario_path(str(Path(vizdoom.scenarios_path) / "my_way_home.wad"))
    game.set_doom_map("map01")
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    for part in ("hud", "weapon", "crosshair", "decals", "particles", "messages", "effects_sprites"):
        getattr(game, f"set_render_{part}")(False)
    game.set_available_buttons(
        [vizdoom.Button.TURN_LEFT_RIGHT_DELTA, vizdoom.Button.MOVE_FORWARD_BACKWARD_DELTA]
    )
    game.set_available_game_variables(
        [vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y, vizdoom.GameVariable.ANGLE]
    )
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_episode_start_time(12)  # the screen has melted into the first view by then
    with tempfile.TemporaryDirectory() as folder:
        # Else it writes its settings into the folder that it is started in.
        game.set_doom_config_path(str(Path(folder) / "vizdoom.ini"))
        game.init()
    try:
        yield Maze(game, size)
    finally:
        game.close()


def wander(maze: Maze, seed: int, clip: int, frames: int) -> Walk:
    """A random walk of so many frames; actions are held, and given up at walls."""
    for attempt in range(100):
        rng = np.random.default_rng([seed, clip, attempt])
        walk = _wander(maze, rng, frames)
        if walk is not None:
            return walk
    raise AssertionError("a hundred walks have all ended at the exit")


def _wander(maze: Maze, rng: np.random.Generator, frames: int) -> Walk | None:
    """None where it comes to the exit."""
    shown, held, names = [maze.begin(int(rng.integers(2**31)))], list[Held](), list(ACTIONS)
    blocked = False
    while len(shown) < frames:
        start, before = len(shown) - 1, held[-1].action if held else ""
        free = [
            0.0 if name == before or (blocked and ACTIONS[name][1]) else share
            for name, share in zip(names, SHARES, strict=True)
        ]
        action = names[int(rng.choice(len(names), p=np.array(free) / sum(free)))]
        stop = min(start + int(rng.integers(HELD[0], HELD[1] + 1)), frames - 1)
        blocked = False
        while len(shown) - 1 < stop and not blocked:
            x, y, _ = maze.place
            frame = maze.step(action)
            if frame is None:
                return None
            after = maze.place
            # A step from rest is short too, so the first ones do not count.
            slow = np.hypot(after[0] - x, after[1] - y) < BLOCKED
            blocked = bool(ACTIONS[action][1]) and slow and len(shown) - start > 2
            shown.append(frame)
        held.append(Held(action, start, len(shown) - 1))
    return Walk(np.stack(shown), tuple(held))


def follow(maze: Maze, seed: int, held: Sequence[Held]) -> Walk:
    """The walk from where ``seed`` puts one, by given actions.

    Raises:
        InputError: they lead to the exit.
    """
    shown = [maze.begin(seed)]
    for part in held:
        for _ in range(part.stop - part.start):
            frame = maze.step(part.action)
            if frame is None:
                raise InputError(f"the walk of seed {seed} ends at the exit: give another seed")
            shown.append(frame)
    return Walk(np.stack(shown), tuple(held))


def revisit_path(maze: Maze, seed: int, frames: int, *, turn: int | None = None) -> RevisitPath:
    """A walk on the spot on which views come back: a turn out and back, or all the way round.

    Args:
        turn: the frame from which on the camera turns back; None: it goes round.

    Raises:
        InputError: frames too few for a view to be gone and back.
    """
    ways = ("pans left", "pans right") if seed % 2 else ("pans right", "pans left")
    last = frames - 1
    if turn is None:
        held: tuple[Held, ...] = (Held(ways[0], 0, last),)
        pairs = [(now, now - ROUND) for now in range(ROUND, frames)]
    else:
        held = (Held(ways[0], 0, turn), Held(ways[1], turn, last))
        pairs = [(2 * turn - then, then) for then in range(turn - VIEW, -1, -1) if 2 * turn - then <= last]
    if not pairs:
        raise InputError(
            f"{frames} frames: a view is gone and back in {ROUND + 1} by a full turn, and in {2 * VIEW + 1} "
            f"by one that turns back at frame {VIEW}; ask for more, or turn at another frame"
        )
    cues = tuple(Cue(at=part.start / FPS, prompt=f"In a maze, the camera {part.action}.") for part in held)
    return RevisitPath(follow(maze, seed, held), str(Script(cues)), tuple(pairs))


def write_walks(
    out: Path, clips: int, frames: int, size: tuple[int, int], seed: int, *, by_action: bool = False
) -> Iterator[int]:
    """Write ``walk-00000.mp4`` and so on into a new folder, and yield how many there are, one by one.

    Beside each stands its caption, ``walk-00000.txt``; or where ``by_action``, one list gives each action's
    span of each file a caption of its own.

    Raises:
        InputError: counts or a size that make no clips, or VizDoom is not installed.
        OutputError: the folder is there and not empty, or cannot be written.
    """
    if clips < 1 or frames < 2 or min(size) < 16 or seed < 0:
        raise InputError(
            f"{clips} clips of {frames} frames of {size[1]}x{size[0]} px, seed {seed}: there must be 1 clip "
            "of 2 frames of 16x16 px and a seed of 0 or more; change them"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"'{out}' is there and not empty: name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written ({error.strerror}): name another folder") from error
    rows: list[tuple[str, float, float, str]] = []
    with maze(size) as game:
        for clip in range(clips):
            walk, file = wander(game, seed, clip, frames), out / f"walk-{clip:05d}.mp4"
            write_video(file, iter(walk.frames), FPS)
            if by_action:
                rows += [
                    (file.name, h.start / FPS, (h.stop + 1) / FPS, Walk(walk.frames, (h,)).caption)
                    for h in walk.held
                ]
            else:
                file.with_suffix(".txt").write_text(walk.caption + "\n", encoding="utf-8")
            yield clip + 1
    if by_action:
        with (out / LIST).open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([("file", "start", "stop", "caption"), *rows])

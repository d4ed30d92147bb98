"""Storyboard files: what they say, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from framepack.cli.story import with_storyboard
from framepack.errors import InputError
from framepack.generation.given import Keyframe
from framepack.planning.script import Cue
from framepack.planning.storyboard import Storyboard, read_storyboard

WHOLE = """\
# a story
image: start.png
end_image: end.png
method: planned
seed: 7
negative_prompt: "blue: all of it"
scenes:
  - prompt: a red heart glides right
    seconds: 2
  - prompt: >
      a red heart
      moves up
    seconds: 2.5s
    transition: blend 0.5s
    keyframe: clips/door.mp4@3.5s
  - {prompt: "a red heart: still", seconds: 0.1, transition: cut}
"""


def read(folder: Path, text: str | bytes) -> Storyboard:
    path = folder / "story.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_storyboard(path)


def test_a_whole_storyboard(tmp_path: Path) -> None:
    story = read(tmp_path, WHOLE)
    assert (story.start, story.method, story.seed) == (tmp_path / "start.png", "planned", 7)
    assert story.negative_prompt == "blue: all of it" and story.end_image == tmp_path / "end.png"
    assert story.seconds == 4.6 and story.starts == (0, 2, 4.5)
    assert story.script.cues == (
        Cue(at=0.0, prompt="a red heart glides right"),
        Cue(at=2.0, prompt="a red heart moves up", blend=0.5),
        Cue(at=4.5, prompt="a red heart: still"),
    )
    assert story.keyframes == ((2.0, tmp_path / "clips/door.mp4@3.5s"),)


def test_only_scenes_are_needed(tmp_path: Path) -> None:
    story = read(tmp_path, "scenes: [{prompt: 赤いハートが右へ動く, seconds: 3, keyframe: a.png}]")
    assert (story.image, story.end_image, story.method, story.seed, story.negative_prompt) == (None,) * 5
    assert story.script.prompts == ("赤いハートが右へ動く",)
    assert story.start == tmp_path / "a.png" and story.keyframes == (), "the first scene starts the video"


def test_its_pictures_stand_in_the_video_and_others_can_be_given_beside_it(tmp_path: Path) -> None:
    read(tmp_path, WHOLE)
    board, other = tmp_path / "story.yaml", Keyframe(picture=tmp_path / "other.png")
    door = Keyframe(at=2.0, picture=tmp_path / "clips/door.mp4@3.5s")
    end = Keyframe(picture=tmp_path / "end.png")
    assert with_storyboard(board)["keyframes"] == (door, end)
    assert with_storyboard(board, keyframes=(other,))["keyframes"] == (door, other)
    middle = Keyframe(at=1.0, picture=tmp_path / "other.png")
    assert with_storyboard(board, keyframes=(middle,))["keyframes"] == (door, end, middle)


def test_sums_of_many_scenes_are_exact(tmp_path: Path) -> None:
    scenes = "".join(f"  - {{prompt: p{i}, seconds: 0.1}}\n" for i in range(100))
    story = read(tmp_path, "scenes:\n" + scenes)
    assert story.seconds == 10 and story.script.cues[-1].at == 9.9


SCENES = "scenes:\n  - prompt: a\n    seconds: 1\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SCENES + "    promt: b\n", "line 4: unknown key of a scene 'promt': choose one of prompt, seconds, "
         "transition, keyframe; the nearest is prompt"),
        ("metod: planned\n" + SCENES, "line 1: unknown key of a storyboard 'metod'"),
        (SCENES + "    seconds: 2\n", "line 4: 'seconds' is there twice"),
        (SCENES + "  - prompt: b\n    seconds: 0\n", "line 5: a scene of 0 seconds"),
        (SCENES + "  - prompt: b\n    seconds: -1\n", "line 5: '-1' is not a number of seconds"),
        (SCENES + "  - prompt: b\n    seconds: soon\n", "line 5: 'soon' is not a number of seconds"),
        (SCENES + "  - prompt: b\n    seconds: .inf\n", "line 5: '.inf' is not"),
        (SCENES + "  - prompt: b\n    seconds: [1]\n", "line 5: expected text"),
        (SCENES + "  - prompt: ''\n    seconds: 1\n", "line 4: the prompt is empty"),
        (SCENES + "  - prompt:\n    seconds: 1\n", "line 4: the prompt is empty"),
        (SCENES + "  - seconds: 1\n", "line 4: a scene has no prompt"),
        (SCENES + "  - prompt: b\n", "line 4: a scene has no seconds"),
        (SCENES + "  - b\n", "line 4: a scene is written as 'key: value' lines"),
        (SCENES + "    transition: blend 1s\n", "line 4: the first scene has nothing to blend from"),
        (SCENES + "  - {prompt: b, seconds: 1, transition: blend 2s}\n", "line 4: a blend of 2 s in a"),
        (SCENES + "  - {prompt: b, seconds: 1, transition: wipe}\n", "line 4: transition 'wipe': write cut"),
        (SCENES + "  - {prompt: b, seconds: 1, transition: blend}\n", "line 4: transition 'blend'"),
        (SCENES + "    keyframe: a.png\nimage: b.png\n", "line 2: both image and the keyframe"),
        (SCENES + "seed: -1\n", "line 4: '-1' is not a whole number"),
        (SCENES + "seed: 1.5\n", "line 4: '1.5' is not a whole number"),
        (SCENES + "image:\n", "line 4: expected a path"),
        (SCENES + "image: [a.png]\n", "line 4: expected text"),
        ("scenes: []\n", "line 1: has no scenes"),
        ("method: planned\n", "line 1: has no scenes"),
        ("- a\n", "line 1: a storyboard is written as"),
        ("[1]: 2\n", "line 1: expected text"),
        ("", "is empty"),
        ("scenes:\n\t- a\n", "line 2 is not YAML"),
        ("scenes: [\n", "is not YAML"),
        (SCENES + "---\n" + SCENES, "line 4 is not YAML"),
        ("scenes: *a\n", "line 1 is not YAML"),
        ("[" * 1500, "is nested too deeply"),
        (b"scenes: \xff", "is not UTF-8"),
        (b"scenes: \x00", "is not YAML"),
        (b"#" * 1_000_001, "more than 1,000,000 bytes"),
    ],
)  # fmt: skip
def test_refused_with_its_line(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    told = str(error.value)
    assert words in told and "story.yaml" in told and "\n" not in told and len(told) < 400, told


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_storyboard(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_storyboard(tmp_path)

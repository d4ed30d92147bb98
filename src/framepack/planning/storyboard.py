"""A storyboard: scenes one after the other, in a YAML file.

    image: start.png                # picture that the video starts from
    end_image: end.png              # picture that it ends on
    method: planned
    seed: 7
    negative_prompt: ""
    scenes:
      - prompt: a red heart glides right over the hills
        seconds: 2
      - prompt: a red heart moves up over the hills
        seconds: 2.5
        transition: blend 0.5s      # from the scene before; a cut if left out
        keyframe: clip.mp4@3.5s     # picture, or frame of a clip, that the scene starts with

Only scenes with their prompts and seconds are needed. Paths are relative to the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from framepack.errors import InputError, UnknownNameError, first_line
from framepack.planning.script import Cue, Script

MAX_BYTES = 1_000_000
TOP = ("image", "end_image", "method", "seed", "negative_prompt", "scenes")
SCENE = ("prompt", "seconds", "transition", "keyframe")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """prompt: what happens. seconds: its length. blend: seconds of its transition, 0 is a cut.

    keyframe: picture that it starts with, a file or ``clip.mp4@3.5s``.
    """

    prompt: str
    seconds: float
    blend: float = 0.0
    keyframe: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Storyboard:
    """Scenes in order of time; ``None`` elsewhere is what the file leaves open."""

    scenes: tuple[Scene, ...]
    image: Path | None = None
    end_image: Path | None = None
    method: str | None = None
    seed: int | None = None
    negative_prompt: str | None = None

    @property
    def starts(self) -> tuple[float, ...]:
        """Seconds from the start of the video at which each scene begins."""
        return tuple(math.fsum(scene.seconds for scene in self.scenes[:i]) for i in range(len(self.scenes)))

    @property
    def seconds(self) -> float:
        return math.fsum(scene.seconds for scene in self.scenes)

    @property
    def script(self) -> Script:
        """The scenes' prompts by time. Raises InputError: a blend longer than its scene."""
        return Script(
            tuple(
                Cue(at=at, prompt=scene.prompt, blend=scene.blend)
                for at, scene in zip(self.starts, self.scenes, strict=True)
            )
        )

    @property
    def start(self) -> Path | None:
        """The picture that the video starts from."""
        return self.image or self.scenes[0].keyframe

    @property
    def keyframes(self) -> tuple[tuple[float, Path], ...]:
        """Pictures that scenes after the first start with, and the seconds at which they stand."""
        later = zip(self.starts[1:], self.scenes[1:], strict=True)
        return tuple((at, scene.keyframe) for at, scene in later if scene.keyframe is not None)


def read_storyboard(path: Path) -> Storyboard:
    """A storyboard file.

    Raises:
        InputError: a file that cannot be read, or that holds something else; the line is named.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"storyboard '{path}' has more than {MAX_BYTES:,} bytes: it is none, give another"
            )
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise InputError(f"storyboard '{path}' does not exist: check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"storyboard '{path}' is not UTF-8 text: save it as such") from error
    except OSError as error:
        raise InputError(f"storyboard '{path}' cannot be read ({error.strerror}): check the path") from error
    except yaml.YAMLError as error:
        raise InputError(f"storyboard {_where_of(path, error)} is not YAML: {_why(error)}") from error
    except RecursionError as error:
        raise InputError(f"storyboard '{path}' is nested too deeply: it is none, give another") from error
    if root is None:
        raise InputError(f"storyboard '{path}' is empty: list its scenes under scenes:")
    return _Reader(path).storyboard(root)


class _Reader:
    """Reads composed nodes, so that every error names its line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def storyboard(self, root: yaml.Node) -> Storyboard:
        fields = self._mapping(root, TOP, "a storyboard")
        listed = fields.get("scenes")
        if not isinstance(listed, yaml.SequenceNode) or not listed.value:
            raise self._error(listed or root, "has no scenes: list them under scenes:, each with a dash")
        scenes = tuple(self._scene(node, first=i == 0) for i, node in enumerate(listed.value))
        story = Storyboard(
            scenes=scenes,
            image=self._path(fields["image"]) if "image" in fields else None,
            end_image=self._path(fields["end_image"]) if "end_image" in fields else None,
            method=self._text(fields["method"]) if "method" in fields else None,
            seed=self._whole(fields["seed"]) if "seed" in fields else None,
            negative_prompt=self._text(fields["negative_prompt"]) if "negative_prompt" in fields else None,
        )
        if story.image is not None and story.scenes[0].keyframe is not None:
            raise self._error(
                listed.value[0], "both image and the keyframe of the first scene are its start: keep one"
            )
        return story

    def _scene(self, node: yaml.Node, *, first: bool) -> Scene:
        fields = self._mapping(node, SCENE, "a scene")
        for name in ("prompt", "seconds"):
            if name not in fields:
                raise self._error(node, f"a scene has no {name}: add '{name}: ...'")
        prompt, seconds = self._text(fields["prompt"]).strip(), self._seconds(fields["seconds"])
        if not prompt:
            raise self._error(fields["prompt"], "the prompt is empty: say what happens")
        if seconds <= 0:
            raise self._error(
                fields["seconds"], f"a scene of {seconds:g} seconds: give more than 0, or leave it out"
            )
        blend = self._transition(fields["transition"]) if "transition" in fields else 0.0
        if blend and first:
            raise self._error(fields["transition"], "the first scene has nothing to blend from: leave it out")
        if blend > seconds:
            raise self._error(
                fields["transition"], f"a blend of {blend:g} s in a scene of {seconds:g} s: shorten the blend"
            )
        keyframe = self._path(fields["keyframe"]) if "keyframe" in fields else None
        return Scene(prompt=prompt, seconds=seconds, blend=blend, keyframe=keyframe)

    def _mapping(self, node: yaml.Node, known: tuple[str, ...], what: str) -> Mapping[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(
                node, f"{what} is written as 'key: value' lines, with the keys {', '.join(known)}"
            )
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self._text(key)
            if name not in known:
                raise self._error(key, str(UnknownNameError(f"key of {what}", name, known)))
            if name in fields:
                raise self._error(key, f"'{name}' is there twice: keep one")
            fields[name] = value
        return fields

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "expected text, not a list or keys: put text with a colon in quotes")
        return str(node.value)

    def _path(self, node: yaml.Node) -> Path:
        if not (text := self._text(node).strip()):
            raise self._error(node, "expected a path: give one, or leave the key out")
        return self.path.parent / text

    def _whole(self, node: yaml.Node) -> int:
        if re.fullmatch(r"\d{1,19}", text := self._text(node)) is None:
            raise self._error(node, f"'{text}' is not a whole number from 0 on")
        return int(text)

    def _seconds(self, node: yaml.Node, text: str | None = None) -> float:
        text = self._text(node) if text is None else text
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*s?", text.strip())
        if found is None:
            raise self._error(node, f"'{text}' is not a number of seconds: write it like 2.5")
        return float(found[1])

    def _transition(self, node: yaml.Node) -> float:
        """Seconds of a blend; 0 is a cut."""
        text = self._text(node).strip()
        if text == "cut":
            return 0.0
        if not text.startswith("blend "):
            raise self._error(
                node, f"transition '{text}': write cut, or blend with its seconds, like blend 0.5s"
            )
        return self._seconds(node, text.removeprefix("blend "))

    def _error(self, node: yaml.Node, words: str) -> InputError:
        return InputError(f"storyboard '{self.path}' line {node.start_mark.line + 1}: {words}")


def _where_of(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"'{path}'" if mark is None else f"'{path}' line {mark.line + 1}"


def _why(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or first_line(error))

"""A prompt that changes with time: its cues, and the mix of prompts that a section is made with.

A cue holds from its time until the next one, or until an end of its own. After such an end what held before
goes on: the last cue without an end, or where there is none the first cue. Over the seconds of its blend,
counted from its time, a cue takes the place of what held before bit by bit, and after its end gives it back
the same way; without a blend it is a cut. A blend is over before the next change, so that no section ever
mixes more than two prompts.

Sections are made under one prompt, or one mix, each: that of the middle of its frames. A cut therefore falls
on the border between sections that is nearest to the time asked for.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from functools import cached_property

from framepack.errors import InputError
from framepack.planning import records
from framepack.planning.sections import Span
from framepack.planning.timeline import Timeline

Mix = tuple[tuple[str, float], ...]
"""Prompts with their weights, which are above 0 and add up to 1."""

_CUE = re.compile(r"\[(?=\s*\d)")


@dataclass(frozen=True, kw_only=True)
class Cue:
    """What happens from a time on.

    at, until: seconds from the start of the video; without ``until`` up to the next cue.
    blend: seconds over which it takes the place of what held before; 0 is a cut.
    """

    at: float
    prompt: str
    blend: float = 0.0
    until: float | None = None

    def __str__(self) -> str:
        until = "" if self.until is None else f"-{_plain(self.until)}s"
        blend = f" blend {_plain(self.blend)}s" if self.blend else ""
        prompt = re.sub(r"([]\[\\])", r"\\\1", self.prompt)
        return f"[{_plain(self.at)}s{until}{blend}: {prompt}]"

    @property
    def when(self) -> str:
        return f"{self.at:g} s" if self.until is None else f"{self.at:g} s to {self.until:g} s"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A moment at which the prompt changes: a cue begins, or gives back to what held before it."""

    at: float
    prompt: str
    blend: float


@dataclass(frozen=True)
class Script:
    """Cues in order of time, the first at 0.

    Raises:
        InputError: cues that overlap or are not in order of time, an empty prompt among several, a blend that
            is not over before the next change.
    """

    cues: tuple[Cue, ...]

    @classmethod
    def of(cls, prompt: str) -> Script:
        """One prompt throughout, which may be empty."""
        return cls((Cue(at=0.0, prompt=prompt),))

    def __post_init__(self) -> None:
        first = self.cues[0]
        if first.at != 0:
            raise InputError(
                f"the prompt says nothing before {first.at:g} s: begin with [0s: ...], or with text before "
                "the first bracket"
            )
        if first.blend:
            raise InputError(f"the cue at 0 s has a blend of {first.blend:g} s and nothing before it: cut")
        before: Cue | None = None
        for cue in self.cues:
            _check_cue(cue, before, alone=len(self.cues) == 1)
            before = cue
        for turn, then in zip(self.turns, self.turns[1:], strict=False):
            if turn.blend > then.at - turn.at:
                raise InputError(
                    f"the blend of {turn.blend:g} s from {turn.at:g} s on is not over at {then.at:g} s, "
                    f"where the prompt changes again: at most {then.at - turn.at:g} s fit"
                )

    def __str__(self) -> str:
        """As `read_prompt` reads it."""
        first = self.cues[0]
        if len(self.cues) == 1 and first.until is None and ";;;" not in first.prompt:
            return _CUE.sub(r"\\[", first.prompt)
        return " ".join(map(str, self.cues))

    def to_json(self) -> list[dict[str, object]]:
        return [asdict(cue) for cue in self.cues]

    @classmethod
    def from_json(cls, cues: Sequence[Mapping[str, object]]) -> Script:
        """The script that `to_json` wrote. Raises InputError: an unknown field, or as the class."""
        names = {field.name for field in fields(Cue)}
        return cls(tuple(Cue(**records.known_fields(cue, names, "cue")) for cue in cues))  # type: ignore[arg-type]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Each prompt once, in order of time."""
        return tuple(dict.fromkeys(cue.prompt for cue in self.cues))

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """Where the prompt changes, in order of time."""
        turns: list[Turn] = []
        lasting = self.cues[0].prompt
        for cue, then in zip(self.cues, (*self.cues[1:], None), strict=True):
            turns.append(Turn(at=cue.at, prompt=cue.prompt, blend=cue.blend))
            if cue.until is None:
                lasting = cue.prompt
            elif then is None or cue.until < then.at:
                turns.append(Turn(at=cue.until, prompt=lasting, blend=cue.blend))
        return tuple(turns)

    def check_within(self, timeline: Timeline) -> None:
        """See that every cue lies in the video.

        Raises:
            InputError: one does not.
        """
        end = timeline.seconds + 0.5 / timeline.fps  # lengths asked for are rounded to frames
        for cue in self.cues:
            if cue.at >= timeline.seconds or (cue.until or 0.0) > end:
                raise InputError(
                    f"the cue at {cue.when} is not within the video's {timeline.seconds:g} s: change it, or "
                    "ask for a longer video"
                )

    def mix(self, span: Span, timeline: Timeline) -> Mix:
        """The prompts of a section that writes ``span``, by the middle of its frames.

        A section of two spans is planned only where both come to the same, see `planners.plan`.
        """
        middle = _middle(span, timeline)
        index = max(0, bisect_right([turn.at for turn in self.turns], middle) - 1)
        turn, before = self.turns[index], self.turns[max(0, index - 1)]
        weight = min(1.0, (middle - turn.at) / turn.blend) if turn.blend else 1.0
        if weight == 1.0 or turn.prompt == before.prompt:
            return ((turn.prompt, 1.0),)
        if weight == 0.0:
            return ((before.prompt, 1.0),)
        return ((before.prompt, 1.0 - weight), (turn.prompt, weight))

    def switches(
        self, spans: Sequence[Span], timeline: Timeline, *, whole: bool = False
    ) -> list[tuple[Turn, Span | None]]:
        """Each turn with the first of ``spans`` (in order of time) that follows it; None: too short for any.

        whole: the first that follows nothing else, past the blend.
        """
        middles = [_middle(span, timeline) for span in spans]
        ends = [*(turn.at for turn in self.turns[1:]), math.inf]
        found: list[tuple[Turn, Span | None]] = []
        for turn, end in zip(self.turns, ends, strict=True):
            index = bisect_left(middles, turn.at + (turn.blend if whole else 0.0))
            found.append((turn, spans[index] if index < len(spans) and middles[index] < end else None))
        return found


def _check_cue(cue: Cue, before: Cue | None, *, alone: bool) -> None:
    """A cue by itself and beside the one before it, for `Script`."""
    for name, value in (("time", cue.at), ("end", cue.until or 0.0), ("blend", cue.blend)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"the {name} {value:g} s of a cue must be 0 or more")
    if not cue.prompt.strip() and not alone:
        raise InputError(f"the prompt at {cue.when} is empty: say what happens, or leave the cue out")
    if cue.until is not None and cue.until <= cue.at:
        raise InputError(f"the cue at {cue.when} ends before it begins: put its times in order")
    if before is None:
        return
    if cue.at < before.at:
        raise InputError(f"the cue at {cue.when} stands after the one at {before.when}: put them in order")
    if cue.at == before.at or cue.at < (before.until or 0.0):
        raise InputError(f"the cues at {before.when} and {cue.when} overlap: leave one out, or move it")


def _middle(span: Span, timeline: Timeline) -> float:
    """Seconds from the start of the video to the middle of a span's frames."""
    return (timeline.frames_of(span.start).start + timeline.frames_of(span.stop - 1).stop) / (
        2 * timeline.fps
    )


def _plain(seconds: float) -> str:
    """Shortest decimal digits that stand for the same number."""
    digits = format(Decimal(repr(seconds)), "f")
    return digits.removesuffix(".0")

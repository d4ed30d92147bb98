r"""How prompts by time are written.

By time, as FramePack-Studio has it: cues in brackets, at ``2s``, ``2.5s`` or ``1:05``, with or without an
end, cut or blended. Text before the first bracket holds from 0 s up to it.

    [0s: a red heart glides right] [2s-3.5s: it stops] [1:05 blend 0.5s: it moves up]
    a red heart glides right [2s: it stops]

In a prompt with cues ``\[``, ``\]`` and ``\\`` stand for a bracket and a backslash. A prompt without any is
taken as it is, brackets and all; only ``\[2`` stands for ``[2``, which would begin a cue.

By section, as musubi-tuner has it: whatever the order in which sections are made, 0 is the first in time, -1
the last, 1-3 the second to the fourth. The last entry of several counts, and one from the end before one from
the start; sections without an entry have that of 0, or of the lowest index there is. Text without an index is
for section 0.

    0:a red heart glides right;;;2-3:it stops;;;-1:it moves up
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from framepack.errors import InputError, NotationError
from framepack.planning.script import Cue, Script
from framepack.planning.sections import Span
from framepack.planning.timeline import Timeline

SEPARATOR = ";;;"
_CUE = re.compile(r"(?<!\\)\[(?=\s*\d)")
_TIME = re.compile(r"(?:(\d{1,9}):)?(\d{1,9}):(\d\d(?:\.\d+)?)(?!\d)|(\d{1,9}(?:\.\d+)?)\s*s\b")
_SPACE = re.compile(r"\s*")
_TO = re.compile(r"\s*[-–]\s*")
_BLEND = re.compile(r"\s+blend\s+")
_WORDS = re.compile(r"(?:[^]\[\\]|\\.|\\$)*", re.DOTALL)
_INDEX = re.compile(r"\s*(-?\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*:")


@dataclass(frozen=True)
class SectionPrompts:
    """Prompts by section: (first, last, prompt), where indices below 0 count from the end."""

    entries: tuple[tuple[int, int, str], ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt for _, _, prompt in self.entries))

    def script(self, sections: Sequence[Span], timeline: Timeline) -> Script:
        """The same by time, for a video of these sections, which are in order of time.

        Raises:
            InputError: a section that there is not.
        """
        count = len(sections)
        told: dict[int, str] = {}
        for first, last, prompt in self.entries:
            for index in (first, last):
                if not -count <= index < count:
                    raise InputError(
                        f"section {index} of the prompt: this video has 0 to {count - 1}, or -1 to {-count} "
                        "from the end"
                    )
            told |= dict.fromkeys(range(first, last + 1), prompt)
        # Indices from the start before those from the end, as the smallest among them stands in for 0.
        default = told[0] if 0 in told else told[min(told, key=lambda index: (index < 0, index))]
        cues: list[Cue] = []
        for index, span in enumerate(sections):
            prompt = told.get(index - count, told.get(index, default))
            if not cues or prompt != cues[-1].prompt:
                start = timeline.frames_of(span.start).start / timeline.fps
                cues.append(Cue(at=round(start, 3) if cues else 0.0, prompt=prompt))
        return Script(tuple(cues) or (Cue(at=0.0, prompt=default),))


def read_prompt(text: str) -> Script | SectionPrompts:
    """A prompt as the user wrote it, in any of the three ways.

    Raises:
        NotationError: pointing at the spot. InputError: cues that don't go together, see `Script`.
    """
    if _CUE.search(text):
        return Script(tuple(_cues(text)))
    if SEPARATOR in text:
        return SectionPrompts(tuple(_entries(text)))
    return Script.of(re.sub(r"\\(\[\s*\d)", r"\1", text))


def script_of(prompt: str | Script, sections: Sequence[Span], timeline: Timeline) -> Script:
    """The script of a video that is cut into these sections, in order of time.

    Raises:
        NotationError, InputError: see `read_prompt`; a cue or a section that is not in the video.
    """
    written = read_prompt(prompt) if isinstance(prompt, str) else prompt
    script = written.script(sections, timeline) if isinstance(written, SectionPrompts) else written
    script.check_within(timeline)
    return script


# By time ---------------------------------------------------------------------------------------------


def _cues(text: str) -> list[Cue]:
    opening = _CUE.search(text)
    assert opening is not None
    at, cues = opening.start(), []
    if before := text[:at].strip():
        cues.append(Cue(at=0.0, prompt=_unescaped(before)))
    while at < len(text):
        if text[at] != "[":
            raise NotationError(text, at, "after a cue only another one may follow, such as [2s: it stops]")
        cue, at = _cue(text, at)
        cues.append(cue)
        at = _skip(_SPACE, text, at)
    return cues


def _cue(text: str, opening: int) -> tuple[Cue, int]:
    """The cue whose bracket is at ``opening``, and the index after it."""
    start, at = _time(text, _skip(_SPACE, text, opening + 1))
    until, blend = None, 0.0
    if (after := _skip(_TO, text, at)) > at:
        until, at = _time(text, after)
    if (after := _skip(_BLEND, text, at)) > at:
        blend, at = _time(text, after)
    at = _skip(_SPACE, text, at)
    if not text.startswith((":", "："), at):
        raise NotationError(text, at, "expected a colon and the prompt, such as [2s: it stops]")
    end = _skip(_WORDS, text, at + 1)
    if not text.startswith("]", end):
        rule = (
            "expected ] at the end of the cue" if end == len(text) else r"a bracket in a prompt is written \["
        )
        raise NotationError(text, end, rule)
    prompt = _unescaped(text[at + 1 : end].strip())
    if not prompt:
        raise NotationError(text, end, "the prompt is empty: say what happens, or leave the cue out")
    return Cue(at=start, prompt=prompt, blend=blend, until=until), end + 1


def _time(text: str, at: int) -> tuple[float, int]:
    """Seconds at ``at``, and the index after them."""
    found = _TIME.match(text, at)
    if found is None:
        raise NotationError(
            text, at, r"expected a time, such as 2s, 2.5s or 1:05; write \[ for a plain bracket"
        )
    hours, minutes, rest, seconds = found.groups()
    if seconds is not None:
        return float(seconds), found.end()
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest), found.end()


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The index after ``pattern`` at ``at``, or ``at`` itself where it does not match."""
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _unescaped(text: str) -> str:
    return re.sub(r"\\([]\[\\])", r"\1", text)


# By section ------------------------------------------------------------------------------------------


def _entries(text: str) -> list[tuple[int, int, str]]:
    entries, at = [], 0
    for entry in text.split(SEPARATOR):
        found = _INDEX.match(entry)
        if found is None and at:
            raise NotationError(text, at, "expected a section and a colon, such as 2: or 1-3: or -1:")
        first = 0 if found is None else int(found[1])
        last = first if found is None or found[2] is None else int(found[2])
        if last < first or (first < 0 and last >= 0):
            raise NotationError(text, at, f"sections {first} to {last} are in reversed order")
        prompt = (entry if found is None else entry[found.end() :]).strip()
        if not prompt:
            raise NotationError(text, at + len(entry), "the prompt is empty: say what happens")
        entries.append((first, last, prompt))
        at += len(entry) + len(SEPARATOR)
    return entries

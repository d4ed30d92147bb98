"""Prompts by time: what they say, where the section grid puts it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from framepack.errors import FramePackError
from framepack.planning.method import METHODS, named_method
from framepack.planning.planners import Plan, plan, tiles
from framepack.planning.prompts import SectionPrompts, read_prompt, script_of
from framepack.planning.script import Cue, Script
from framepack.planning.sections import Span
from framepack.planning.timeline import Timeline

often = settings(deadline=None)


def told(text: str) -> list[tuple[float, str, float]]:
    """Time, prompt and blend of every change."""
    script = read_prompt(text)
    assert isinstance(script, Script)
    return [(turn.at, turn.prompt, turn.blend) for turn in script.turns]


def video(sections: int, *known: int, fps: float = 8.0, stride: int = 1, size: int = 3) -> Timeline:
    """Of full sections; one second each with 8 frames a section."""
    latents = sections * size + len(known)
    return Timeline(frames=1 + (latents - 1) * stride, fps=fps, stride=stride, known=known)


def cut(timeline: Timeline, size: int = 3) -> list[Span]:
    return tiles(timeline, named_method("vanilla", base=(1, 1, 1), section_size=size))


# --- how prompts are written ---


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("", [(0, "", 0)]),
        (" a red heart ", [(0, " a red heart ", 0)]),
        ("a [red] heart: 2s", [(0, "a [red] heart: 2s", 0)]),
        (r"\[2s: a\]", [(0, r"[2s: a\]", 0)]),
        ("[0s: a]", [(0, "a", 0)]),
        ("[0s: a] [2s: b]", [(0, "a", 0), (2, "b", 0)]),
        (" [ 0 s :  a ]\n[2.5s:b][1:05: c]", [(0, "a", 0), (2.5, "b", 0), (65, "c", 0)]),
        ("a [1:00:01.5: b]", [(0, "a", 0), (3601.5, "b", 0)]),
        ("a [2s: b]", [(0, "a", 0), (2, "b", 0)]),
        ("[0s：歩く] [2s：走る]", [(0, "歩く", 0), (2, "走る", 0)]),
        (r"[0s: a\[b\] \\ \c] [1s: \]]", [(0, r"a[b] \ \c", 0), (1, "]", 0)]),
        ("[0s: a;;;b] [1s: c: d]", [(0, "a;;;b", 0), (1, "c: d", 0)]),
        # After its end a span gives back to the last cue without one, else to the first cue.
        ("[0s: a] [2s-3.5s: b] [5s: c]", [(0, "a", 0), (2, "b", 0), (3.5, "a", 0), (5, "c", 0)]),
        ("[0s: a] [1s: b] [2s–3s: c]", [(0, "a", 0), (1, "b", 0), (2, "c", 0), (3, "b", 0)]),
        ("[0s: a] [1s-2s: b] [2s-3s: c]", [(0, "a", 0), (1, "b", 0), (2, "c", 0), (3, "a", 0)]),
        ("[0s-1s: a] [2s: b]", [(0, "a", 0), (1, "a", 0), (2, "b", 0)]),
        ("[0s: a] [2s blend 0.5s: b]", [(0, "a", 0), (2, "b", 0.5)]),
        ("a [2s - 4s blend 1s: b]", [(0, "a", 0), (2, "b", 1), (4, "a", 1)]),
    ],
)  # fmt: skip
def test_by_time(text: str, changes: list[tuple[float, str, float]]) -> None:
    assert told(text) == changes


prompts = st.text(st.sampled_from(r"ab [];:\2s-あ"), min_size=1, max_size=9).map(str.strip).filter(bool)


@st.composite
def scripts(draw: st.DrawFn, blends: bool = True, most: int = 5) -> Script:
    """Cues on a grid of quarter seconds, all within six seconds."""
    times = sorted(draw(st.sets(st.integers(1, 23), max_size=most - 1)))
    cues = []
    for at, then in zip([0, *times], [*times, 24], strict=True):
        until = draw(st.none() | st.integers(at + 1, then))
        room = min((until or then) - at, then - until if until and until < then else 24)
        blend = draw(st.integers(0, room)) / 4 if blends and at else 0.0
        ends = None if until is None else until / 4
        cues.append(Cue(at=at / 4, prompt=draw(prompts), blend=blend, until=ends))
    return Script(tuple(cues))


@often
@given(scripts())
def test_a_script_survives_text_and_json(script: Script) -> None:
    assert read_prompt(str(script)) == script
    assert Script.from_json(json.loads(json.dumps(script.to_json()))) == script


@often
@given(prompts)
def test_a_plain_prompt_survives_text(prompt: str) -> None:
    assert read_prompt(str(Script.of(prompt))) == Script.of(prompt)


# The rules of musubi-tuner's fpack_generate_video.py, parse_section_strings and the choice of prompt_index.
@pytest.mark.parametrize(
    ("text", "by_section"),
    [
        ("0:a;;;2:b", "aaba"),
        ("0:a;;;-1:b", "aaab"),
        ("a;;;2-3:b", "aabb"),
        ("0:a;;;1-2:b;;;2:c", "abca"),
        ("0:a;;;3:b;;;-1:c", "aaac"),
        ("-1:c;;;0:a;;;3:b", "aaac"),
        ("2:b;;;3:c", "bbbc"),
        ("-1:b;;;-2:c", "cccb"),
        ("0-3:a;;;-4:z: y", "zaaa"),
        (" 1 - 2 : b;;; 0 : a", "abba"),
    ],
)
def test_by_section(text: str, by_section: str) -> None:
    timeline = video(4, 0, fps=30, stride=4, size=9)
    spans = cut(timeline, 9)
    script = script_of(text, spans, timeline)
    assert "".join(script.mix(span, timeline)[0][0][0] for span in spans) == by_section
    assert read_prompt(str(script)) == script


def test_sections_count_in_order_of_time_whatever_the_order_they_are_made_in() -> None:
    timeline = video(4, 0)
    script = script_of("0:first;;;-1:last", cut(timeline), timeline)
    for name in METHODS:
        made = sections(timeline, name, script)
        first, last = (next(s for s in made.sections if frame in s.frames) for frame in (1, 12))
        assert script.mix(first.spans[0], timeline) == (("first", 1.0),), name
        assert script.mix(last.spans[0], timeline) == (("last", 1.0),), name


def sections(timeline: Timeline, name: str, script: Script) -> Plan:
    return plan(timeline, named_method(name, base=(1, 1, 1), section_size=3), script=script)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[0s: a] [3s: b] [2s: c]", "the cue at 2 s stands after the one at 3 s"),
        ("[0s: a] [3s-2s: b]", "3 s to 2 s ends before it begins"),
        ("[0s: a] [2s-2s: b]", "ends before it begins"),
        ("[0s: a] [1s-3s: b] [2s: c]", "the cues at 1 s to 3 s and 2 s overlap"),
        ("[0s: a] [2s: b] [2s: c]", "the cues at 2 s and 2 s overlap"),
        ("a [0s: b]", "the cues at 0 s and 0 s overlap"),
        ("[2s: a]", "says nothing before 2 s: begin with [0s: ...]"),
        ("[0s blend 1s: a]", "nothing before it"),
        ("[0s: a] [1s blend 2s: b] [2s: c]", "the blend of 2 s from 1 s on is not over at 2 s"),
        ("[0s: a] [1s-2s blend 1s: b] [2.5s: c]", "the blend of 1 s from 2 s on is not over at 2.5 s"),
        ("[0s: a] [6s: b]", "the cue at 6 s is not within the video's 6 s"),
        ("[0s: a] [2s-7s: b]", "the cue at 2 s to 7 s is not within the video's 6 s"),
        ("[0s: a] [" + "9" * 400 + "s: b]", "expected a time"),
        ("[0s: ]", "'[0s: >>>]' does not parse at character 6: the prompt is empty"),
        ("[2 cats]", "'[>>>2 cats]' does not parse at character 2: expected a time"),
        ("[0s a]", "expected a colon"),
        ("[0s: a", "expected ] at the end"),
        ("[0s: a [b] c]", r"a bracket in a prompt is written \["),
        ("[0s: a] b", "'[0s: a] >>>b' does not parse at character 9: after a cue only another"),
        ("[0s: a] [b]", "expected a time"),
        ("[1:5: a]", "expected a time"),
        ("0:a;;;1:", "the prompt is empty"),
        ("0:a;;;", "expected a section and a colon"),
        ("0:a;;;b", "'0:a;;;>>>b' does not parse at character 7: expected a section and a colon"),
        ("0:a;;;2-1:b", "sections 2 to 1 are in reversed order"),
        ("0:a;;;6:b", "section 6 of the prompt: this video has 0 to 5, or -1 to -6 from the end"),
        ("0:a;;;-7:b", "section -7"),
        ("[0s: " + "a" * 500, "a>>>' does not parse at character 506"),
    ],
)
def test_refused_with_one_line(text: str, words: str) -> None:
    timeline = Timeline(frames=48, fps=8, stride=1)
    with pytest.raises(FramePackError) as error:
        script_of(text, cut(timeline, 8), timeline)
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_cue_may_end_with_the_video() -> None:
    timeline = Timeline(frames=48, fps=8, stride=1)
    script = script_of("[0s: a] [4s-6s: b]", cut(timeline, 8), timeline)
    assert [script.mix(span, timeline)[0][0] for span in cut(timeline, 8)] == list("aaaabb")


# --- what a section is made with ---


def exact(script: Script, span: Span, timeline: Timeline) -> dict[str, Fraction]:
    """The same mix from the definition, in fractions."""
    first, last = timeline.frames_of(span.start), timeline.frames_of(span.stop - 1)
    middle = Fraction(first.start + last.stop) / (2 * Fraction(timeline.fps))
    shares: dict[str, Fraction] = {}
    for turn in script.turns:
        if turn.at <= middle:
            share = (
                min(Fraction(1), (middle - Fraction(turn.at)) / Fraction(turn.blend))
                if turn.blend
                else Fraction(1)
            )
            shares = {prompt: old * (1 - share) for prompt, old in shares.items()}
            shares[turn.prompt] = shares.get(turn.prompt, Fraction(0)) + share
    return {prompt: share for prompt, share in shares.items() if share}


grids = st.builds(
    lambda fps, stride, known, frames: Timeline(frames=frames, fps=fps, stride=stride, known=(0,) * known),
    st.sampled_from([8, 16, 24, 30]),
    st.sampled_from([1, 4]),
    st.integers(0, 1),
    st.integers(48, 400),
)


@often
@given(scripts(), grids, st.integers(1, 9))
def test_a_mix_is_that_of_the_middle(script: Script, timeline: Timeline, size: int) -> None:
    for span in cut(timeline, size):
        mix = script.mix(span, timeline)
        expected = exact(script, span, timeline)
        assert {prompt for prompt, _ in mix} == set(expected) and len(mix) == len(expected) <= 2
        assert sum(weight for _, weight in mix) == pytest.approx(1)
        assert all(weight == pytest.approx(float(expected[prompt])) and weight > 0 for prompt, weight in mix)


@often
@given(scripts(blends=False), grids, st.integers(1, 9))
def test_cuts_never_mix(script: Script, timeline: Timeline, size: int) -> None:
    assert all(len(script.mix(span, timeline)) == 1 for span in cut(timeline, size))


@often
@given(st.integers(1, 20), st.integers(1, 24), grids, st.integers(1, 9))
def test_a_blend_only_grows(at: int, blend: int, timeline: Timeline, size: int) -> None:
    script = Script((Cue(at=0.0, prompt="a"), Cue(at=at / 4, prompt="b", blend=blend / 4)))
    shares = [dict(script.mix(span, timeline)).get("b", 0.0) for span in cut(timeline, size)]
    assert shares == sorted(shares)


@often
@given(scripts(), st.integers(1, 95), grids, st.integers(1, 9))
def test_a_later_cue_changes_nothing_before_it(
    script: Script, moved: int, timeline: Timeline, size: int
) -> None:
    """Neither its time nor its prompt, for sections whose middle lies before both its times."""
    last, before = script.cues[-1], Script(script.cues[:-1] or script.cues)
    at = moved / 4
    assume(len(script.cues) > 1 and at > before.turns[-1].at + before.turns[-1].blend)
    other = Script((*before.cues, replace(last, at=at, until=None, prompt="another", blend=0.0)))
    for span in cut(timeline, size):
        first, final = timeline.frames_of(span.start), timeline.frames_of(span.stop - 1)
        if (first.start + final.stop) / (2 * timeline.fps) < min(at, last.at):
            assert script.mix(span, timeline) == other.mix(span, timeline)


# --- where the grid puts a change ---


def switches(text: str, timeline: Timeline, spans: Sequence[Span]) -> list[float | None]:
    script = script_of(text, spans, timeline)
    return [
        None if s is None else timeline.frames_of(s.start).start / timeline.fps
        for _, s in script.switches(spans, timeline)
    ]


def test_a_cut_falls_on_the_nearest_border() -> None:
    timeline = video(6, size=8)
    spans = cut(timeline, 8)  # borders at whole seconds
    assert switches("[0s: a] [2.4s: b]", timeline, spans) == [0, 2]
    assert switches("[0s: a] [2.5s: b]", timeline, spans) == [0, 2]
    assert switches("[0s: a] [2.6s: b]", timeline, spans) == [0, 3]
    assert switches("[0s: a] [2.6s: b] [2.9s: c]", timeline, spans) == [0, None, 3]
    assert switches("[0s: a] [5.9s: b]", timeline, spans) == [0, None]


@often
@given(scripts(blends=False), grids, st.integers(1, 9))
def test_a_switch_is_where_the_mix_changes(script: Script, timeline: Timeline, size: int) -> None:
    spans = cut(timeline, size)
    heard = [span for _, span in script.switches(spans, timeline) if span is not None]
    for before, span in pairwise(spans):
        if script.mix(before, timeline) != script.mix(span, timeline):
            assert span in heard


# --- the order in which stories are made ---


def made(timeline: Timeline, name: str, script: Script | None) -> list[list[tuple[int, str]]]:
    """First latent frame and prompt of each span, in order of generation."""
    found = plan(timeline, named_method(name, base=(1, 1, 1), section_size=3), script=script)
    teller = script or Script.of("a")
    return [[(s.start, teller.mix(s, timeline)[0][0]) for s in section.spans] for section in found.sections]


def test_planned_makes_the_first_sections_of_scenes_and_the_last_of_all_first() -> None:
    timeline = video(12, 0)  # sections of 3/8 s from latent frame 1 on
    script = Script((Cue(at=0.0, prompt="a"), Cue(at=1.5, prompt="b"), Cue(at=3.0, prompt="c")))
    assert made(timeline, "planned", script) == [
        [(34, "c")], [(25, "c")], [(13, "b")], [(1, "a")],
        [(4, "a")], [(7, "a")], [(10, "a")], [(16, "b")], [(19, "b")], [(22, "b")], [(28, "c")], [(31, "c")],
    ]  # fmt: skip
    assert made(timeline, "planned", Script.of("a")) == made(timeline, "planned", None)


def test_a_blended_scene_is_anchored_where_it_is_whole() -> None:
    timeline = video(12, 0)
    script = Script((Cue(at=0.0, prompt="a"), Cue(at=1.5, prompt="b", blend=1.0)))
    first = plan(timeline, named_method("planned", base=(1, 1, 1), section_size=3), script=script).sections[
        :3
    ]
    assert [s.frames[0] for s in first] == [34, 19, 1]
    assert script.mix(first[1].spans[0], timeline) == (("b", 1.0),)
    assert len(script.mix(Span(16, 19), timeline)) == 2


def test_anti_drifting_makes_two_ends_with_two_prompts_apart() -> None:
    timeline = video(4, 0)
    changes = Script((Cue(at=0.0, prompt="a"), Cue(at=0.8, prompt="b")))
    assert made(timeline, "anti-drifting", changes) == [[(10, "b")], [(1, "a")], [(4, "a")], [(7, "b")]]
    returns = Script((Cue(at=0.0, prompt="a"), Cue(at=0.4, prompt="b", until=0.8)))
    assert made(timeline, "anti-drifting", returns) == [[(1, "a"), (10, "a")], [(4, "b")], [(7, "a")]]


@often
@given(scripts(), grids, st.sampled_from(sorted(METHODS)))
def test_every_section_has_one_mix(script: Script, timeline: Timeline, name: str) -> None:
    for section in plan(timeline, named_method(name, base=(1, 1, 1), section_size=7), script=script).sections:
        assert len({script.mix(span, timeline) for span in section.spans}) == 1


def test_by_section_is_no_script_until_there_is_a_video() -> None:
    assert isinstance(read_prompt("0:a;;;1:b"), SectionPrompts)
    assert read_prompt("0:a") == Script.of("0:a"), "as with musubi-tuner, one entry alone is a plain prompt"

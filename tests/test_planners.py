"""Planners: golden tables, the released loops replayed, and properties that hold for every plan."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.errors import InputError
from framepack.packing.schedule import Level, PackingSchedule, Tail
from framepack.planning.known import Known
from framepack.planning.layout import choose
from framepack.planning.method import METHODS, Importance, Method, named_method
from framepack.planning.planners import PLANNERS, Plan, paddings, plan
from framepack.planning.sections import ContextLevel, Section
from framepack.planning.timeline import Timeline

S = 9


def video(frames: int, *known: int) -> Timeline:
    return Timeline(frames=frames, fps=30, stride=4, known=known)


def sections_of(count: int, *known: int) -> Timeline:
    """An image-to-video timeline of exactly ``count`` full sections."""
    return video(1 + 4 * S * count, *(known or (0,)))


def level_of(section: Section, role: str, nearness: int = 0) -> ContextLevel | None:
    found = [level for level in section.context if level.role == role]
    return found[-1 - nearness] if nearness < len(found) else None


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


# Golden tables ---------------------------------------------------------------------------------------

# Spans written by each section, in order of generation: image-to-video, then text-to-video.
#   1 frame: 1 latent; 33: 9; 37: 10; 91: 24 (2 frames trimmed).
SPANS = {
    ("vanilla", 1): ([], [[(0, 1)]]),
    ("vanilla", 33): ([[(1, 9)]], [[(0, 9)]]),
    ("vanilla", 37): ([[(1, 10)]], [[(0, 9)], [(9, 10)]]),
    ("vanilla", 91): ([[(1, 10)], [(10, 19)], [(19, 24)]], [[(0, 9)], [(9, 18)], [(18, 24)]]),
    ("f1", 1): ([], [[(0, 1)]]),
    ("f1", 33): ([[(1, 9)]], [[(0, 9)]]),
    ("f1", 37): ([[(1, 10)]], [[(0, 9)], [(9, 10)]]),
    ("f1", 91): ([[(1, 10)], [(10, 19)], [(19, 24)]], [[(0, 9)], [(9, 18)], [(18, 24)]]),
    ("anti-drifting", 1): ([], [[(0, 1)]]),
    ("anti-drifting", 33): ([[(1, 9)]], [[(0, 9)]]),
    ("anti-drifting", 37): ([[(1, 10)]], [[(0, 9), (9, 10)]]),
    ("anti-drifting", 91): ([[(1, 10), (19, 24)], [(10, 19)]], [[(0, 9), (18, 24)], [(9, 18)]]),
    ("inverted", 1): ([], [[(0, 1)]]),
    ("inverted", 33): ([[(1, 9)]], [[(0, 9)]]),
    ("inverted", 37): ([[(1, 10)]], [[(9, 10)], [(0, 9)]]),
    ("inverted", 91): ([[(19, 24)], [(10, 19)], [(1, 10)]], [[(18, 24)], [(9, 18)], [(0, 9)]]),
    ("inverted-plain", 1): ([], [[(0, 1)]]),
    ("inverted-plain", 33): ([[(1, 9)]], [[(0, 9)]]),
    ("inverted-plain", 37): ([[(1, 10)]], [[(9, 10)], [(0, 9)]]),
    ("inverted-plain", 91): ([[(19, 24)], [(10, 19)], [(1, 10)]], [[(18, 24)], [(9, 18)], [(0, 9)]]),
    ("planned", 1): ([], [[(0, 1)]]),
    ("planned", 33): ([[(1, 9)]], [[(0, 9)]]),
    ("planned", 37): ([[(1, 10)]], [[(9, 10)], [(0, 9)]]),
    ("planned", 91): ([[(19, 24)], [(1, 10)], [(10, 19)]], [[(18, 24)], [(0, 9)], [(9, 18)]]),
}


@pytest.mark.parametrize(("name", "frames"), SPANS)
def test_spans(name, frames):
    for known, expected in zip([(0,), ()], SPANS[name, frames], strict=True):
        made = plan(video(frames, *known), named_method(name)).sections
        assert [[(span.start, span.stop) for span in section.spans] for section in made] == expected


# Start of the spans for n full sections of image-to-video, in order of generation.
FIRSTS = {
    ("vanilla", 1): [1],
    ("vanilla", 2): [1, 10],
    ("vanilla", 4): [1, 10, 19, 28],
    ("vanilla", 5): [1, 10, 19, 28, 37],
    ("f1", 5): [1, 10, 19, 28, 37],
    ("anti-drifting", 1): [1],
    ("anti-drifting", 2): [1, 10],
    ("anti-drifting", 4): [1, 28, 10, 19],
    ("anti-drifting", 5): [1, 37, 10, 19, 28],
    ("inverted", 1): [1],
    ("inverted", 2): [10, 1],
    ("inverted", 4): [28, 19, 10, 1],
    ("inverted", 5): [37, 28, 19, 10, 1],
    ("inverted-plain", 4): [28, 19, 10, 1],
    ("planned", 1): [1],
    ("planned", 2): [10, 1],
    ("planned", 4): [28, 1, 10, 19],
    ("planned", 5): [37, 10, 1, 19, 28],
    ("vanilla", 50): list(range(1, 451, 9)),
    ("f1", 50): list(range(1, 451, 9)),
    ("inverted", 50): list(range(442, 0, -9)),
    ("anti-drifting", 50): [1, 442, *range(10, 442, 9)],
    # Thirteen endpoints, far ones first, then what lies between them.
    ("planned", 50): numbers(
        "442 406 370 334 298 262 226 199 163 127 91 55 19"
        " 1 10 28 37 46 64 73 82 100 109 118 136 145 154 172 181 190 208 217 235 244 253"
        " 271 280 289 307 316 325 343 352 361 379 388 397 415 424 433"
    ),
}


@pytest.mark.parametrize(("name", "count"), FIRSTS)
def test_order_of_full_sections(name, count):
    made = plan(sections_of(count), named_method(name)).sections
    assert [span.start for section in made for span in section.spans] == FIRSTS[name, count]
    assert all(len(span) == S for section in made for span in section.spans)
    assert [section.index for section in made] == list(range(len(made)))


def history(section: Section) -> list[tuple[str, list[int | None], list[int]]]:
    return [(level.role, list(level.frames), list(level.positions)) for level in section.context]


def test_vanilla_91_frames_in_full():
    made = plan(video(91, 0), named_method("vanilla")).sections
    assert [section.positions for section in made] == [
        (1, 2, 3, 4, 5, 6, 7, 8, 9),
        (10, 11, 12, 13, 14, 15, 16, 17, 18),
        (19, 20, 21, 22, 23),
    ]
    assert history(made[0]) == [("history", [0], [0])]
    assert history(made[1]) == [
        ("history", [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]),
        ("history", [7, 8], [7, 8]),
        ("history", [9], [9]),
    ]
    sixteen = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert history(made[2]) == [
        ("history", sixteen, sixteen),
        ("history", [16, 17], [16, 17]),
        ("history", [18], [18]),
    ]
    assert [level.kernel for level in made[2].context] == [(4, 8, 8), (2, 4, 4), (1, 2, 2)]
    assert [(s.past, s.future) for s in made] == [((0,), (None,)), ((9,), (None,)), ((18,), (None,))]


def test_vanilla_keeps_true_indices_once_history_is_cut_off():
    last = plan(sections_of(4), named_method("vanilla")).sections[-1]
    # Frames 9 to 27 are seen, so the lowest index 0 is frame 9.
    assert last.positions == (19, 20, 21, 22, 23, 24, 25, 26, 27)
    assert history(last)[0] == (
        "history",
        [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    )


def test_f1_91_frames_in_full():
    made = plan(video(91, 0), named_method("f1")).sections
    slots = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    absent = [None] * 16
    assert [section.positions for section in made] == [
        (20, 21, 22, 23, 24, 25, 26, 27, 28),
        (20, 21, 22, 23, 24, 25, 26, 27, 28),
        (20, 21, 22, 23, 24),
    ]
    assert history(made[0]) == [
        ("history", absent, slots),
        ("history", [None, None], [17, 18]),
        ("history", [0], [19]),
        ("start", [0], [0]),
    ]
    assert history(made[1]) == [
        ("history", [*absent[:9], 0, 1, 2, 3, 4, 5, 6], slots),
        ("history", [7, 8], [17, 18]),
        ("history", [9], [19]),
        ("start", [0], [0]),
    ]
    dropped = plan(video(91, 0), named_method("f1", absent="drop")).sections
    assert history(dropped[1])[0] == ("history", [0, 1, 2, 3, 4, 5, 6], [10, 11, 12, 13, 14, 15, 16])
    assert dropped[1].positions == made[1].positions


def test_f1_without_an_image_keeps_the_first_generated_frame():
    made = plan(video(91), named_method("f1", absent="drop")).sections
    assert history(made[0]) == []
    assert history(made[1])[-1] == ("start", [0], [0])
    zeros = plan(video(91), named_method("f1")).sections
    assert history(zeros[0])[-1] == ("start", [None], [0])
    assert zeros[0].past == (None,)


def test_anti_drifting_91_frames_in_full():
    made = plan(video(91, 0), named_method("anti-drifting")).sections
    assert made[0].positions == (1, 2, 3, 4, 5, 6, 7, 8, 9, 19, 20, 21, 22, 23)
    assert history(made[0]) == [("history", [0], [0])]
    assert (made[0].past, made[0].future) == ((0, 0), (None, None))
    assert history(made[1])[-2:] == [("history", [9], [9]), ("end", [19], [19])]
    assert (made[1].past, made[1].future) == ((9,), (19,))


def test_anti_drifting_with_an_end_keyframe_goes_forward_to_it():
    made = plan(video(91, 0, -1), named_method("anti-drifting", max_gap=3)).sections
    assert [[(s.start, s.stop) for s in m.spans] for m in made] == [[(1, 10)], [(10, 19)], [(19, 23)]]
    assert history(made[0]) == [("history", [0], [0]), ("end", [23], [13])]  # 3 missing frames are kept
    assert made[2].future == (23,)


def test_inverted_91_frames_in_full():
    made = plan(video(91, 0), named_method("inverted", absent="drop")).sections
    assert [section.positions for section in made] == [
        (19, 20, 21, 22, 23),
        (10, 11, 12, 13, 14, 15, 16, 17, 18),
        (1, 2, 3, 4, 5, 6, 7, 8, 9),
    ]
    assert history(made[0]) == [("start", [0], [0])]
    assert history(made[1]) == [
        ("history", [22, 23], [22, 23]),
        ("history", [20, 21], [20, 21]),
        ("history", [19], [19]),
        ("start", [0], [0]),
    ]
    eleven = [13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]
    assert history(made[2]) == [
        ("history", eleven, [13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]),
        ("history", [11, 12], [11, 12]),
        ("history", [10], [10]),
        ("start", [0], [0]),
    ]
    assert [(s.past, s.future) for s in made] == [((0,), (None,)), ((0,), (19,)), ((0,), (10,))]


def test_inverted_gaps_are_clamped():
    method = named_method("inverted-plain", max_gap=27)
    first = plan(sections_of(50), method).sections[0]
    assert first.frames == (442, 443, 444, 445, 446, 447, 448, 449, 450)
    assert first.positions == (28, 29, 30, 31, 32, 33, 34, 35, 36)
    assert history(first) == [("start", [0], [0])]


def test_inverted_plain_91_frames_in_full():
    made = plan(video(91, 0), named_method("inverted-plain", max_gap=3)).sections
    # Three of the missing frames are kept between the start and what is made.
    assert [section.positions for section in made] == [
        (4, 5, 6, 7, 8),
        (4, 5, 6, 7, 8, 9, 10, 11, 12),
        (1, 2, 3, 4, 5, 6, 7, 8, 9),
    ]
    assert history(made[0]) == [("start", [0], [0])]
    assert history(made[1]) == [
        ("history", [22, 23], [16, 17]),
        ("history", [20, 21], [14, 15]),
        ("history", [19], [13]),
        ("start", [0], [0]),
    ]
    assert history(made[2]) == [
        ("history", list(range(13, 24)), list(range(13, 24))),
        ("history", [11, 12], [11, 12]),
        ("history", [10], [10]),
        ("start", [0], [0]),
    ]
    assert [(s.past, s.future) for s in made] == [((0,), (None,)), ((0,), (19,)), ((0,), (10,))]
    true = plan(video(91, 0), named_method("inverted-plain")).sections
    assert [section.positions for section in true] == [section.frames for section in true]


def test_a_tail_keeps_its_gaps_and_no_more():
    schedule = PackingSchedule((Level(1, (1, 2, 2)),), Tail.APPEND, start=(Level(1, (1, 2, 2)),))
    method = Method(schedule=schedule, order="inverted", section_size=S, max_gap=2)
    made = plan(sections_of(4), method).sections
    assert made[1].positions == tuple(range(3, 12))
    assert [(level.role, level.frames, level.positions) for level in made[1].context] == [
        ("tail", range(29, 37), range(13, 21)),
        ("history", (28,), (12,)),
        ("start", (0,), (0,)),
    ]


def test_absent_frames_get_indices_of_their_own():
    schedule = PackingSchedule.parse("f1k1f2k1_x_td_f3k1f1k1_x_f1k1f1k1")
    method = Method(schedule=schedule, order="vanilla", section_size=S, absent="zeros")
    only = plan(video(33, 0), method).sections[0]  # frame 0 is the start; no history, no end
    assert only.positions == (7, 8, 9, 10, 11, 12, 13, 14)
    assert history(only) == [
        ("history", [None, None, None], [2, 3, 4]),
        ("history", [None], [5]),
        ("start", [0], [6]),
        ("start", [None, None], [0, 1]),
        ("end", [None], [15]),
        ("end", [None], [16]),
    ]


def test_inverted_slots_with_a_tail_and_an_end():
    schedule = PackingSchedule.parse("f1k1_x_tc_f1k2f1k1_x_f1k1f2k1")
    method = Method(schedule=schedule, order="inverted", section_size=S, positions="released")
    last = plan(sections_of(3), method).sections[-1]
    assert last.positions == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    near_to_far = [("history", [11], [11]), ("history", [10], [10])]
    assert history(last) == [
        ("tail", list(range(12, 25)), [12]),
        *near_to_far,
        ("start", [0], [0]),
        ("end", [25], [13]),
        ("end", [26, 27], [14, 15]),
    ]
    zeros = plan(sections_of(3), replace(method, absent="zeros")).sections
    assert history(zeros[0])[-2:] == [("end", [None], [31]), ("end", [None, None], [32, 33])]
    # Half an end: what is known of the video's last frames stays at the far side.
    short = plan(video(1 + 4 * 10, 0), replace(method, absent="zeros")).sections[-1]
    assert history(short)[-2:] == [("end", [None], [13]), ("end", [None, 10], [14, 15])]


def test_planned_91_frames_in_full():
    made = plan(video(91, 0), named_method("planned")).sections
    assert history(made[0]) == [("history", [0], [0])]
    assert history(made[1]) == [("history", [0], [0]), ("end", [19], [19])]
    assert history(made[2])[-2:] == [("history", [9], [9]), ("end", [19], [19])]


def test_planned_takes_endpoints():
    made = plan(sections_of(6), named_method("planned"), endpoints=[12, -1]).sections
    assert [section.spans[0].start for section in made] == [46, 10, 1, 19, 28, 37]
    assert made[1].future == (46,) and made[2].future == (10,)
    with pytest.raises(InputError, match="endpoint 55"):
        plan(sections_of(6), named_method("planned"), endpoints=[55])
    with pytest.raises(InputError, match="planned"):
        plan(sections_of(6), named_method("vanilla"), endpoints=[12])


# The released loops ----------------------------------------------------------------------------------


def released_inverted(count: int) -> list[dict[str, list]]:
    """Index arithmetic of the released inverted loop; history holds timeline indices, None for zeros."""
    size, sizes = 9, [1, 2, 16]
    buffer: list[int | None] = [None] * sum(sizes)
    rows = []
    for k in range(count):
        pads = list(reversed(range(count)))
        if count > 4:
            pads = [3] + [2] * (count - 3) + [1, 0]
        indices = iter(range(1 + pads[k] * size + size + sum(sizes)))
        start, _, target, near, two, four = (
            [next(indices) for _ in range(n)] for n in (1, pads[k] * size, size, *sizes)
        )
        made = list(range(1 + (count - 1 - k) * size, 1 + (count - k) * size))
        rows.append(
            {
                "target": [made, target],
                "start": [[0], start],
                "near": [buffer[:1], near],
                "two": [buffer[1:3], two],
                "four": [buffer[3:19], four],
            }
        )
        buffer = made + buffer
    return rows


def released_f1(count: int) -> list[dict[str, list]]:
    """Index arithmetic of the released F1 loop (sampling type vanilla in diffusers)."""
    size, sizes = 9, [16, 2, 1]
    buffer: list[int | None] = [None] * sum(sizes) + [0]
    rows = []
    for k in range(count):
        indices = iter(range(1 + sum(sizes) + size))
        start, four, two, near, target = ([next(indices) for _ in range(n)] for n in (1, *sizes, size))
        made = list(range(1 + k * size, 1 + (k + 1) * size))
        rows.append(
            {
                "target": [made, target],
                "start": [[0], start],
                "near": [buffer[-1:], near],
                "two": [buffer[-3:-1], two],
                "four": [buffer[-19:-3], four],
            }
        )
        buffer = buffer + made
    return rows


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 50])
@pytest.mark.parametrize(("name", "loop"), [("inverted", released_inverted), ("f1", released_f1)])
def test_full_sections_agree_with_the_released_loops(name, loop, count):
    made = plan(sections_of(count), named_method(name)).sections
    assert len(made) == count
    for section, row in zip(made, loop(count), strict=True):
        four, two, near, start = section.context
        assert [level.role for level in section.context] == ["history", "history", "history", "start"]
        assert [level.kernel for level in section.context] == [(4, 8, 8), (2, 4, 4), (1, 2, 2), (1, 2, 2)]
        assert [list(section.frames), list(section.positions)] == row["target"]
        for key, level in (("start", start), ("near", near), ("two", two), ("four", four)):
            assert [list(level.frames), list(level.positions)] == row[key], key


@pytest.mark.parametrize("name", ["inverted", "f1"])
def test_dropping_absent_history_changes_nothing_else(name):
    zeros = plan(sections_of(5), named_method(name)).sections
    drops = plan(sections_of(5), named_method(name, absent="drop")).sections
    for zero, drop in zip(zeros, drops, strict=True):
        assert zero.positions == drop.positions

        def present(section: Section) -> list[tuple[str, int, int]]:
            pairs = (
                (c.role, f, p) for c in section.context for f, p in zip(c.frames, c.positions, strict=True)
            )
            return [(role, f, p) for role, f, p in pairs if f is not None]

        assert present(zero) == present(drop)
        assert all(None not in level.frames and level.frames for level in drop.context)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [1, 0]), (4, [3, 2, 1, 0]), (5, [3, 2, 2, 1, 0]), (50, [3] + [2] * 47 + [1, 0])],
)
def test_paddings(count, expected):
    assert paddings(count) == expected


# Properties ------------------------------------------------------------------------------------------

sizes = st.integers(1, 6)
level_lists = st.lists(
    st.builds(Level, st.integers(1, 12), st.tuples(sizes, sizes, sizes)), min_size=1, max_size=4
).map(tuple)
pinned_lists = st.one_of(st.just(()), level_lists)
schedules = st.builds(PackingSchedule, level_lists, st.sampled_from(Tail), pinned_lists, pinned_lists)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    stride = draw(st.integers(1, 5))
    frames = draw(st.integers(1, 150 * stride))
    length = 1 + -(-(frames - 1) // stride)
    known = draw(st.lists(st.integers(0, length - 1), max_size=4))
    return Timeline(frames=frames, fps=8, stride=stride, known=tuple(known))


@st.composite
def methods(draw: st.DrawFn) -> Method:
    order, rule = draw(
        st.sampled_from(
            [(order, "gap") for order in PLANNERS]
            + [("inverted", "released"), ("f1", "constant"), ("vanilla", "constant")]
        )
    )
    return Method(
        schedule=draw(schedules),
        order=order,
        section_size=draw(st.integers(1, 12)),
        absent=draw(st.sampled_from(["drop", "zeros"])),
        positions=rule,
        max_gap=draw(st.none() | st.integers(0, 20)),
        importance=Importance(
            kind=draw(st.sampled_from(["time", "similarity"])), pool=draw(st.integers(1, 20))
        ),
    )


@settings(max_examples=300, deadline=None)
@given(timelines(), methods())
def test_every_unknown_frame_is_written_once_and_no_known_one(timeline, method):
    made = plan(timeline, method).sections
    written = [frame for section in made for frame in section.frames]
    assert len(set(written)) == len(written)
    assert set(written) | set(timeline.known) == set(range(timeline.latent_frames))
    assert not set(written) & set(timeline.known)
    spans = [span for section in made for span in section.spans]
    assert all(1 <= len(span) <= method.section_size for span in spans)


@settings(max_examples=300, deadline=None)
@given(timelines(), methods())
def test_a_section_sees_only_what_exists_and_within_its_schedule(timeline, method):
    known = set(timeline.known)
    schedule = method.schedule
    grid = (13, 17)
    limit = schedule.limit_tokens(grid)
    for section in plan(timeline, method).sections:
        assert set(section.context_frames) <= known
        assert set(section.candidates) <= known
        assert len(section.positions) == len(section.frames)
        roles = [level.role for level in section.context]
        assert roles == sorted(roles, key=["tail", "history", "start", "end"].index)
        for level in section.context:
            assert level.present == sorted(level.present)
            shared = level.mean or (level.role == "tail" and method.positions != "gap")
            assert len(level.positions) == (1 if shared else len(level.frames))
            assert all(position >= 0 for position in level.positions)
            assert level.frames
            if method.absent == "drop":
                assert None not in level.frames
        for role, most in (
            ("history", schedule.history_frames),
            ("start", schedule.start_frames),
            ("end", schedule.end_frames),
        ):
            count = sum(len(level.frames) for level in section.context if level.role == role)
            assert count <= most if method.absent == "drop" else count == most
        if limit is not None:
            assert section.tokens(grid, "tail", "history") <= limit
        for i, span in enumerate(section.spans):
            fine = {f for level in section.context if level.role != "tail" for f in level.present}
            assert section.past[i] == max((f for f in fine if f < span.start), default=None)
            assert section.future[i] == min((f for f in fine if f >= span.stop), default=None)
        known.update(section.frames)


@settings(max_examples=300, deadline=None)
@given(timelines(), methods())
def test_gap_positions_follow_time(timeline, method):
    method = replace(method, positions="gap")
    for section in plan(timeline, method).sections:
        pairs = set(zip(section.frames, section.positions, strict=True))
        absent: list[int] = []
        for level in section.context:
            if level.mean:
                continue
            for frame, position in zip(level.frames, level.positions, strict=True):
                if frame is None:
                    absent.append(position)
                else:
                    pairs.add((frame, position))
        ordered = sorted(pairs)
        # One position a frame, rising with time, steps as in time but for clamped gaps.
        assert len({frame for frame, _ in ordered}) == len(ordered)
        means = any(level.mean for level in section.context)
        for (frame, at), (after, then) in pairwise(ordered):
            step = after - frame
            if method.max_gap is not None and not means:
                step = min(step, method.max_gap + 1)
            assert then - at == step or (means and 0 < then - at <= step)
        lows = [p for _, p in ordered] + absent + [p for c in section.context for p in c.positions]
        assert min(lows) == 0
        assert len(set(absent)) == len(absent)
        assert not set(absent) & {p for _, p in ordered}


@settings(max_examples=300, deadline=None)
@given(timelines(), methods(), st.sampled_from([Tail.APPEND, Tail.COMPRESS]))
def test_with_a_tail_no_history_is_lost_or_seen_twice(timeline, method, tail):
    method = replace(method, schedule=replace(method.schedule, tail=tail))
    known = set(timeline.known)
    for section in plan(timeline, method).sections:
        if method.order == "inverted":
            history = {f for f in known if f >= section.spans[0].stop}
        else:
            history = {f for f in known if f < section.spans[0].start}
        seen = [f for level in section.context for f in level.present if f in history]
        if method.order == "f1":  # which keeps its start frames in the history too
            seen = [f for c in section.context if c.role in ("history", "tail") for f in c.present]
        assert sorted(seen) == sorted(history)
        known.update(section.frames)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), level_lists, st.sampled_from(Tail), st.booleans())
def test_inverted_is_the_mirror_image_of_vanilla(count, size, levels, tail, zeros):
    """With full sections and the far end known, planning backward is planning forward in a mirror."""
    schedule = PackingSchedule(levels, tail)
    absent = "zeros" if zeros else "drop"
    length = 1 + count * size
    mirrored = {}
    for order, known in (("vanilla", 0), ("inverted", -1)):
        method = Method(schedule=schedule, order=order, section_size=size, absent=absent)
        timeline = Timeline(frames=length, fps=8, stride=1, known=(known,))
        mirrored[order] = plan(timeline, method).sections
    for forward, backward in zip(mirrored["vanilla"], mirrored["inverted"], strict=True):
        assert [length - 1 - f for f in forward.frames] == list(backward.frames)[::-1]
        assert [c.kernel for c in forward.context] == [c.kernel for c in backward.context]
        top = max(p for c in backward.context for p in c.positions)
        assert [top - p for p in forward.positions] == list(backward.positions)[::-1]
        for one, other in zip(forward.context, backward.context, strict=True):
            assert [None if f is None else length - 1 - f for f in one.frames] == list(other.frames)[::-1]
            assert [top - p for p in one.positions] == list(other.positions)[::-1]


@settings(max_examples=100, deadline=None)
@given(timelines(), methods())
def test_planning_is_deterministic(timeline, method):
    assert plan(timeline, method) == plan(timeline, method)


# Keyframes, tails, symmetry, importance --------------------------------------------------------------


def test_keyframes_in_the_middle_are_anchors_on_both_sides():
    timeline = video(149, 0, 15)  # 38 latent frames
    assert timeline.latent_frames == 38
    spans = {
        "vanilla": [1, 10, 16, 25, 34],
        "anti-drifting": [1, 34, 10, 16, 25],
        "inverted": [34, 25, 16, 10, 1],
        "planned": [34, 10, 1, 16, 25],
    }
    for name, starts in spans.items():
        made = plan(timeline, named_method(name)).sections
        assert [span.start for section in made for span in section.spans] == starts, name
    inverted = plan(timeline, named_method("inverted-plain")).sections
    assert inverted[0].past == (15,)  # the nearest known frame before the gap
    assert inverted[2].past == (15,)
    assert inverted[3].future == (15,) and inverted[3].past == (0,)
    anti = plan(timeline, named_method("anti-drifting")).sections
    assert anti[0].past == (0, 15) and anti[0].future == (15, None)


def test_vanilla_sees_a_keyframe_ahead_only_with_end_levels():
    blind = plan(video(91, 0, -1), named_method("vanilla")).sections
    assert all(section.future == (None,) for section in blind)
    schedule = PackingSchedule.parse("td_f1k1_x_f1k1")
    seeing = plan(video(91, 0, -1), replace(named_method("vanilla"), schedule=schedule)).sections
    assert all(section.future == (23,) for section in seeing)


def test_inverted_with_an_end_keyframe_begins_beside_it():
    first = plan(video(91, 0, -1), named_method("inverted")).sections[0]
    assert first.frames == (19, 20, 21, 22)
    near = level_of(first, "history")
    assert near is not None and (near.frames, near.positions) == ((23,), (23,))


def test_extending_a_clip():
    clip = tuple(range(20))
    made = plan(Timeline(frames=40, fps=8, stride=1, known=clip), named_method("f1", (1, 1, 1), 6)).sections
    assert [section.spans[0].start for section in made] == [20, 26, 32, 38]
    assert history(made[0])[:3] == [
        ("history", list(range(1, 17)), list(range(1, 17))),
        ("history", [17, 18], [17, 18]),
        ("history", [19], [19]),
    ]
    back = plan(
        Timeline(frames=40, fps=8, stride=1, known=clip), named_method("inverted", (1, 1, 1), 6)
    ).sections
    assert all(section.past == (19,) for section in back)


@pytest.mark.parametrize("order", ["vanilla", "inverted"])
def test_tails(order):
    known = 0 if order == "vanilla" else -1
    plans = {}
    for tail in Tail:
        schedule = PackingSchedule((Level(2, (1, 4, 4)), Level(1, (1, 2, 2))), tail)
        method = Method(schedule=schedule, order=order, section_size=S)
        plans[tail] = plan(sections_of(3, known), method).sections[-1]
    assert level_of(plans[Tail.DELETE], "tail") is None
    mean, pooled = level_of(plans[Tail.COMPRESS], "tail"), level_of(plans[Tail.APPEND], "tail")
    expected = range(0, 16) if order == "vanilla" else range(12, 28)
    assert mean is not None and mean.mean and mean.frames == expected
    assert mean.tokens((60, 104)) == 15 * 26
    nearest = 15 if order == "vanilla" else 0
    assert mean.frames.index(15 if order == "vanilla" else 12) == nearest
    # The mean stands where the tail frame nearest to the levels does, one before (after) frame 16 (11).
    far = level_of(plans[Tail.COMPRESS], "history", nearness=1)
    assert far is not None and abs(mean.positions[0] - far.positions[0 if order == "vanilla" else -1]) == 1
    assert pooled is not None and pooled.pool == (1, 32, 32) and pooled.frames == expected
    assert len(pooled.positions) == 16
    assert pooled.kernel == mean.kernel == (1, 4, 4)


def test_symmetric_fills_both_ends_by_rank():
    schedule = PackingSchedule.parse("f1k1f2k2_x_td_f2k2f1k1")
    method = Method(schedule=schedule, order="vanilla", section_size=S)
    made = plan(sections_of(2), method).sections
    assert history(made[0]) == [("start", [0], [0])]  # a frame is seen once, and the start comes first
    assert [frames for _, frames, _ in history(made[1])] == [[7, 8], [9], [0], [1, 2]]
    assert [role for role, _, _ in history(made[1])] == ["history", "history", "start", "start"]


def similar(**changes: object) -> Method:
    importance = Importance(kind="hybrid", pool=30)
    return replace(named_method("vanilla"), importance=importance, **changes)  # type: ignore[arg-type]


def test_the_pool_holds_the_near_and_samples_the_far():
    made = plan(sections_of(40), similar()).sections
    assert made[0].candidates == (0,)
    assert made[2].candidates == tuple(range(19))
    last = made[-1]  # writes 352 to 360
    near, far = last.candidates[-30:], last.candidates[:-30]
    assert near == tuple(range(322, 352))
    assert len(far) == 30
    assert {b - a for a, b in pairwise(far)} <= {10, 11} and far[0] <= 10 and far[-1] >= 311
    assert all(len(section.candidates) <= 60 for section in made)


def test_choosing_gives_fine_levels_to_important_frames():
    section = plan(sections_of(40), similar(max_gap=9)).sections[-1]
    assert (
        choose(section, section.candidates[::-1], similar(max_gap=9)) == section
    )  # nearest first: the default
    far = list(section.candidates[:10])
    chosen = choose(section, far + list(section.candidates[10:][::-1]), similar(max_gap=9))
    four, two, one = chosen.context
    assert one.frames == (far[0],)
    assert two.frames == tuple(far[1:3])
    assert four.frames == (*far[3:10], *range(343, 352))
    ordered = sorted(
        pair for level in chosen.context for pair in zip(level.frames, level.positions, strict=True)
    )
    assert [p for _, p in ordered][:4] == [0, 10, 20, 30]  # gaps clamped to nine missing frames
    assert chosen.past == (351,) and chosen.candidates == section.candidates
    assert chosen.positions[0] == ordered[-1][1] + 1


def test_f1_may_choose_its_start_frame_again():
    importance = Importance(kind="similarity", pool=30)
    section = plan(sections_of(1), replace(named_method("f1"), importance=importance)).sections[0]
    assert section.candidates == (0,)
    kept = replace(named_method("vanilla"), importance=importance)
    kept = kept.with_schedule(PackingSchedule.named("start-frame"))
    assert plan(sections_of(2), kept).sections[1].candidates == tuple(range(1, 10))


def test_choosing_under_constant_positions_keeps_the_slots():
    method = replace(named_method("f1"), importance=Importance(kind="similarity", pool=4))
    section = plan(sections_of(9), method).sections[-1]
    chosen = choose(section, section.candidates, method)
    assert [level.positions for level in chosen.context] == [level.positions for level in section.context]
    near = level_of(chosen, "history")
    assert near is not None and near.frames == (section.candidates[0],)


@pytest.mark.parametrize("ranking", [[0, 0], [360], [-1]])
def test_a_ranking_is_made_of_candidates(ranking):
    section = plan(sections_of(40), similar()).sections[-1]
    with pytest.raises(ValueError, match="candidates"):
        choose(section, ranking, similar())


# Bounded context, JSON, speed ------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("known", [(), (0,), (0, -1)])
def test_context_does_not_grow_with_the_video(name, known):
    method = named_method(name, (1, 1, 1), 6)
    shown = []
    for seconds in (5, 60, 600):
        timeline = Timeline.from_seconds(seconds, fps=8, stride=1, known=known)
        record = plan(timeline, method).to_json((8, 8))
        shown.append([record[key] for key in ("context_tokens", "limit_tokens", "nominal_limit")])
    assert shown == [[96, 96, 96.0]] * 3


def test_plan_json():
    record = plan(video(91, 0), named_method("inverted")).to_json((60, 104))
    assert {key: value for key, value in record.items() if key != "sections"} == {
        "method": "f1k1_x_g9_f1k1f2k2f16k4_td",
        "order": "inverted",
        "frames": 91,
        "latent_frames": 24,
        "known": [0],
        "loop": 0,
        "fps": 30,
        "context_tokens": 2366,
        "start_tokens": 1560,
        "end_tokens": 0,
        "limit_tokens": 2366,
        "nominal_limit": 2340.0,
    }
    rows = record["sections"]
    assert isinstance(rows, list)
    assert rows[0] == {
        "index": 0,
        "frames": [19, 20, 21, 22, 23],
        "spans": [[19, 24]],
        "positions": [19, 20, 21, 22, 23],
        "context": [
            {"role": "history", "kernel": [4, 8, 8], "frames": [None] * 16, "positions": list(range(27, 43))},
            {"role": "history", "kernel": [2, 4, 4], "frames": [None, None], "positions": [25, 26]},
            {"role": "history", "kernel": [1, 2, 2], "frames": [None], "positions": [24]},
            {"role": "start", "kernel": [1, 2, 2], "frames": [0], "positions": [0]},
        ],
        "past": [0],
        "future": [None],
    }


def test_an_empty_plan():
    empty = plan(video(1, 0), named_method("vanilla"))
    assert empty.sections == ()
    assert empty.to_json((60, 104))["context_tokens"] == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("spec", ["temporal", "symmetric", "kernel-row", "ta_f16k4f2k2f1k1"])
def test_planning_hours_takes_moments(name, spec):
    """6,000 s at 8 latent frames a second; a tail stays one range, whatever its length."""
    method = named_method(name, (1, 1, 1), 6).with_schedule(PackingSchedule.from_spec(spec, (1, 1, 1)))
    timeline = Timeline.from_seconds(6000, fps=8, stride=1, known=(0,))
    began = time.process_time()
    made: Plan = plan(timeline, method)
    assert sum(len(section.frames) for section in made.sections) == 47_999
    assert time.process_time() - began < 5  # about 0.3 s; the margin is for a busy machine
    longest = max(len(json.dumps(section.to_json())) for section in made.sections)
    assert longest < 3000  # characters


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12), st.integers(0, 70))
def test_known_agrees_with_a_plain_set(ranges, at):
    known, plain = Known(), set()
    for start, length in ranges:
        known.add(start, start + length)
        plain.update(range(start, start + length))
    assert known.before(at, 7) == sorted((f for f in plain if f < at), reverse=True)[:7]
    assert known.after(at, 7) == sorted(f for f in plain if f >= at)[:7]
    assert [f for ranged in known.between(at, at + 20) for f in ranged] == [
        f for f in range(at, at + 20) if f in plain
    ]
    assert [f for run in known.gaps(80) for f in run] == [f for f in range(80) if f not in plain]
    assert (at in known) == (at in plain)

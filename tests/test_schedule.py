"""Packing schedules: the notation, the paper's numbers, and the bound on context tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framepack.errors import InputError, NotationError, UnknownNameError
from framepack.packing.schedule import SCHEDULES, Level, PackingSchedule, Tail

GRID_480P = (60, 104)  # 480 x 832 px through an 8x codec
L_F = 1560

sizes = st.integers(1, 9)
kernels = st.tuples(sizes, sizes, sizes)
levels = st.lists(st.builds(Level, st.integers(1, 20), kernels), min_size=1, max_size=5).map(tuple)
some_levels = st.lists(st.builds(Level, st.integers(1, 5), kernels), max_size=3).map(tuple)
schedules = st.builds(PackingSchedule, levels, st.sampled_from(Tail), some_levels, some_levels)
grids = st.tuples(st.integers(1, 70), st.integers(1, 110))


# Notation --------------------------------------------------------------------------------------------


def test_paper_notation_is_read_far_to_near():
    schedule = PackingSchedule.parse("td_f16k4f2k2f1k1")
    assert schedule.levels == (Level(16, (4, 8, 8)), Level(2, (2, 4, 4)), Level(1, (1, 2, 2)))
    assert schedule.tail is Tail.DELETE
    assert PackingSchedule.parse("f1k1f2k2f16k4_td") == schedule  # mirrored, as after gN
    assert PackingSchedule.parse("f16k4f2k2f1k1") == schedule
    assert str(schedule) == "td_f16k4f2k2f1k1"


def test_long_form_is_printed_where_the_short_one_would_lie():
    schedule = PackingSchedule.parse("tc_f3k1h8w8f1k1h2w2")
    assert schedule.levels == (Level(3, (1, 8, 8)), Level(1, (1, 2, 2)))
    assert str(schedule) == "tc_f3k1h8w8f1k1"


def test_pinned_levels_stand_outside_the_skips():
    schedule = PackingSchedule.parse("f1k1f2k2_x_ta_f2k4f1k1_x_f3k2")
    assert schedule.start == (Level(1, (1, 2, 2)), Level(2, (2, 4, 4)))
    assert schedule.end == (Level(3, (2, 4, 4)),)
    assert schedule.tail is Tail.APPEND


def test_leading_zeros_are_read():
    assert PackingSchedule.parse("f" + "0" * 5000 + "1k01") == PackingSchedule.parse("f1k1")


@given(schedules)
def test_notation_round_trips(schedule):
    assert PackingSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 0),
        ("td_", 3),
        ("td", 2),
        ("td_f16k4f2q2f1k1", 10),
        ("td_f16k4__f1k1", 9),
        ("td_f0k1", 4),
        ("td_f16k0", 7),
        ("td_f1k1h2w0", 10),
        ("td_f1k1h2", 9),
        ("td_f5000k1", 4),
        ("td_f1k" + "9" * 5000, 6),
        ("td_f1k" + "0" * 5000, 6),
        ("td_f1k200", 6),
        ("td_f1k200h300w2", 10),
        ("f16k4_td_f1k1", 6),
        ("td_f1k1_td", 0),
        ("td_f1k1_g9", 8),
        ("td_f1k1+D", 7),
        ("x_td_f1k1", 0),
        ("td_f1k1_x", 9),
        ("f1k1_x_f1k1", 11),
        ("f1k1_x_td_f1k1_x_f1k1_x_f1k1", 24),
        ("f1k1_x_f1k1_x_td_f1k1", 7),
        ("td_f1k1_x_td_f1k1", 10),
        ("TD_f1k1", 0),
        ("f16 k4", 3),
    ],
)
def test_a_bad_string_is_pointed_at(text, at):
    with pytest.raises(NotationError) as caught:
        PackingSchedule.parse(text)
    assert caught.value.at == at
    assert f"character {at + 1}" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="f1k2h3w4g9xtdac_+D ", max_size=30))
def test_any_string_parses_or_is_refused(text):
    try:
        PackingSchedule.parse(text)
    except NotationError as error:
        assert 0 <= error.at <= len(text)


# Tokens ----------------------------------------------------------------------------------------------


def test_released_schedule_at_480p():
    schedule = PackingSchedule.parse("td_f16k4f2k2f1k1")
    assert [level.tokens(GRID_480P) for level in schedule.levels] == [416, 390, 1560]
    assert schedule.context_tokens(GRID_480P) == schedule.limit_tokens(GRID_480P) == 2366
    assert schedule.nominal_limit(L_F) == 2340.0
    assert PackingSchedule.parse("f1k1_x_td_f1k1").start_tokens(GRID_480P) == 1560


@given(kernels, grids, st.integers(0, 20))
def test_level_tokens_count_the_patches_that_cover_the_frames(kernel, grid, frames):
    cells = {
        (t // kernel[0], y // kernel[1], x // kernel[2])
        for t in range(frames)
        for y in range(0, grid[0])
        for x in range(0, grid[1], max(1, kernel[2] // 2))
    }
    if frames and (grid[1] - 1) // kernel[2] not in {cell[2] for cell in cells}:
        cells |= {(t, y, (grid[1] - 1) // kernel[2]) for t, y, _ in cells}
    assert Level(20, kernel).tokens(grid, frames) == len(cells)


@given(schedules, grids, st.lists(st.integers(0, 100_000), min_size=1, max_size=20))
def test_limit_bounds_every_history_and_is_reached(schedule, grid, lengths):
    limit = schedule.limit_tokens(grid)
    counted = [schedule.context_tokens(grid, frames) for frames in sorted(lengths)]
    assert counted == sorted(counted)
    if schedule.tail is Tail.APPEND:
        assert limit is None and schedule.nominal_limit(L_F) is None
        return
    assert max(counted) <= limit
    assert schedule.context_tokens(grid, schedule.history_frames + 1) == limit
    assert schedule.context_tokens(grid, 10**12) == limit
    assert schedule.context_tokens(grid, 0) == 0


def test_tails_differ_only_past_the_levels():
    delete, append, compress = (PackingSchedule.parse(f"{tail}_f2k4f1k1") for tail in ("td", "ta", "tc"))
    for schedule in (delete, append, compress):
        assert schedule.context_tokens(GRID_480P, 3) == 1560 + 104
    assert delete.context_tokens(GRID_480P, 103) == 1560 + 104
    assert compress.context_tokens(GRID_480P, 103) == 1560 + 104 + 104
    # 60 x 104 pooled by 32 is 2 x 4, one (8, 8) patch; four frames share it.
    assert append.context_tokens(GRID_480P, 103) == 1560 + 104 + 25


def test_a_grid_without_area_is_refused():
    with pytest.raises(InputError):
        PackingSchedule.parse("f1k1").context_tokens((0, 104))


# Rates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "nominal"),
    [
        ("lambda=2", 3120),
        ("lambda=4", 2080),
        ("budget=2.5", 3900),
        ("budget=2", 3120),
        ("budget=1", 1560),
        ("geometric", 3120),
        ("duplicated", 3120),
        ("temporal", 2340),
        ("start-frame", 3120),
        ("symmetric", 3120),
        ("kernel-row", 3120),
    ],
)
def test_nominal_limits(spec, nominal):
    assert PackingSchedule.from_spec(spec).nominal_limit(L_F) == pytest.approx(nominal, abs=1e-9)


def counts(schedule: PackingSchedule) -> dict[int, int]:
    """Frames by how many times the base kernel's volume their kernel has."""
    return {level.volume // 4: level.frames for level in schedule.levels}


def test_lambda_2_is_the_kernel_row():
    row = [(1, 2, 2), (1, 4, 2), (1, 4, 4), (1, 8, 4), (1, 8, 8)]
    for schedule in (PackingSchedule.from_lambda(2), PackingSchedule.named("kernel-row")):
        assert [level.kernel for level in reversed(schedule.levels)] == row
        assert schedule.tail is Tail.COMPRESS
        assert schedule.rate() == 2.0
    # 1560 + 780 + 390 + 8 * 26 + 8 * 13, and the last again for all older frames.
    assert PackingSchedule.from_lambda(2).limit_tokens(GRID_480P) == 1560 + 780 + 390 + 208 + 104 + 104


def test_small_lambdas_have_more_terms():
    # 1/1.5^i at rates rounded down; after ten terms 3 / 1.5^10 = 0.05 of a frame is left.
    ages = [1, 2, 4, 4, 8, 8, 16, 32, 32, 64]
    schedule = PackingSchedule.from_lambda(1.5)
    assert [level.volume // 4 for level in reversed(schedule.levels) for _ in range(level.frames)] == ages


def test_budget_digits():
    assert counts(PackingSchedule.from_budget(2)) == {16: 1, 8: 1, 4: 1, 2: 1, 1: 1}
    assert counts(PackingSchedule.from_budget(2.5)) == {16: 1, 8: 1, 4: 1, 2: 2, 1: 1}
    # 2.625 = 2 + 0.101b
    assert counts(PackingSchedule.from_budget(2.625)) == {16: 1, 8: 2, 4: 1, 2: 2, 1: 1}
    # 4/3 = 1.01010101...b
    assert counts(PackingSchedule.from_budget(4 / 3)) == {256: 1, 64: 1, 16: 1, 4: 1, 1: 1}
    assert counts(PackingSchedule.from_budget(1.5)) == {2: 1, 1: 1}
    assert counts(PackingSchedule.from_budget(4.25)) == {16: 1, 8: 1, 4: 2, 2: 1, 1: 3}
    assert PackingSchedule.from_lambda(4).levels == PackingSchedule.from_budget(4 / 3).levels
    assert counts(PackingSchedule.named("duplicated")) == {16: 3, 4: 3, 1: 1}


@given(st.floats(1, 64), kernels)
def test_a_budget_is_never_passed_and_nearly_used(budget, base):
    schedule = PackingSchedule.from_budget(budget, base)
    assert schedule.budget == budget
    assert schedule.rate(base) <= budget + 1e-6
    assert schedule.rate(base) >= budget - 1 / 16


@given(st.floats(64 / 63 + 1e-6, 1024))
def test_a_lambda_is_never_passed(lam):
    schedule = PackingSchedule.from_lambda(lam)
    assert schedule.rate() <= lam / (lam - 1) + 1e-6
    ages = [level.volume // 4 for level in reversed(schedule.levels) for _ in range(level.frames)]
    assert all(volume >= lam**age * (1 - 1e-6) for age, volume in enumerate(ages))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("base", [(1, 2, 2), (1, 1, 1), (2, 2, 4)])
def test_named_schedules_scale_with_the_base(name, base):
    schedule = PackingSchedule.named(name, base)
    assert schedule.base == base == schedule.levels[-1].kernel
    assert schedule.nominal_limit(100, base) == PackingSchedule.named(name).nominal_limit(100)
    assert PackingSchedule.parse(str(schedule)) == replace(schedule, budget=None)


def test_start_frame_and_symmetric():
    assert PackingSchedule.named("start-frame").start == (Level(1, (1, 2, 2)),)
    symmetric = PackingSchedule.named("symmetric")
    assert symmetric.start == symmetric.levels[::-1]


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("lambda=1", InputError),
        ("lambda=0.5", InputError),
        ("lambda=-2", InputError),
        ("lambda=nan", InputError),
        ("lambda=inf", InputError),
        ("lambda=1.0001", InputError),
        ("lambda=", InputError),
        ("lambda=two", InputError),
        ("budget=0.9", InputError),
        ("budget=1e9", InputError),
        ("budget=nan", InputError),
        ("ratio=2", UnknownNameError),
        ("geometrical", UnknownNameError),
        ("", UnknownNameError),
        ("td_f1", NotationError),
        ("f1k1x", NotationError),
    ],
)
def test_specs_that_make_no_sense(spec, error):
    with pytest.raises(error) as caught:
        PackingSchedule.from_spec(spec)
    assert "\n" not in str(caught.value)


def test_from_spec_takes_notation():
    assert PackingSchedule.from_spec("td_f1k1") == PackingSchedule.parse("td_f1k1")


@pytest.mark.parametrize("frames", [0, -1, 5000])
def test_levels_need_frames(frames):
    with pytest.raises(InputError):
        Level(frames, (1, 2, 2))


def test_a_schedule_needs_levels():
    with pytest.raises(InputError):
        PackingSchedule(())

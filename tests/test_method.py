"""Methods: the paper's strings, the friendly names, and the JSON saved with checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framepack.errors import InputError, NotationError, UnknownNameError
from framepack.packing.schedule import Level, PackingSchedule, Tail
from framepack.planning.method import METHODS, ORDERS, Importance, Method, method_from_spec, named_method

#        name              string                            order            positions   absent on (1,2,2)
NAMED = [
    ("vanilla", "td_f16k4f2k2f1k1_g9", "vanilla", "gap", "drop"),
    ("f1", "f1k1_x_td_f16k4f2k2f1k1_g9", "f1", "constant", "zeros"),
    ("anti-drifting", "td_f16k4f2k2f1k1_g9_x_f1k1", "anti-drifting", "gap", "drop"),
    ("inverted", "f1k1_x_g9_f1k1f2k2f16k4_td", "inverted", "released", "zeros"),
    ("inverted-plain", "f1k1_x_g9_f1k1f2k2f16k4_td", "inverted", "gap", "drop"),
    ("planned", "td_f16k4f2k2f1k1_g9_x_f1k1", "planned", "gap", "drop"),
]

sizes = st.integers(1, 8)
levels = st.lists(
    st.builds(Level, st.integers(1, 20), st.tuples(sizes, sizes, sizes)), min_size=1, max_size=4
).map(tuple)
pinned = st.one_of(st.just(()), levels)
methods = st.builds(
    Method,
    schedule=st.builds(
        PackingSchedule, levels, st.sampled_from(Tail), pinned, pinned, st.none() | st.floats(1, 3)
    ),
    order=st.sampled_from(ORDERS),
    section_size=st.integers(1, 40),
    absent=st.sampled_from(["drop", "zeros"]),
    max_gap=st.none() | st.integers(0, 100),
    history_timestep=st.sampled_from(["noisy", "zero"]),
    importance=st.builds(
        Importance,
        kind=st.sampled_from(["time", "similarity", "hybrid"]),
        weight=st.floats(0, 10),
        pool=st.integers(1, 200),
    ),
    discretized=st.booleans(),
    history_noise=st.just(0.0) | st.floats(0, 1),
    history_guidance=st.just(1.0) | st.floats(0, 10),
)


def test_every_name_is_in_the_table():
    assert [row[0] for row in NAMED] == list(METHODS)


@pytest.mark.parametrize(("name", "text", "order", "positions", "absent"), NAMED)
def test_named_methods(name, text, order, positions, absent):
    method = named_method(name)
    assert str(method) == text
    assert (method.order, method.positions, method.absent) == (order, positions, absent)
    assert Method.parse(text).schedule == method.schedule
    assert named_method(name, absent="zeros", max_gap=27).absent == "zeros"
    assert named_method(name, absent="drop", max_gap=27).max_gap == 27


def test_named_methods_scale_with_the_base():
    text = "f1k1h1w1_x_td_f16k4h4w4f2k2h2w2f1k1h1w1_g6"
    assert str(named_method("f1", (1, 1, 1), 6)) == text
    assert all(named_method(name, (1, 1, 1), 6).absent == "drop" for name in METHODS)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("td_f16k4f2k2f1k1_g9", "vanilla"),
        ("f1k1_x_td_f16k4f2k2f1k1_g9", "f1"),
        ("td_f16k4f2k2f1k1_g9_x_f1k1", "anti-drifting"),
        ("f1k1_x_td_f16k4f2k2f1k1_g9_x_f1k1", "anti-drifting"),
        ("f1k1_x_g9_f1k1f2k2f16k4_td", "inverted"),
        ("g9_f1k1f2k2f16k4_td", "inverted"),
        ("g9_f1k1f2k2f16k4_td_x_f1k1", "inverted"),
        ("td_f16k4f2k2f1k1_g9+D", "vanilla"),
        ("ta_f1k1h4w4f1k1_g1", "vanilla"),
    ],
)
def test_strings_name_the_order(text, order):
    method = Method.parse(text)
    assert method.order == order
    assert str(method) == text
    assert method.discretized == text.endswith("+D")


def test_both_sides_give_the_same_levels_far_to_near():
    past, future = Method.parse("td_f16k4f2k2f1k1_g9"), Method.parse("g9_f1k1f2k2f16k4_td")
    assert past.schedule == future.schedule
    assert [level.frames for level in past.schedule.levels] == [16, 2, 1]


@given(methods)
def test_strings_round_trip_all_they_say(method):
    back = Method.parse(str(method))
    assert str(back) == str(method)
    assert back.schedule == replace(method.schedule, budget=None)
    assert (back.section_size, back.discretized) == (method.section_size, method.discretized)
    assert (back.order == "inverted") == (method.order == "inverted")


@given(methods)
def test_json_round_trips_everything(method):
    assert Method.from_json(json.loads(json.dumps(method.to_json()))) == method


@pytest.mark.parametrize("name", METHODS)
def test_named_json_round_trips(name):
    method = named_method(name)
    assert Method.from_json(json.loads(json.dumps(method.to_json()))) == method


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 0),
        ("td_f1k1", 7),
        ("g9", 2),
        ("f1k1_x_g9", 9),
        ("td_f1k1_g9_f1k1", 11),
        ("td_f1k1_g9_g9", 11),
        ("td_f1k1_g0", 9),
        ("td_f1k1_g9_x", 12),
        ("td_f1k1_g9_x_td", 13),
        ("td_x_f1k1_g9", 0),
        ("f1k1_td_g9", 5),
        ("g9_td_f1k1", 3),
        ("td_f1k1_g9+D+D", 10),
        ("td_f1k1+D_g9", 7),
        ("td_f1k1_g9_x_f1k1_x_f1k1", 20),
        ("f1k1_x_f1k1_x_td_f1k1_g9", 7),
        ("td_f16k4f2k2f1k1_g9_y_f1k1", 20),
        ("td_f16k4f2k2f1k1_g", 18),
    ],
)
def test_a_bad_string_is_pointed_at(text, at):
    with pytest.raises(NotationError) as caught:
        Method.parse(text)
    assert caught.value.at == at


@given(st.text(alphabet="f1k2h3w4g9xtdac_+D ", max_size=30))
def test_any_string_parses_or_is_refused(text):
    try:
        Method.parse(text)
    except NotationError as error:
        assert 0 <= error.at <= len(text)


@pytest.mark.parametrize(
    "change",
    [
        {"order": "backwards"},
        {"absent": "ignore"},
        {"positions": "true"},
        {"history_timestep": "late"},
        {"section_size": 0},
        {"section_size": 2.5},
        {"max_gap": -1},
        {"positions": "released"},
        {"positions": "constant", "order": "inverted"},
    ],
)
def test_values_that_do_not_go_together(change):
    with pytest.raises(InputError):
        replace(named_method("vanilla"), **change)


@pytest.mark.parametrize(
    "change", [{"kind": "beauty"}, {"weight": -1.0}, {"weight": float("nan")}, {"pool": 0}]
)
def test_importance_is_checked(change):
    with pytest.raises(InputError):
        replace(Importance(), **change)


def _record(**changes: object) -> dict[str, object]:
    return {**named_method("vanilla").to_json(), **changes}


@pytest.mark.parametrize(
    "record",
    [
        _record(orders="vanilla"),
        _record(schedule=None),
        _record(schedule={"levels": [{"frames": 1}]}),
        _record(schedule={"levels": []}),
        _record(schedule={"levels": [{"frames": 1, "kernel": [1, 2, 2]}], "tail": "tx"}),
        _record(schedule={"levels": [{"frames": 1, "kernel": [1, 2, 2]}], "budget": "two"}),
        _record(importance="time"),
        _record(importance={"sort": "time"}),
        {"schedule": {"levels": [{"frames": 1, "kernel": [1, 2, 2]}]}},
    ],
)
def test_records_are_read_strictly(record):
    with pytest.raises(InputError):
        Method.from_json(record)


def test_with_schedule_keeps_what_the_order_needs():
    f1 = named_method("f1").with_schedule(PackingSchedule.from_lambda(2))
    assert f1.schedule.start == (Level(1, (1, 2, 2)),)
    assert f1.schedule.levels == PackingSchedule.from_lambda(2).levels
    symmetric = named_method("f1").with_schedule(PackingSchedule.named("symmetric"))
    assert len(symmetric.schedule.start) == 5


def test_method_from_spec():
    assert method_from_spec("f1") == named_method("f1")
    assert method_from_spec("td_f1k1_g4").section_size == 4
    with pytest.raises(UnknownNameError, match="inverted-plain"):
        method_from_spec("invert")
    with pytest.raises(NotationError):
        method_from_spec("td_f1k1_g")


def test_noise_and_guidance_of_history_stand_in_a_record_where_there_are_any():
    """Runs and models are found by hashes of records and of ``repr``: those of older methods are as ever."""
    plain = named_method("vanilla")
    told = replace(plain, history_noise=0.3, history_guidance=1.5)
    assert told.to_json() == plain.to_json() | {"history_noise": 0.3, "history_guidance": 1.5}
    assert list(plain.to_json())[-1] == "discretized"
    older = (
        "Method(schedule=PackingSchedule(levels=(Level(frames=16, kernel=(4, 8, 8)), "
        "Level(frames=2, kernel=(2, 4, 4)), Level(frames=1, kernel=(1, 2, 2))), tail=<Tail.DELETE: 'td'>, "
        "start=(), end=(), budget=None), order='vanilla', section_size=9, absent='drop', positions='gap', "
        "max_gap=None, history_timestep='noisy', importance=Importance(kind='time', weight=1.0, pool=64), "
        "discretized=False"
    )
    assert repr(plain) == f"{older})"
    assert repr(told) == f"{older}, history_noise=0.3, history_guidance=1.5)"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("history_noise", 1.5, "from 0 to 1"),
        ("history_noise", -0.1, "from 0 to 1"),
        ("history_noise", float("nan"), "from 0 to 1"),
        ("history_noise", True, "from 0 to 1"),
        ("history_guidance", -1, "0 or more"),
        ("history_guidance", float("inf"), "0 or more"),
        ("history_guidance", "strong", "0 or more"),
    ],
)
def test_noise_and_guidance_that_there_are_not(field, value, rule):
    with pytest.raises(InputError, match=rule):
        replace(named_method("vanilla"), **{field: value})
    with pytest.raises(InputError, match=rule):
        Method.from_json(named_method("vanilla").to_json() | {field: value})

"""What videos cost by their length: closed forms against the planner, counting against what really runs."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.errors import InputError, UnknownNameError
from framepack.evaluation.scale import simulate, write
from framepack.evaluation.scale.files import as_markdown, of_operations, of_time
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import ContextTensors, Memory, PackedContext
from framepack.packing.schedule import PackingSchedule
from framepack.planning.method import METHODS, named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.resources.hollow import WAN_SIZES, Architecture, find_architecture
from framepack.resources.operations import operation_counter
from framepack.resources.section_cost import SectionCost, Seen, Shape, steering
from framepack.resources.sections import (
    CACHE,
    FULL,
    KINDS,
    MAX_PLANNED,
    PACKED,
    WINDOW,
    packed_sections,
    shape_of,
    timeline_of,
    unpacked_method,
    unpacked_sections,
    whole,
    window_of,
)
from framepack.resources.tally import Tally, tensors_in
from tiny import save_tiny, tiny_spec
from tiny_framepack import framepack_transformer, save_released
from tiny_parts import WIDTH

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
GRID = (6, 10)
BASE = (1, 2, 2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


# Sections ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    st.integers(1, 9),
    st.sampled_from([None, "tc_f4k4f1k1", "f30k1", "tc_f2k2"]),
    st.integers(1, 4000),
)
def test_packed_sections_are_those_of_the_planner(name, size, schedule, frames):
    method = named_method(name, BASE, size)
    if schedule is not None:
        method = method.with_schedule(PackingSchedule.parse(schedule))
    timeline = Timeline(frames=1 + frames, fps=8.0, stride=4, known=(0,))
    found = packed_sections(timeline, method, GRID)
    planned = plan(timeline, method).sections
    assert dict(zip(found.shapes, found.times, strict=True)) == Counter(map(shape_of, planned))
    assert found.count == len(planned)
    assert (found.context * found.times).sum() == sum(section.tokens(GRID) for section in planned)
    most = max((len(section.frames), section.tokens(GRID)) for section in planned)
    assert (found.target[found.dearest], found.context[found.dearest]) == most


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 900), st.one_of(st.none(), st.integers(1, 40)))
def test_unpacked_sections_are_those_of_the_planner(size, frames, window):
    timeline = Timeline(frames=1 + frames, fps=8.0, stride=4, known=(0,))
    method = named_method("inverted", BASE, size)
    found = unpacked_sections(timeline, method, GRID, BASE, window)
    planner = unpacked_method(method, BASE, window or timeline.latent_frames)
    planned = plan(timeline, planner).sections
    assert found.context.tolist() == [section.tokens(GRID) for section in planned]
    assert found.target.tolist() == [len(section.frames) for section in planned]
    assert found.pixels.tolist() == [shape_of(section).context_pixels(GRID) for section in planned]


def test_packed_tokens_stay_and_full_history_grows_evenly():
    method = named_method("vanilla", BASE, 9)
    counts = (10, 100, 1000, 10000)
    videos = [Timeline(frames=1 + n * 36, fps=30.0, stride=4, known=(0,)) for n in counts]
    packed = [packed_sections(video, method, GRID) for video in videos]
    assert len({int(s.context[s.dearest]) for s in packed}) == 1
    full = [int(unpacked_sections(video, method, GRID, BASE).context[-1]) for video in videos]
    assert full == [15 * (1 + 9 * (n - 1)) for n in counts]
    window = window_of(method, GRID, BASE)
    most = int(packed[0].context.max())
    assert (window - 1) * 15 < most <= window * 15


def test_sections_of_a_model_that_decodes_section_by_section():
    spec = replace(tiny_spec(), temporal_stride=4, decode="section")
    method = spec.method("f1")
    timeline = timeline_of(spec, method, 200.0, 8.0)
    found, planned = packed_sections(timeline, method, (4, 4)), plan(timeline, method).sections
    assert dict(zip(found.shapes, found.times, strict=True)) == Counter(map(shape_of, planned))
    assert len(plan(whole(timeline, method.section_size, 7), method).sections) == 7


def test_an_appended_tail_is_planned_while_it_can_be():
    method = named_method("vanilla", BASE, 1).with_schedule(PackingSchedule.parse("ta_f1k1"))
    timeline = Timeline(frames=1 + 4 * 500, fps=8.0, stride=4, known=(0,))
    found = packed_sections(timeline, method, GRID)
    assert found.context.max() == plan(timeline, method).sections[-1].tokens(GRID) > 2 * found.context.min()
    with pytest.raises(InputError, match=rf"20,001 .* appended tail.*{MAX_PLANNED:,}.*td or tc"):
        packed_sections(replace(timeline, frames=1 + 4 * (MAX_PLANNED + 1)), method, GRID)


# Counting ------------------------------------------------------------------------------------------------


def wan(**changes) -> Architecture:
    arguments = {
        "patch_size": BASE,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 48,
        "num_layers": 3,
        "context_kernels": (BASE, (2, 4, 4), (4, 8, 8)),
        "latent_channels": 4,
    }
    methods = {"vanilla": named_method("vanilla", BASE, 3)}
    spec = replace(tiny_spec(), base_kernel=BASE, methods=methods, default_method="vanilla")
    return Architecture(spec=spec, arguments=arguments | changes, prompt_tokens=7)


def hunyuan(**changes) -> Architecture:
    arguments = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "pooled_projection_dim": 16,
        "rope_axes_dim": (4, 14, 14),
        "has_image_proj": True,
        "image_proj_dim": 16,
        "context_kernels": (BASE, (2, 4, 4), (4, 8, 8)),
        "latent_channels": 4,
    }
    spec = replace(wan().spec, family="hunyuan_video", embedded_guidance=10.0)
    return Architecture(spec=spec, arguments=arguments | changes, prompt_tokens=7)


CLASSES = {"wan": PackedWanTransformer3DModel, "hunyuan_video": PackedHunyuanVideoTransformer3DModel}


def really(architecture: Architecture, shape: Shape, batch: int, timestep: float | None):
    """Operations of both calls, and bytes at the peak of the later one, of a transformer with weights."""
    torch.manual_seed(0)
    model = CLASSES[architecture.spec.family](**architecture.arguments).eval().requires_grad_(False)
    levels = tuple(
        ContextTensors(torch.randn(batch, 4, seen.frames, *GRID), torch.arange(seen.frames), seen.kernel)
        for seen in shape.seen
    )
    isolated = architecture.arguments.get("isolated_history", False)
    aligned = torch.randn(batch, 10, shape.target, *GRID) if architecture.arguments.get("aligned") else None
    context = PackedContext(levels, aligned, timestep, Memory() if isolated and levels else None)
    steered = steering(architecture, model.config, lambda *sizes: torch.randn(batch, *sizes))
    operations = []
    with torch.no_grad(), Tally(tensors_in(model)) as tally:
        for _ in range(2):
            tally.rewind()
            with operation_counter() as counter:
                noisy = torch.randn(batch, 4, shape.target, *GRID)
                model(noisy, torch.full((batch,), 500.0), steered, torch.arange(shape.target), context)
            operations.append(counter.get_total_flops())
    return (*operations, tally.peak)


CASES = {
    "wan": (wan(), 1, None),
    "wan, both branches, aligned, history at 0": (wan(aligned=True, in_channels=14, num_layers=2), 2, 0.0),
    "wan, isolated": (wan(isolated_history=True, num_layers=2), 1, 0.0),
    "hunyuan": (hunyuan(num_single_layers=3), 1, None),
    "hunyuan, isolated": (
        hunyuan(num_single_layers=1, isolated_history=True, image_condition_type="token_replace"),
        1,
        0.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_foretold_operations_are_those_that_run(case):
    architecture, batch, timestep = CASES[case]
    kernels = ((2, 4, 4), (4, 8, 8))
    cost = SectionCost(
        architecture,
        GRID,
        section=3,
        kernels=kernels,
        dtype=torch.float32,
        device=CPU,
        batch=batch,
        timestep=timestep,
    )
    packed = Shape(3, (Seen(kernels[1], 16), Seen(kernels[0], 2), Seen(BASE, 1)))
    shapes = [packed, cost.plain(3, 11), cost.plain(2, 37), cost.plain(3, 0)]
    real = np.array([really(architecture, shape, batch, timestep) for shape in shapes], dtype=float).T
    targets, context, pixels = cost.sizes(shapes)
    found = cost.operations(targets, context, pixels)
    assert found.first == pytest.approx(real[0], rel=1e-6)
    assert found.later == pytest.approx(real[1], rel=1e-6)
    assert (found.first[0] > found.later[0]) == cost.isolated
    assert cost.count(packed).peak == pytest.approx(real[2, 0], rel=0.02)
    assert cost.peaks(np.array([11])) == pytest.approx(real[2, 1], rel=0.02)


def test_attention_is_told_apart():
    """Of a call it is two products of the model's width for every pair of tokens, in every block."""
    cost = SectionCost(wan(), GRID, section=3, dtype=torch.float32, device=CPU)
    found = cost.operations(*(np.array([n]) for n in (45, 4500, 18000)))
    assert found.later_attention[0] == pytest.approx(3 * 4 * 32 * 4545**2, rel=1e-9)


def test_memory_is_foretold_beyond_what_is_counted():
    """Bytes of lengths that nothing was counted at; with a cache, its keys and values of every block."""
    cost = SectionCost(wan(), GRID, section=3, dtype=torch.float32, device=CPU, isolated=True)
    frames = np.array([700, 60_000])
    counted = [cost.count(cost.plain(3, int(n))) for n in frames]
    assert cost.peaks(frames) == pytest.approx([count.peak for count in counted], rel=0.01)
    assert [count.cached for count in counted] == [3 * 2 * 32 * 4 * 15 * int(n) for n in frames]


def test_a_causal_cache_is_cheaper_than_full_history_and_takes_more_memory():
    """Keys and values of all blocks outweigh one block's activations, where there are 30 of them."""
    full, cache = (
        SectionCost(
            find_architecture("wan-1.3b"),
            (60, 104),
            section=9,
            dtype=torch.bfloat16,
            device=torch.device("cuda"),
            isolated=isolated,
        )
        for isolated in (False, True)
    )
    one, other = (cost.count(cost.plain(9, 90)) for cost in (full, cache))
    assert other.later < 0.1 * one.later
    assert other.peak > 1.5 * one.peak
    assert other.cached == 90 * 1560 * 30 * 2 * 1536 * 2


def test_published_sizes_have_their_parameters():
    billions = {"wan-1.3b": 1.42, "wan-14b": 14.3, "wan-5b": 5.0, "base": 12.87}
    assert {*WAN_SIZES} < {*billions}
    for name, expected in billions.items():
        cost = SectionCost(find_architecture(name), GRID, section=9, dtype=torch.bfloat16, device=CPU)
        assert cost.weights / 2e9 == pytest.approx(expected, rel=0.01), name


def test_released_folders_are_read_without_their_weights(tmp_path):
    architecture = find_architecture(str(save_released(tmp_path / "framepacki2v")))
    assert architecture.blocks == {"num_layers": 1, "num_single_layers": 1}
    adopted = PackedHunyuanVideoTransformer3DModel.adopt(framepack_transformer(), ())
    hollow = architecture.hollow(architecture.spec.method(None).schedule.kernels, torch.float32)
    assert {n: p.shape for n, p in hollow.named_parameters()} == {
        n: p.shape for n, p in adopted.named_parameters()
    }
    assert architecture.arguments["text_embed_dim"] == WIDTH


# The whole -----------------------------------------------------------------------------------------------


def test_a_day_of_video(tiny, tmp_path):
    scale = simulate(tiny, flops_per_second=1e12, price=2.0, memory=0.01)
    curves = {curve.kind: curve for curve in scale.curves}
    assert tuple(curves) == KINDS and not scale.checks
    for curve in curves.values():
        assert curve.points[-1].seconds == 86400 and curve.points[-1].sections == math.ceil(
            (86400 * 8 - 1) / 3
        )
        assert [point.seconds for point in curve.table] == [10, 60, 600, 3600, 86400]
        for point in (*curve.points, *curve.table):
            assert point.total_time == pytest.approx(point.total_operations / 1e12)
    for kind in (PACKED, WINDOW):
        assert len({(p.context, p.operations, p.memory) for p in curves[kind].table}) == 1
        assert all(map(scale.fits, curves[kind].points))
    for packed, full, cache in zip(*(curves[k].table for k in (PACKED, FULL, CACHE)), strict=True):
        assert packed.total_operations < cache.total_operations < full.total_operations
        assert cache.context == full.context > packed.context
    assert not scale.fits(curves[CACHE].points[-1])
    # Full history: its last section costs with the square of the length, all of them with the cube.
    hour, day = curves[FULL].table[-2:]
    assert day.operations / hour.operations == pytest.approx(24**2, rel=0.02)
    assert day.total_operations / hour.total_operations == pytest.approx(24**3, rel=0.02)
    files = write(scale, tmp_path / "out")
    assert [path.name for path in files] == ["scale.png", "scale.svg", "scale.csv", "scale.md"]
    assert files[0].read_bytes().startswith(b"\x89PNG") and "<svg" in files[1].read_text()
    with files[2].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(curve.points) + len(curve.table) for curve in scale.curves)
    day = next(r for r in reversed(rows) if r["kind"] == FULL)
    assert float(day["total_operations"]) == curves[FULL].table[-1].total_operations and day["fits"] == "0"
    text = files[3].read_text()
    assert all(line in text for line in scale.assumptions) or "\\" in text
    assert text.count("\n| 24 h |") == 4 and "does not fit into 0.01 GB: full history beyond" in text


def test_sums_over_all_sections(tiny):
    """A video's operations are those of its sections, one by one."""
    options = {"fps": 2.0, "flops_per_second": 1e9, "guidance": 1.0, "steps": 5}
    scale = simulate(tiny, method="vanilla", seconds=20.0, **options)
    architecture = find_architecture(tiny)
    method = architecture.spec.method("vanilla")
    cost = SectionCost(
        architecture, (4, 4), section=3, kernels=method.schedule.kernels, dtype=torch.bfloat16, device=CPU
    )
    ends = {PACKED: method, FULL: unpacked_method(method, (1, 1, 1), 200)}
    for curve in scale.curves[:2]:
        for point in curve.table:
            timeline = Timeline(frames=round(point.seconds * 2), fps=2.0, stride=1, known=(0,))
            shapes = [shape_of(section) for section in plan(timeline, ends[curve.kind]).sections]
            counted = sum(5 * cost.count(shape).first for shape in shapes)
            assert point.total_operations == pytest.approx(counted, rel=1e-6)
            assert point.sections == len(shapes)


def test_sections_carried_out_stand_beside_what_was_foretold(tiny, tmp_path):
    told: list[str] = []
    options = {"seconds": 60.0, "histories": (1, 3, 8), "limit": 0.05, "device": "cpu", "dtype": "float32"}
    scale = simulate(tiny, **options, tell=told.append)
    assert len(scale.checks) == 9 and any("after 8 sections" in line for line in told)
    for check in scale.checks:
        m = check.measured
        assert check.operations == pytest.approx(m.operations, rel=1e-6), m
        assert check.memory == pytest.approx(m.peak, rel=0.1), m
        assert m.context == m.shape.context_tokens((4, 4)) and m.seconds > 0
        assert m.seconds_of_video == (1 + (m.history + 1) * 3) / 8
    assert {c.measured.history for c in scale.checks if c.calibrates} == {1, 8}
    assert {c.measured.kind for c in scale.checks if c.calibrates} == {PACKED, FULL}
    text = as_markdown(scale)
    assert "Simulated beside measured" in text and text.count("calibrates") >= 2
    assert "time of the 5 others" in text
    write(scale, tmp_path)
    with (tmp_path / "scale.csv").open() as file:
        measured = [row for row in csv.DictReader(file) if row["source"] == "measured"]
    assert [int(row["context"]) for row in measured] == [c.measured.context for c in scale.checks]


REFUSED = {
    "unknown model": ({"model": "bas"}, UnknownNameError, "unknown model 'bas'.*base"),
    "no weights": ({"model": "wan-1.3b"}, InputError, "weights of 'wan-1.3b'.*--flops-per-second"),
    "a size": ({"size": (30, 32)}, InputError, "size 32x30: both must be multiples of 8"),
    "a rate": ({"flops_per_second": 0.0}, InputError, "--flops-per-second 0 must be above 0"),
    "a price": ({"price": -1.0}, InputError, "--price -1 must be 0 or more"),
    "a window": ({"window": 0}, InputError, "--window 0 must be above 0"),
    "frames a second": ({"fps": math.nan}, InputError, "fps nan must be above 0"),
    "too short": ({"seconds": 0.3}, InputError, "0.3 s are no section of 3 latent frames"),
    "too long": ({"seconds": 1e5}, InputError, "100000 seconds: ask for more than 0 and at most 86,400"),
    "nothing to measure": (
        {"histories": ()},
        InputError,
        "after 1 and 8 sections of history: have these",
    ),
    "negative history": ({"histories": (-1,)}, InputError, "-1 sections of history: give 0 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case, tiny):
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as found:
        simulate(**{"model": tiny} | options)
    assert "\n" not in str(found.value)


def test_numbers_for_people():
    assert [of_time(s) for s in (0.5, 59.0, 90.0, 7200.0, 86400.0 * 400)] == [
        "500 ms",
        "59 s",
        "1.5 min",
        "2 h",
        "1.1 years",
    ]
    assert [of_operations(n) for n in (5.0, 1.684e16, 9.999e20)] == ["5 FLOP", "16.8 PFLOP", "1 ZFLOP"]
    assert json.loads(of_time(3.6e9).split()[0]) == 114

"""The table of models: each row is held to the numbers published for it."""

from __future__ import annotations

import json

import pytest

from framepack.cli.models import HEIGHT, WIDTH, count_stored, table
from framepack.models.families import BUCKETS
from framepack.models.variants import BASE_KERNEL, SPATIAL_STRIDE, VARIANTS, Variant

FRAME_TOKENS = 1560


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    return {row["name"]: row for row in table()}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_are_as_published(variant: Variant, rows: dict[str, dict]) -> None:
    row = rows[variant.name]
    assert row["parameters"] == pytest.approx(variant.expected_billions * 1e9, rel=0.03)
    assert row["nominal_limit"] == pytest.approx(variant.expected_nominal, abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_limits_are_the_schedules(variant: Variant, rows: dict[str, dict]) -> None:
    grid = (HEIGHT // SPATIAL_STRIDE, WIDTH // SPATIAL_STRIDE)
    assert grid[0] // BASE_KERNEL[1] * grid[1] // BASE_KERNEL[2] == FRAME_TOKENS
    schedule, row = variant.schedule(), rows[variant.name]
    longest = max(schedule.context_tokens(grid, frames) or 0 for frames in (0, 1, 2, 5, 40, 450, 100_000))
    assert row["limit_tokens"] == longest
    assert row["context_tokens"] == row["limit_tokens"]
    # Padding may add to the closed form, rounding down to whole kernels may take from it; never more
    # than a tenth of a frame here.
    assert abs(row["limit_tokens"] - row["nominal_limit"]) < FRAME_TOKENS / 10
    assert row["start_tokens"] == FRAME_TOKENS


def test_variants_take_the_released_sizes() -> None:
    assert len(set(BUCKETS)) == 14 and BUCKETS[0] == (480, 832)
    assert all(side % 32 == 0 for size in BUCKETS for side in size)


def test_counting_stored_parameters(tmp_path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, tmp_path / "one.safetensors")
    save_file({"c": np.zeros(())}, tmp_path / "two.safetensors")
    assert count_stored(tmp_path) == 18


def test_rows_are_json(rows: dict[str, dict]) -> None:
    wanted = {"name", "family", "parameters", "schedule", "context_tokens", "limit_tokens", "nominal_limit"}
    for row in rows.values():
        assert wanted <= set(json.loads(json.dumps(row)))

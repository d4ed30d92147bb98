"""What a model folder may say: broken values are one line, told before anything is loaded or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framepack.cli.plan import find_spec
from framepack.errors import InputError, ModelError, NotationError, UnknownNameError
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.models.device import pick_device
from framepack.models.source import resolve_model
from framepack.models.spec import SPEC_FILE, ModelSpec
from framepack.models.variants import VARIANTS
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from tiny import save_tiny, tiny_bundle, tiny_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


BROKEN: dict[str, object] = {
    "family": ["vae", None],
    "default_method": ["sideways", None, []],
    "methods": [[], {}, {"inverted": 3}],
    "buckets": [[], [[32]], [[32, 33]], [[0, 32]], 32, [["32", "32"]]],
    "steps": ["many", 0, 2.5, True],
    "guidance": ["much", -1, float("inf")],
    "shift": ["x", 0],
    "fps": [0, "8", None],
    "latent_channels": [0, 4.0],
    "spatial_stride": [0],
    "temporal_stride": ["1"],
    "decode": ["backwards", None],
    "held_start": [[0.1], [0.2, 0.1], [0.5, 1], ["a", "b"], 3],
    "pyramid": [{}, {"distilled": True}, 3],
    "base_kernel": [[2, 1, 1], [1, 1], [1, 1, 0], "111", [1, 2, 2]],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in BROKEN.items() for v in vs], ids=repr)  # type: ignore[attr-defined]
def test_broken_values_are_one_line(field: str, value: object, folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / SPEC_FILE).read_text())
    (tmp_path / SPEC_FILE).write_text(json.dumps(data | {field: value}))
    with pytest.raises(ModelError, match=SPEC_FILE) as caught:
        ModelSpec.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latent_channels", 5),
        ("spatial_stride", 4),
        ("temporal_stride", 4),
        ("family", "hunyuan_video"),
        ("solver", "guess"),
    ],
)
def test_parts_that_do_not_fit_the_spec_write_nothing(
    field: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "model")
    data = json.loads((model / SPEC_FILE).read_text())
    (model / SPEC_FILE).write_text(json.dumps(data | {field: value}))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with pytest.raises((ModelError, UnknownNameError), match=field):
        prepare(GenerateRequest(model=str(model), frames=4, device="cpu"))
    assert not list((tmp_path / "home").iterdir())


def test_todays_record_survives_the_round_trip(folder: Path) -> None:
    assert ModelSpec.load(folder) == tiny_spec()
    assert set(json.loads((folder / SPEC_FILE).read_text())) == {
        *("name", "family", "base_kernel", "latent_channels", "spatial_stride", "temporal_stride", "fps"),
        *("buckets", "methods", "default_method", "steps", "guidance", "solver", "shift"),
        *("embedded_guidance", "sigmas", "decode", "held_start", "pyramid"),
    }


@pytest.mark.parametrize("device", ["meta", "xpu", "cpu:3", "cuda:", "hip", ""])
def test_devices_that_make_no_pictures(device: str) -> None:
    with pytest.raises(InputError, match="use auto, cpu, cuda or mps"):
        pick_device(device)


def test_untrained_methods_clamp_gaps_as_the_trained_ones() -> None:
    spec = tiny_spec()
    assert spec.methods[spec.default_method].max_gap == 8
    for wanted in ("planned", "td_f4k2h2w2f1k1h1w1_g3", "f1k1h1w1g3"):
        assert spec.method(wanted, untrained=True).max_gap == 8


def test_one_way_to_read_a_method() -> None:
    spec = tiny_spec()
    assert spec.method("f1k1h1w1g3", untrained=True).section_size == 3
    with pytest.raises(UnknownNameError, match="notation like"):
        spec.method("anti_drifting")
    with pytest.raises(NotationError):
        spec.method("f2")


@pytest.mark.parametrize("schedule", ["td_f1k64", "td_f1k32"])
def test_a_kernel_has_a_largest_size(schedule: str) -> None:
    with pytest.raises(InputError, match="latent pixels to a token"):
        tiny_spec().method("vanilla", schedule, untrained=True)


def test_a_refused_request_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    before = set(bundle.transformer.state_dict())
    (tmp_path / "v.mp4").write_bytes(b"holiday")
    request = GenerateRequest(
        frames=4, method="vanilla", schedule="td_f1k3h3w3", untrained=True, out=tmp_path / "v.mp4"
    )
    with pytest.raises(OSError, match="not of this run"):
        prepare(request, bundle)
    assert set(bundle.transformer.state_dict()) == before


def test_the_closed_form_counts_in_tokens_of_the_models_kernel() -> None:
    spec = VARIANTS["base"].spec()
    method = spec.method("vanilla", "td_f1k1h4w4", untrained=True)
    grid = (60, 104)
    told = plan(Timeline(frames=91, fps=30, stride=4, known=(0,)), method).to_json(grid, spec.base_kernel)
    # One frame at a quarter of the rate: L_f is 1,560 tokens of the base kernel (1, 2, 2).
    assert told["nominal_limit"] == told["limit_tokens"] == 390


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="choose one of bundled, a model folder"):
        resolve_model("nobody")
    with pytest.raises(UnknownNameError, match="bundled, base, lite, extended, a model folder"):
        find_spec("nobody")
    monkeypatch.setattr("framepack.models.source.BUNDLED", tmp_path)
    with pytest.raises(ModelError, match="weights are not in this copy"):
        resolve_model("bundled")

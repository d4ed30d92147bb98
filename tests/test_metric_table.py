"""The table of metrics: what it tells, what it refuses, and that each offline metric sees its own damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framepack.errors import InputError, ModelError, UnknownNameError
from framepack.evaluation.score import ALL
from framepack.metrics import offline, weights
from framepack.metrics.colour import lab
from framepack.metrics.drift import drift_of, end_count
from framepack.metrics.features import weights_file
from framepack.metrics.metric import WINDOWS, Metric, Subject, choose, windows
from framepack.metrics.offline import OFFLINE
from framepack.metrics.published import PUBLISHED
from framepack.metrics.table import METRICS
from framepack.metrics.weights import Needs, Weights
from real_clips import blurred, noisy, paled, real_clip, tinted

pytestmark = pytest.mark.usefixtures("one_thread")

SEVEN = ("clarity", "aesthetic", "motion-smoothness", "dynamic-degree", "semantic", "anatomy", "identity")


@pytest.fixture(autouse=True)
def no_weights_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("VBENCH_CACHE_DIR", "VBENCH2_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "weights"))

    def refused(*args: object, **more: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)


def scored(name: str, frames: np.ndarray, **more) -> np.ndarray:
    return OFFLINE[name].load("cpu")(Subject(frames=frames, fps=8, **more))


def clip() -> np.ndarray:
    return real_clip("bikes", 100, 24)[:, 60:188, 200:328]


# What the table tells ---------------------------------------------------------------------------------


def test_the_seven_are_the_published_ones_and_nothing_stands_in_for_them():
    assert [m.stands_for for m in PUBLISHED.values()] == list(SEVEN) == list(PUBLISHED)
    assert all(metric.stands_for is None for metric in ALL.values() if metric.name not in SEVEN)
    assert not set(PUBLISHED) & set(OFFLINE)


@pytest.mark.parametrize("metric", ALL.values(), ids=list(ALL))
def test_every_metric_tells_what_it_is(metric: Metric):
    assert ALL[metric.name] is metric
    assert metric.title and metric.source and metric.needs and "\n" not in metric.needs
    assert metric.better in ("higher", "lower", "neither") and metric.per in ("frame", "pair", "window")


@pytest.mark.parametrize("name", SEVEN)
def test_without_weights_a_published_metric_is_a_line_and_never_a_number(name: str):
    reason = METRICS[name].missing()
    assert reason is not None and "\n" not in reason
    assert "install" in reason or "put them there" in reason
    with pytest.raises((InputError, ModelError), match=r"unavailable|hub cannot be reached"):
        choose([name], METRICS)
    with pytest.raises((AssertionError, ImportError, OSError)):
        METRICS[name].load("cpu")


def test_names():
    assert [m.name for m in choose(["warping-error", "sharpness"], METRICS)] == ["sharpness", "warping-error"]
    found = [m.name for m in choose(["all"], METRICS)]
    assert found == [m.name for m in choose(["offline"], METRICS)] and "sharpness" in found
    with pytest.raises(
        UnknownNameError, match=r"unknown metric 'sharpnes'.*all, offline.*nearest is sharpness"
    ):
        choose(["sharpnes"], METRICS)


def test_windows_begin_and_end_as_drift_does():
    for count in (2, 9, 25, 73, 300):
        found = windows(count)
        assert len(found) == WINDOWS and (found[0].start, found[-1].stop) == (0, count)
        assert {w.stop - w.start for w in found} == {max(2, end_count(count))}
    values = np.random.default_rng(0).normal(size=73)
    of_windows = [values[window].mean() for window in windows(73)]
    assert drift_of(of_windows) == pytest.approx(drift_of(values))


@pytest.mark.parametrize(
    "frames", [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3)), np.zeros((4, 8))]
)
def test_what_is_no_video_is_no_subject(frames: np.ndarray):
    with pytest.raises(InputError, match="frames of shape"):
        Subject(frames=frames, fps=8)
    with pytest.raises(InputError, match="not positive"):
        Subject(frames=np.zeros((4, 8, 8, 3), np.uint8), fps=0)


# Where weights come from ------------------------------------------------------------------------------


def test_weights_are_found_where_vbench_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs = Needs(
        modules=("numpy",), install="pip install numpy", weights=(Weights(path="a/b.pth", origin="x"),)
    )
    assert needs.missing() == f"no weights at '{tmp_path / 'weights/a/b.pth'}': put them there from x"
    file = tmp_path / "weights/a/b.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert needs.missing() is None and needs.file("a/b.pth") == file
    monkeypatch.delenv("VBENCH_CACHE_DIR")
    assert Weights(path="a/b.pth", origin="x").place == Path.home() / ".cache/vbench/a/b.pth"


def test_packages_and_files_in_them_are_named():
    weightless = Needs(
        modules=("numpy", "no_such_package", "numpy/no/such.py"), install="pip install it", weights=()
    )
    assert weightless.missing() == "no_such_package, numpy/no/such.py not installed: pip install it"
    assert Needs(modules=("numpy/version.py",), install="", weights=()).missing() is None


def test_the_hub_is_asked_only_for_what_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(name: str, files: list[str]) -> None:
        asked.append((name, files))
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / "w.pth").touch()

    monkeypatch.setattr(weights, "fetch", fetch)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    needs = Needs(
        modules=("numpy",),
        install="",
        weights=(Weights(path="w.pth", origin="hub", hub="someone/something"),),
    )
    metric = Metric(
        name="m",
        title="M",
        unit="",
        better="higher",
        source="s",
        load=lambda device: lambda subject: np.ones(1),
        stands_for="clarity",
        missing=needs.missing,
        get=needs.get,
    )
    assert choose(["all", "offline"], {"m": metric}) == [] and asked == []
    assert choose(["m"], {"m": metric}) == [metric]
    assert asked == [("someone/something", ["w.pth"])]


# Each offline metric under its own damage -------------------------------------------------------------


def test_blur_lowers_sharpness():
    found = [scored("sharpness", blurred(clip(), sigma)).mean() for sigma in (0, 0.6, 1.2, 2.5)]
    assert np.all(np.diff(found) < 0) and found[-1] < 0.1 * found[0]


def test_a_tint_raises_the_colour_shift_from_the_start():
    start = clip()[0]
    found = [scored("colour-shift", tinted(clip(), levels), start=start).mean() for levels in (0, 6, 12, 24)]
    assert found[0] < 3 and np.all(np.diff(found) > 3), found


def test_colours_that_pale_lower_colourfulness():
    found = [scored("colourfulness", paled(clip(), share)).mean() for share in (0, 0.3, 0.6, 1)]
    assert np.all(np.diff(found) < -1) and found[-1] < 1, found


@pytest.mark.skipif(weights_file() is None, reason="EfficientNet-Lite0's weights are not installed")
def test_a_swapped_object_is_farther_in_features():
    """The longer another film is shown, the farther from the start and from the mean of the frames."""
    own, other = clip()[:8], real_clip("bigbuckbunny", 0, 8)[:, 200:456:2, 500:756:2]
    networks = [OFFLINE[name].load("cpu") for name in ("feature-shift", "feature-spread")]
    found = []
    for count in (0, 2, 4, 7):
        subject = Subject(frames=np.concatenate([own[: 8 - count], other[:count]]), fps=8, start=own[0])
        found.append([network(subject).mean() for network in networks])
    shift, spread = np.transpose(found)
    assert np.all(np.diff(shift) > 0.05), shift
    assert np.all(np.diff(spread[:3]) > 0.03), spread  # most apart where each film has half


@pytest.mark.skipif(weights_file() is None, reason="EfficientNet-Lite0's weights are not installed")
def test_both_metrics_of_features_share_one_pass(monkeypatch: pytest.MonkeyPatch):
    from framepack.metrics.features import Features

    passes = []
    whole = Features.of

    def counted(self: Features, frames: np.ndarray):
        passes.append(len(frames))
        return whole(self, frames)

    monkeypatch.setattr(Features, "of", counted)
    subject = Subject(frames=np.repeat(clip()[:2], 12, axis=0), fps=8)
    for name in ("feature-shift", "feature-spread"):
        assert len(OFFLINE[name].load("cpu")(subject)) == len(offline.evenly(24)) == 8
    assert passes == [8]


# Drift ------------------------------------------------------------------------------------------------


def steady() -> np.ndarray:
    """A filmed clip whose quality stays as it is: a man talks in a car, 80 frames."""
    return real_clip("carphone_pristine", 10, 80)[:, 8:136, 24:152]


STEADY = {"sharpness": 0.3, "colourfulness": 0.05, "warping-error": 0.2}
"""Most drift of it, as a share of the mean: it is not 0, for the trees beyond the window pass."""


@pytest.mark.parametrize(("name", "share"), STEADY.items())
def test_drift_of_a_steady_real_clip_is_near_zero(name: str, share: float):
    scores = scored(name, steady())
    assert drift_of(scores) < share * scores.mean(), drift_of(scores) / scores.mean()


def test_a_ramp_of_blur_drifts_far_more_than_the_clip_itself():
    frames = steady()
    sigmas = np.linspace(0.01, 2, len(frames))
    softer = np.stack([blurred(frame[None], sigma)[0] for frame, sigma in zip(frames, sigmas, strict=True)])
    assert drift_of(scored("sharpness", softer)) > 0.8 * scored("sharpness", frames)[:12].mean()


def test_drift_of_a_planted_ramp_is_found():
    """Grey frames that get brighter by 30 levels of sRGB in all, and so by a known step of L of Lab."""
    frames = steady().mean(axis=-1, keepdims=True).repeat(3, axis=-1) * 0.2 + 80
    frames += 100 - frames.mean(axis=(1, 2, 3), keepdims=True)  # contrast, and a mean that does not wander
    ramp = np.linspace(0, 30, len(frames))
    brighter = (frames + ramp[:, None, None, None]).round().astype(np.uint8)
    ends = end_count(len(frames))
    low, high = 100 + ramp[:ends].mean(), 100 + ramp[-ends:].mean()
    expected = float(lab([high] * 3)[0] - lab([low] * 3)[0])
    assert drift_of(scored("colour-shift", brighter)) == pytest.approx(expected, rel=0.03)
    assert drift_of(scored("colour-shift", frames.round().astype(np.uint8))) < 0.03 * expected


def test_drift_of_a_planted_loss_of_colour_is_its_known_share():
    frames = steady()
    shares = np.linspace(0, 0.6, len(frames))
    fading = np.stack([paled(frame[None], share)[0] for frame, share in zip(frames, shares, strict=True)])
    ends = end_count(len(frames))
    whole = scored("colourfulness", frames)
    expected = whole[:ends].mean() * (shares[-ends:].mean() - shares[:ends].mean())
    assert drift_of(scored("colourfulness", fading)) == pytest.approx(expected, rel=0.08)


def test_noise_that_grows_is_told_by_sharpness_as_it_should_be():
    """Of noise alone the variance of the Laplacian is 20 times that of luma's noise."""
    flat = np.full((4, 128, 128, 3), 128, np.uint8)
    for sigma in (4.0, 8.0, 16.0):
        luma = sigma**2 * (0.299**2 + 0.587**2 + 0.114**2)
        assert scored("sharpness", noisy(flat, sigma)).mean() == pytest.approx(20 * luma, rel=0.05)


# Published ones, handed a package and weights -----------------------------------------------------------


def test_the_aesthetic_predictor_is_a_line_on_normalised_clip_features(tmp_path: Path):
    """transformers' own CLIP with random weights; a head that reads one feature."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=32,
        image_size=224, projection_dim=8,
    )  # fmt: skip
    network = CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path / "weights/clip_model/clip-vit-large-patch14")
    head = tmp_path / "weights/aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"
    head.parent.mkdir(parents=True)
    torch.save({"weight": 10 * torch.eye(8)[2:3], "bias": torch.tensor([3.0])}, head)
    assert METRICS["aesthetic"].missing() is None
    frames = real_clip("bikes", 100, 24)[:3, 20:244, 100:356]
    found = METRICS["aesthetic"].load("cpu")(Subject(frames=frames, fps=8))
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    given = torch.from_numpy((frames[:, :, 16:240] / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        features = torch.nn.functional.normalize(network(given).image_embeds, dim=-1)
    assert found == pytest.approx((10 * features[:, 2] + 3).numpy(), abs=1e-5)
    assert np.ptp(found) > 1e-3


def test_identity_is_of_frames_with_one_face_and_none_without_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A stand-in for VBench-2.0, which answers by the brightness of a frame."""
    import sys
    from types import ModuleType

    import torch

    from framepack.metrics import people

    class Tracker:
        def update(self, frame: np.ndarray, number: int, faces: object, network: object) -> tuple[bool, bool]:
            return bool(frame.mean() < 100), bool(frame.mean() > 10)

    class Network(torch.nn.Module):
        def load_state_dict(self, state):
            assert list(state) == ["a"]

    def module(name: str, **names: object) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    class Faces:
        def __init__(self, max_size: int, device: str) -> None: ...
        def load_state_dict(self, state) -> None: ...

    for name in ("retinaface", "vbench2", "vbench2.third_party", "vbench2.third_party.arcface"):
        module(name)
    module("retinaface.predict_single", Model=Faces)
    module("vbench2.human_identity", IDTracker=Tracker)
    module("vbench2.third_party.arcface.models", resnet_face18=lambda use_se: Network())
    for path, state in (("arcface/resnet18_110.pth", {"module.a": torch.ones(1)}), (people.RETINA, {})):
        file = tmp_path / "weights" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, file, _use_new_zipfile_serialization=True)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **more: {})
    score = people.identity("cpu")

    def frames(*levels: int) -> Subject:
        return Subject(frames=np.array(levels, np.uint8)[:, None, None, None].repeat(3, 3), fps=8)

    found = score(frames(50, *[60] * 20, 200, 0))
    assert np.isnan(found[[0, 22]]).all() and found[1:22].tolist() == [1.0] * 20 + [0.0]
    assert np.isnan(score(frames(50, *[60] * 19))).all(), "fewer than 20 frames with a face"
    assert np.isnan(score(frames(0, *[60] * 30))).all(), "no face to compare with"


def test_anatomy_is_the_share_of_people_with_nothing_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for VBench-2.0 that finds a person for every 50 levels of brightness."""
    import sys
    from types import ModuleType

    from framepack.metrics import people
    from framepack.video.io import read_video

    (tmp_path / "vbench2").mkdir()
    (tmp_path / "vbench2/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    class Detector:
        def __init__(self, config_file: str, weight_file: str, device: str) -> None:
            assert config_file == str(tmp_path / "vbench2/detector.py") and weight_file == "d.pth"

        def detect_video(self, path: str) -> list[int]:
            return [round(float(frame.mean()) / 50) for frame in read_video(path).frames]

    class Analyzer:
        def __init__(self, model_configs: dict, device: str, batch_size: int, class_thresholds: dict) -> None:
            assert model_configs["hand"]["cfg_path"] == str(tmp_path / "vbench2/vit.yaml")
            assert class_thresholds == {"hand": 0.3}

        def analyze(self, path: str, found: list[int]) -> dict:
            frames = [{"person_count": count, "abnormal_count": min(count, 1)} for count in found]
            return {"video_results": 0.5, "frame_results": frames}

    told = {
        "detector_config": "vbench2/detector.py",
        "detector_weights": "d.pth",
        "analyzer_configs": {
            "hand": {"cfg_path": "vbench2/vit.yaml", "weight_path": "h.pth", "threshold": 0.3}
        },
        "batch_size": 4,
    }
    for name, names in (
        ("vbench2.utils", {"init_submodules": lambda wanted: {wanted[0]: told}}),
        ("vbench2.third_party", {}),
        ("vbench2.third_party.ViTDetector", {}),
        ("vbench2.third_party.ViTDetector.detect", {"Detector": Detector, "Analyzer": Analyzer}),
    ):
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)
    levels = np.array([0, 50, 100, 200], np.uint8)[:, None, None, None]
    subject = Subject(frames=np.broadcast_to(levels, (4, 32, 32, 3)).copy(), fps=8)
    found = people.anatomy("cpu")(subject)
    assert np.isnan(found[0]) and found[1:] == pytest.approx([0, 0.5, 0.75])
    monkeypatch.delitem(sys.modules, "vbench2", raising=False)

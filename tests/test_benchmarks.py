"""Every benchmark runs, on a model of random weights; what it measures is not asserted, its sums are."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from framepack.data.world import Motion
from framepack.metrics.drift import drift
from framepack.planning.method import METHODS
from framepack.training.check import held_out_scenes, inside
from tiny import SECTION, SIZE, save_tiny, tiny_bundle, tiny_spec
from tiny_clips import save_model

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    """A benchmark as a module of its own name; beside it lies what they share."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


pytestmark = pytest.mark.usefixtures("one_thread")


def outputs(folder: Path) -> list[str]:
    return ["--out", str(folder / "found.md"), "--out", str(folder / "found.json")]


def check_outputs(folder: Path, name: str, arguments: list[str], shown: str) -> dict:
    """Both files and the terminal tell the command; gives the JSON."""
    found = json.loads((folder / "found.json").read_text())
    text = (folder / "found.md").read_text()
    assert found["command"].startswith(f"python benchmarks/{name}.py --model")
    assert all(argument in found["command"] for argument in arguments)
    assert found["command"] in text and found["command"] in shown
    assert text.count("| ---") >= 1 and found["machine"]["threads"] == 1
    return found


def test_drift(model, tmp_path, capsys):
    arguments = ["--model", model, "--clips", "2", "--frames", "13", "--batch", "2", *outputs(tmp_path)]
    assert load("drift").main(arguments) == 0
    found = check_outputs(tmp_path, "drift", arguments, capsys.readouterr().out)
    assert found["sections"] == {"vanilla": 4, "f1": 4, "anti-drifting": 3, "inverted": 4}
    assert set(found["drift"]) == {"the world", "vanilla", "f1", "anti-drifting", "inverted"}
    for method in found["drift"].values():
        for metric in method.values():
            for kind, values in metric.items():
                assert len(values["clips"]) == 2
                if kind == "absolute":
                    assert values["mean"]["value"] == pytest.approx(np.mean(values["clips"]))
    assert found["drift"]["the world"]["colourfulness"]["beyond"]["clips"] == [0, 0]


def test_prompt_switch(model, tmp_path, capsys):
    arguments = ["--model", model, "--clips", "2", "--frames", "13", "--methods", "vanilla", "--control"]
    arguments += ["--device", "cpu", *outputs(tmp_path)]
    assert load("prompt_switch").main(arguments) == 0
    found = check_outputs(tmp_path, "prompt_switch", arguments, capsys.readouterr().out)
    (measured,) = found["methods"].values()
    assert (measured["section_frames"], measured["grid"]) == (3, 7)
    assert len(measured["clips"]) == len(measured["control"]) == 2
    assert all(clip["asked"] == 6.5 for clip in measured["clips"])


def test_prompt_switch_finds_the_turn_and_only_turns():
    turn_of, step = load("prompt_switch").turn_of, 0.02
    left, right = [-step] * 10, [step] * 8
    assert turn_of(np.array(left + right)) == 11  # step 10 goes from frame 10 to 11
    noisy = np.array([*left, np.nan, 0.001, *right]) + np.random.default_rng(0).normal(0, 0.002, 20)
    assert 11 <= turn_of(noisy) <= 13
    for steps in (left, right, right + left, [0.0] * 9, [np.nan] * 9, []):
        assert turn_of(np.array(steps, float)) is None


def test_prompt_switch_on_scenes_that_do_turn():
    """Drawn by the world: the turn is found where the scene has it."""
    benchmark = load("prompt_switch")
    turns = (Motion(start=0, direction="left"), Motion(start=12, direction="right"))
    drawn = [scene for _, scene in zip(range(40), held_out_scenes(24, (64, 64)), strict=False)]
    found = []
    for scene in (replace(scene, motions=turns) for scene in drawn if inside(scene, 0, margin=0.35)):
        frames = scene.render(range(24), 64, 64)
        found.append(benchmark.turn_of(benchmark.track(frames, scene.colour).steps()[:, 0]))
    assert len(found) > 3 and all(turned in (12, 13) for turned in found), found


def test_seams(model, tmp_path, capsys):
    plot = tmp_path / "plot.png"
    sizes = ["--clips", "2", "--frames", "13", "--loop-frames", "13", "--steps", "1", "--device", "cpu"]
    arguments = ["--model", model, *sizes, "--plot", str(plot), *outputs(tmp_path)]
    assert load("seams").main(arguments) == 0
    found = check_outputs(tmp_path, "seams", arguments, capsys.readouterr().out)["rows"]
    kinds = {
        name: {kind: len(clips[0]) for kind, clips in row["seams"].items()} for name, row in found.items()
    }
    inside = {"picture | section": 1, "section | section": 3}  # 1 + 3 + 3 + 3 + 3 frames
    assert kinds == {
        "the world": inside,
        **dict.fromkeys(("vanilla", "f1", "anti-drifting", "inverted"), inside),
        "keyframes": {"picture | section": 2, "section | section": 2, "section | picture": 2},
        "from a clip": {"clip | section": 1, "section | section": 1},
        "to a clip": {"section | section": 1, "section | clip": 1},
        "between two clips": {"clip | section": 1, "section | section": 1, "section | clip": 1},
        "the same, copied": {"clip | section": 1, "section | section": 1, "section | clip": 1},
        "loop": {**inside, "end | start": 1},
    }
    assert all(len(clips) == 2 for row in found.values() for clips in row["seams"].values())
    assert {len(clip) for clip in found["vanilla"]["control"]} == {12 - 1 - 3}
    both = [found[name]["seams"] for name in ("between two clips", "the same, copied")]
    assert both[0]["clip | section"] != both[1]["clip | section"]
    assert found["keyframes"]["order"] == found["loop"]["order"] == "inverted", "the model's own sees both"
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("closed", [False, True])
def test_seams_finds_the_jump_and_only_that(closed):
    """A disc that moves steadily round, and once by five times its step."""
    benchmark = load("seams")
    turns = np.arange(24.0) + 4 * (np.arange(24) >= 13)
    turns *= 2 * np.pi / (24 + 4)
    y, x = np.mgrid[0:64, 0:64]
    inside = [np.hypot(x - 32 - 20 * np.cos(a), y - 32 - 20 * np.sin(a)) < 8 for a in turns]
    frames = np.stack([np.where(disc[..., None], (224, 46, 50), (60, 60, 90)) for disc in inside])
    found = benchmark.ratios(
        benchmark.differences(frames.astype(np.uint8), closed=closed), [12], closed=closed
    )
    assert len(found) == 23 + closed and found.argmax() == 12 and found[12] > 2.5
    assert np.delete(found, 12) == pytest.approx(1, abs=0.15)


def test_seams_has_a_floor_where_nothing_moves_and_leaves_out_what_has_no_neighbours():
    ratios = load("seams").ratios
    still = np.full(9, 0.001)
    still[4] = 1.0
    assert ratios(still, [4])[4] == pytest.approx(10) and ratios(still, [4])[0] == pytest.approx(0.01)
    found = ratios(np.array([1.0, 2.0, 4.0]), [0, 1])
    assert found[:2].tolist() == [0.25, 0.5] and np.isnan(found[2])
    # Borders are no neighbours, four others on either side are, and round a loop the first ones.
    steps = np.arange(1.0, 13.0)
    assert ratios(steps, [5, 6])[5] == pytest.approx(6 / np.median([2, 3, 4, 5, 8, 9, 10, 11]))
    assert ratios(steps, [11], closed=True)[11] == pytest.approx(12 / np.median([8, 9, 10, 11, 1, 2, 3, 4]))


def test_drift_clips_keep_their_words_and_begin_with_their_picture():
    bundle = tiny_bundle()
    benchmark = load("drift")
    clips = benchmark.held_out_clips(bundle, 3, 40)
    assert len({clip.pair.picture.tobytes() for clip in clips}) == 3
    for clip in clips:
        assert clip.truth.shape == (40, SIZE, SIZE, 3)
        assert clip.pair.picture.shape == (SIZE, SIZE, 3)
        assert {clip.pair.colour, clip.pair.direction} <= set(clip.pair.words)
        through = benchmark.through_codec(bundle, clip.pair.picture[None])[0]
        # Another batch rounds differently, by a level at most.
        assert np.abs(through.astype(int) - clip.truth[0]).max() <= 1


def test_drift_beyond_the_world_takes_the_content_out():
    """A video as its scene, only ever duller, drifts by what it lost; one that is its scene by nothing."""
    beyond = load("drift").beyond
    truth = 10 + np.sin(np.arange(40.0)) + np.arange(40) / 10
    assert drift(truth).absolute > 3
    assert beyond(truth, truth).absolute == 0
    lost = np.linspace(0, 5, 40)
    found = beyond(truth - lost, truth)
    assert found.absolute == pytest.approx(drift(lost).absolute / truth.mean())
    assert found.change < 0


def test_context(model, tmp_path, capsys):
    plot = tmp_path / "plot.png"
    counts = ["--sections", "9", "--window", "3", "--warm-up", "2", "--baseline-sections", "5"]
    arguments = ["--model", model, *counts, "--steps", "1", "--plot", str(plot), *outputs(tmp_path)]
    assert load("context").main(arguments) == 0
    found = check_outputs(tmp_path, "context", arguments, capsys.readouterr().out)
    assert len(found["packed"]) == 9 and 1 <= len(found["full_history"]) <= 5
    assert [(w["start"], w["stop"]) for w in found["windows"]] == [(3, 6), (6, 9)]
    expected = np.quantile([s["seconds"] for s in found["packed"][6:]], [0.25, 0.5, 0.75])
    assert found["windows"][1]["seconds"] == pytest.approx(expected)
    medians = [window["seconds"][1] for window in found["windows"]]
    assert found["ratio"]["seconds"]["value"] == pytest.approx(medians[1] / medians[0])
    assert all(section["resident"] > 1e6 and section["cpu_seconds"] > 0 for section in found["packed"])
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "planned"])
def test_full_history_sees_every_earlier_latent_unpacked(method):
    """By section the tokens are those of all frames known before it, at the base kernel."""
    benchmark, spec = load("context"), tiny_spec()
    options = benchmark.argparse.Namespace(
        method=method, image=None, prompt="", steps=None, guidance=None, seed=0
    )
    request = benchmark.baseline_request(options, spec, 7)
    selection = benchmark.select(request, spec)
    frame = (SIZE // spec.spatial_stride) ** 2
    known = 0
    for section, tokens in zip(
        selection.plan.sections, benchmark.tokens_by_section(request, spec), strict=True
    ):
        repeated = method == "f1" and section.index > 0  # it keeps its start frame in the history too
        assert tokens == (known + repeated) * frame
        known += len(section.frames)
    assert known == 7 * SECTION


def test_speed(model, tmp_path, capsys):
    arguments = ["--model", model, "--seconds", "1", "--steps", "1", "--repeats", "2", *outputs(tmp_path)]
    assert load("speed").main(arguments) == 0
    found = check_outputs(tmp_path, "speed", arguments, capsys.readouterr().out)
    kinds = [(run["dtype"], run["guidance"]) for run in found["runs"]]
    assert kinds == [(t, g) for t in ("float32", "bfloat16") for g in (1.0, 1.5) for _ in range(2)]
    for run in found["runs"]:
        assert set(run["stages"]) == {"pack", "sample", "store", "decode", "encode", "other"}
        assert sum(run["stages"].values()) == pytest.approx(run["wall"], rel=1e-6)
        assert run["stages"]["sample"] > 0 and run["stages"]["encode"] > 0


def test_training(model, tmp_path, capsys):
    plot = tmp_path / "plot.png"
    sizes = ["--history", "0", "256", "--batch", "2", "--memory", "0.01", "--repeats", "2"]
    arguments = ["--model", model, *sizes, "--limit", "1e9", "--plot", str(plot), *outputs(tmp_path)]
    assert load("training").main(arguments) == 0
    found = check_outputs(tmp_path, "training", arguments, capsys.readouterr().out)
    steps = {(row["point"]["kind"], row["point"]["history"]): row for row in found["steps"]}
    both = [(kind, history) for kind in ("packed", "full history") for history in (0, 256)]
    assert set(steps) == {("image", 0), *both}
    for row in steps.values():
        assert row["batch"] == 2 and len(row["seconds"]) == 2 and not row["left_out"]
        # Counted without data and carried out: the same tensors.
        assert row["measured"]["backward"] == pytest.approx(row["counted"]["backward"], rel=0.01)
        assert row["measured"]["update"] == pytest.approx(row["counted"]["update"], rel=0.01)
    bytes_at = {key: row["measured"]["backward"] for key, row in steps.items()}
    assert bytes_at["packed", 0] == bytes_at["full history", 0]
    assert 5 * bytes_at["packed", 256] < bytes_at["full history", 256]
    assert all(bytes_at["image", 0] < bytes_at["packed", history] for history in (0, 256))
    frame = (SIZE // 8) ** 2
    assert steps["full history", 256]["tokens"] == (256 + SECTION) * frame
    assert steps["image", 0]["tokens"] == frame

    largest = {(row["point"]["kind"], row["point"]["history"]): row for row in found["largest"]["0.01"]}
    for row in largest.values():
        if row["batch"]:
            assert max(row["counted"].values()) <= 0.01 * 2**30
    batches = {key: row["batch"] for key, row in largest.items()}
    assert batches["full history", 256] < batches["packed", 256] <= batches["packed", 0] < batches["image", 0]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_lora_of_the_larger_family_is_counted_and_what_is_not_run_is_said(tmp_path, capsys):
    size = ["--layers", "1", "--width", "128", "--size", "32", "32", "--history", "40", "--memory", "0.05"]
    arguments = ["--config", "13b-lora", *size, "--limit", "0", *outputs(tmp_path)]
    assert load("training").main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 < found["trained"] < found["parameters"] / 4
    assert all(row["left_out"] == "only counted" and not row["seconds"] for row in found["steps"])
    assert "not run, only counted: image (1)" in capsys.readouterr().out


def test_the_tally_counts_what_lies_in_memory_at_once():
    from torch._subclasses.fake_tensor import FakeTensorMode

    load("training")
    from framepack.resources.tally import Tally, tensors_in

    def peaks() -> list[int]:
        weight = torch.nn.Linear(100, 100, bias=False)
        with Tally(tensors_in(weight)) as tally:
            x = torch.zeros(50, 100)
            found = [tally.peak]
            y = weight(x).exp()  # the product is gone once its exponential is there
            found += [tally.peak, tally.live]
            y.view(-1)[:10].sum().backward()  # a view takes nothing; the gradient of the weight stays
            del x, y
            found.append(tally.live)
            tally.rewind()
            found.append(tally.peak)
        return found

    begun, product, held, after, again = peaks()
    assert begun == 4 * (10_000 + 5_000)
    assert product == begun + 2 * 4 * 5_000
    assert held == begun + 4 * 5_000
    assert after == again == 4 * 20_000
    with FakeTensorMode():
        assert peaks() == [begun, product, held, after, again]


def test_caches(tmp_path, capsys):
    """Plain is itself, and what a cache leaves out is told."""
    torch.manual_seed(0)
    shallow = tiny_bundle().transformer
    deep = type(shallow).from_config({**shallow.config, "num_layers": 3}).eval().requires_grad_(False)
    replace(tiny_bundle(), transformer=deep).save(tmp_path / "deep")
    arguments = ["--model", str(tmp_path / "deep"), "--clips", "1", "--frames", "9", "--steps", "6"]
    arguments += ["--dtypes", "float32", "--repeats", "1", "--fewer", "3", "--device", "cpu"]
    arguments += ["--caches", "first-block=10", "mag=10", "taylorseer=2", "--method", "vanilla"]
    arguments += ["--plot", str(tmp_path / "found.png"), "--calibrate", str(tmp_path / "ratios.json")]
    assert load("caches").main([*arguments, *outputs(tmp_path)]) == 0
    found = check_outputs(tmp_path, "caches", arguments, capsys.readouterr().out)
    assert found["ratios"] == json.loads((tmp_path / "ratios.json").read_text()) and len(found["ratios"]) == 6
    computed = {row["cache"] or row["steps"]: row["computed"] for row in found["rows"]}
    assert computed == {
        6: 1.0,
        3: 0.5,
        # Of three blocks in six steps: all in the first, then the first alone.
        "first-block=10": pytest.approx((3 + 5) / 18),
        "mag=10": pytest.approx(2 / 6),  # one retained, three skipped, and so on
        "taylorseer=2": pytest.approx(4 / 6),
    }
    plain, stored = found["precisions"]
    assert plain == found["rows"][0] and stored["dtype"] == "fp8" and 20 < stored["psnr"][0] < 60
    assert found["rows"][0]["psnr"] == [60.0] and all(row["psnr"][0] < 60 for row in found["rows"][1:])
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_the_largest_batch_and_the_one_after_it_are_tried():
    load("training")
    from shared.memory import largest_batch

    tried: list[int] = []

    def peak(batch: int) -> float:
        tried.append(batch)
        return max(300 + 7 * batch, 20 * batch) if batch < 90 else float("inf")

    for memory, expected in ((306, 0), (307, 1), (391, 13), (392, 13), (1000, 50), (1999, 89)):
        tried.clear()
        assert largest_batch(peak, memory) == expected
        assert expected + 1 in tried and (expected == 0 or expected in tried) and len(tried) < 20


def test_decode(model, tmp_path, capsys):
    """What is decoded as they come is what is decoded at once; counts follow from the sections alone."""
    arguments = ["--model", model, "--sections", "4", *outputs(tmp_path)]
    assert load("decode").main(arguments) == 0
    found = check_outputs(tmp_path, "decode", arguments, capsys.readouterr().out)
    latents = found["latents"]
    assert latents == 37 and len(found["ways"]) == 4
    for name, ways in found["ways"].items():
        whole, streamed, released = ways["at once"], ways["as they come"], ways["released loop"]
        assert (streamed["called"], released["called"]) == (latents, 10 + 3 * 18)
        assert streamed["error"] <= 5e-5 and streamed["seam_error"] <= streamed["error"]
        if name == "HunyuanVideo":  # 37 = 3 * 12 + 1: the last tile of all would show nothing
            assert streamed["network"] == whole["network"] - 1 == 11 * 5 + 4
        else:
            assert streamed["network"] == whole["network"] == latents
            assert released["network"] == released["called"]
        peaks = found["peak_bytes"][name]
        assert found["peak_bytes"]["sections"] == [1, 2, 4]
        assert peaks["at once"][2] > 1.2 * peaks["at once"][1]
        assert peaks["as they come"][2] <= 1.1 * peaks["as they come"][1]


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [
        ("drift", ["--model", "nowhere"], "unknown model"),
        ("context", ["--out", "found.txt"], "must end in .md or .json"),
        ("context", ["--plot", "plot.pdf"], "must end in .png"),
        ("context", ["--sections", "50"], "no two windows"),
        ("speed", ["--seconds", "-1"], "seconds"),
        ("seams", ["--frames", "3"], "give 1 or more, of 7 or more"),
        ("training", ["--config", "2b"], "unknown config"),
        ("training", ["--config", "1b", "--width", "100"], "a multiple of 128"),
        ("training", ["--layers", "2"], "add --config"),
        ("training", ["--size", "30", "32"], "multiples of 8"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name, arguments, rule, model, capsys):
    first = [] if "--model" in arguments else ["--model", model]
    with pytest.raises(SystemExit) as stopped:
        load(name).main([*first, *arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and rule in said and said.count("\n") == 1


def test_live_delays_and_its_table(model: str, tmp_path: Path) -> None:
    live = load("live")

    def shown(prompt: str, seen: float) -> object:
        return live.Shown(prompt=prompt, seen=seen, made=0.1, frames=6, resident=1)

    found = [shown("left", 0.0), shown("left", 1.0), shown("right", 2.0), shown("left", 3.0)]
    assert live.delays(found, [(0.5, "right"), (2.5, "left")]) == [1.5, 0.5]
    # The first was replaced before it could be seen.
    assert live.delays(found, [(0.5, "right"), (1.5, "left")]) == [1.5]
    assert live.main(["--model", model, "--minutes", "0.05", "--every", "0.5", *outputs(tmp_path)]) == 0
    told = json.loads((tmp_path / "found.json").read_text())
    assert len(told["sections"]) > 1 and all(each["frames"] >= SECTION for each in told["sections"])


def test_variants_differ_in_one_thing() -> None:
    variants = load("variants")
    options = argparse.Namespace(model="bundled", steps=5, batch=4, cached=8, set=["cache.seed=3"])
    for rows in variants.SUITES.values():
        configs = {name: asdict(variants.config_of(options, changes)) for name, changes in rows.items()}
        jsons = {json.dumps(config, sort_keys=True) for config in configs.values()}
        assert len(jsons) == len(rows), "no two rows are alike"
        for config in configs.values():
            # What a row is about aside, all are the same run.
            config["codewords"] = config["objective"]["corruption"] = config["objective"]["shift"] = None
        assert len({json.dumps(config, sort_keys=True) for config in configs.values()}) == 1
    scores = {name: [1.0, 2.0, 3.0] for name in variants.MEASURES}
    table = variants.paired_table(
        {"plain": scores, "other": {n: [v + 1 for v in s] for n, s in scores.items()}}, "plain"
    )
    assert table.rows == (("other", *["+1.0 [+1.0, +1.0]"] * len(variants.MEASURES)),)


# diffusers' pipelines and ours --------------------------------------------------------------------------


def peers_found(folder: Path, *more: str) -> dict:
    sizes = ["--side", "32", "--width", "32", "--blocks", "1", "--channels", "4", "--steps", "1"]
    arguments = [*sizes, "--no-released", *more, "--out", str(folder / "found.json")]
    assert load("peer_pipeline").main(arguments) == 0
    return json.loads((folder / "found.json").read_text())


def test_estimates_stand_beside_what_commands_take(monkeypatch, tmp_path, capsys):
    module = load("estimate")
    monkeypatch.setattr(module, "alone", lambda work, *given: work(*given))
    monkeypatch.setattr(module, "adopted", lambda name, folder: str(save_model(name, folder / name)))
    monkeypatch.setattr(module, "M_MMAP_THRESHOLD", 0)  # nothing: this process goes on
    monkeypatch.setattr(module, "CLIP", 2)
    monkeypatch.setattr(module, "SECTION", 2)
    cases = (
        module.Case(name="video", model="wan", side=64, options=("--seconds", "1", "--steps", "1")),
        module.Case(name="LoRA", model="wan", side=64, recipe="lora"),
    )
    monkeypatch.setattr(module, "CASES", cases)
    assert module.main(["--folder", str(tmp_path), *outputs(tmp_path)]) == 0
    video, training = json.loads((tmp_path / "found.json").read_text())["cases"]
    for row in (video, training):
        assert row["ratio"] == pytest.approx(row["estimated"] / row["measured"]) and row["measured"] > 0
        assert 1e5 < row["estimated"] < 1e9 and row["before"] > 1e8 and min(row["seconds"]) > 0
    assert "wan: LoRA, 64 x 64" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        module.main(["--case", "3"])
    assert "--case 3: give 1 to 2" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=r"framepack generate --nothing: .*nothing"):
        module.run(["generate", "--nothing"])


def check_peer(row: dict, frames: list[int]) -> None:
    assert row["frames"] == frames and row["latents"]["most"] < 1e-3
    # Ours is what diffusers' own latents are, decoded once.
    assert row["exact"]["most"] <= 1 and row["exact"]["mean"] < 0.01
    for who in ("theirs", "ours"):
        (stages,) = row[who]
        assert {"encode", "sample", "decode", "write", "rest"} <= set(stages)
        assert all(spent["wall"] > 0 for spent in stages.values())


def test_peer_pipeline_of_framepack(tmp_path, capsys):
    found = peers_found(tmp_path, "--families", "framepack", "--sections", "1", "2")
    assert found["command"] in capsys.readouterr().out
    assert found["latents_in_network"] == {"1": [15, 14], "2": [43, 29]}
    one, two = (found["families"]["framepack"]["by_sections"][count] for count in ("1", "2"))
    check_peer(one, [37, 37])
    check_peer(two, [73, 73])
    # Frames that were cross-faded of two decodings are others.
    assert one["pixels"]["most"] <= 1 < two["pixels"]["most"]
    # A video that is kept, and one that is not; a window of the codec is not yet full at first.
    (theirs,) = set(one["memory"]) - {"framepack"}
    grown = {who: two["memory"][who]["tensors"] - one["memory"][who]["tensors"] for who in one["memory"]}
    added = 4 * 3 * 32 * 32 * (73 - 37)
    assert grown[theirs] > 0.9 * added and grown["framepack"] < 0.5 * added
    for option in found["options"].values():
        assert option["pixels"]["mean"] > 0 and len(option["seconds"]) == 1
    assert found["options"]["tiles in time that do not overlap"]["latents"]["most"] == 0


def test_peer_pipeline_of_helios(tmp_path):
    found = peers_found(tmp_path, "--families", "helios", "--sections", "2")
    row = found["families"]["helios"]["by_sections"]["2"]
    check_peer(row, [65, 66])
    assert row["pixels"]["most"] <= 1, "each section is decoded once by both"


def test_latents_in_the_network_as_diffusers_and_the_stream_count_them():
    load("peer_pipeline")
    operations = sys.modules["shared.released_operations"]
    from framepack.codecs.streaming import stream_decoder
    from framepack.codecs.video_vae import VideoCodec
    from tiny_parts import hunyuan_video_vae

    codec, seen = VideoCodec(hunyuan_video_vae().requires_grad_(False)), []
    codec.vae.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2]))
    for latents in (4, 5, 10, 18, 19):
        video = torch.zeros(1, 16, latents, 1, 1)
        seen.clear()
        codec.decode(video)
        assert seen == operations.tiles(latents)
        seen.clear()
        stream = stream_decoder(codec)
        stream.push(video)
        stream.finish()
        assert seen == operations.tiles(latents, last=False)
    # FramePack of 8 sections: 136 latents are given to the VAE for 73.
    assert sum(operations.calls(8)) == 136 and operations.in_network(8) == (211, 119)


def test_the_released_model_is_counted_and_more_is_sampled_with_more_steps():
    load("peer_pipeline")
    released = sys.modules["shared.released_operations"].Released(64, 64)
    few, many = released.of(3, 5), released.of(3, 25)
    assert many.sampling == pytest.approx(5 * few.sampling)
    assert few.theirs == many.theirs > few.ours and few.ratio > many.ratio > 1
    assert few.share > many.share
    # 13 billion weights, twice an operation for each of 9 x 4 x 4 tokens and more, five times, three times.
    assert few.sampling > 2 * 13e9 * 9 * 16 / 3 * 5 * 3 / 2


def test_the_stopwatch_counts_each_moment_once(monkeypatch):
    load("peer_pipeline")
    stopwatch = sys.modules["shared.stopwatch"]
    clock = iter(range(100))
    monkeypatch.setattr(stopwatch, "_now", lambda: (float(next(clock)), 0.0))
    thing = argparse.Namespace(inner=lambda: 5)
    watch = stopwatch.Stopwatch()
    with watch.watching((thing, "inner", "inside")), watch, watch.stage("outside"):
        assert thing.inner() == 5
    assert thing.inner() == 5
    assert {name: spent.wall for name, spent in watch.stages.items()} == {
        "rest": 2,
        "outside": 2,
        "inside": 1,
    }

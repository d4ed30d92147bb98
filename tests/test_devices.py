"""Sections computed by two processes: the latents of one, in every way that a model sees its history."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from framepack.cli import main
from framepack.errors import InputError, LostProcessError
from framepack.generation import devices as module
from framepack.generation.devices import Devices, check_devices
from framepack.generation.events import Event, SectionFinished, Step
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import latents_of
from framepack.generation.store import RunStore
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.parallel import Share
from framepack.models.source import resolve_model
from framepack.models.spec import ModelSpec
from framepack.planning.method import named_method
from tiny import save_tiny, tiny_bundle
from tiny_clips import save_model
from tiny_framepack import framepack_transformer

TOLERANCE = 1e-5
"""Of latents of a standard deviation of about 1 in float32; 1e-6 are measured, for matrix products of
other sizes sum in other orders."""
ODD = "40x24"
"""3 x 5 latents, three to a section."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by name."""
    home = tmp_path_factory.mktemp("devices")
    save_tiny(home / "plain")
    for name in ("isolated", "scaled"):
        save_variant(home / name, name)
    save_model("hunyuan_video", home / "hunyuan_video")
    spec = ModelSpec.load(home / "hunyuan_video")
    odd = {"f1": named_method("f1", section_size=3)}
    replace(spec, buckets=((48, 80),), methods=odd, default_method="f1").save(home / "hunyuan_video")
    hunyuan_isolated(home / "hunyuan_video", home / "hunyuan_isolated")
    return home


def hunyuan_isolated(plain: Path, folder: Path) -> None:
    """The same with blocks that give history a timestep of 0, and that isolate it."""
    shutil.copytree(plain, folder)
    torch.manual_seed(0)
    base = PackedHunyuanVideoTransformer3DModel.adopt(framepack_transformer(), (), history_timestep="zero")
    base.isolate()
    base.save_pretrained(folder / "transformer")
    spec = ModelSpec.load(folder)
    methods = {name: replace(method, history_timestep="zero") for name, method in spec.methods.items()}
    replace(spec, methods=methods).save(folder)


def save_variant(folder: Path, name: str) -> None:
    """Other attention to history, of other random weights: a scale, guided cross-attention, or isolated."""
    bundle = tiny_bundle()
    torch.manual_seed(1)
    changes = (
        {"isolated_history": True}
        if name == "isolated"
        else {"history_scale": "per_head", "guided_cross_attention": True}
    )
    transformer = type(bundle.transformer)(**{**_config(bundle.transformer), **changes})
    spec = bundle.spec
    if name == "isolated":
        methods = {key: replace(method, history_timestep="zero") for key, method in spec.methods.items()}
        spec = replace(spec, methods=methods)
    replace(bundle, transformer=transformer.eval().requires_grad_(False), spec=spec).save(folder)


def _config(transformer: torch.nn.Module) -> dict:
    return {name: value for name, value in transformer.config.items() if not name.startswith("_")}


def request_of(home: Path, model: str, **changes: object) -> GenerateRequest:
    asked: dict = {"prompt": "a red ball", "frames": 20, "steps": 2, "seed": 3, "device": "cpu"}
    return GenerateRequest(model=str(home / model), dtype="float32", **asked | changes)


def latents(request: GenerateRequest, folder: Path, events: list[Event] | None = None) -> torch.Tensor:
    run = prepare(replace(request, workdir=folder / f"{Path(request.model).name}-{request.devices}"))
    return latents_of(run, (lambda event: None) if events is None else events.append)


@dataclass(frozen=True)
class Done:
    """A run on two devices: what was asked, where it is, and its latents."""

    request: GenerateRequest
    folder: Path
    latents: torch.Tensor


@pytest.fixture(scope="module")
def plain(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    request, folder = (
        request_of(home, "plain", devices=2, size=ODD, steps=3),
        tmp_path_factory.mktemp("plain"),
    )
    return Done(request, folder, latents(request, folder))


RUNS = [
    ("isolated", {"size": ODD}),
    ("scaled", {}),
    ("hunyuan_video", {"frames": 25, "guidance": 2.0}),  # an empty prompt is one token
    ("hunyuan_video", {"frames": 25, "guidance": 2.0, "negative_prompt": "grass"}),
    ("hunyuan_isolated", {"frames": 25}),
]


@pytest.mark.parametrize(("model", "changes"), RUNS)
def test_two_devices_have_the_latents_of_one(model: str, changes: dict, home: Path, tmp_path: Path) -> None:
    request = request_of(home, model, **changes)
    check_alike(*(latents(replace(request, devices=count), tmp_path) for count in (1, 2)))


def test_and_of_the_plain_model(plain: Done, tmp_path: Path) -> None:
    check_alike(latents(replace(plain.request, devices=1), tmp_path), plain.latents)


def check_alike(one: torch.Tensor, two: torch.Tensor) -> None:
    assert one.isfinite().all() and one.std() > 0.1
    difference = (one - two).abs().max().item()
    assert 0 < difference < TOLERANCE  # the very same would be the same process


@pytest.mark.parametrize(("tokens", "noisy", "count"), [(11, 4, 2), (9, 9, 4), (23, 16, 3), (6, 0, 2)])
def test_parts_are_all_of_a_sequence_and_as_much_of_each_kind(tokens: int, noisy: int, count: int) -> None:
    sequence = torch.arange(tokens)[None, :, None]
    shares = [Share(rank=rank, count=count) for rank in range(count)]
    parts = [share.own(sequence, noisy) for share in shares]
    assert sorted(torch.cat(parts, dim=1).flatten().tolist()) == list(range(tokens))
    for kind, whole in ((slice(0, tokens - noisy), tokens - noisy), (slice(tokens - noisy, None), noisy)):
        own = [torch.isin(part.flatten(), sequence.flatten()[kind]).sum().item() for part in parts]
        assert own == shares[0].sizes(whole) and max(own) - min(own) <= 1


def test_fewer_tokens_than_devices_are_refused() -> None:
    with pytest.raises(InputError, match="2 tokens cannot be shared by 3 devices"):
        Share(rank=0, count=3).own(torch.zeros(1, 12, 4), 10)


def test_a_run_on_one_device_keeps_its_name_and_one_on_two_has_another(home: Path) -> None:
    one, two = (prepare(request_of(home, "plain", devices=count)).config for count in (1, 2))
    assert "devices" not in one.to_json() and two.to_json()["devices"] == 2
    assert one.job != two.job and one.sampling() != two.sampling()
    assert replace(two, devices=1) == one


@pytest.mark.parametrize(
    ("count", "device", "told"),
    [
        (2, "cuda:0", "device 'cuda:0' is one, not 2: give --device cuda"),
        (2, "mps", "cannot share device 'mps': use cuda or cpu"),
        (9999, "cpu", r"9999 devices: this machine has \d+ CPU cores: use at most"),
        (3, "cpu", "2 attention heads of tiny cannot be shared by 3 devices: use --devices 2 or one"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    count: int, device: str, told: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 4)
    with pytest.raises(InputError, match=told):
        check_devices(count, torch.device(device), resolve_model(str(home / "plain")))


def test_causal_history_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "isolated", tmp_path / "causal")
    config = tmp_path / "causal" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"causal_history": True}))
    with pytest.raises(InputError, match="has causal history, which one device computes"):
        check_devices(2, torch.device("cpu"), resolve_model(str(tmp_path / "causal")))


def test_under_torchrun_it_says_who_starts_processes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="framepack starts the others itself"):
        prepare(request_of(home, "plain", devices=2))


def test_refused_before_anything_is_loaded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*rest: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("framepack.generation.prepare.load_placed", load)
    with pytest.raises(InputError, match="3 devices"):
        prepare(request_of(home, "plain", devices=3))
    with pytest.raises(InputError, match="0 devices: use 1 or more"):
        request_of(home, "plain", devices=0)
    for name, changes in (("mag", {"step_cache": "mag"}), ("compiled blocks", {"compile": True})):
        with pytest.raises(InputError, match=f"{name}.* and 2 devices do not go together"):
            request_of(home, "plain", devices=2, **changes)
    with pytest.raises(InputError, match="2 devices: a loaded model stays on the one it is on"):
        prepare(request_of(home, "plain", devices=2), tiny_bundle())


def test_what_is_on_disk_needs_no_other_process(plain: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []

    def start(*rest: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(Devices, "_start", start)
    assert torch.equal(latents(plain.request, plain.folder, events), plain.latents)
    assert all(event.cached for event in events if isinstance(event, SectionFinished))


def test_a_process_that_cannot_load_tells_why(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "plain", tmp_path / "plain")
    run = prepare(request_of(tmp_path, "plain", devices=2, workdir=tmp_path / "run"))
    next((tmp_path / "plain" / "transformer").glob("*.safetensors")).write_bytes(b"cut")
    with pytest.raises(LostProcessError, match=r"process 1 of devices 0 to 1 ended .*is cut short"):
        latents_of(run, lambda event: None)
    assert not multiprocessing.active_children()


def kill_the_other() -> None:
    (other,) = multiprocessing.active_children()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)


def test_the_command_line_ends_with_a_killed_process_and_goes_on(
    plain: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the first section; the same command then takes that from disk."""
    request = plain.request
    out, found = tmp_path / "v.mp4", tmp_path / "run"
    command = ["framepack", "generate", "--model", request.model, "--prompt", str(request.prompt)]
    command += ["--frames", "20", "--steps", "3", "--seed", "3", "--device", "cpu", "--dtype", "float32"]
    command += ["--size", ODD, "--devices", "2", "--out", str(out), "--workdir", str(found)]
    monkeypatch.setattr(sys, "argv", command)
    add = RunStore.add

    def added(store: RunStore, key: str, section: int | None, *rest: Any) -> Any:
        if section == 1:
            kill_the_other()
        return add(store, key, section, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "add", added)
        with pytest.raises(SystemExit) as ended:
            main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and not out.exists()
    assert [line for line in told.splitlines() if "error" in line] == [
        "error: process 1 of devices 0 to 1 ended (exit code -9): what is finished is kept, and the same "
        "command goes on from there"
    ]
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 0, told
    assert told.count("was on disk") == 2 and out.is_file()
    again = latents_of(prepare(replace(request, workdir=found)), lambda event: None)
    assert torch.equal(again, plain.latents)


def test_where_this_process_would_wait_without_end_it_ends(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, codes = threading.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    def told(event: Event) -> None:
        if isinstance(event, Step) and not codes:
            kill_the_other()
            assert ended.wait(20)

    monkeypatch.setattr(module, "GRACE", 0.1)
    monkeypatch.setattr(module.os, "_exit", end)
    run = prepare(request_of(home, "plain", devices=2, workdir=tmp_path / "run"))
    with pytest.raises(LostProcessError, match="exit code -9"):
        latents_of(run, told)
    assert codes == [2]
    assert capsys.readouterr().err.startswith("error: process 1 of devices 0 to 1 ended (exit code -9): ")


def test_the_benchmark_tells_every_process(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    benchmark = importlib.import_module("devices")
    monkeypatch.setattr(benchmark, "alone", benchmark.measured)
    command = ["--model", str(home / "plain"), "--seconds", "1", "--steps", "1", "--repeats", "1"]
    command += ["--device", "cpu", "--dtype", "float32", "--out", str(tmp_path / "found.json")]
    assert benchmark.main(command) == 0
    one, two = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert len(one["peaks"]) == 1 and len(two["peaks"]) == 2 and min(two["peaks"]) > 2**20
    assert len(one["sections"]) == len(two["sections"]) >= 2
    assert "against the first" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main([*command, "--devices", "1", "3"])
    assert "devices: 3 " in capsys.readouterr().err

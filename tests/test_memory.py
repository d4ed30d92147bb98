"""Memory that runs out: sections are kept, decoding goes on in tiles, and one line says what to do."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from framepack.cli import app
from framepack.errors import OutOfMemoryError, ran_out
from framepack.generation.events import Event, Finished, Remark, SectionFinished
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun
from framepack.generation.shortage import TILED
from framepack.models.bundle import Bundle
from framepack.models.loading import ALIGNMENT, align, load_bundle
from framepack.models.shards import SUFFIX
from framepack.video.io import read_video
from tiny import SIZE, tiny_bundle
from tiny_clips import save_model

TILE, STEP = 32, 24
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["wan", "hunyuan_video"])
def model(request, tmp_path_factory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp("model") / request.param)


def tiled(model: Path) -> Bundle:
    """With tiles smaller than its pictures, which are not taken yet."""
    bundle = load_bundle(str(model))
    vae = bundle.codec.vae  # type: ignore[attr-defined]
    vae.tile_sample_min_height = vae.tile_sample_min_width = TILE
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = STEP
    return bundle


def job(folder: Path, bundle: Bundle, **values: object) -> PreparedRun:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    settings = {
        "prompt": "a ball",
        "image": picture,
        "frames": 25,
        "method": "f1",
        "steps": 1,
        "size": "64x64",
    }
    settings |= {"untrained": True, "out": folder / "v.mp4", "workdir": folder / "run"} | values
    return prepare(GenerateRequest(**settings), bundle)  # type: ignore[arg-type]


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    held, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            held += 1024 * int(line.split()[1])
    return held


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is mapped")
def test_weights_that_move_out_of_a_mapped_file_are_held_once(tmp_path):
    sizes = {"first": (1000, 1000), "odd": (3,), "second": (999, 1001)}
    written = {name: torch.randn(shape) for name, shape in sizes.items()}
    save_file(written, tmp_path / f"weights{SUFFIX}")
    read = load_file(tmp_path / f"weights{SUFFIX}")
    module = torch.nn.ParameterDict({name: torch.nn.Parameter(tensor) for name, tensor in read.items()})
    moved = {name for name, tensor in read.items() if tensor.data_ptr() % ALIGNMENT}
    assert all(torch.equal(module[name], written[name]) for name in sizes)  # now it is in memory
    stays = sum(read[name].nbytes for name in set(sizes) - moved)
    assert moved and resident(tmp_path / f"weights{SUFFIX}") >= 8e6
    align(module)
    assert resident(tmp_path / f"weights{SUFFIX}") <= stays + 6 * mmap.PAGESIZE
    for name in sizes:
        assert module[name].data_ptr() % ALIGNMENT == 0
        assert torch.equal(module[name], written[name]) and torch.equal(read[name], written[name])


def frames_of(path: Path) -> np.ndarray:
    return np.stack(list(read_video(path).frames))


def test_what_an_allocator_says_is_told_from_other_errors():
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert ran_out(MemoryError()) and not ran_out(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(caught.value)


@pytest.mark.parametrize("picture", [{}, {"image": None}], ids=["picture", "text"])
def test_frames_that_do_not_fit_are_coded_in_tiles(model, picture, tmp_path, monkeypatch):
    bundle = tiled(model)
    job(tmp_path / "whole", bundle, **picture).carry_out(lambda event: None)
    bundle.codec.enable_tiling()  # type: ignore[attr-defined]
    job(tmp_path / "wanted", bundle, **picture).carry_out(lambda event: None)

    bundle = tiled(model)
    decoder = bundle.codec.vae.decoder  # type: ignore[attr-defined]
    forward = decoder.forward

    def short(latents: torch.Tensor, *values: object, **named: object) -> torch.Tensor:
        if latents.shape[-1] * 8 > TILE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(latents, *values, **named)

    monkeypatch.setattr(decoder, "forward", short)
    events: list[Event] = []
    begun = job(tmp_path / "short", bundle, **picture)
    begun.carry_out(events.append)
    assert isinstance(events[-1], Finished)
    remarks = [*begun.warnings, *(event.text for event in events if isinstance(event, Remark))]
    assert remarks.count(TILED) == 1
    found, tiles = frames_of(tmp_path / "short/v.mp4"), frames_of(tmp_path / "wanted/v.mp4")
    away = [
        np.abs(found.astype(int) - other).mean() for other in (tiles, frames_of(tmp_path / "whole/v.mp4"))
    ]
    assert found.shape == tiles.shape and away[0] < away[1] / 2


def test_no_tile_that_fits_either_ends_with_what_was_sampled(model, tmp_path, monkeypatch):
    bundle = tiled(model)

    def short(*values: object, **named: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(bundle.codec.vae.decoder, "forward", short)  # type: ignore[attr-defined]
        with pytest.raises(OutOfMemoryError, match="memory ran out at 64x64 on cpu: what is finished"):
            job(tmp_path, bundle, image=None).carry_out(lambda event: None)
    events: list[Event] = []
    job(tmp_path, tiled(model), image=None).carry_out(events.append)
    finished = [event for event in events if isinstance(event, SectionFinished)]
    assert finished[0].cached and isinstance(events[-1], Finished)


def test_a_section_that_does_not_fit_leaves_those_before_it(tmp_path, monkeypatch):
    bundle = tiny_bundle()
    settings = {"frames": 1 + 3 * 4, "image": None, "size": f"{SIZE}x{SIZE}", "method": "vanilla"}
    forward, calls = bundle.transformer.forward, []

    def short(*values: object, **named: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory")
        return forward(*values, **named)

    with monkeypatch.context() as patch:
        patch.setattr(bundle.transformer, "forward", short)
        with pytest.raises(OutOfMemoryError, match="the same command goes on from there"):
            job(tmp_path, bundle, **settings).carry_out(lambda event: None)
    events: list[Event] = []
    job(tmp_path, bundle, **settings).carry_out(events.append)
    cached = [event.cached for event in events if isinstance(event, SectionFinished)]
    assert cached[:2] == [True, True] and not cached[2]


def test_the_command_line_says_so_in_one_line(tmp_path, monkeypatch):
    from framepack.models import wan

    def short(*values: object, **named: object) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(wan.PackedWanTransformer3DModel, "forward", short)
    out = tmp_path / "v.mp4"
    result = CliRunner().invoke(
        app, ["generate", "--prompt", "a red ball", "--frames", "9", "--out", str(out)]
    )
    assert isinstance(result.exception, OutOfMemoryError) and not out.exists()

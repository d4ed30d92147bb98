"""Train the bundled codec on frames of the flat world, rendered as it goes.

The same call again resumes from the last checkpoint. Everything is seeded: batch n of a seed is
always the same pixels, whichever process renders it.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from framepack.codecs.frame import FrameAutoencoder
from framepack.data.ranges import AMOUNT, COUNT, POSITIVE, SHARE, check
from framepack.data.world import sample_scene
from framepack.errors import InputError, RunConflictError
from framepack.models.draft import replace_files
from framepack.training.progress import progress

HELD_OUT = 1_000_000_000
"""Seeds from here on are never trained on."""


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """How to train a codec; saved beside its checkpoints.

    Attributes:
        steps: how many to train, which is reproducible to the bit on one machine; the learning rate decays
            to their end.
        minutes: where given, the length of training in wall time, resumed time included, instead of steps.
        size: pixels in a side of a rendered frame.
        crop: pixels in a side of the crops of the first `crop_share` of training, whole frames after.
        pixels: frames of `size` worth of pixels in a batch.
        noise: largest noise on the latents that the decoder is trained on, in units of their std.
        tether: weight of the encoder's departure from its linear path, which keeps it smooth.
    """

    steps: int = 2300
    minutes: float | None = None
    seed: int = 0
    size: int = 128
    crop: int = 64
    crop_share: float = 0.6
    pixels: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 100
    ema: float = 0.998
    noise: float = 0.25
    tether: float = 0.02
    edges: float = 0.5
    squares: float = 10.0
    save_every: float = 60.0
    bf16: bool = True

    def __post_init__(self) -> None:
        check(self, COUNT, "steps", "pixels", "warmup", "size", "crop")
        check(self, POSITIVE, "learning_rate")
        check(self, AMOUNT, "seed", "weight_decay", "noise", "tether", "edges", "squares", "save_every")
        check(self, SHARE, "crop_share", "ema")
        if self.minutes is not None:
            check(self, POSITIVE, "minutes")
        if self.size % 16 or self.crop % 16 or not 0 < self.crop <= self.size:
            raise InputError(
                f"size {self.size}, crop {self.crop}: "
                "both must be multiples of 16, crop at most size; change them"
            )


def render_batch(seed: int, step: int, size: int, crop: int, count: int) -> NDArray[np.uint8]:
    """Frames (count, crop, crop, 3) of as many new scenes; of two crops, one holds the shape."""
    rng = np.random.default_rng((seed, step))
    per_scene = 1 if crop == size else 2
    out = np.empty((count, crop, crop, 3), np.uint8)
    for n in range(0, count, per_scene):
        scene = sample_scene(rng, 80)
        t = int(rng.integers(0, 80))
        frame = scene.render([t], size, size)[0]
        for k in range(min(per_scene, count - n)):
            if crop == size:
                out[n + k] = frame
                continue
            x, y = (int(v) for v in rng.integers(0, size - crop + 1, 2))
            if k == 0:
                cx, cy = scene.position(t)
                reach = scene.radius * size
                x = int(np.clip(cx * size - crop / 2 + rng.uniform(-reach, reach), 0, size - crop))
                y = int(np.clip(cy * size - crop / 2 + rng.uniform(-reach, reach), 0, size - crop))
            out[n + k] = frame[y : y + crop, x : x + crop]
    return out


def to_video(frames: NDArray[np.uint8], device: str) -> Tensor:
    """(N, H, W, 3) in 0..255 to (N, 3, 1, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).unsqueeze(2).float() / 127.5 - 1


@torch.no_grad()
def initialise_linear(model: FrameAutoencoder, frames: NDArray[np.uint8]) -> None:
    """Set the linear path to the principal components of the frames' patches, and the common scale."""
    channels, stride = model.config.channels, model.config.stride
    patches = (
        F.pixel_unshuffle(to_video(frames, "cpu")[:, :, 0], stride).movedim(1, -1).flatten(0, 2).double()
    )
    mean = patches.mean(0)
    centred = patches - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    components = vectors[:, -channels:].flip(1).T
    model.encoder.linear.weight.copy_(components[:, :, None, None])
    model.encoder.linear.bias.copy_(-components @ mean)  # type: ignore[union-attr]
    model.decoder.linear.weight.copy_(components.T[:, :, None, None])
    model.decoder.linear.bias.copy_(mean)  # type: ignore[union-attr]
    model.register_to_config(scale=float(values[-channels:].mean().rsqrt()))


@torch.no_grad()
def normalise(model: FrameAutoencoder, frames: Tensor) -> None:
    """Set shift and scale so that the latents of `frames` have zero means and a mean square of 1."""
    latents = model.encode(frames).transpose(0, 1).flatten(1) / model.config.scale
    model.shift += latents.mean(1)
    model.register_to_config(scale=float((latents - latents.mean(1, keepdim=True)).square().mean().rsqrt()))


def reconstruction_loss(made: Tensor, true: Tensor, squares: float, edges: float) -> Tensor:
    """L1 + squares * L2 + edges * L1 of the differences between neighbours; (..., H, W)."""
    error = made - true
    loss = error.abs().mean() + squares * error.square().mean()
    return loss + edges * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """PSNR in dB of each of N videos (N, 3, T, H, W) in [-1, 1]."""
    return 10 * torch.log10(4 / (made - true).square().flatten(1).mean(1).clamp_min(1e-10))


@torch.no_grad()
def evaluate(model: FrameAutoencoder, frames: Tensor) -> dict[str, float]:
    """Mean PSNR on held-out frames, clean and with noise of 0.1 and 0.2 on the latents."""
    latents = torch.cat([model.encode(part) for part in frames.split(16)])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    out = {}
    for name, level in (("psnr", 0.0), ("psnr_noise_0.1", 0.1), ("psnr_noise_0.2", 0.2)):
        pairs = zip((latents + level * noise).split(16), frames.split(16), strict=True)
        out[name] = torch.cat([psnr(model.decode(z), true) for z, true in pairs]).mean().item()
    return out


@torch.no_grad()
def save_sheet(model: FrameAutoencoder, frames: Tensor, path: Path) -> None:
    """Originals above reconstructions, eight a row."""
    made = model.decode(model.encode(frames))
    rows = []
    for part, made_part in zip(frames.split(8), made.split(8), strict=True):
        rows += [torch.cat(list(p[:, :, 0]), dim=-1) for p in (part, made_part)]
    sheet = torch.cat(rows, dim=-2).movedim(0, -1).add(1).mul(127.5).round().byte().cpu().numpy()
    Image.fromarray(sheet).save(path)


def save_model(model: FrameAutoencoder, folder: Path) -> None:
    """Save as a diffusers folder; a reader at any moment finds whole files."""
    replace_files(folder, model.save_pretrained)


def train_codec(
    settings: CodecTraining, out: Path, *, device: str = "cpu", workers: int = 0, shown: bool = True
) -> FrameAutoencoder:
    """Train, or go on training, a codec in folder `out`; returns the averaged (EMA) model.

    Writes settings.json, state.safetensors (to resume), metrics.jsonl, ema/ and sheet.png.

    Raises:
        RunConflictError: `out` holds training with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps(asdict(settings), indent=1)
    if (out / "settings.json").exists() and (out / "settings.json").read_text() != wanted:
        raise RunConflictError(f"'{out}' holds training with other settings: use them, or another folder")
    (out / "settings.json").write_text(wanted)

    torch.manual_seed(settings.seed)
    model = FrameAutoencoder()
    first = np.concatenate(
        [render_batch(settings.seed, 2**40 + n, settings.size, settings.size, 64) for n in range(20)]
    )
    initialise_linear(model, first)
    model.to(device).to(memory_format=torch.channels_last)
    average = FrameAutoencoder.from_config(model.config).to(device)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    step, spent = _load_state(out / "state.safetensors", model, average, optimizer)
    statistics = to_video(first[:256], device)
    held_out = to_video(render_batch(HELD_OUT, 0, settings.size, settings.size, 128), device)
    generator = torch.Generator(device)

    def share(step: int) -> float:
        done = step / settings.steps if settings.minutes is None else spent / (60 * settings.minutes)
        return min(1.0, done)

    def checkpoint(loss: float | None) -> None:
        normalise(average, statistics)
        scores = evaluate(average, held_out)
        save_model(average, out / "ema")
        save_sheet(average, held_out[:24], out / "sheet.png")
        _save_state(out / "state.safetensors", model, average, optimizer, step, spent)
        row = {
            "step": step,
            "seconds": round(spent, 1),
            "loss": loss,
            "scale": average.config.scale,
            **scores,
        }
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    clock, saved, recent = time.monotonic(), spent, deque[float](maxlen=100)
    if step == 0:
        checkpoint(None)
    if share(step) == 1:
        return average
    with progress(shown=shown) as bars:
        advance = bars.task("training the codec, per mille")
        batches = _batches(settings, step, share, workers)
        clock = time.monotonic()
        for frames in batches:
            for group in optimizer.param_groups:
                cosine = 0.5 + 0.5 * math.cos(math.pi * share(step))
                group["lr"] = (
                    settings.learning_rate * min(1.0, (step + 1) / settings.warmup) * (0.01 + 0.99 * cosine)
                )
            generator.manual_seed(settings.seed * 1_000_003 + step)  # so that a resumed run draws the same
            loss = _train_step(model, to_video(frames, device)[:, :, 0], settings, generator)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _follow(average, model, min(settings.ema, (1 + step) / (10 + step)))
            step += 1
            recent.append(loss)
            now = time.monotonic()
            spent, clock = spent + now - clock, now
            advance(int(1000 * share(step)), 1000)
            finished = share(step) >= 1
            if finished or spent - saved >= settings.save_every:
                checkpoint(sum(recent) / len(recent))
                saved = spent
            if finished:
                batches.close()
                break
    return average


def _train_step(
    model: FrameAutoencoder, pixels: Tensor, settings: CodecTraining, generator: torch.Generator
) -> float:
    """Forward and backward of one batch (N, 3, H, W); returns its loss."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.bf16):
        linear, correction = model.encoder(pixels)
        raw = (linear + correction).float()
        # A third of the batch is clean; the rest gets little noise more often than much.
        level = torch.rand(len(raw), 1, 1, 1, generator=generator, device=raw.device)
        level = settings.noise * ((level * 1.5 - 0.5).clamp_min(0)) ** 2
        std = (raw.detach() - raw.detach().mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
        noise = torch.randn(raw.shape, generator=generator, device=raw.device)
        made = model.decoder(raw + level * std * noise).float()
    loss = reconstruction_loss(made, pixels, settings.squares, settings.edges)
    tether = correction.float().square().mean() / std.square()
    (loss + settings.tether * tether).backward()
    return loss.item()


@torch.no_grad()
def _follow(average: FrameAutoencoder, model: FrameAutoencoder, keep: float) -> None:
    ours, theirs = list(average.parameters()), list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - keep)


def _batches(
    settings: CodecTraining, step: int, share: Callable[[int], float], workers: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Endless batches from `step` on; with workers, rendered ahead in other processes."""

    def arguments() -> tuple[int, int, int, int, int]:
        crop = settings.crop if share(step) < settings.crop_share else settings.size
        return settings.seed, step, settings.size, crop, settings.pixels * (settings.size // crop) ** 2

    if workers == 0:
        while True:
            yield render_batch(*arguments())
            step += 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: deque[Future[NDArray[np.uint8]]] = deque()
        try:
            while True:
                while len(ahead) < 4 * workers:
                    ahead.append(pool.submit(render_batch, *arguments()))
                    step += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _save_state(
    path: Path, model, average, optimizer: torch.optim.Optimizer, step: int, spent: float
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    metadata = {"step": str(step), "spent": str(spent), "scale": str(average.config.scale)}
    draft = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, draft, metadata)
    draft.replace(path)


def _load_state(path: Path, model, average, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Load a checkpoint where there is one; returns its step and the seconds spent."""
    if not path.exists():
        return 0, 0.0
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118
            part, name = key.split(".", 1)
            parts[part][name] = file.get_tensor(key)
    model.load_state_dict(parts["model"])
    average.load_state_dict(parts["average"])
    average.register_to_config(scale=float(metadata["scale"]))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in parts["optimizer"].items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    if moments:
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), float(metadata["spent"])

"""Pictures and clips in videos of codecs that keep several frames in a latent, on both real families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from framepack.errors import InputError
from framepack.generation.events import SectionFinished
from framepack.generation.given import Keyframe
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun, latents_of
from framepack.models.bundle import Bundle
from framepack.models.loading import load_bundle
from framepack.models.source import resolve_model
from framepack.video.images import picture_digest
from framepack.video.io import read_video, write_video
from tiny_clips import SIZE, save_model

STRIDE = 4
FAMILIES = ("wan", "hunyuan_video")
HEIGHT, WIDTH = SIZE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = save_model(request.param, tmp_path_factory.mktemp("models") / request.param)
    return load_bundle(resolve_model(str(model)), torch.device("cpu"), torch.float32)


def picture(seed: int) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def clip(path: Path, frames: int, bundle: Bundle, seed: int) -> Path:
    wall = np.asarray(picture(seed))
    write_video(path, [np.roll(wall, 2 * k, 1) for k in range(frames)], bundle.spec.fps)
    return path


def job(folder: Path, bundle: Bundle, **values: object) -> PreparedRun:
    fixed = {"out": folder / "v.mp4", "workdir": folder / "run", "untrained": True, "steps": 1}
    settings = {"prompt": "a red ball", "method": "anti-drifting", **fixed, **values}
    return prepare(GenerateRequest(**settings), bundle)  # type: ignore[arg-type]


def made(run: PreparedRun) -> list[int]:
    return [e.section for e in run.events() if isinstance(e, SectionFinished) and not e.cached]


def shown(run: PreparedRun) -> np.ndarray:
    """The finished video."""
    run.carry_out(lambda event: None)
    return np.stack([*read_video(run.places.out).frames])


def encoded(bundle: Bundle, frames: np.ndarray, count: int) -> torch.Tensor:
    """The last latents (C, count, h, w) of frames (F, H, W, 3) as a video of their own."""
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.inference_mode():
        return bundle.codec.encode(video)[0, :, -count:].float()


def test_keyframes_fill_a_latent_each(bundle: Bundle, tmp_path: Path) -> None:
    middle = 9 / bundle.spec.fps  # the first frame of latent 3
    keyframes = (Keyframe(at=middle, picture=picture(1)), Keyframe(picture=picture(2)))
    run = job(tmp_path, bundle, image=picture(0), keyframes=keyframes, frames=18)
    assert run.plan.timeline.known == (0, 3, 5) and not [w for w in run.warnings if "jump" in w]
    assert shown(run).shape == (18, HEIGHT, WIDTH, 3), "the end picture's latent is cut short"
    latents = latents_of(run, lambda event: None)[0]
    for at, seed, held in ((0, 0, 1), (3, 1, 13), (5, 2, 13)):
        frames = np.repeat(np.asarray(picture(seed))[None], held, axis=0)
        torch.testing.assert_close(latents[:, at : at + 1], encoded(bundle, frames, 1))


@pytest.mark.parametrize("copied", [False, True])
def test_between_two_clips(copied: bool, bundle: Bundle, tmp_path: Path) -> None:
    """11 frames give 2 latents after the first; of 15 the first one has no latent of its own there."""
    ends = {
        "from_clip": clip(tmp_path / "a.mp4", 11, bundle, 1),
        "to_clip": clip(tmp_path / "b.mp4", 15, bundle, 2),
    }
    run = job(tmp_path, bundle, frames=8, copy_clips=copied, **ends)
    before, after = run.given
    assert (len(before.pixels), len(after.pixels), run.config.frames) == (9, 12, 9 + 8 + 12)
    assert run.plan.timeline.known == (0, 1, 2, 5, 6, 7)
    latents = latents_of(run, lambda event: None)[0]
    torch.testing.assert_close(latents[:, :3], encoded(bundle, before.pixels, 3))
    start = np.repeat(after.pixels[:1], 9, axis=0)
    torch.testing.assert_close(latents[:, 5:], encoded(bundle, np.concatenate([start, after.pixels]), 3))
    video = shown(run).astype(float)
    assert len(video) == run.config.frames
    for at, pixels in ((0, before.pixels), (17, after.pixels)):
        error = np.abs(video[at : at + len(pixels)] - pixels).mean()
        assert (error < 4) == copied
    frames = [*read_video(ends["from_clip"]).frames]
    assert np.array_equal(before.pixels, np.stack(frames[2:])), "the end that is gone on from is kept whole"


def test_a_clip_whose_end_leads_to_its_start(bundle: Bundle, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4", 9, bundle, 1)
    run = job(tmp_path, bundle, from_clip=source, loop=True, seconds=10.2 / bundle.spec.fps)
    assert run.config.frames == len(shown(run)) == 9 + 12, "made longer, to the end of a latent"
    with pytest.raises(InputError, match="a loop of 10 frames ends within a latent frame: ask for 12"):
        job(tmp_path / "other", bundle, from_clip=source, loop=True, frames=10)
    assert job(tmp_path / "other", bundle, from_clip=source, loop=True, frames=12).config.frames == 21


def test_a_keyframe_at_the_start_is_the_start_picture(bundle: Bundle, tmp_path: Path) -> None:
    """For the conditioner too, where it looks at pictures; and another picture is another run."""
    runs = [
        job(
            tmp_path, bundle, keyframes=(Keyframe(at=0.4 / bundle.spec.fps, picture=picture(seed)),), frames=9
        )
        for seed in (0, 1)
    ]
    assert [run.config.image for run in runs] == [picture_digest(picture(seed)) for seed in (0, 1)]
    assert runs[0].config.job != runs[1].config.job
    assert runs[0].config == job(tmp_path, bundle, image=picture(0), frames=9).config
    assert not [w for w in runs[0].warnings if "--image" in w]


def test_no_method_sees_the_end(bundle: Bundle, tmp_path: Path) -> None:
    if bundle.spec.family != "wan":
        pytest.skip("it has one that does")
    run = job(tmp_path, bundle, method="f1", keyframes=(Keyframe(picture=picture(1)),), frames=9)
    (told,) = [warning for warning in run.warnings if "jump" in warning]
    assert told == (
        "no method of tiny-wan sees the end picture from the section beside it: the video may jump there"
    )

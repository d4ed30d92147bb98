"""The cache of encoded clips: what training reads from it, and that it is whole or goes on."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from framepack.cli import data as verbs
from framepack.codecs.video_vae import VideoCodec
from framepack.conditioning.embeds import Conditioning
from framepack.data import encoded, encoding
from framepack.data.clips import Cutting, survey
from framepack.data.encoded import Encoding, Plan, plan_cache
from framepack.data.encoding import build_cache
from framepack.data.reader import EncodedClips
from framepack.data.videos import find
from framepack.errors import InputError, OutputError, RunConflictError
from framepack.models.loading import load_companions
from framepack.models.source import resolve_model
from framepack.video.clips import read_frames
from framepack.video.io import write_video

BUCKETS = ((32, 64), (48, 48))
CAPTIONS = {"a.mp4": "a red ball moves left", "b.mp4": "a blue star by day", "d.mp4": "a red ball moves left"}


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """The bundled model's codec and conditioner."""
    torch.set_num_threads(1)
    return load_companions(resolve_model("bundled"), torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of two shapes, one of them without a caption, one corrupt and one too short."""
    place = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name, size, count in (
        ("a.mp4", (36, 64), 22),
        ("b.mp4", (50, 50), 12),
        ("c.mp4", (40, 40), 9),
        ("d.mp4", (32, 60), 10),
        ("short.mp4", (32, 60), 3),
    ):
        wall = rng.integers(0, 255, (*size, 3), np.uint8)
        write_video(place / name, [np.roll(wall, k, 1) for k in range(count)], 10)
        if name in CAPTIONS:
            (place / name).with_suffix(".txt").write_text(CAPTIONS[name])
    (place / "bad.mp4").write_bytes(b"bad")
    return place


def encoding_of(codec: Any, conditioner: Any, stride: int = 1, **options: Any) -> Encoding:
    longest = options.pop("longest", 9)
    cutting = Cutting(fps=8.0, stride=stride, shortest=5, longest=longest, buckets=BUCKETS)
    return Encoding(cutting=cutting, codec=codec, conditioner=conditioner, **options)


def build(folder: Path, out: Path, made: Encoding, **options: Any) -> tuple[Plan, bool]:
    found = find(folder)
    stride = made.codec.spatial_stride
    plan = plan_cache(out, found, made, lambda: survey(folder, found, made.cutting), stride)
    return plan, build_cache(out, plan, made, **options)


@pytest.fixture(scope="module")
def cache(folder: Path, parts: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "built"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "SHARD_CLIPS", 2)
        assert build(folder, out, encoding_of(*parts))[1]
    return out


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_the_cache_holds_what_the_codec_makes(folder: Path, parts: tuple[Any, Any], cache: Path) -> None:
    codec = parts[0]
    read = EncodedClips(cache)
    assert [(e.file, e.latents, e.bucket) for e in read.entries] == [
        ("a.mp4", 9, (32, 64)),
        ("a.mp4", 9, (32, 64)),
        ("d.mp4", 8, (32, 64)),
        ("b.mp4", 5, (48, 48)),
        ("b.mp4", 5, (48, 48)),
        ("c.mp4", 8, (48, 48)),
    ]
    assert [name for name, _ in read.rejected] == ["bad.mp4", "short.mp4"]
    found = find(folder)
    clips = sorted(
        survey(folder, found, encoding_of(*parts).cutting).clips,
        key=lambda clip: (clip.bucket, clip.video.name),
    )
    for number, clip in enumerate(clips):
        video = (
            torch.from_numpy(np.stack(list(read_frames(clip)))).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        )
        with torch.inference_mode():
            expected = codec.encode(video)
        held = read.latents([number], [range(clip.frames)])
        torch.testing.assert_close(held, expected.half().float(), rtol=0, atol=0)
    picked = read.latents([0, 2], [[1, 5, 2], [0, 7, 7]])
    assert picked.shape == (2, 24, 3, 2, 4) and picked.dtype == torch.float32
    torch.testing.assert_close(picked[1, :, 2], read.latents([2], [[7]])[0, :, 0])
    assert read.channel_std().shape == (24,) and (read.channel_std() > 0).all()


def test_captions_come_back_as_the_conditioner_made_them(parts: tuple[Any, Any], cache: Path) -> None:
    conditioner = parts[1]
    read = EncodedClips(cache)
    read.check(*parts)
    with pytest.raises(InputError, match="was made with another conditioner than the model's"):
        read.check(parts[0], parts[0])
    assert read.captions == ("", *sorted(set(CAPTIONS.values())))
    clips = [0, 2, 3, 5]
    expected = conditioner.encode([CAPTIONS["a.mp4"], CAPTIONS["d.mp4"], CAPTIONS["b.mp4"], ""])
    torch.testing.assert_close(read.conditioning(clips).prompt, expected.prompt, rtol=0, atol=0)
    dropped = read.conditioning(clips, [True, False, True, True])
    torch.testing.assert_close(dropped.prompt[1], conditioner.encode([""]).prompt[0], rtol=0, atol=0)
    assert dropped.mask is None and dropped.pooled is None and dropped.image is None


def test_a_batch_is_of_one_bucket_and_long_enough(cache: Path) -> None:
    read = EncodedClips(cache)
    rng = np.random.default_rng(0)
    drawn = [read.draw(rng, 3, frames) for frames in (1, 6, 9) for _ in range(60)]
    assert all(len({read.entries[clip].bucket for clip in clips}) == 1 for clips in drawn)
    assert {clip for clips in drawn[:60] for clip in clips} == set(range(6))
    assert {clip for clips in drawn[60:120] for clip in clips} == {0, 1, 2, 5}
    assert {clip for clips in drawn[120:] for clip in clips} == {0, 1}
    with pytest.raises(InputError, match="has 10 latents, the longest has 9"):
        read.draw(rng, 1, 10)


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_killed_build_goes_on(
    stop: int, folder: Path, parts: tuple[Any, Any], cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """What is whole is not made again, and the end is the same to the byte."""
    monkeypatch.setattr(encoded, "SHARD_CLIPS", 2)
    made, calls = encoding_of(*parts), []
    original = encoding.encode_clip

    def encode(clip: Any, by: Encoding) -> Any:
        calls.append(clip)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return original(clip, by)

    monkeypatch.setattr(encoding, "encode_clip", encode)
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path, made)
    with pytest.raises(InputError, match="is not finished"):
        EncodedClips(tmp_path)
    whole = {name for name in contents(tmp_path) if name.startswith("latents")}
    (tmp_path / ".latents-00003.safetensors.part").write_bytes(b"half")
    assert build(folder, tmp_path, made)[1]
    # The shards are of clips (0, 1), (2), (3, 4) and (5).
    again = {0: 6, 1: 6, 3: 3, 5: 1}[stop]
    assert len(calls) == stop + 1 + again and len(whole) == {0: 0, 1: 0, 3: 2, 5: 3}[stop]
    assert contents(tmp_path) == contents(cache)


def test_two_machines_share_the_work(
    folder: Path, parts: tuple[Any, Any], cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(encoded, "SHARD_CLIPS", 2)
    made = encoding_of(*parts)
    assert not build(folder, tmp_path, made, part=(1, 2))[1]
    assert build(folder, tmp_path, made, part=(0, 2))[1]
    assert contents(tmp_path) == contents(cache)


def test_another_configuration_is_refused(folder: Path, parts: tuple[Any, Any], cache: Path) -> None:
    with pytest.raises(RunConflictError, match=r"longest 9 and not 8, dtype float16 and not bfloat16: name"):
        build(folder, cache, encoding_of(*parts, longest=8, dtype="bfloat16"))
    other = SimpleNamespace(
        config={"channels": 24}, state_dict=dict, latent_channels=24, spatial_stride=16, temporal_stride=1
    )
    with pytest.raises(RunConflictError, match="a cache with another codec: name another folder"):
        build(folder, cache, encoding_of(other, parts[1]))


def test_other_videos_are_refused(
    folder: Path, parts: tuple[Any, Any], cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    build(tmp_path, cache, encoding_of(*parts))  # a copy is the same
    (tmp_path / "a.txt").write_text("something else")
    (tmp_path / "b.mp4").unlink()
    (tmp_path / "new.mp4").write_bytes((tmp_path / "c.mp4").read_bytes())
    with pytest.raises(RunConflictError) as error:
        build(tmp_path, cache, encoding_of(*parts))
    assert "now 1 new (new.mp4), 1 gone (b.mp4), 1 changed (a.mp4)" in str(error.value)


def test_a_full_disk_leaves_nothing_half(
    folder: Path, parts: tuple[Any, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    original = encoding.save_file

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        if "latents" in file.name:
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, file, metadata)

    monkeypatch.setattr(encoding, "save_file", full)
    with pytest.raises(OutputError, match=r"No space left on device.*make room"):
        build(folder, tmp_path, encoding_of(*parts))
    assert set(contents(tmp_path)) == {"plan.json", "text-00000.safetensors"}


def test_a_clip_that_cannot_be_decoded_is_told_and_left_out(
    folder: Path, parts: tuple[Any, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    original = encoding.read_frames

    def read(clip: Any) -> Any:
        if clip.video.name == "d.mp4":
            raise InputError("is damaged at 0.50 s")
        return original(clip)

    monkeypatch.setattr(encoding, "read_frames", read)
    told: list[Any] = []
    assert build(folder, tmp_path, encoding_of(*parts), on_rejected=told.append)[1]
    made = EncodedClips(tmp_path)
    assert [(r.name, r.reason) for r in told] == [("d.mp4", "is damaged at 0.50 s")]
    assert made.rejected[-1] == ("d.mp4", "is damaged at 0.50 s")
    assert "d.mp4" not in {entry.file for entry in made.entries} and len(made) == 5


class Looking:
    """A conditioner with all that one can have: masks, pooled embeddings and image tokens."""

    sees_picture = True
    parts: dict[str, Path] = {}  # noqa: RUF012
    prompt_tokens, dtype = 6, None

    def __init__(self, masked: bool) -> None:
        self.masked, self.seen = masked, 0

    def encode(self, prompts: list[str], picture: Any = None) -> Conditioning:
        prompt = torch.zeros(len(prompts), 6, 2)
        for row, text in enumerate(prompts):
            for at, word in enumerate(text.split()):
                prompt[row, at] = len(word)
        mask = prompt[..., 0] > 0 if self.masked else None
        return Conditioning(prompt=prompt, mask=mask, pooled=prompt.mean(1))

    def look(self, pictures: list[Any]) -> torch.Tensor:
        self.seen += 1
        return torch.stack([torch.full((3, 2), float(np.asarray(p).mean())) for p in pictures])


@pytest.mark.parametrize("masked", [True, False])
def test_a_causal_codec_and_a_conditioner_that_looks(folder: Path, tmp_path: Path, masked: bool) -> None:
    """Clips of 4 n + 1 frames as one video each, and the tokens of their first frames."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1] * 4,
        latents_std=[2.0] * 4,
    ).eval()
    codec, looking = VideoCodec(vae), Looking(masked)
    made = encoding_of(codec, looking, stride=4, longest=17)
    plan, whole = build(folder, tmp_path, made)
    read = EncodedClips(tmp_path)
    assert whole and [(e.frames, e.latents) for e in read.entries] == [(9, 3), (9, 3), (5, 2), (9, 3), (5, 2)]
    first = list(read_frames(plan.clips[0]))
    video = torch.from_numpy(np.stack(first)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.inference_mode():
        expected = codec.encode(video).half().float()
    torch.testing.assert_close(read.latents([0], [range(3)]), expected, rtol=0, atol=0)
    texts = [CAPTIONS["a.mp4"], CAPTIONS["b.mp4"]]
    given, wanted = read.conditioning([0, 3], image=True), looking.encode(texts)
    for name in ("prompt", "mask", "pooled"):
        if getattr(wanted, name) is not None:
            torch.testing.assert_close(getattr(given, name), getattr(wanted, name), rtol=0, atol=0)
    assert (given.mask is not None) == masked and given.image is not None
    torch.testing.assert_close(given.image[0], torch.full((3, 2), float(first[0].mean())))
    assert looking.seen == len(plan.shards) and read.conditioning([0]).image is None


def test_the_verb_builds_and_goes_on(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "cache"
    for _ in range(2):
        verbs.cache(folder, out, area="32x64", longest=2.0)
        told = " ".join(capsys.readouterr().err.split())
        assert "done" in told and "2 captions, 2 rejected" in told
        assert "rejected: 'bad.mp4' cannot be read" in told and "rejected: 'short.mp4' is too short" in told
    manifest = json.loads((out / "manifest.json").read_text())
    assert {tuple(row["bucket"]) for row in manifest["clips"]} == {(32, 64)}
    with pytest.raises(InputError, match="--part '3/2'"):
        verbs.cache(folder, out, part="3/2")


def test_folders_without_a_cache(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no cache: make it with framepack data cache"):
        EncodedClips(tmp_path)

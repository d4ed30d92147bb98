"""Latents decoded a few at a time against diffusers' decoding of the whole video."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import tiny_parts as tiny
from framepack.codecs.frame import FrameAutoencoder
from framepack.codecs.streaming import receptive_field, restart, stream_decoder
from framepack.codecs.video_vae import VideoCodec
from framepack.errors import InputError
from framepack.generation.decode import FrameDecoder, decode_frames, to_uint8
from framepack.planning.timeline import Timeline

pytestmark = pytest.mark.usefixtures("one_thread")

MAKERS = {"hunyuan": tiny.hunyuan_video_vae, "wan": tiny.wan_vae, "wan-2.2": tiny.wan_2_2_vae}
WAN = ["wan", "wan-2.2"]
TOLERANCE = {"frame": 1e-5, "hunyuan": 0.0, "wan": 1e-5, "wan-2.2": 1e-5}
"""At once, the bundled codec has a larger batch, and Wan's does its first convolution for all latents."""

CHUNKS = st.lists(st.integers(1, 7), min_size=1, max_size=12)


def make_codec(family: str):
    if family != "frame":
        return VideoCodec(MAKERS[family]().requires_grad_(False))
    torch.manual_seed(0)
    codec = FrameAutoencoder(decoder_widths=(8, 8), decoder_blocks=(1, 1)).requires_grad_(False)
    for weight in codec.decoder.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return codec


shared = cache(make_codec)


def random_latents(codec, count: int, height: int = 2, width: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(1, codec.latent_channels, count, height, width, generator=generator)


@cache
def whole(family: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random latents, and the video that the VAE itself decodes them to in one call."""
    codec = shared(family)
    latents = random_latents(codec, count)
    return latents, codec.decode(latents)


def in_chunks(latents: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """Pieces of these sizes, again and again."""
    parts, at = [], 0
    while at < latents.shape[2]:
        size = sizes[len(parts) % len(sizes)]
        parts.append(latents[:, :, at : at + size])
        at += size
    return parts


def streamed(codec, latents: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    decoder = stream_decoder(codec)
    parts = [decoder.push(part) for part in in_chunks(latents, sizes)]
    return torch.cat([*parts, decoder.finish()], dim=2)


class Counter:
    """Latents that go through the network of a VAE's decoder."""

    def __init__(self, codec) -> None:
        self.count = 0
        self._hook = codec.vae.decoder.register_forward_pre_hook(self._see)

    def _see(self, module, arguments) -> None:
        self.count += arguments[0].shape[2]

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._hook.remove()


@pytest.mark.parametrize("family", ["frame", "hunyuan", *WAN])
@settings(max_examples=6, deadline=None)
@given(count=st.integers(1, 9), sizes=CHUNKS)
def test_streamed_is_the_whole_video(family, count, sizes):
    latents, video = whole(family, count)
    found = streamed(shared(family), latents, sizes)
    assert found.shape == video.shape
    assert (found - video).abs().max() <= TOLERANCE[family]


@pytest.mark.parametrize("family", ["frame", *WAN])
@settings(max_examples=3, deadline=None)
@given(sizes=CHUNKS)
def test_the_sizes_of_pushes_change_no_bit(family, sizes):
    latents, _ = whole(family, 7)
    assert torch.equal(streamed(shared(family), latents, sizes), streamed(shared(family), latents, [1]))


@pytest.mark.parametrize("family", WAN)
def test_wan_decodes_each_latent_once_and_shows_it_at_once(family):
    latents, _ = whole(family, 6)
    decoder = stream_decoder(shared(family))
    with Counter(shared(family)) as network:
        frames = [decoder.push(part).shape[2] for part in in_chunks(latents, [1, 2, 3])]
    assert frames == [1, 8, 12] and decoder.finish().shape[2] == 0
    assert decoder.decoded == network.count == 6


@pytest.mark.parametrize("count", range(1, 13))
def test_hunyuan_video_decodes_no_more_than_the_whole_in_tiles(count):
    codec, (latents, _) = shared("hunyuan"), whole("hunyuan", count)
    with Counter(codec) as theirs:
        codec.decode(latents)
    decoder = stream_decoder(codec)
    with Counter(codec) as ours:
        for part in in_chunks(latents, [1]):
            decoder.push(part)
        decoder.finish()
    # diffusers decodes a last tile of one latent, of which it shows nothing.
    idle = int(count > 4 and count % 3 == 1)
    assert decoder.decoded == ours.count == theirs.count - idle


def test_hunyuan_video_shows_a_tile_when_it_is_full():
    codec, (latents, _) = shared("hunyuan"), whole("hunyuan", 9)
    decoder = stream_decoder(codec)
    frames = [decoder.push(part).shape[2] for part in in_chunks(latents, [1])]
    assert frames == [0, 0, 0, 0, 13, 0, 0, 12, 0] and decoder.finish().shape[2] == 8


@pytest.mark.parametrize("family", ["frame", "hunyuan", *WAN])
def test_what_is_held_does_not_grow(family):
    codec = shared(family)
    latents = random_latents(codec, 16)
    decoder, held = stream_decoder(codec), []
    for part in in_chunks(latents, [1]):
        decoder.push(part)
        # The storage counts: a view of a longer tensor would keep all of it.
        held.append(sum(kept.untyped_storage().nbytes() for kept in decoder.held))
    if family == "hunyuan":  # at most four latents that wait, and four frames to blend
        assert max(held) == held[6] == 4 * (4 * 16 * 6 + 4 * 3 * 16 * 24)
    assert max(held[:7]) == max(held[7:])
    decoder.finish()
    assert family in WAN or not decoder.held


@pytest.mark.parametrize("family", ["hunyuan", *WAN])
@pytest.mark.parametrize(("height", "width"), [(2, 6), (5, 3), (2, 2)])
def test_tiles_in_space_are_the_vae_s(family, height, width):
    """The last one is no larger than a tile."""
    codec = make_codec(family)
    side = codec.spatial_stride
    codec.vae.enable_tiling(
        tile_sample_min_height=3 * side,
        tile_sample_min_width=3 * side,
        tile_sample_stride_height=2 * side,
        tile_sample_stride_width=2 * side,
    )
    latents = random_latents(codec, 6, height, width)
    video = codec.decode(latents)
    found = streamed(codec, latents, [2, 1])
    if max(height, width) > 3:
        assert torch.equal(found, video)
        codec.vae.use_tiling = False
        assert not torch.allclose(found, codec.decode(latents), atol=1e-3)
    else:
        assert torch.allclose(found, video, rtol=0, atol=TOLERANCE[family])


@pytest.mark.parametrize("family", WAN)
def test_one_tile_at_a_time_has_its_cache_on_the_device(family):
    """On devices that PyTorch pretends to have: the VAE's for a GPU, the meta device for system memory."""
    with FakeTensorMode():
        codec = make_codec(family)
        side = codec.spatial_stride
        codec.vae.enable_tiling(*[3 * side] * 2, *[2 * side] * 2)
        codec.parking = torch.device("meta")
        latents, decoder = torch.empty(1, codec.latent_channels, 5, 4, 5), stream_decoder(codec)
        others = []

        def see(module, args, kwargs) -> None:
            others.append({kept.device.type for kept in decoder.held})
            seen = [kept for kept in kwargs["feat_cache"] if isinstance(kept, torch.Tensor)]
            assert {kept.device.type for kept in (*seen, args[0])} == {"cpu"}

        codec.vae.decoder.register_forward_pre_hook(see, with_kwargs=True)
        for part in in_chunks(latents, [2, 3]):
            assert decoder.push(part).device.type == "cpu"
            assert {kept.device.type for kept in decoder.held} == {"meta"}
    # Six tiles, five latents each; but for the very first one's, something waits each time.
    assert len(others) == 30 and others[:2] == [set(), set()] and others[2:] == [{"meta"}] * 28


@pytest.mark.parametrize("family", WAN)
def test_the_sizes_of_pushes_change_no_bit_in_tiles(family):
    codec = make_codec(family)
    side = codec.spatial_stride
    codec.vae.enable_tiling(*[3 * side] * 2, *[2 * side] * 2)
    latents = random_latents(codec, 4, 4, 5)
    assert torch.equal(streamed(codec, latents, [3, 1]), streamed(codec, latents, [1]))


@pytest.mark.parametrize(("size", "step"), [(16, 8), (16, 4), (12, 12), (18, 12), (24, 16)])
@pytest.mark.parametrize("count", [4, 9])
def test_other_tiles_in_time(size, step, count):
    codec = make_codec("hunyuan")
    codec.vae.tile_sample_min_num_frames, codec.vae.tile_sample_stride_num_frames = size, step
    latents, _ = whole("hunyuan", count)
    video = codec.decode(latents)
    assert torch.equal(streamed(codec, latents, [1]), video)
    for frame in range(5, video.shape[2], 9):
        check_restart(codec, latents, video, frame)


def test_without_tiles_in_time_the_video_waits_for_its_end():
    codec = make_codec("hunyuan")
    codec.vae.use_framewise_decoding = False
    latents, tiled = whole("hunyuan", 7)
    video = codec.decode(latents)
    assert not torch.equal(video, tiled)
    assert torch.equal(streamed(codec, latents, [2]), video) and restart(codec, 20) == 0


def test_tiles_of_half_a_latent_are_refused():
    codec = make_codec("hunyuan")
    codec.vae.tile_sample_stride_num_frames = 10
    with pytest.raises(InputError, match=r"tiles 10 frames apart: a latent holds 4; set .* multiple of 4"):
        stream_decoder(codec)


# Going on -----------------------------------------------------------------------------------------------


def check_restart(codec, latents: torch.Tensor, video: torch.Tensor, frame: int) -> int:
    """Frames from ``frame`` on, by a decoder begun as late as it may; gives the latents it was spared."""
    first = restart(codec, frame)
    begun = first * codec.temporal_stride
    assert 0 <= begun <= frame
    found = streamed(codec, latents[:, :, first:], [2])
    assert torch.equal(found[:, :, frame - begun :], video[:, :, frame:]), (frame, first)
    return first


@pytest.mark.parametrize("frame", [0, 1, 12, 13, 16, 17, 24, 25, 28, 29, 44])
def test_hunyuan_video_goes_on_within_a_tile(frame):
    codec, (latents, video) = shared("hunyuan"), whole("hunyuan", 12)
    first = check_restart(codec, latents, video, frame)
    assert first >= (frame + 3) // 4 - 6, "no more than the tile before is decoded again"


@pytest.mark.parametrize("family", WAN)
def test_wan_goes_on_to_the_bit_from_its_receptive_field(family):
    codec = shared(family)
    field = receptive_field(codec.vae.decoder)
    latents = random_latents(codec, field + 4)
    video = streamed(codec, latents, [1])
    last = 4 * (field + 2)
    assert [restart(codec, frame) for frame in (0, last - 8, last - 7, last - 3, last)] == [0, 0, 1, 2, 2]
    assert check_restart(codec, latents, video, last) == 2
    # It is no larger than it must be; what is farthest in the past shows least in Wan 2.1.
    late = 2 + {"wan": 12, "wan-2.2": 2}[family]
    found = streamed(codec, latents[:, :, late:], [1])
    assert not torch.equal(found[:, :, last - 4 * late :], video[:, :, last:])


def test_receptive_field_of_the_released_wan():
    with torch.device("meta"):
        assert receptive_field(AutoencoderKLWan().decoder) == 38


# Frames -------------------------------------------------------------------------------------------------


TIMELINES = {
    "video": {},
    "clips": {"clip": 3},
    "a picture and clips": {"clip": 3, "known": (0,)},
}


def by_clips(codec, latents: torch.Tensor, timeline: Timeline) -> np.ndarray:
    """Every clip decoded as a video, by the VAE itself."""
    parts = [codec.decode(latents[:, :, list(clip)]) for clip in timeline.clips()]
    return to_uint8(torch.cat(parts, dim=2)[0]).numpy()[: timeline.frames]


@pytest.mark.parametrize("kind", TIMELINES)
@pytest.mark.parametrize("family", ["frame", "hunyuan", "wan"])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_frames_come_as_latents_become_known(family, kind, data):
    """However the latents come and wherever it begins, the frames are those of the whole."""
    codec = shared(family)
    stride = codec.temporal_stride
    timeline = Timeline(frames=data.draw(st.integers(1, 8 * stride)), fps=8, stride=stride, **TIMELINES[kind])
    count = timeline.latent_frames
    latents, asked = random_latents(codec, count), []

    def fetch(indices):
        asked.extend(indices)
        return latents[:, :, list(indices)]

    skip = data.draw(st.integers(0, timeline.frames))
    decoder, frames, known = FrameDecoder(codec, fetch, timeline, skip), [], 0
    while known < count:
        known = min(count, known + data.draw(st.integers(1, 9)))
        frames += decoder.advance(known)
        assert asked == list(range(asked[0], known)) if asked else known <= decoder.known
        assert decoder.frame == skip + len(frames) <= timeline.frames
    expected = by_clips(codec, latents, timeline)[skip:]
    assert len(frames) == len(expected)
    if frames:
        # Rounding may tip a level where it differs.
        apart = np.abs(np.stack(frames).astype(int) - expected.astype(int)).max()
        assert apart <= (1 if TOLERANCE[family] else 0)
        assert decoder.decoded >= len(asked) and (family == "hunyuan" or decoder.decoded == len(asked))


def test_wan_frames_are_fetched_two_latents_at_a_time():
    codec, sizes = shared("wan"), []
    timeline = Timeline(frames=33, fps=8, stride=4)
    latents = random_latents(codec, 9)

    def fetch(indices):
        sizes.append(len(indices))
        return latents[:, :, list(indices)]

    assert len(list(decode_frames(codec, fetch, timeline))) == 33
    assert sizes == [2, 2, 2, 2, 1]

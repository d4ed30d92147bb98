"""Training: samples from the planners, explicit attention, resume, and the folder that comes out."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from framepack.codecs.frame import FrameAutoencoder
from framepack.data.latents import CacheConfig, LatentCache, build_cache, codec_digest, shard_path
from framepack.errors import InputError, UnknownNameError
from framepack.models.bundle import load_bundle
from framepack.recipes.bundled import bundled
from framepack.recipes.override import override
from framepack.training.attention import ExplicitAttention
from framepack.training.check import held_out_pairs, make_videos
from framepack.training.config import NetworkConfig
from framepack.training.draw import draw_section
from framepack.training.loop import rate_scale, train
from framepack.training.methods import trained_methods
from framepack.training.network import build_modules
from framepack.training.objective import make_batch


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory):
    torch.manual_seed(0)
    small = FrameAutoencoder(
        channels=4,
        stride=16,
        encoder_widths=(8, 8),
        encoder_blocks=(1, 1),
        decoder_widths=(8, 8),
        decoder_blocks=(1, 1),
    )
    folder = tmp_path_factory.mktemp("codec")
    small.save_pretrained(folder)
    return folder


@pytest.fixture
def config(codec_folder):
    digest = codec_digest(FrameAutoencoder.from_pretrained(codec_folder))
    base = bundled(digest)
    return replace(
        base,
        network=NetworkConfig(
            heads=2,
            head_dim=16,
            layers=2,
            ffn=32,
            base_kernel=(1, 1, 1),
            kernels=base.network.kernels,
            prompt_width=8,
            prompt_length=8,
        ),
        cache=CacheConfig(clips=6, frames=20, height=32, width=32, seed=0, codec=digest),
        steps=4,
        micro=2,
        processes=1,
        save_every=2,
        sheet_every=100,
        warmup=1,
        device="cpu",
    )


def test_explicit_attention_equals_the_fused_one_and_its_gradient():
    q, k, v = (torch.randn(2, 3, 17, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, 3, 17, 8, dtype=torch.float64)
    outs, grads = [], []
    for explicit in (False, True):
        if explicit:
            with ExplicitAttention():
                out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        outs.append(out)
        grads.append(torch.autograd.grad((out * weight).sum(), (q, k, v)))
    torch.testing.assert_close(*outs)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_masked_attention_is_left_alone():
    q = torch.randn(1, 1, 4, 8)
    mask = torch.tril(torch.ones(4, 4, dtype=torch.bool))
    with ExplicitAttention():
        out = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, q, q, attn_mask=mask))


def test_draws_fit_their_clips_and_reach_every_kind_of_sample(config):
    methods = trained_methods(config)
    seen = set()
    for seed in range(400):
        draw = draw_section(np.random.default_rng(seed), config.draw, methods, 96)
        section = draw.section
        frames = [f for level in section.context for f in level.frames if f is not None] + list(
            section.frames
        )
        assert max(frames) < draw.frames <= 96
        assert not set(section.frames) & {f for level in section.context for f in level.present}
        kind = "bare" if not section.context else "context"
        ahead = any(f > max(section.frames) for f in frames)
        seen.add((draw.method, kind))
        seen.add(("ahead", ahead))
        seen.add(("spans", len(section.spans)))
    assert {(name, kind) for name in methods for kind in ("bare", "context")} <= seen
    assert {("ahead", True), ("spans", 2)} <= seen


def test_batches_show_the_planned_frames_of_their_clips(config, codec_folder, tmp_path):
    codec = FrameAutoencoder.from_pretrained(codec_folder)
    build_cache(tmp_path, codec, config.cache)
    cache = LatentCache(tmp_path, config.cache)
    _, conditioner = build_modules(config, 4)
    objective = replace(config.objective, history_noise=0.0, drop_prompt=0.0, drop_word=0.0)
    rng = np.random.default_rng(3)
    draw = draw_section(rng, config.draw, trained_methods(config), 20)
    while not draw.section.context or draw.section.past[0] is None:
        draw = draw_section(rng, config.draw, trained_methods(config), 20)
    clip_rng = np.random.default_rng(5)
    batch = make_batch(clip_rng, draw, 2, cache, conditioner, objective, cache.channel_std())
    again = np.random.default_rng(5)
    clips = again.integers(0, 6, 2).tolist()
    offsets = again.integers(0, 20 - draw.frames + 1, 2).tolist()

    def held(frames):
        return cache.latents(clips, [[o + f for f in frames] for o in offsets])

    assert torch.equal(batch.target, held(draw.section.frames))
    for level, planned in zip(batch.context.levels, draw.section.context, strict=True):
        assert torch.equal(level.latents, held(planned.frames))
    assert torch.equal(batch.context.aligned[:, :4, 0], held([draw.section.past[0]])[:, :, 0])
    words = [
        cache.scene(c).words(o + draw.section.frames[0], o + draw.section.frames[-1] + 1)
        for c, o in zip(clips, offsets, strict=True)
    ]
    assert batch.rows.tolist() == [conditioner.rows_of(w) for w in words]


def test_stopped_and_resumed_equals_uninterrupted(config, codec_folder, tmp_path):
    train(config, tmp_path / "whole", codec_folder)
    stopped = tmp_path / "parts"

    class Stop(Exception):
        pass

    import framepack.training.loop as loop

    real = loop.draw_section
    calls = {"n": 0}

    def dying(*args):
        calls["n"] += 1
        if calls["n"] > 3 * config.draws:
            raise Stop
        return real(*args)

    loop.draw_section = dying
    try:
        with pytest.raises(Stop):
            train(config, stopped, codec_folder)
    finally:
        loop.draw_section = real
    train(config, stopped, codec_folder)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {r["step"]: r["loss"] for r in rows} == {r["step"]: r["loss"] for r in whole}


def test_what_is_trained_can_be_loaded_and_used(config, codec_folder, tmp_path):
    bundle = load_bundle(str(train(config, tmp_path, codec_folder)))
    assert set(bundle.spec.methods) == set(config.draw.methods)
    method = bundle.spec.method("vanilla")
    assert method.max_gap == config.max_gap
    pairs = held_out_pairs(2, (32, 32))
    videos = make_videos(bundle, pairs, method, image=True, frames=9)
    assert [v.shape for v in videos] == [(9, 32, 32, 3)] * 2


def test_two_processes_give_the_same_bytes_again(config, codec_folder, tmp_path):
    """A run on two processes is reproducible to the byte."""
    both = replace(config, processes=2, draws=1, steps=2)
    train(both, tmp_path / "a", codec_folder)
    train(both, tmp_path / "b", codec_folder)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_another_configuration_is_refused(config, codec_folder, tmp_path):
    train(replace(config, steps=1), tmp_path, codec_folder)
    with pytest.raises(InputError, match="rate"):
        train(replace(config, rate=1.0), tmp_path, codec_folder)


def test_rate_warms_up_holds_and_decays(config):
    plan = replace(config, steps=100, warmup=10, decay=0.5)
    scales = [rate_scale(step, plan) for step in range(100)]
    assert scales[0] == 0.1 and scales[20] == 1.0 and scales[49] == 1.0
    assert scales[75] == pytest.approx(0.5) and scales[99] == pytest.approx(0.02)


def test_override_by_path(config):
    assert override(config, "cache.clips=7").cache.clips == 7
    assert override(config, "rate=1").rate == 1.0
    assert override(config, "draw.methods.f1=0.5").draw.methods["f1"] == 0.5
    for bad, error in (("rate", InputError), ("nothing=1", UnknownNameError), ("steps=many", InputError)):
        with pytest.raises(error):
            override(config, bad)


def test_rendering_ahead_changes_no_byte_of_the_cache(config, codec_folder, tmp_path):
    codec = FrameAutoencoder.from_pretrained(codec_folder)
    more = replace(config.cache, clips=70, frames=3)
    for workers in (0, 2):
        build_cache(tmp_path / str(workers), codec, more, workers=workers)
    for shard in range(3):
        one, two = (shard_path(tmp_path / str(workers), shard).read_bytes() for workers in (0, 2))
        assert one == two

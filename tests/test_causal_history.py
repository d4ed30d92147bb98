"""Causal history: the same as a mask over the whole sequence, and blind to what comes later."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, ModelError
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import EMPTY, ContextTensors, PackedContext
from framepack.recipes.bundled import bundled
from framepack.recipes.override import override
from framepack.training.methods import trained_methods
from framepack.training.network import build_modules

pytestmark = pytest.mark.usefixtures("one_thread")
CHANNELS, WIDTH, GRID = 4, 16, (8, 12)
BASE, LARGE = (1, 2, 2), (2, 4, 4)
#        a pooled tail of five frames, three frames in pairs, two and the start frame one by one
TIMES = [1, 3, 4, *[6] * 6, *[7] * 6, *[8] * 24, *[9] * 24, *[0] * 24]
LATEST = 9


@cache
def model(causal: bool = True) -> PackedWanTransformer3DModel:
    torch.manual_seed(0)
    made = PackedWanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        context_kernels=(BASE, LARGE),
        latent_channels=CHANNELS,
        isolated_history=True,
        causal_history=causal,
    )
    with torch.no_grad():  # what begins as one or zero must count too
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def context(batch: int = 2, seed: int = 1) -> PackedContext:
    generator = torch.Generator().manual_seed(seed)

    def level(positions, kernel, grid=GRID, pool=(1, 1, 1)) -> ContextTensors:
        latents = torch.randn(batch, CHANNELS, len(positions), *grid, generator=generator)
        return ContextTensors(latents, torch.tensor(positions), kernel, pool)

    levels = (
        level([0, 1, 2, 3, 4], LARGE, grid=(2, 3), pool=(1, 4, 4)),
        level([5, 6, 7], LARGE),
        level([8, LATEST], BASE),
        level([0], BASE),
    )
    return PackedContext(levels, timestep=0.0)


def called(subject, seen: PackedContext) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, CHANNELS, 2, *GRID, generator=generator)
    said = Conditioning(prompt=torch.randn(2, 5, WIDTH, generator=generator))
    return subject(noise, torch.tensor([700.0, 90.0]), said, torch.tensor([10, 11]), seen)


class Masked(WanAttnProcessor):
    """diffusers' own self-attention under a mask over the whole sequence."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        times = torch.tensor(TIMES)
        mask = torch.ones(hidden_states.shape[1], hidden_states.shape[1], dtype=torch.bool)
        mask[: len(times), len(times) :] = False
        mask[: len(times), : len(times)] = times[:, None] >= times
        return super().__call__(attn, hidden_states, None, mask, rotary_emb[:2])


def test_tokens_have_the_time_of_their_last_frame():
    assert torch.cat([level.times for level in context().levels]).tolist() == TIMES


def test_calls_by_time_equal_a_mask_with_their_gradients():
    outs, grads = [], []
    leaves = [level.latents.clone().requires_grad_() for level in context().levels]
    seen = context()
    seen = replace(
        seen, levels=tuple(replace(x, latents=y) for x, y in zip(seen.levels, leaves, strict=True))
    )
    own = [block.attn1.processor for block in model().blocks]
    for reference in (False, True):
        for block, processor in zip(model().blocks, own, strict=True):
            block.attn1.set_processor(Masked() if reference else processor)
        try:
            out = called(model(), seen)
        finally:
            for block, processor in zip(model().blocks, own, strict=True):
                block.attn1.set_processor(processor)
        outs.append(out)
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    assert outs[0].std() > 0.01 and all(grad.abs().max() > 1e-6 for grad in grads[0])
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert (called(model(causal=False), context()) - outs[0]).abs().max() > 1e-3, "the flag does something"


@torch.inference_mode()
@pytest.mark.parametrize("causal", [True, False])
def test_a_later_frame_changes_nothing_of_earlier_ones(causal):
    plain, other = context(), context()
    latents = other.levels[2].latents.clone()
    latents[:, :, 1] += 1
    other = replace(
        other, levels=(*other.levels[:2], replace(other.levels[2], latents=latents), other.levels[3])
    )
    held = []
    for seen in (plain, other):
        seen = seen.remembering()
        called(model(causal), seen)
        held.append([seen.memory.held[block.attn1] for block in model(causal).blocks])
    earlier = torch.tensor(TIMES) < LATEST
    for layer, (a, b) in enumerate(zip(*held, strict=True)):
        for one, two in zip(a, b, strict=True):
            assert (one - two)[:, ~earlier].abs().max() > 1e-3
            moved = (one - two)[:, earlier].abs().max()
            assert moved < 1e-6 if causal or layer == 0 else moved > 1e-4


@torch.inference_mode()
def test_what_is_remembered_gives_the_same_as_what_is_computed():
    seen = context().remembering()
    first = called(model(), seen)
    assert all(key.shape[1] == len(TIMES) for key, _ in seen.memory.held.values())
    assert torch.equal(called(model(), seen), first)
    torch.testing.assert_close(called(model(), context()), first, atol=1e-5, rtol=1e-4)
    assert called(model(), EMPTY).isfinite().all()


def test_gradient_checkpointing_changes_nothing():
    grads, parameters = [], list(model().packing_kernels.parameters())
    for stored in (False, True):
        if stored:
            model().enable_gradient_checkpointing()
        try:
            out = called(model().train(), context())
            grads.append(torch.autograd.grad(out.square().sum(), parameters))
        finally:
            model().disable_gradient_checkpointing()
            model().eval()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_saved_and_loaded(tmp_path):
    model().save_pretrained(tmp_path)
    again = PackedWanTransformer3DModel.from_pretrained(tmp_path).eval()
    assert again.config.causal_history and again.config.isolated_history
    assert torch.equal(called(again, context()), called(model(), context()))


def test_what_cannot_be_causal():
    with pytest.raises(ModelError, match="isolated_history: set both"):
        PackedWanTransformer3DModel(num_layers=1, ffn_dim=8, causal_history=True)
    plain = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    packed = PackedHunyuanVideoTransformer3DModel.adopt(plain, (BASE,), history_timestep="zero")
    with pytest.raises(ModelError, match="Wan family"):
        packed.isolate(causal=True)
    noised = replace(context().levels[2], timestep=torch.full((2,), 300.0))
    with pytest.raises(InputError, match="without history noise"):
        called(model(), replace(context(), levels=(noised,)))


def test_a_recipe_asks_for_it():
    config = override(bundled("x"), "network.causal_history=true", "network.layers=1", "network.heads=1")
    made, _ = build_modules(config, CHANNELS)
    assert made.config.causal_history and made.config.isolated_history
    assert {method.history_timestep for method in trained_methods(config).values()} == {"zero"}
    made.isolate()
    assert not made.config.causal_history, "isolated only"

"""Kernels, phases and context: against the base model's own arithmetic, and by their properties."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st

from framepack.conditioning.embeds import Conditioning
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import ContextTensors, PackedContext, align, gather
from framepack.packing.kernels import PatchKernels, expand_kernel, pad_to_kernel
from framepack.packing.rope import axis_dims, phases
from framepack.planning.sections import ContextLevel

BASE = (1, 2, 2)
KERNELS = ((1, 2, 2), (2, 4, 4), (4, 8, 8))


def wan(in_channels: int = 16, out_channels: int = 16) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=in_channels,
        out_channels=out_channels,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    ).eval()


def said(prompt: torch.Tensor) -> Conditioning:
    return Conditioning(prompt=prompt)


def level(frames: list[int], positions: list[int], kernel=(2, 4, 4), size=(1, 16, 8, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, channels, h, w = size
    latents = torch.randn(batch, channels, len(frames), h, w, generator=generator)
    return ContextTensors(latents, torch.tensor(positions), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_kernel_equals_base_on_a_constant_input(kernel):
    torch.manual_seed(1)
    base = torch.nn.Conv3d(3, 5, BASE, BASE)
    kernels = PatchKernels([kernel], 3, 5)
    kernels.initialise(base)
    constant = torch.randn(1, 3, 1, 1, 1).expand(1, 3, 4, 8, 8)
    expected = base(constant).flatten(2).transpose(1, 2)[:, :1]
    tokens = kernels(constant, kernel)
    torch.testing.assert_close(tokens, expected.expand_as(tokens))


def test_kernel_that_the_base_does_not_divide():
    with pytest.raises(ValueError, match="not a multiple"):
        expand_kernel(torch.zeros(1, 1, 1, 2, 2), (1, 3, 2))


def test_padding_repeats_the_edge():
    x = torch.arange(6.0).view(1, 1, 1, 2, 3)
    padded = pad_to_kernel(x, (2, 2, 2))
    assert padded.shape == (1, 1, 2, 2, 4)
    assert torch.equal(padded[..., 0, :, 3], x[..., 0, :, 2])
    assert torch.equal(padded[:, :, 1], padded[:, :, 0])


def test_base_phases_equal_wans_own():
    model = wan()
    cos, sin = phases(torch.arange(5), (8, 12), BASE, BASE, axis_dims(24))
    own = model.rope(torch.zeros(1, 16, 5, 8, 12))
    assert torch.equal(cos, own[0][0, :, 0]) and torch.equal(sin, own[1][0, :, 0])


def test_phases_shrink_like_a_padded_average_of_the_whole_grid():
    positions = torch.tensor([3, 4, 9])
    grid, kernel, dims = (10, 12), (2, 4, 4), axis_dims(24)
    cos, _ = phases(positions, grid, kernel, BASE, dims)
    full, _ = phases(positions, grid, BASE, BASE, dims)
    volume = full.view(3, 5, 6, -1).permute(3, 0, 1, 2)[None]
    padded = pad_to_kernel(volume, (2, 2, 2))
    expected = torch.nn.functional.avg_pool3d(padded, (2, 2, 2))[0].flatten(1).T
    torch.testing.assert_close(cos, expected)


def test_pooled_phases_keep_the_published_moduli():
    cos, sin = phases(torch.arange(8), (16, 16), (2, 4, 4), BASE, axis_dims(128))
    modulus = (cos**2 + sin**2).sqrt()
    assert modulus.max() <= 1 + 1e-6
    assert abs(float(modulus.min()) - 0.88) < 0.01


@given(st.integers(0, 200), st.integers(-50, 50))
def test_phases_depend_on_differences_only(first, offset):
    """Attention between two frames is the same after both move in time."""
    dims = (24, 0, 0)

    def dot(a: int, b: int) -> float:
        (ca, sa), (cb, sb) = (phases(torch.tensor([p]), (1, 1), (1, 1, 1), (1, 1, 1), dims) for p in (a, b))
        return float((ca * cb + sa * sb).sum())

    assert dot(first, first + 7) == pytest.approx(dot(first + offset, first + offset + 7), abs=1e-4)


@torch.inference_mode()
def test_adopted_with_empty_context_equals_its_base_bit_for_bit():
    base = wan()
    x, text = torch.randn(2, 16, 3, 8, 12), torch.randn(2, 7, 32)
    timestep = torch.tensor([900.0, 40.0])
    expected = base(x, timestep, text, return_dict=False)[0]
    model = PackedWanTransformer3DModel.adopt(base, KERNELS)
    assert torch.equal(model(x, timestep, said(text)), expected)


def test_kernels_added_later_come_from_the_base_and_leave_others_alone():
    model = PackedWanTransformer3DModel.adopt(wan(), KERNELS)
    before = {n: p.clone() for n, p in model.packing_kernels.named_parameters()}
    model.add_kernels([(1, 2, 2), (1, 4, 4)])
    after = dict(model.packing_kernels.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before)
    expected = expand_kernel(model.patch_embedding.weight, (1, 4, 4))
    assert torch.equal(after["projections.k1h4w4.weight"], expected)
    assert [tuple(k) for k in model.config.context_kernels] == [*KERNELS, (1, 4, 4)]


@torch.inference_mode()
def test_context_is_read_and_order_of_levels_does_not_matter():
    model = PackedWanTransformer3DModel.adopt(wan(), KERNELS)
    x, text, t = torch.randn(1, 16, 3, 8, 12), torch.randn(1, 7, 32), torch.tensor([500.0])
    positions = torch.arange(20, 23)
    levels = (level(list(range(4)), [0, 1, 2, 3], (4, 8, 8)), level([0], [19], (1, 2, 2), seed=1))
    alone = model(x, t, said(text), positions)
    seen = model(x, t, said(text), positions, PackedContext(levels))
    turned = model(x, t, said(text), positions, PackedContext(levels[::-1]))
    assert (alone - seen).abs().max() > 1e-4
    torch.testing.assert_close(seen, turned, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_history_timestep_zero_differs_and_equals_noisy_at_zero():
    model = PackedWanTransformer3DModel.adopt(wan(), KERNELS)
    x, text = torch.randn(1, 16, 3, 8, 12), torch.randn(1, 7, 32)
    levels = (level([0, 1], [0, 1]),)
    positions = torch.arange(2, 5)
    for t, same in ((0.0, True), (700.0, False)):
        timestep = torch.tensor([t])
        noisy = model(x, timestep, said(text), positions, PackedContext(levels))
        zero = model(x, timestep, said(text), positions, PackedContext(levels, timestep=0.0))
        assert torch.allclose(noisy, zero, atol=1e-5) == same


@torch.inference_mode()
def test_odd_sizes_come_back_whole():
    model = PackedWanTransformer3DModel.adopt(wan(), KERNELS)
    x = torch.randn(1, 16, 2, 7, 9)
    context = PackedContext((level([0, 1, 2], [0, 1, 2], (4, 8, 8), size=(1, 16, 7, 9)),))
    assert (
        model(x, torch.tensor([500.0]), said(torch.randn(1, 7, 32)), torch.arange(3, 5), context).shape
        == x.shape
    )


@torch.inference_mode()
def test_saved_and_loaded_gives_the_same_bytes(tmp_path):
    model = PackedWanTransformer3DModel.adopt(wan(3 * 16 + 2), KERNELS, prediction="sample")
    assert model.config.aligned
    model.save_pretrained(tmp_path)
    again = PackedWanTransformer3DModel.from_pretrained(tmp_path)
    x, text, t = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 7, 32), torch.tensor([500.0])
    context = PackedContext(aligned=torch.randn(1, 34, 2, 8, 8))
    assert torch.equal(model(x, t, said(text), context=context), again(x, t, said(text), context=context))
    assert again.config.prediction == "sample"


def test_gather_fills_absent_frames_with_zeros_and_averages():
    held = torch.randn(1, 4, 6, 2, 2)
    levels = [
        ContextLevel(role="history", kernel=(2, 2, 2), frames=(None, 3), positions=(0, 1)),
        ContextLevel(role="tail", kernel=(2, 2, 2), frames=(0, 1, 2), positions=(2,), mean=True),
    ]
    first, tail = gather(levels, lambda frames: held[:, :, list(frames)], held)
    assert torch.equal(first.latents[:, :, 0], torch.zeros(1, 4, 2, 2))
    assert torch.equal(first.latents[:, :, 1], held[:, :, 3])
    torch.testing.assert_close(tail.latents[:, :, 0], held[:, :, :3].mean(2))


def test_a_tail_on_a_grid_smaller_than_its_pool_is_one_mean_a_frame():
    held = torch.randn(1, 4, 3, 8, 8)
    tail = ContextLevel("tail", (1, 1, 1), range(3), range(3), pool=(1, 32, 32))
    (found,) = gather([tail], lambda frames: held[:, :, list(frames)], held)
    torch.testing.assert_close(found.latents, held.mean((3, 4), keepdim=True))
    assert found.positions.tolist() == [0, 1, 2]
    shared = ContextLevel("tail", (1, 1, 1), range(3), (7,), pool=(1, 32, 32))
    (found,) = gather([shared], lambda frames: held[:, :, list(frames)], held)
    assert found.positions.tolist() == [7, 7, 7]


@pytest.mark.parametrize("base", [BASE, (1, 1, 1), (1, 3, 3)])
@pytest.mark.parametrize("grid", [(8, 8), (60, 104), (33, 65)])
def test_phases_of_a_pooled_tail_are_pooled_like_its_latents(grid, base):
    pool, dims = (1, 32, 32), axis_dims(24)
    kernel = (2, 2 * base[1], 2 * base[2])
    positions = torch.tensor([3, 4, 9])
    full, _ = phases(positions, grid, base, base, dims)
    counts = [-(-size // b) for size, b in zip(grid, base[1:], strict=True)]
    volume = full.view(3, *counts, -1).permute(3, 0, 1, 2)[None]
    # Every latent has the phase of the base token it is in.
    volume = volume.repeat_interleave(base[1], 3).repeat_interleave(base[2], 4)[..., : grid[0], : grid[1]]
    whole = (1, min(32, grid[0]), min(32, grid[1]))
    shrunk = torch.nn.functional.avg_pool3d(volume, whole, ceil_mode=True, count_include_pad=False)
    expected = torch.nn.functional.avg_pool3d(pad_to_kernel(shrunk, kernel), kernel)[0].flatten(1).T
    cos, _ = phases(positions, grid, kernel, base, dims, pool=pool)
    torch.testing.assert_close(cos, expected)


@torch.inference_mode()
def test_a_model_takes_a_pooled_tail():
    model = PackedWanTransformer3DModel.adopt(wan(), KERNELS)
    held = torch.randn(1, 16, 3, 40, 70)
    tail = ContextLevel("tail", (2, 4, 4), range(3), range(3), pool=(1, 32, 32))
    levels = gather([tail], lambda frames: held[:, :, list(frames)], held)
    x, t, text = torch.randn(1, 16, 1, 40, 70), torch.tensor([500.0]), torch.randn(1, 7, 32)
    alone = model(x, t, said(text), torch.tensor([3]))
    assert (model(x, t, said(text), torch.tensor([3]), PackedContext(levels)) - alone).abs().max() > 1e-5


def test_aligned_channels_hold_the_nearest_frames_of_each_span():
    held = torch.randn(1, 4, 6, 2, 2)
    out = align([2, 1], [0, None], [None, 5], lambda frames: held[:, :, list(frames)], held)
    assert out.shape == (1, 10, 3, 2, 2)
    assert torch.equal(out[:, :4, 1], held[:, :, 0]) and torch.equal(out[:, 4:8, 2], held[:, :, 5])
    assert out[0, 8, :, 0, 0].tolist() == [1, 1, 0] and out[0, 9, :, 0, 0].tolist() == [0, 0, 1]

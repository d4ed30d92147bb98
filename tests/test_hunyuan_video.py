"""The packed HunyuanVideo transformer: against diffusers' own classes, on tiny random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from diffusers.models.attention_dispatch import attention_backend

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, ModelError
from framepack.models.hunyuan_video import (
    PackedHunyuanVideoTransformer3DModel,
    convert_state_dict,
    released_state_dict,
)
from framepack.packing.context import ContextTensors, PackedContext, pack
from framepack.packing.kernels import expand_kernel
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline

C, S, WORDS = 4, 3, 7
KERNELS = ((1, 2, 2), (2, 4, 4), (4, 8, 8))
SMALL = (8, 12)
# 9 x 13 base tokens: neither axis of the latents is a multiple of 4 or 8.
ODD = (18, 26)
CONFIG = {
    "in_channels": C,
    "out_channels": C,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 24,
    "pooled_projection_dim": 12,
    "rope_axes_dim": (4, 6, 6),
}


def plain(**changes) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(**CONFIG | changes).eval()


def released() -> HunyuanVideoFramepackTransformer3DModel:
    torch.manual_seed(0)
    return HunyuanVideoFramepackTransformer3DModel(
        **CONFIG, has_image_proj=True, image_proj_dim=10, has_clean_x_embedder=True
    ).eval()


def packed(**options) -> PackedHunyuanVideoTransformer3DModel:
    return PackedHunyuanVideoTransformer3DModel.adopt(plain(), KERNELS, **options)


def conditioning(*lengths: int, image: bool = False) -> Conditioning:
    """One prompt for each of ``lengths``, padded to ``WORDS`` tokens."""
    generator = torch.Generator().manual_seed(1)
    batch = len(lengths)
    return Conditioning(
        prompt=torch.randn(batch, WORDS, 24, generator=generator),
        mask=torch.arange(WORDS) < torch.tensor(lengths)[:, None],
        pooled=torch.randn(batch, 12, generator=generator),
        image=torch.randn(batch, 5, 10, generator=generator) if image else None,
        guidance=6.0,
    )


def latents(frames: int, grid: tuple[int, int] = SMALL, batch: int = 1, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, C, frames, *grid, generator=generator)


def history(*kernels: tuple[int, int, int], **options) -> PackedContext:
    """A level of four frames at each kernel, all at times 0 to 3."""
    held = latents(4, seed=3)
    return PackedContext(tuple(ContextTensors(held, torch.arange(4), k) for k in kernels), **options)


def theirs(model, x: torch.Tensor, timestep: torch.Tensor, given: Conditioning, **inputs) -> torch.Tensor:
    """What one of diffusers' models predicts."""
    if given.image is not None:
        inputs["image_embeds"] = given.image
    return model(
        x,
        timestep,
        given.prompt,
        given.mask.long(),
        given.pooled,
        guidance=torch.full((len(x),), given.guidance) * 1000.0,
        return_dict=False,
        **inputs,
    )[0]


# The released weights ----------------------------------------------------------------------------------


def released_layout(order: str, held: torch.Tensor, start: int, padding: int) -> dict[str, torch.Tensor]:
    """What the released loops give a section that begins at ``start``, history absent as zeros."""
    blank = torch.zeros_like(held[:, :, :1]).expand(-1, -1, 19, -1, -1)
    if order == "inverted":
        seen = torch.cat([held[:, :, start + S :], blank], dim=2)[:, :, :19]
        one, two, four = seen.split([1, 2, 16], dim=2)
        sizes = [1, padding * S, S, 1, 2, 16]
        at_start, _, at, at_one, at_two, at_four = torch.arange(sum(sizes)).split(sizes)
    else:
        seen = torch.cat([blank, held[:, :, :start]], dim=2)[:, :, -19:]
        four, two, one = seen.split([16, 2, 1], dim=2)
        at_start, at_four, at_two, at_one, at = torch.arange(20 + S).split([1, 16, 2, 1, S])
    return {
        "indices_latents": at,
        "latents_clean": torch.cat([held[:, :, :1], one], dim=2),
        "indices_latents_clean": torch.cat([at_start, at_one]),
        "latents_history_2x": two,
        "indices_latents_history_2x": at_two,
        "latents_history_4x": four,
        "indices_latents_history_4x": at_four,
    }


@pytest.mark.parametrize("lengths", [(5,), (WORDS, 3)], ids=["one", "two"])
@pytest.mark.parametrize(
    ("order", "index", "padding"),
    [("inverted", 0, 3), ("inverted", 3, 2), ("inverted", 7, 0), ("f1", 0, 0), ("f1", 3, 0), ("f1", 7, 0)],
)
@torch.inference_mode()
def test_planned_sections_give_what_the_released_class_gives(order, index, padding, lengths):
    frames, batch = 1 + 8 * S, len(lengths)
    timeline = Timeline(frames=1 + 4 * (frames - 1), fps=30, stride=4, known=(0,))
    section = plan(timeline, named_method(order, section_size=S)).sections[index]
    held, noise = latents(frames, ODD, batch), latents(S, ODD, batch, seed=4)
    given, timestep = conditioning(*lengths, image=True), torch.tensor([700.0, 30.0])[:batch]

    base = released()
    layout = released_layout(order, held, section.spans[0].start, padding)
    expected = theirs(base, noise, timestep, given, **layout)
    model = PackedHunyuanVideoTransformer3DModel.adopt(base, KERNELS)
    context = pack(section, lambda wanted: held[:, :, list(wanted)], held, aligned=False, timestep=None)
    positions = torch.tensor(section.positions)
    torch.testing.assert_close(model(noise, timestep, given, positions, context), expected, atol=1e-4, rtol=0)
    without = model(noise, timestep, given, positions)
    assert (without - expected).abs().max() > 1e-2, "history must count in what is compared"


def test_released_keys_are_mapped_both_ways():
    base = released()
    state = base.state_dict()
    model = PackedHunyuanVideoTransformer3DModel.from_config(
        {**CONFIG, "has_image_proj": True, "image_proj_dim": 10, "latent_channels": C}
    )
    model.load_state_dict(convert_state_dict(state))
    assert torch.equal(
        model.packing_kernels.projections["k2h4w4"].weight, base.clean_x_embedder.proj_2x.weight
    )
    back = released_state_dict(model.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    model.add_kernels([(1, 4, 4)])
    with pytest.raises(ModelError, match="k1h4w4 has no place"):
        released_state_dict(model.state_dict())


def test_released_kernels_come_over_and_others_are_made_from_the_base():
    base = released()
    weights = dict(base.named_parameters())
    model = PackedHunyuanVideoTransformer3DModel.adopt(base, ((1, 4, 4), (4, 8, 8)))
    own = dict(model.named_parameters())
    names = convert_state_dict(weights)
    assert all(own[name] is parameter for name, parameter in names.items()), "moved, not copied"
    assert set(own) - set(names) == {
        f"packing_kernels.projections.k1h4w4.{part}" for part in ("weight", "bias")
    }
    torch.testing.assert_close(
        own["packing_kernels.projections.k1h4w4.weight"],
        expand_kernel(base.x_embedder.proj.weight, (1, 4, 4)),
    )
    assert [tuple(k) for k in model.config.context_kernels] == [*KERNELS, (1, 4, 4)]


# Any base ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(WORDS,), (4,), (WORDS, WORDS), (5, 3)], ids=str)
@pytest.mark.parametrize("history_timestep", ["noisy", "zero"])
@torch.inference_mode()
def test_adopted_with_empty_context_equals_its_base_bit_for_bit(lengths, history_timestep):
    base, given = plain(), conditioning(*lengths)
    x, timestep = latents(S, batch=len(lengths)), torch.tensor([900.0, 40.0])[: len(lengths)]
    expected = theirs(base, x, timestep, given)
    parameters = {id(parameter) for parameter in base.parameters()}
    model = PackedHunyuanVideoTransformer3DModel.adopt(base, KERNELS, history_timestep=history_timestep)
    assert parameters < {id(parameter) for parameter in model.parameters()}, "moved, not copied"
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(x, timestep, given), expected)


@torch.inference_mode()
def test_a_start_picture_in_the_context_is_a_replaced_first_frame():
    """HunyuanVideo's image-to-video gives its first frame's tokens a timestep of 0, as our context has it."""
    base, given = plain(image_condition_type="token_replace"), conditioning(5, WORDS)
    x, timestep = latents(1 + S, batch=2), torch.tensor([800.0, 300.0])
    expected = theirs(base, x, timestep, given)[:, :, 1:]
    model = PackedHunyuanVideoTransformer3DModel.adopt(base, KERNELS)
    start = ContextTensors(x[:, :, :1], torch.tensor([0]), KERNELS[0])
    found = model(x[:, :, 1:], timestep, given, torch.arange(1, 1 + S), PackedContext((start,), timestep=0.0))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    shared = model(x[:, :, 1:], timestep, given, torch.arange(1, 1 + S), PackedContext((start,)))
    assert (shared - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_blocks_rebuilt_for_timestep_zero_still_share_the_noisy_one_when_asked():
    x, given, at = latents(S), conditioning(5), torch.arange(4, 4 + S)
    for timestep in (torch.tensor([600.0]), torch.tensor([0.0])):
        shared = packed()(x, timestep, given, at, history(KERNELS[1]))
        rebuilt = packed(history_timestep="zero")
        torch.testing.assert_close(rebuilt(x, timestep, given, at, history(KERNELS[1])), shared)


def test_a_timestep_of_their_own_for_history_needs_the_right_blocks():
    model, given = packed(), conditioning(5)
    with pytest.raises(InputError, match="timestep of 0, only that of the noisy frames"):
        model(latents(S), torch.tensor([500.0]), given, None, history(KERNELS[0], timestep=0.0))


@torch.inference_mode()
def test_every_level_is_read_and_the_order_of_levels_does_not_matter():
    model, x, given, t = packed(), latents(S), conditioning(5), torch.tensor([500.0])
    model.add_kernels([(1, 4, 4), (1, 2, 2)])
    at, kernels = torch.arange(4, 4 + S), ((4, 8, 8), (1, 4, 4), (1, 2, 2))
    seen = model(x, t, given, at, history(*kernels))
    turned = model(x, t, given, at, history(*kernels[::-1]))
    torch.testing.assert_close(seen, turned, atol=1e-5, rtol=1e-4)
    for left in range(3):
        fewer = history(*kernels[:left], *kernels[left + 1 :])
        assert (model(x, t, given, at, fewer) - seen).abs().max() > 1e-4


@torch.inference_mode()
def test_a_prompt_alone_is_the_same_as_beside_a_longer_one():
    model, given, t = packed(), conditioning(3, WORDS), torch.tensor([500.0, 500.0])
    x = latents(S, (7, 9), batch=2)  # an odd grid: the target is padded and comes back whole
    both = model(x, t, given)
    assert both.shape == x.shape
    alone = replace(given, prompt=given.prompt[:1], mask=given.mask[:1], pooled=given.pooled[:1])
    torch.testing.assert_close(both[:1], model(x[:1], t[:1], alone), atol=1e-5, rtol=1e-4)


def test_conditioning_that_the_model_cannot_use_is_named():
    model, given, x, t = packed(), conditioning(5), latents(S), torch.tensor([500.0])
    for changes, message in (
        ({"pooled": None}, "Conditioning.pooled"),
        ({"guidance": None}, "Conditioning.guidance"),
        ({"image": torch.zeros(1, 5, 10)}, "no image projection"),
        ({"mask": torch.zeros(1, WORDS)}, "mask is empty"),
    ):
        with pytest.raises(InputError, match=message):
            model(x, t, replace(given, **changes))


def test_a_base_with_the_picture_in_its_channels_is_refused():
    base = plain(in_channels=2 * C + 1, image_condition_type="latent_concat")
    with pytest.raises(ModelError, match="9 input and 4 output channels"):
        PackedHunyuanVideoTransformer3DModel.adopt(base, KERNELS)


# What diffusers gives every model -----------------------------------------------------------------------


@torch.inference_mode()
def test_saved_and_loaded_gives_the_same_bytes(tmp_path):
    model = PackedHunyuanVideoTransformer3DModel.adopt(released(), ((1, 4, 4),), history_timestep="zero")
    model.save_pretrained(tmp_path / "first")
    again = PackedHunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    for file in (tmp_path / "first").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
    x, given, t = latents(S), conditioning(5, image=True), torch.tensor([500.0])
    context = history((1, 4, 4), (4, 8, 8), timestep=0.0)
    assert torch.equal(model(x, t, given, None, context), again(x, t, given, None, context))


@torch.inference_mode()
def test_a_cache_is_placed_and_each_branch_has_its_own():
    model, x, t = packed(), latents(S), torch.tensor([500.0])
    branches = {"cond": conditioning(5), "uncond": conditioning(2)}
    expected = {name: model(x, t, given) for name, given in branches.items()}
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        assert any(name.startswith("fbc") for name in block._diffusers_hook.hooks)
    later = torch.tensor([300.0])
    for name, given in branches.items():
        with model.cache_context(name):
            assert torch.equal(model(x, t, given), expected[name]), "a first call computes every block"
            reused = model(x, later, given)
    model.disable_cache()
    assert not torch.equal(reused, model(x, later, given))


def test_checkpointing_gives_the_same_gradients():
    model, x, given = packed(history_timestep="zero").train(), latents(S), conditioning(5)
    context, gradients = history(*KERNELS, timestep=0.0), []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(x, torch.tensor([500.0]), given, torch.arange(4, 4 + S), context).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert {name for name in gradients[0] if "packing_kernels" in name and gradients[0][name].any()} == {
        name for name, _ in model.named_parameters() if "packing_kernels" in name
    }
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-6, rtol=1e-4)


@torch.inference_mode()
def test_weights_at_rest_in_eight_bits_leave_the_kernels_alone():
    model, x, given, t = packed(), latents(S), conditioning(5), torch.tensor([500.0])
    expected = model(x, t, given, None, history(*KERNELS))
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    found = model(x, t, given, None, history(*KERNELS))
    assert model.single_transformer_blocks[0].proj_mlp.weight.dtype == torch.float8_e4m3fn
    assert model.packing_kernels.projections["k1h2w2"].weight.dtype == torch.float32
    assert 0 < (found - expected).abs().mean() < 0.1 * expected.abs().mean()


@torch.inference_mode()
def test_the_attention_backend_is_chosen_for_every_block():
    model, x, given, t = packed(), latents(S), conditioning(5), torch.tensor([500.0])
    expected = model(x, t, given)
    # Setting one makes it the process's own, too: the block puts back what was there.
    with attention_backend("native"):
        model.set_attention_backend("_native_math")
        blocks = (*model.transformer_blocks, *model.single_transformer_blocks)
        assert {block.attn.processor._attention_backend.value for block in blocks} == {"_native_math"}
        torch.testing.assert_close(model(x, t, given), expected, atol=1e-5, rtol=1e-4)

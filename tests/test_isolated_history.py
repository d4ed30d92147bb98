"""Isolated history: the same as a mask over the whole sequence, and computed once for a section."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, ModelError
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import EMPTY, ContextTensors, PackedContext
from framepack.recipes.bundled import bundled
from framepack.recipes.override import override
from framepack.sampling.section import sample_section
from framepack.sampling.solvers import solver_named
from framepack.training.methods import trained_methods
from framepack.training.network import build_modules

torch.set_num_threads(1)
CHANNELS, WIDTH, GRID = 4, 16, (8, 12)
KERNELS = ((1, 2, 2), (2, 4, 4))
HISTORY = 2 * 3 + 24  # tokens: two frames at (2, 4, 4) and one at (1, 2, 2)
NOISY = 2 * 24


def shaken(model):
    with torch.no_grad():  # what begins as one or zero must count too
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@cache
def wan(**changes) -> PackedWanTransformer3DModel:
    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "context_kernels": KERNELS,
        "latent_channels": CHANNELS,
        "isolated_history": True,
    }
    return shaken(PackedWanTransformer3DModel(**config | changes))


@cache
def hunyuan(**changes) -> PackedHunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    config = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "rope_axes_dim": (4, 6, 6),
        "guidance_embeds": True,
    }
    plain = HunyuanVideoTransformer3DModel(**config | changes)
    model = PackedHunyuanVideoTransformer3DModel.adopt(plain, KERNELS, history_timestep="zero")
    model.isolate()
    return shaken(model)


MODELS = {
    "wan": wan,
    "wan guided": lambda: wan(guided_cross_attention=True),
    "wan scaled": lambda: wan(history_scale="per_head"),
    "hunyuan video": hunyuan,
}


def context(batch: int = 2, timestep: float | None = 0.0, seed: int = 1) -> PackedContext:
    generator = torch.Generator().manual_seed(seed)
    far, near = (torch.randn(batch, CHANNELS, n, *GRID, generator=generator) for n in (2, 1))
    levels = (
        ContextTensors(far, torch.tensor([0, 1]), KERNELS[1]),
        ContextTensors(near, torch.tensor([2]), KERNELS[0]),
    )
    return PackedContext(levels, timestep=timestep)


def conditioning(batch: int = 2, length: int = 5, seed: int = 2, masked: bool = False) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(batch, length, WIDTH, generator=generator)
    mask = torch.ones(batch, length, dtype=torch.bool)
    if masked:
        mask[0, 3:] = False
    pooled = torch.randn(batch, WIDTH, generator=generator)
    return Conditioning(prompt=prompt, mask=mask, pooled=pooled, guidance=6.0)


def noise(batch: int = 2, seed: int = 3) -> torch.Tensor:
    return torch.randn(batch, CHANNELS, 2, *GRID, generator=torch.Generator().manual_seed(seed))


TIMES, PLACES = torch.tensor([700.0, 90.0]), torch.tensor([4, 5])


def seen_by(tokens: int, history: int) -> torch.Tensor:
    """(n, n): whether a row's token sees a column's."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool)
    seen[:history, history:] = False
    return seen


class MaskedWan(WanAttnProcessor):
    """diffusers' own self-attention under a mask over the whole sequence."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        cos, sin, noisy = rotary_emb[:3]
        tokens = hidden_states.shape[1]
        mask = seen_by(tokens, tokens - noisy)
        return super().__call__(attn, hidden_states, None, mask, (cos, sin))


class MaskedHunyuanVideo(HunyuanVideoAttnProcessor2_0):
    """The same for joint attention, in which the text sees all."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None
    ):
        cos, sin, noisy = image_rotary_emb[:3]
        latents = hidden_states.shape[1]
        mask = seen_by(latents + encoder_hidden_states.shape[1], latents - noisy)[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, (cos, sin))


class Masked:
    """A model with its isolated attention exchanged for the reference."""

    def __init__(self, model) -> None:
        if isinstance(model, PackedWanTransformer3DModel):
            self.attentions, reference = [block.attn1 for block in model.blocks], MaskedWan
        else:
            blocks = (*model.transformer_blocks, *model.single_transformer_blocks)
            self.attentions, reference = [block.attn for block in blocks], MaskedHunyuanVideo
        self.own, self.reference = [attn.processor for attn in self.attentions], reference

    def __enter__(self) -> None:
        for attn in self.attentions:
            attn.set_processor(self.reference())

    def __exit__(self, *_) -> None:
        for attn, processor in zip(self.attentions, self.own, strict=True):
            attn.set_processor(processor)


@pytest.mark.parametrize("name", ["wan", "wan guided", "hunyuan video"])
@pytest.mark.parametrize("holed", [False, True])
def test_two_calls_equal_a_mask_with_their_gradients(name, holed):
    model, outs, grads = MODELS[name](), [], []
    latents = context().levels[0].latents.clone().requires_grad_()
    for reference in (False, True):
        seen = context()
        seen = replace(seen, levels=(replace(seen.levels[0], latents=latents), seen.levels[1]))
        with Masked(model) if reference else nullcontext():
            out = model(noise(), TIMES, conditioning(masked=holed), PLACES, seen)
        outs.append(out)
        (grad,) = torch.autograd.grad(out.square().sum(), latents)
        grads.append(grad)
    assert outs[0].std() > 0.01 and grads[0].abs().max() > 1e-6
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["wan", "hunyuan video"])
def test_isolation_counts_only_where_there_is_history(name):
    model = MODELS[name]()
    plain = type(model).from_config(dict(model.config) | {"isolated_history": False}).eval()
    plain.load_state_dict(model.state_dict())
    said = conditioning()
    alone = [m(noise(), TIMES, said, PLACES, EMPTY) for m in (model, plain)]
    torch.testing.assert_close(*alone, atol=1e-6, rtol=1e-5)
    a, b = (m(noise(), TIMES, said, PLACES, context()) for m in (model, plain))
    assert (a - b).abs().max() > 1e-3, "the flag does something"


class Forgetful:
    """The model without its memory: every step sees the whole history again."""

    def __init__(self, model) -> None:
        self.model, self.config = model, model.config
        self.cache_context = lambda name: nullcontext()

    def __call__(self, x, timestep, said, positions, seen):
        return self.model(x, timestep, said, positions, replace(seen, memory=None))


def count_tokens(model, counted: list[int]):
    first = model.blocks[0] if isinstance(model, PackedWanTransformer3DModel) else model.transformer_blocks[0]
    return first.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].shape[1]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [(5, 5), (5, 3)], ids=["one call", "two branches"])
def test_history_is_computed_once_for_a_section(name, lengths):
    model, steps = MODELS[name](), 5
    said, other = (conditioning(1, length, seed=i) for i, length in enumerate(lengths))
    made, counts = [], []
    for subject in (Forgetful(model), model):
        counted: list[int] = []
        hook = count_tokens(model, counted)
        made.append(
            sample_section(
                subject,
                noise=noise(1),
                positions=PLACES,
                context=context(1),
                prompt=said,
                negative=other,
                guidance=2.0,
                sigmas=torch.linspace(1, 0, steps + 1),
                solver=solver_named("euler"),
            )
        )
        hook.remove()
        counts.append(sum(counted))
    torch.testing.assert_close(*made, atol=2e-5, rtol=1e-4)
    branches = len(set(lengths))
    assert counts == [branches * steps * (HISTORY + NOISY), branches * (HISTORY + steps * NOISY)]


@torch.inference_mode()
def test_a_memory_is_of_one_section():
    model, said = wan(), conditioning()
    seen = context().remembering()
    first = model(noise(), TIMES, said, PLACES, seen)
    assert all(key.shape[1] == HISTORY for key, _ in seen.memory.held.values()) and len(seen.memory.held) == 2
    assert torch.equal(model(noise(), TIMES, said, PLACES, seen), first)
    stale = replace(context(seed=9), memory=seen.memory)
    assert torch.equal(model(noise(), TIMES, said, PLACES, stale), first), "read, not computed"
    fresh = model(noise(), TIMES, said, PLACES, context(seed=9).remembering())
    torch.testing.assert_close(
        fresh, model(noise(), TIMES, said, PLACES, context(seed=9)), atol=1e-5, rtol=1e-4
    )
    assert (fresh - first).abs().max() > 1e-3
    assert context().remembering().to("cpu").memory is None and context().repeated(2).memory is None


@pytest.mark.parametrize("name", ["wan", "hunyuan video"])
def test_gradient_checkpointing_changes_nothing(name):
    model, grads = MODELS[name](), []
    parameters = list(model.packing_kernels.parameters())
    for stored in (False, True):
        if stored:
            model.enable_gradient_checkpointing()
        try:
            out = model.train()(noise(), TIMES, conditioning(), PLACES, context())
            grads.append(torch.autograd.grad(out.square().sum(), parameters))
        finally:
            model.disable_gradient_checkpointing()
            model.eval()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["wan", "hunyuan video"])
def test_history_of_the_noisy_timestep_is_refused(name):
    with pytest.raises(InputError, match="history timestep 'zero'"):
        MODELS[name]()(noise(), TIMES, conditioning(), PLACES, context(timestep=None))


def test_blocks_that_know_one_timestep_are_refused():
    config = {k: v for k, v in hunyuan().config.items() if not k.startswith("_")}
    plain = PackedHunyuanVideoTransformer3DModel(
        **config | {"image_condition_type": None, "isolated_history": False}
    )
    with pytest.raises(ModelError, match="timestep of 0"):
        plain.isolate()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["wan", "hunyuan video"])
def test_saved_and_loaded(name, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.isolated_history
    found, wanted = (m(noise(), TIMES, conditioning(), PLACES, context()) for m in (again, model))
    assert torch.equal(found, wanted)


def test_a_recipe_asks_for_it():
    config = override(bundled("x"), "network.isolated_history=true", "network.layers=1", "network.heads=1")
    model, _ = build_modules(config, CHANNELS)
    assert model.config.isolated_history
    assert {method.history_timestep for method in trained_methods(config).values()} == {"zero"}
    assert {m.history_timestep for m in trained_methods(bundled("x")).values()} == {"noisy"}

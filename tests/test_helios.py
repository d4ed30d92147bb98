"""The packed Wan class against diffusers' Helios: the network, its files, and the layout of its sections."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    WanTransformer3DModel,
)

from framepack.conditioning.embeds import Conditioning
from framepack.errors import ModelError
from framepack.models.helios import adopt_helios, load_helios, to_helios
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import EMPTY, PackedContext, gather
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline

torch.set_num_threads(1)
S, HISTORY = 9, (16, 2, 1)
GRID = (10, 14)  # the base kernel divides it, the larger ones do not


def helios(**changes) -> HeliosTransformer3DModel:
    torch.manual_seed(0)
    model = HeliosTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": 32,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            "rope_dim": (8, 8, 8),
            **changes,
        }
    ).eval()
    with torch.no_grad():  # what begins as one or zero must count too
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sections(count: int) -> tuple[Section, ...]:
    frames = 1 + (count * S - 1) * 4
    return plan(Timeline(frames=frames, fps=24, stride=4), named_method("f1")).sections


def reference(model: HeliosTransformer3DModel, index: int, made: torch.Tensor, x, timestep, prompt):
    """Section ``index`` as HeliosPipeline calls the transformer, ``made`` being the video so far."""
    blank = made.new_zeros(*made.shape[:2], sum(HISTORY), *GRID)
    seen = torch.cat([blank, made[:, :, : index * S]], dim=2)[:, :, -sum(HISTORY) :]
    long, mid, near = seen.split(HISTORY, dim=2)
    first = made[:, :, :1] if index else torch.zeros_like(made[:, :, :1])
    places = torch.arange(1 + sum(HISTORY) + S)[None].expand(len(x), -1)
    start, far, middle, last, target = places.split([1, *HISTORY, S], dim=1)
    return model(
        x,
        timestep,
        prompt,
        indices_hidden_states=target,
        indices_latents_history_short=torch.cat([start, last], dim=1),
        indices_latents_history_mid=middle,
        indices_latents_history_long=far,
        latents_history_short=torch.cat([first, near], dim=2),
        latents_history_mid=mid,
        latents_history_long=long,
        return_dict=False,
    )[0]


def context(section: Section, made: torch.Tensor, timestep: float | None) -> PackedContext:
    levels = gather(section.context, lambda frames: made[:, :, list(frames)], made)
    return PackedContext(levels, timestep=timestep)


CASES = list(itertools.product((True, False), (None, "per_head", "scalar"), (True, False)))


@torch.inference_mode()
@pytest.mark.parametrize(("guided", "scale", "zero"), CASES)
def test_every_section_equals_helios(guided, scale, zero):
    source = helios(
        guidance_cross_attn=guided,
        is_amplify_history=scale is not None,
        history_scale_mode=scale or "per_head",
        zero_history_timestep=zero,
    )
    model = adopt_helios(source)
    for index, batch in ((0, 1), (1, 2), (2, 1)):
        made, x = torch.randn(batch, 16, 3 * S, *GRID), torch.randn(batch, 16, S, *GRID)
        prompt, timestep = torch.randn(batch, 7, 32), torch.tensor([913.7, 62.4])[:batch]
        section = sections(3)[index]
        expected = reference(source, index, made, x, timestep, prompt)
        found = model(
            x,
            timestep,
            Conditioning(prompt=prompt),
            torch.tensor(section.positions),
            context(section, made, 0.0 if zero else None),
        )
        assert (found - expected).abs().max() < 1e-4, index


@torch.inference_mode()
@pytest.mark.parametrize("scale", [False, True])
def test_without_history_it_equals_helios_without_history(scale):
    source = helios(is_amplify_history=scale)
    x, t, prompt = torch.randn(2, 16, 3, *GRID), torch.tensor([500.0, 20.0]), torch.randn(2, 7, 32)
    expected = source(x, t, prompt, return_dict=False)[0]
    found = adopt_helios(source)(x, t, Conditioning(prompt=prompt), None, EMPTY)
    assert (found - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_what_tells_helios_from_wan_counts():
    """Each of the three switches changes the output, so that the tests above can fail."""
    section, made, x = sections(2)[1], torch.randn(1, 16, S, *GRID), torch.randn(1, 16, S, *GRID)
    said, t, at = Conditioning(prompt=torch.randn(1, 7, 32)), torch.tensor([500.0]), torch.arange(20, 29)
    plain = adopt_helios(helios(guidance_cross_attn=False))
    guided = adopt_helios(helios(guidance_cross_attn=True))
    amplified = adopt_helios(helios(guidance_cross_attn=False, is_amplify_history=True))
    amplified.load_state_dict(plain.state_dict(), strict=False)
    seen = context(section, made, 0.0)
    base = plain(x, t, said, at, seen)
    others = [
        guided(x, t, said, at, seen),
        amplified(x, t, said, at, seen),
        plain(x, t, said, at, context(section, made, None)),
    ]
    assert all((base - other).abs().max() > 1e-3 for other in others)


class _Recorder(HeliosTransformer3DModel):
    """Keeps what it is called with and predicts no flow."""

    def forward(self, hidden_states, **given):
        calls = self.__dict__.setdefault("calls", [])
        calls.append({name: value.clone() for name, value in given.items() if torch.is_tensor(value)})
        return (0.5 * hidden_states,)


def test_the_planner_lays_sections_out_as_helios_pipeline_does():
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    source = _Recorder(**{k: v for k, v in helios(num_layers=1).config.items() if not k.startswith("_")})
    scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
    pipe = HeliosPipeline(None, None, vae, scheduler, source)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt_embeds=torch.randn(1, 5, 32),
        height=32,
        width=48,
        num_frames=3 * 33,
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames
    assert made.shape[2] == 3 * S and len(source.calls) == 3
    for section, call in zip(sections(3), source.calls, strict=True):
        levels = {(level.kernel, len(level.positions)): level for level in context(section, made, 0.0).levels}
        assert call["indices_hidden_states"][0].tolist() == list(section.positions)
        for term, kernel, size in (("long", (4, 8, 8), 16), ("mid", (2, 4, 4), 2)):
            level = levels[kernel, size]
            assert call[f"indices_latents_history_{term}"][0].tolist() == level.positions.tolist()
            assert torch.equal(call[f"latents_history_{term}"], level.latents)
        near, start = (level for level in context(section, made, 0.0).levels if level.kernel == (1, 2, 2))
        places = torch.cat([start.positions, near.positions])
        assert call["indices_latents_history_short"][0].tolist() == places.tolist()
        assert torch.equal(call["latents_history_short"], torch.cat([start.latents, near.latents], dim=2))


@torch.inference_mode()
@pytest.mark.parametrize("scale", [False, True])
def test_a_released_folder_goes_in_and_comes_out_the_same(tmp_path, scale):
    source = helios(is_amplify_history=scale)
    source.save_pretrained(tmp_path / "released", max_shard_size="100KB")
    model = load_helios(tmp_path / "released")
    model.save_pretrained(tmp_path / "packed")
    again = PackedWanTransformer3DModel.from_pretrained(tmp_path / "packed")
    made, x = torch.randn(1, 16, S, *GRID), torch.randn(1, 16, S, *GRID)
    section, said, t = sections(2)[1], Conditioning(prompt=torch.randn(1, 7, 32)), torch.tensor([500.0])
    at, seen = torch.tensor(section.positions), context(section, made, 0.0)
    assert torch.equal(model(x, t, said, at, seen), again(x, t, said, at, seen))

    back = to_helios(again, zero_history_timestep=True)
    expected = source.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in back.state_dict().items())
    assert len(back.state_dict()) == len(expected)
    ours, theirs = (json.loads(m.to_json_string()) for m in (back, source))
    assert ours == theirs


def test_weights_are_held_once():
    source = helios()
    held = {parameter.data_ptr() for parameter in source.parameters()}
    model = adopt_helios(source)
    assert {parameter.data_ptr() for parameter in model.parameters()} == held
    assert {
        parameter.data_ptr() for parameter in to_helios(model, zero_history_timestep=True).parameters()
    } == held


def test_norms_and_tables_stay_in_float32(tmp_path):
    helios(is_amplify_history=True).save_pretrained(tmp_path)
    model = load_helios(tmp_path, torch.bfloat16)
    block = model.blocks[0]
    assert model.scale_shift_table.dtype == block.attn1.history_key_scale.dtype == torch.float32
    assert block.attn1.to_q.weight.dtype == model.packing_kernels.projections["k2h4w4"].weight.dtype
    assert block.attn1.to_q.weight.dtype == torch.bfloat16


def test_gradients_reach_the_history_scale_with_checkpointing():
    model = adopt_helios(helios(is_amplify_history=True)).train()
    model.enable_gradient_checkpointing()
    made, x = torch.randn(1, 16, S, *GRID), torch.randn(1, 16, S, *GRID)
    section, said = sections(2)[1], Conditioning(prompt=torch.randn(1, 7, 32))
    out = model(x, torch.tensor([500.0]), said, torch.tensor(section.positions), context(section, made, 0.0))
    out.square().mean().backward()
    assert model.blocks[0].attn1.history_key_scale.grad.abs().min() > 0


def _wan(folder: Path) -> str:
    WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8
    ).save_pretrained(folder)
    return "WanTransformer3DModel"


def _truncated(folder: Path) -> str:
    helios(num_layers=1).save_pretrained(folder)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    return "is cut short or no safetensors file"


def _pickled(folder: Path) -> str:
    helios(num_layers=1).save_pretrained(folder, safe_serialization=False)
    return "pickles are never opened"


def _missing(folder: Path) -> str:
    helios(num_layers=1, has_multi_term_memory_patch=False).save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"has_multi_term_memory_patch": True}))
    return "lacks 6 of its HeliosTransformer3DModel's weights, patch_long.bias among them"


def _other_rope(folder: Path) -> str:
    helios(num_layers=1, rope_dim=(12, 6, 6)).save_pretrained(folder)
    return r"rope_dim \(12, 6, 6\)"


@pytest.mark.parametrize("spoil", [_wan, _truncated, _pickled, _missing, _other_rope])
def test_a_folder_that_cannot_be_used_is_named_in_one_line(tmp_path, spoil):
    with pytest.raises(ModelError, match=spoil(tmp_path)) as caught:
        load_helios(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_folder():
    with pytest.raises(ModelError, match="is missing"):
        load_helios(Path("nowhere"))


def test_a_model_that_helios_cannot_be_is_not_written_as_one():
    model = adopt_helios(helios(num_layers=1))
    model.add_kernels([(1, 4, 4)])
    with pytest.raises(ModelError, match="context_kernels"):
        to_helios(model, zero_history_timestep=True)

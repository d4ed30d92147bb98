"""Adoption of the released Wan bases, as tiny ones of the same structure."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from framepack.conditioning.embeds import Conditioning
from framepack.errors import ModelError
from framepack.models.spec import BUNDLED
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import ContextTensors, PackedContext

torch.set_num_threads(1)
KERNELS = ((1, 2, 2), (2, 4, 4), (4, 8, 8))

# What tells the released transformers apart: heads, channels, image tokens. Widths are ours.
T2V_1_3B = {"num_attention_heads": 3}
T2V_14B = {"num_attention_heads": 5}
TI2V_5B = {"in_channels": 48, "out_channels": 48}
IMAGE_TOKENS = {"image_dim": 20, "added_kv_proj_dim": 48}
I2V_14B = {"in_channels": 36, **IMAGE_TOKENS}
I2V_A14B = {"in_channels": 36}


def base(**changes) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "text_dim": 32,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            **changes,
        }
    ).eval()


@torch.inference_mode()
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("structure", [T2V_1_3B, T2V_14B, TI2V_5B, IMAGE_TOKENS])
def test_adopted_with_empty_context_equals_its_base_bit_for_bit(structure, guided):
    wan = base(**structure)
    x, timestep = torch.randn(2, wan.config.in_channels, 3, 8, 12), torch.tensor([900.0, 40.0])
    # Image tokens are told from the prompt by their number: Wan takes the last 512 for the prompt.
    prompt = torch.randn(2, 512, 32)
    image = torch.randn(2, 9, 20) if "image_dim" in structure else None
    expected = wan(x, timestep, prompt, image, return_dict=False)[0]
    model = PackedWanTransformer3DModel.adopt(wan, KERNELS, guided_cross_attention=guided)
    found = model(x, timestep, Conditioning(prompt=prompt, image=image))
    assert torch.equal(found, expected)
    assert model.config.latent_channels == wan.config.in_channels


@torch.inference_mode()
def test_a_ti2v_base_gets_its_start_picture_as_context():
    """Wan 2.2 5B reads its first frame clean, at timestep 0; so does the history, before any training."""
    wan = base(**TI2V_5B)
    x, start = torch.randn(1, 48, 3, 8, 12), torch.randn(1, 48, 1, 8, 12)
    prompt, rows = torch.randn(1, 7, 32), 4 * 6
    timesteps = torch.tensor([[0.0] * rows + [700.0] * rows * 3])
    expected = wan(torch.cat([start, x], dim=2), timesteps, prompt, return_dict=False)[0][:, :, 1:]
    model = PackedWanTransformer3DModel.adopt(wan, KERNELS)
    context = PackedContext((ContextTensors(start, torch.tensor([0]), (1, 2, 2)),), timestep=0.0)
    found = model(x, torch.tensor([700.0]), Conditioning(prompt=prompt), torch.arange(1, 4), context)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_one_timestep_equals_the_same_for_every_token():
    """Wan 2.2 5B is called with a timestep for each token, all equal where nothing is known."""
    wan = base(**TI2V_5B)
    x, prompt, timestep = torch.randn(2, 48, 2, 8, 12), torch.randn(2, 7, 32), torch.tensor([700.0, 3.0])
    expected = wan(x, timestep[:, None].expand(2, 2 * 4 * 6), prompt, return_dict=False)[0]
    found = PackedWanTransformer3DModel.adopt(wan, KERNELS)(x, timestep, Conditioning(prompt=prompt))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("structure", [I2V_14B, I2V_A14B])
def test_a_base_with_a_picture_beside_its_noise_is_refused(structure):
    with pytest.raises(ModelError, match=r"36 input channels for 16 .*Wan2\.1-T2V") as caught:
        PackedWanTransformer3DModel.adopt(base(**structure), KERNELS)
    assert "\n" not in str(caught.value)


@torch.inference_mode()
def test_guided_cross_attention_is_saved_and_leaves_history_alone(tmp_path):
    model = PackedWanTransformer3DModel.adopt(base(), KERNELS, guided_cross_attention=True)
    model.save_pretrained(tmp_path)
    again = PackedWanTransformer3DModel.from_pretrained(tmp_path)
    x, t, at = torch.randn(1, 16, 2, 8, 12), torch.tensor([500.0]), torch.arange(4, 6)
    levels = (ContextTensors(torch.randn(1, 16, 4, 8, 12), torch.arange(4), (4, 8, 8)),)
    said = Conditioning(prompt=torch.randn(1, 7, 32))
    expected = model(x, t, said, at, PackedContext(levels))
    assert torch.equal(again(x, t, said, at, PackedContext(levels)), expected)

    states = []
    for one in (said, Conditioning(prompt=torch.randn(1, 7, 32))):
        hook = again.blocks[0].register_forward_hook(lambda block, given, out: states.append(out))
        again(x, t, one, at, PackedContext(levels))
        hook.remove()
    history = states[0].shape[1] - 2 * 4 * 6
    assert torch.equal(states[0][:, :history], states[1][:, :history])
    assert not torch.equal(states[0][:, history:], states[1][:, history:])


def test_the_bundled_folder_gives_the_bytes_it_holds(tmp_path):
    model = PackedWanTransformer3DModel.from_pretrained(BUNDLED / "transformer")
    assert not model.config.guided_cross_attention and model.config.history_scale is None
    held = load_file(BUNDLED / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(model.state_dict(), tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert held.keys() == again.keys()
    assert all(torch.equal(held[name].float(), again[name].float()) for name in held)

"""LoRA: every trainer's names against weights merged by hand, several at once, taken off, and refused."""

from __future__ import annotations

import json
import pickle
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.loaders import lora_conversion_utils as peers
from safetensors.torch import save_file

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, ModelError
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.lora import Lora, apply_loras, digest, remove_loras
from framepack.models.lora_file import read_lora
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import ContextTensors, PackedContext

# What each original layer is in diffusers, in the order of its rows. Block 0, 1 of each kind.
FUSIONS = {
    "hunyuan": {
        "double_blocks.0.img_attn_qkv": ["transformer_blocks.0.attn.to_" + x for x in "qkv"],
        "double_blocks.0.img_attn_proj": ["transformer_blocks.0.attn.to_out.0"],
        "double_blocks.0.img_mlp.fc1": ["transformer_blocks.0.ff.net.0.proj"],
        "double_blocks.0.img_mlp.fc2": ["transformer_blocks.0.ff.net.2"],
        "double_blocks.0.img_mod.linear": ["transformer_blocks.0.norm1.linear"],
        "double_blocks.0.txt_attn_qkv": [
            "transformer_blocks.0.attn.add_q_proj",
            "transformer_blocks.0.attn.add_k_proj",
            "transformer_blocks.0.attn.add_v_proj",
        ],
        "double_blocks.0.txt_attn_proj": ["transformer_blocks.0.attn.to_add_out"],
        "double_blocks.0.txt_mlp.fc1": ["transformer_blocks.0.ff_context.net.0.proj"],
        "double_blocks.0.txt_mlp.fc2": ["transformer_blocks.0.ff_context.net.2"],
        "double_blocks.0.txt_mod.linear": ["transformer_blocks.0.norm1_context.linear"],
        "single_blocks.1.linear1": [
            "single_transformer_blocks.1.attn.to_q",
            "single_transformer_blocks.1.attn.to_k",
            "single_transformer_blocks.1.attn.to_v",
            "single_transformer_blocks.1.proj_mlp",
        ],
        "single_blocks.1.linear2": ["single_transformer_blocks.1.proj_out"],
        "single_blocks.1.modulation.linear": ["single_transformer_blocks.1.norm.linear"],
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": [
            "context_embedder.token_refiner.refiner_blocks.0.attn.to_" + x for x in "qkv"
        ],
        "txt_in.individual_token_refiner.blocks.0.self_attn_proj": [
            "context_embedder.token_refiner.refiner_blocks.0.attn.to_out.0"
        ],
        "txt_in.individual_token_refiner.blocks.0.mlp.fc1": [
            "context_embedder.token_refiner.refiner_blocks.0.ff.net.0.proj"
        ],
        "final_layer.linear": ["proj_out"],
    },
    "wan": {
        "blocks.1.self_attn.q": ["blocks.1.attn1.to_q"],
        "blocks.1.self_attn.k": ["blocks.1.attn1.to_k"],
        "blocks.1.self_attn.v": ["blocks.1.attn1.to_v"],
        "blocks.1.self_attn.o": ["blocks.1.attn1.to_out.0"],
        "blocks.0.cross_attn.q": ["blocks.0.attn2.to_q"],
        "blocks.0.cross_attn.k": ["blocks.0.attn2.to_k"],
        "blocks.0.cross_attn.v": ["blocks.0.attn2.to_v"],
        "blocks.0.cross_attn.o": ["blocks.0.attn2.to_out.0"],
        "blocks.0.ffn.0": ["blocks.0.ffn.net.0.proj"],
        "blocks.0.ffn.2": ["blocks.0.ffn.net.2"],
        "time_projection.1": ["condition_embedder.time_proj"],
        "text_embedding.2": ["condition_embedder.text_embedder.linear_2"],
        "head.head": ["proj_out"],
    },
}
ALPHA = 2.0


def build(family: str):
    torch.manual_seed(0)
    if family == "wan":
        return PackedWanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
        ).eval()
    return PackedHunyuanVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=32,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ).eval()


@torch.no_grad()
def run(model) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    said = Conditioning(
        prompt=draw(1, 5, 32),
        mask=torch.ones(1, 5, dtype=torch.bool),
        pooled=draw(1, 8),
        guidance=6.0,
    )
    near = ContextTensors(draw(1, 16, 2, 8, 12), torch.arange(2), (2, 4, 4))
    return model(
        draw(1, 16, 2, 8, 12), torch.tensor([500.0]), said, torch.arange(2, 4), PackedContext(levels=(near,))
    )


@cache
def base_output(family: str) -> torch.Tensor:
    return run(build(family))


Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]


def adapter(family: str, seed: int = 1) -> Adapter:
    """{original layer: (A, B)}; the rank differs from layer to layer."""
    weights = dict(build(family).named_parameters())
    random = torch.Generator().manual_seed(seed)
    made = {}
    for number, (original, targets) in enumerate(FUSIONS[family].items()):
        rank = 2 + number % 3
        inputs = weights[f"{targets[0]}.weight"].shape[1]
        rows = sum(len(weights[f"{target}.weight"]) for target in targets)
        made[original] = (
            0.3 * torch.randn(rank, inputs, generator=random),
            0.3 * torch.randn(rows, rank, generator=random),
        )
    return made


def merged(family: str, *parts: tuple[Adapter, float]):
    """The model with W + weight alpha / r B A in place of W."""
    model = build(family)
    with torch.no_grad():
        for made, weight in parts:
            for original, (down, up) in made.items():
                delta = weight * ALPHA / len(down) * (up @ down)
                for target in FUSIONS[family][original]:
                    parameter = model.get_parameter(f"{target}.weight")
                    parameter += delta[: len(parameter)]
                    delta = delta[len(parameter) :]
                assert not len(delta)
    return model


def musubi(family: str, made: Adapter) -> dict[str, torch.Tensor]:
    out = {}
    for name, (down, up) in made.items():
        name = "lora_unet_" + name.replace(".", "_")
        out |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        out[f"{name}.alpha"] = torch.tensor(ALPHA)
    return out


def musubi_framepack(family: str, made: Adapter) -> dict[str, torch.Tensor]:
    """As its FramePack trainer saves: diffusers' layers, underscored."""
    out = {}
    for key, tensor in diffusers(family, made).items():
        name, part = key.removeprefix("transformer.").removesuffix(".weight").rsplit(".", 1)
        part = {"lora_A": "lora_down", "lora_B": "lora_up"}[part]
        out[f"lora_unet_{name.replace('.', '_')}.{part}.weight"] = tensor
    return out


def original(family: str, made: Adapter) -> dict[str, torch.Tensor]:
    out = {}
    for name, (down, up) in made.items():
        out |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * (ALPHA / len(down))}
    return out


def diffusion_pipe(family: str, made: Adapter) -> dict[str, torch.Tensor]:
    return {f"diffusion_model.{key}": tensor for key, tensor in original(family, made).items()}


def diffusers(family: str, made: Adapter) -> dict[str, torch.Tensor]:
    weights = dict(build(family).named_parameters())
    out = {}
    for name, (down, up) in made.items():
        start = 0
        for target in FUSIONS[family][name]:
            stop = start + len(weights[f"{target}.weight"])
            out[f"transformer.{target}.lora_A.weight"] = down.clone()
            out[f"transformer.{target}.lora_B.weight"] = up[start:stop] * (ALPHA / len(down))
            start = stop
    return out


FORMS = {form.__name__: form for form in (musubi, musubi_framepack, diffusion_pipe, original, diffusers)}


def save(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata or None)
    return path


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-5)


@pytest.mark.parametrize("family", FUSIONS)
def test_each_form_gives_what_the_merged_weights_give(family, tmp_path):
    made = adapter(family)
    expected = run(merged(family, (made, 0.7)))
    assert (expected - base_output(family)).abs().max() > 0.01
    model = build(family)
    for name, form in FORMS.items():
        assert apply_loras(model, [Lora(save(tmp_path / name, form(family, made)), 0.7)]) == []
        assert close(run(model), expected), name


@pytest.mark.parametrize("family", FUSIONS)
def test_two_add_up_and_come_off_without_a_trace(family, tmp_path):
    first, second = adapter(family, 1), adapter(family, 2)
    loras = [
        Lora(save(tmp_path / "one", musubi(family, first)), 0.5),
        Lora(save(tmp_path / "two", diffusers(family, second)), -0.25),
    ]
    model = build(family)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    apply_loras(model, loras)
    assert close(run(model), run(merged(family, (first, 0.5), (second, -0.25))))
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".lora_" in name)
    apply_loras(model, loras[1:])
    assert close(run(model), run(merged(family, (second, -0.25)))), "the first should be gone"
    remove_loras(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(run(model), base_output(family))
    remove_loras(model)


@cache
def full_size(family: str):
    """Layers of the released widths, without memory for their weights."""
    with init_empty_weights():
        if family == "wan":
            return PackedWanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=1)
        return PackedHunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, num_refiner_layers=1)


def test_hunyuan_names_and_splits_are_those_of_diffusers(tmp_path):
    sizes = {
        **{f"double_blocks.0.{s}_attn_qkv": (9216, 3072) for s in ("img", "txt")},
        **{f"double_blocks.0.{s}_attn_proj": (3072, 3072) for s in ("img", "txt")},
        **{f"double_blocks.0.{s}_mlp.fc1": (12288, 3072) for s in ("img", "txt")},
        **{f"double_blocks.0.{s}_mlp.fc2": (3072, 12288) for s in ("img", "txt")},
        **{f"double_blocks.0.{s}_mod.linear": (18432, 3072) for s in ("img", "txt")},
        "single_blocks.0.linear1": (21504, 3072),
        "single_blocks.0.linear2": (3072, 15360),
        "single_blocks.0.modulation.linear": (9216, 3072),
        "time_in.mlp.0": (3072, 256),
        "time_in.mlp.2": (3072, 3072),
        "guidance_in.mlp.0": (3072, 256),
        "guidance_in.mlp.2": (3072, 3072),
        "vector_in.in_layer": (3072, 768),
        "vector_in.out_layer": (3072, 3072),
        "txt_in.individual_token_refiner.blocks.0.self_attn_proj": (3072, 3072),
        "txt_in.individual_token_refiner.blocks.0.mlp.fc1": (12288, 3072),
        "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1": (6144, 3072),
        "txt_in.t_embedder.mlp.0": (3072, 256),
        "txt_in.input_embedder": (3072, 4096),
        "final_layer.linear": (64, 3072),
    }
    tensors = {}
    for name, (rows, columns) in sizes.items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(1, columns)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, 1)
    found = read_lora(save(tmp_path / "x", tensors), full_size("hunyuan"))
    theirs = peers._convert_hunyuan_video_lora_to_diffusers(dict(tensors))
    same(found.low_rank, theirs)
    assert not found.warnings


@pytest.mark.parametrize("form", ["original", "musubi"])
def test_wan_names_are_those_of_diffusers(form, tmp_path):
    attention = [f"blocks.0.{kind}.{x}" for kind in ("self_attn", "cross_attn") for x in "qkvo"]
    sizes = dict.fromkeys(attention, (1536, 1536))
    sizes |= {"blocks.0.ffn.0": (8960, 1536), "blocks.0.ffn.2": (1536, 8960)}
    tensors = {}
    if form == "musubi":
        for name, (rows, columns) in sizes.items():
            name = "lora_unet_" + name.replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, columns)
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 4)
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
        theirs = peers._convert_musubi_wan_lora_to_diffusers(dict(tensors))
    else:
        sizes |= {"time_projection.1": (9216, 1536), "head.head": (64, 1536)}
        sizes |= {"text_embedding.0": (1536, 4096), "text_embedding.2": (1536, 1536)}
        sizes |= {"time_embedding.0": (1536, 256), "time_embedding.2": (1536, 1536)}
        for name, (rows, columns) in sizes.items():
            tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, columns)
            tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, 4)
        tensors["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.randn(8960)
        theirs = peers._convert_non_diffusers_wan_lora_to_diffusers(dict(tensors))
    same(read_lora(save(tmp_path / "x", tensors), full_size("wan")).low_rank, theirs)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal keys and products: the scale may be in either factor."""
    theirs = {key.removeprefix("transformer."): tensor for key, tensor in theirs.items()}
    assert ours.keys() == theirs.keys()
    for key in ours:
        if key.endswith("lora_A.weight"):
            up = key.replace("lora_A", "lora_B")
            product = theirs[up][:64] @ theirs[key]
            torch.testing.assert_close(ours[up][:64] @ ours[key], product, msg=key)
            torch.testing.assert_close(
                ours[up].norm() * ours[key].norm(), theirs[up].norm() * theirs[key].norm(), msg=key
            )
        elif key.endswith("bias"):
            torch.testing.assert_close(ours[key], theirs[key])


def test_scale_from_the_files_metadata(tmp_path):
    made = adapter("wan")
    keys = {}
    for name, (down, up) in made.items():
        (target,) = FUSIONS["wan"][name]
        keys |= {f"transformer.{target}.lora_A.weight": down, f"transformer.{target}.lora_B.weight": up}
    config = {"transformer.r": 2, "transformer.lora_alpha": ALPHA}
    path = save(tmp_path / "x", keys, lora_adapter_metadata=json.dumps(config))
    model = build("wan")
    apply_loras(model, [Lora(path)])
    assert close(run(model), run(merged("wan", (made, 1.0))))
    layer = "blocks.0.ffn.net.2"
    up, rank = made["blocks.0.ffn.2"][1], made["blocks.0.ffn.2"][1].shape[1]
    more = {"transformer.use_rslora": True, "transformer.alpha_pattern": {"ffn.net.2": 6.0}}
    path = save(tmp_path / "y", keys, lora_adapter_metadata=json.dumps(config | more))
    torch.testing.assert_close(
        read_lora(path, model).low_rank[f"{layer}.lora_B.weight"], up * 6.0 / rank**0.5
    )
    torch.testing.assert_close(
        read_lora(save(tmp_path / "z", keys), model).low_rank[f"{layer}.lora_B.weight"], up
    )


def test_alpha_that_peft_keeps_elsewhere_is_told(tmp_path):
    keys = {f"base_model.model.{key}": tensor for key, tensor in pair(Q).items()}
    found = read_lora(save(tmp_path / "x", keys), cached_wan())
    assert found.low_rank.keys() == pair(Q).keys()
    (warning,) = found.warnings
    assert "adapter_config.json" in warning


def test_changed_biases_act_with_the_weight(tmp_path):
    made = {key: adapter("hunyuan")[key] for key in ("single_blocks.1.linear1", "single_blocks.1.linear2")}
    shift = torch.randn(3 * 32 + 64)
    keys = diffusion_pipe("hunyuan", made) | {"diffusion_model.single_blocks.1.linear1.diff_b": shift}
    expected = merged("hunyuan", (made, 0.5))
    with torch.no_grad():
        for target, part in zip(
            FUSIONS["hunyuan"]["single_blocks.1.linear1"], shift.split([32, 32, 32, 64]), strict=True
        ):
            expected.get_parameter(f"{target}.bias").add_(0.5 * part)
    model = build("hunyuan")
    assert apply_loras(model, [Lora(save(tmp_path / "x", keys), 0.5)]) == []
    assert close(run(model), run(expected))


K2 = "packing_kernels.projections.k2h4w4"


@pytest.mark.parametrize("name", [f"transformer.{K2}", "clean_x_embedder.proj_2x"])
def test_packing_kernels_in_the_file_replace_ours_and_are_put_back(name, tmp_path):
    weight, bias = torch.randn(32, 16, 2, 4, 4), torch.randn(32)
    made = adapter("hunyuan")
    keys = musubi("hunyuan", made) | {f"{name}.weight": weight, f"{name}.bias": bias}
    path = save(tmp_path / "x", keys)
    model = build("hunyuan")
    for share in (1.0, 0.5):
        expected = merged("hunyuan", (made, share))
        with torch.no_grad():
            expected.get_parameter(f"{K2}.weight").lerp_(weight, share)
            expected.get_parameter(f"{K2}.bias").lerp_(bias, share)
        assert apply_loras(model, [Lora(path, share)]) == []
        assert close(run(model), run(expected))
    remove_loras(model)
    assert torch.equal(run(model), base_output("hunyuan"))


def test_low_rank_change_of_a_packing_kernel(tmp_path):
    down, up = torch.randn(2, 16, 2, 4, 4), torch.randn(48, 2)
    keys = {f"{K2}.lora_A.weight": down, f"{K2}.lora_B.weight": up.view(48, 2, 1, 1, 1)}
    expected, model = build("wan"), build("wan")
    with torch.no_grad():
        expected.get_parameter(f"{K2}.weight").add_((up @ down.flatten(1)).view(48, 16, 2, 4, 4))
    apply_loras(model, [Lora(save(tmp_path / "x", keys))])
    assert (run(expected) - base_output("wan")).abs().max() > 0.01
    assert close(run(model), run(expected))


def test_what_does_not_belong_is_named_and_the_rest_acts(tmp_path):
    made = adapter("wan")
    keys = musubi("wan", made)
    extra = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8),
        "lora_unet_blocks_0_norm3.diff_b": torch.ones(48),
        "packing_kernels.projections.k4h16w16.weight": torch.ones(2),
    }
    model = build("wan")
    (warning,) = apply_loras(model, [Lora(save(tmp_path / "x", keys | extra))])
    assert "3 of 42 tensors" in warning and all(key in warning for key in extra) and "\n" not in warning
    assert close(run(model), run(merged("wan", (made, 1.0))))


def test_eight_bit_storage_and_group_offload_keep_the_lora(tmp_path):
    made = adapter("wan")
    loras = [Lora(save(tmp_path / "x", musubi("wan", made)))]
    expected = run(merged("wan", (made, 1.0)))
    stored = build("wan")
    stored.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    apply_loras(stored, loras)
    assert (run(stored) - expected).abs().max() < 0.2 * (expected - base_output("wan")).abs().max()

    cpu = torch.device("cpu")
    offloaded = build("wan")
    offloaded.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    apply_loras(offloaded, loras)
    assert close(run(offloaded), expected)
    remove_loras(offloaded)
    assert torch.equal(run(offloaded), base_output("wan"))


# Refused -------------------------------------------------------------------------------------------------

Q = "blocks.0.attn1.to_q"


def pair(name: str, rows: int = 48, columns: int = 48) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}


REFUSED = {
    "another family": (pair("diffusion_model.double_blocks.0.img_attn_proj"), "is for HunyuanVideo, .* Wan"),
    "an image model": (pair("lora_unet_double_blocks_0_img_mlp_0"), "is for Flux"),
    "unknown": (
        pair("encoder.layer.7.dense"),
        r"matches no layer of this Wan model: it has encoder.layer.7.dense.lora_A.weight, .*"
        r"lora_unet_blocks_0_self_attn_q.lora_down.weight, .*blocks.0.self_attn.q.lora_A.weight",
    ),
    "no LoRA": (
        {"blocks.0.attn1.to_q.weight": torch.ones(48, 48)},
        "matches no layer .*: it has blocks.0.attn1",
    ),
    "nothing": ({}, "matches no layer .*: it has no tensors"),
    "wider": (pair(f"transformer.{Q}", 96, 96), r"another size: 96 x 96, here 48 x 48"),
    "deeper": (
        pair("transformer.blocks.29.attn1.to_q"),
        "deeper model: this one has no 'blocks.29",
    ),
    "half": ({f"{Q}.lora_A.weight": torch.ones(2, 48)}, "incomplete: .*to_q.lora_A.weight' has no partner"),
    "two ranks": (
        {f"{Q}.lora_A.weight": torch.ones(2, 48), f"{Q}.lora_B.weight": torch.ones(48, 3)},
        "do not multiply",
    ),
    "two names": (pair(f"transformer.{Q}") | pair("blocks.0.self_attn.q"), "two names"),
    "DoRA": (pair(Q) | {f"{Q}.dora_scale": torch.ones(48)}, "is a DoRA"),
    "LoHa": ({"lora_unet_blocks_0_self_attn_q.hada_w1_a": torch.ones(2, 2)}, "is a LoHa"),
    "LoKr": ({"lycoris_blocks_0_self_attn_q.lokr_w1": torch.ones(2, 2)}, "is a LoKr"),
    "not finite": (
        pair(Q) | {f"{Q}.alpha": torch.tensor(float("nan"))},
        "alpha' has values .* not finite",
    ),
    "two alphas": (pair(Q) | {f"{Q}.alpha": torch.ones(2)}, "alpha of .* must be one number"),
    "a kernel of another size": (
        {"packing_kernels.projections.k1h2w2.bias": torch.ones(7)},
        "k1h2w2.bias.* another size: 7, here 48",
    ),
    "a bias of another size": (pair(Q) | {f"{Q}.diff_b": torch.ones(7)}, "another size: 7, here 48"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case, tmp_path):
    tensors, says = REFUSED[case]
    refused(save(tmp_path / "bad.safetensors", tensors), says)


def refused(path: Path, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        read_lora(path, cached_wan())
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


@cache
def cached_wan():
    return build("wan")


def test_refused_files(tmp_path):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(pickle.dumps({"a": 1}))
    refused(file, "is a pickle")
    torch.save({"a": torch.ones(2)}, file)
    refused(file, "is a pickle")
    whole = save(tmp_path / "whole", pair(Q)).read_bytes()
    for cut in (0, 5, len(whole) - 8):
        file.write_bytes(whole[:cut])
        refused(file, "not a whole safetensors file")
    refused(tmp_path / "absent", "cannot be read")
    save(file, pair(Q), **{"modelspec.architecture": "flux-1-dev/lora"})
    refused(file, "is for Flux")
    save(file, pair(Q), lora_adapter_metadata="[1")
    refused(file, "metadata .* cannot be read")
    save(file, pair(Q), lora_adapter_metadata='{"transformer.use_dora": true}')
    refused(file, "is a DoRA")


def test_a_wan_lora_says_so_on_hunyuan(tmp_path):
    path = save(tmp_path / "x", musubi("wan", adapter("wan")))
    with pytest.raises(ModelError, match="is for Wan, this model is of the HunyuanVideo family"):
        read_lora(path, full_size("hunyuan"))


def test_nothing_changes_when_one_is_refused(tmp_path):
    made = adapter("wan")
    good = Lora(save(tmp_path / "good", musubi("wan", made)))
    model = build("wan")
    apply_loras(model, [good])
    with pytest.raises(ModelError):
        apply_loras(model, [good, Lora(save(tmp_path / "bad", pair("x")))])
    assert close(run(model), run(merged("wan", (made, 1.0))))


def test_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b:0.5"):
        Path(name).write_bytes(b"x")
    assert Lora.parse("a.safetensors") == Lora(Path("a.safetensors"), 1.0)
    assert Lora.parse("a.safetensors:-0.8") == Lora(Path("a.safetensors"), -0.8)
    assert Lora.parse("b:0.5") == Lora(Path("b:0.5"), 1.0)
    assert Lora.parse("b:0.5:2e-1") == Lora(Path("b:0.5"), 0.2)
    for text, says in {
        "absent.safetensors": "'absent.safetensors' is not a file: give FILE or FILE:weight",
        r"C:\loras\absent.safetensors:0.5": r"'C:\\loras\\absent.safetensors:0.5' is not a file",
        str(tmp_path): "is not a file",
        "x" * 5000: "is not a file",
        "": "'' is not a file",
        "a.safetensors:strong": "weight 'strong' must be a finite number",
        "a.safetensors:": "weight '' must be",
        "a.safetensors:nan": "weight 'nan' must be",
        "a.safetensors:inf": "weight 'inf' must be",
    }.items():
        with pytest.raises(InputError, match=says) as caught:
            Lora.parse(text)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="nan"):
        Lora(Path("a.safetensors"), float("nan"))


def test_digest_is_of_bytes_weights_and_order(tmp_path):
    one, two, copy = tmp_path / "one", tmp_path / "two", tmp_path / "copy"
    for path, data in ((one, b"1"), (two, b"2"), (copy, b"1")):
        path.write_bytes(data)
    assert digest([Lora(one, 1)]) == digest([Lora(copy, 1.0)])
    all_different = [[], [Lora(one)], [Lora(one, 0.5)], [Lora(two)], [Lora(one), Lora(two)]]
    all_different.append([Lora(two), Lora(one)])
    assert len({digest(loras) for loras in all_different}) == len(all_different)
    with pytest.raises(InputError, match="absent' cannot be read"):
        digest([Lora(tmp_path / "absent")])

"""Transformers that come as one safetensors file without a configuration.

Keys are diffusers' (as in Kijai's FramePack files, bf16 and fp8) or those of the original HunyuanVideo
code; a prefix such as ``model.diffusion_model.`` is taken off. fp8 weights with scales beside them are
scaled back.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framepack.errors import ModelError, first_line, ran_out

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "transformer.")
SCALES = (".scale_weight", ".weight_scale")
"""What follows the name of a layer whose fp8 weight has been divided by numbers of its own."""
IGNORED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
"""Ends of names that say how to compute in fp8, which is not done here."""
_ROPE = (1 / 8, 7 / 16, 7 / 16)
"""Shares of the head dimension that HunyuanVideo's rotary axes have."""


def read_config(path: Path) -> dict[str, Any]:
    """A diffusers configuration of the transformer in a file, with ``_class_name``, from its header alone.

    Raises:
        ModelError: no safetensors file, truncated, or not a transformer that is known.
    """
    return _config_of(_diffusers_shapes(_header(path), path), path)


def load_framepack(path: Path, dtype: torch.dtype) -> Any:
    """diffusers' ``HunyuanVideoFramepackTransformer3DModel`` of a file; its weights are held once.

    Raises:
        ModelError: as ``read_config``, and for weights that are missing or of other shapes.
    """
    from accelerate import init_empty_weights
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    config = {name: value for name, value in read_config(path).items() if name != "_class_name"}
    with init_empty_weights(include_buffers=False):
        model = HunyuanVideoFramepackTransformer3DModel(**config)
    try:
        model.load_state_dict(load_state(path, dtype), strict=True, assign=True)
    except RuntimeError as error:
        if ran_out(error):
            raise  # nothing is wrong with the file
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"'{path}' does not fill a FramePack transformer ({reason}): fetch it again"
        ) from error
    return model


def load_state(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights of a file under diffusers' names, in ``dtype``.

    Raises:
        ModelError: as ``read_config``.
    """
    from safetensors.torch import load_file

    _header(path)
    state = {_bare(name): tensor for name, tensor in load_file(path).items() if not name.endswith(IGNORED)}
    for suffix in SCALES:
        for name in [name for name in state if name.endswith(suffix)]:
            scale = state.pop(name)
            weight = f"{name.removesuffix(suffix)}.weight"
            if weight in state:
                # One number, or one for each output row.
                rows = scale.reshape(-1, *[1] * (state[weight].dim() - 1))
                state[weight] = state[weight].to(scale.dtype) * rows
    for name in list(state):
        if state[name].is_floating_point():
            state[name] = state[name].to(dtype)
    return _to_diffusers(state)


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _header(path: Path) -> Shapes:
    """Names and shapes of a safetensors file, without prefixes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())  # no mapping: it cannot be iterated itself
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return {_bare(name): shape for name, shape in shapes.items() if not name.endswith(IGNORED)}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"'{path}' is not a whole safetensors file ({first_line(error)}): fetch it again; "
            "pickled files are not read"
        ) from error


def _is_original(names: object) -> bool:
    return any(str(name).startswith("double_blocks.") for name in names)  # type: ignore[attr-defined]


def _to_diffusers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not _is_original(state):
        return state
    from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers

    # diffusers splits these at the released width only, so they are split before.
    width = state["img_in.proj.weight"].shape[0]
    split = {}
    for name in [name for name in state if ".linear1." in name and name.startswith("single_blocks.")]:
        block, kind = name.removeprefix("single_blocks.").split(".linear1.")
        fused = state.pop(name)
        layers = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        pieces = fused.split([width, width, width, len(fused) - 3 * width])
        for layer, piece in zip(layers, pieces, strict=True):
            split[f"single_transformer_blocks.{block}.{layer}.{kind}"] = piece
    return convert_hunyuan_video_transformer_to_diffusers(state) | split


def _diffusers_shapes(shapes: Shapes, path: Path) -> Shapes:
    if not _is_original(shapes):
        return shapes
    import torch

    state = {
        name: torch.empty(shape, device="meta") for name, shape in shapes.items() if not name.endswith(SCALES)
    }
    try:
        return {name: tuple(tensor.shape) for name, tensor in _to_diffusers(state).items()}
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"'{path}' lacks weights of HunyuanVideo ({error}): fetch it again") from error


def _count(shapes: Shapes, prefix: str) -> int:
    """Blocks named ``prefix``0, ``prefix``1, ..."""
    found = {name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)}
    return len(found)


def _config_of(shapes: Shapes, path: Path) -> dict[str, Any]:
    if "blocks.0.self_attn.q.weight" in shapes or "blocks.0.attn1.to_q.weight" in shapes:
        raise ModelError(
            f"'{path}' holds a Wan transformer without its configuration: give the diffusers folder of it"
        )
    try:
        width, channels, *patch = shapes["x_embedder.proj.weight"]
        (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
        config = {
            "in_channels": channels,
            "out_channels": shapes["proj_out.weight"][0] // math.prod(patch),
            "num_attention_heads": width // head,
            "attention_head_dim": head,
            "num_layers": _count(shapes, "transformer_blocks."),
            "num_single_layers": _count(shapes, "single_transformer_blocks."),
            "num_refiner_layers": _count(shapes, "context_embedder.token_refiner.refiner_blocks."),
            "mlp_ratio": shapes["transformer_blocks.0.ff.net.0.proj.weight"][0] / width,
            "patch_size": patch[1],
            "patch_size_t": patch[0],
            "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
            "text_embed_dim": shapes["context_embedder.proj_in.weight"][1],
            "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
            "rope_axes_dim": [int(share * head) for share in _ROPE],
        }
    except (KeyError, ValueError) as error:
        names = ", ".join(list(shapes)[:3])
        raise ModelError(
            f"'{path}' is not a HunyuanVideo transformer (it holds {names} ...): give one of FramePack's"
        ) from error
    if "clean_x_embedder.proj.weight" not in shapes:
        return config | {"_class_name": "HunyuanVideoTransformer3DModel"}
    found: dict[str, Any] = {"_class_name": "HunyuanVideoFramepackTransformer3DModel"}
    found |= {"has_clean_x_embedder": True, "has_image_proj": "image_projection.up.weight" in shapes}
    if found["has_image_proj"]:
        found["image_proj_dim"] = shapes["image_projection.up.weight"][1]
    return config | found

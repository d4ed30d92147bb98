"""A packed transformer as one of diffusers' own classes, for its pipelines."""

from __future__ import annotations

from typing import Any

from accelerate import init_empty_weights
from diffusers import HeliosTransformer3DModel, HunyuanVideoFramepackTransformer3DModel

from framepack.errors import ModelError
from framepack.models.helios import to_helios, to_helios_config
from framepack.models.hunyuan_video import (
    RELEASED_KERNELS,
    PackedHunyuanVideoTransformer3DModel,
    released_state_dict,
)
from framepack.models.wan import PackedWanTransformer3DModel


def check_export(config: Any) -> None:
    """See that a packed transformer of such a configuration can be one of diffusers' classes.

    Raises:
        ModelError: kernels, blocks or inputs that they have not.
    """
    if "text_embed_dim" in config:
        _framepack_config(config)
    else:
        to_helios_config(config, zero_history_timestep=True)


def to_diffusers(
    model: PackedHunyuanVideoTransformer3DModel | PackedWanTransformer3DModel, *, zero_history_timestep: bool
) -> HunyuanVideoFramepackTransformer3DModel | HeliosTransformer3DModel:
    """The same network in diffusers' FramePack class, or Helios's for Wan. The parameters are shared.

    Args:
        zero_history_timestep: of the method that Helios's class is to run.

    Raises:
        ModelError: as `check_export`.
    """
    if isinstance(model, PackedWanTransformer3DModel):
        return to_helios(model, zero_history_timestep=zero_history_timestep)
    return to_framepack(model)


def to_framepack(model: PackedHunyuanVideoTransformer3DModel) -> HunyuanVideoFramepackTransformer3DModel:
    """The same network in diffusers' class. The parameters are shared.

    Raises:
        ModelError: as `check_export`.
    """
    config = _framepack_config(model.config)
    with init_empty_weights(include_buffers=False):
        target = HunyuanVideoFramepackTransformer3DModel(**config)
    target.load_state_dict(released_state_dict(model.state_dict()), strict=True, assign=True)
    return target.train(model.training)


def _framepack_config(config: Any) -> dict[str, Any]:
    facts = [
        (
            "context_kernels",
            sorted(tuple(kernel) for kernel in config["context_kernels"]),
            sorted(RELEASED_KERNELS.values()),
        ),
        ("image_condition_type", config["image_condition_type"], None),
        ("aligned", config["aligned"], False),
        ("prediction", config["prediction"], "flow"),
        ("isolated_history", config.get("isolated_history", False), False),
    ]
    for name, found, wanted in facts:
        if found != wanted:
            raise ModelError(
                f"a model of {name} {found} cannot be written as diffusers' FramePack, which has {wanted}"
            )
    ours = ("context_kernels", "latent_channels", "aligned", "prediction", "isolated_history")
    held = {name: value for name, value in config.items() if not name.startswith("_") and name not in ours}
    return held | {"has_clean_x_embedder": True}

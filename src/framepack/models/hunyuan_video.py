"""HunyuanVideo's transformer with packed context.

Legend: B batch, C latent channels, T target frames, h w latent grid, D model width, n tokens of one
level or of the target, L prompt tokens, P width of the pooled embedding, I image tokens, E their width,
d head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import HunyuanVideoFramepackTransformer3DModel, HunyuanVideoTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_hunyuan_video_framepack import FramepackClipVisionProjection
from torch import nn

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, ModelError
from framepack.models.history_attention import (
    IsolatedHunyuanVideoAttnProcessor,
    SplitPhases,
)
from framepack.models.packed import PackedTransformer
from framepack.packing.context import EMPTY, Memory, PackedContext
from framepack.packing.kernels import PatchKernels, kernel_name
from framepack.packing.rope import phases
from framepack.packing.schedule import Kernel

RELEASED_KERNELS: dict[str, Kernel] = {"proj": (1, 2, 2), "proj_2x": (2, 4, 4), "proj_4x": (4, 8, 8)}
"""Names of the kernels under ``clean_x_embedder`` in the released checkpoints."""
_RELEASED_PREFIX, _PREFIX = "clean_x_embedder.", "packing_kernels.projections."


class PackedHunyuanVideoTransformer3DModel(PackedTransformer, HunyuanVideoTransformer3DModel):
    """A HunyuanVideo transformer whose sequence is [context levels, far to near | noisy target | text].

    Args:
        image_condition_type: None, or ``token_replace`` for blocks that can give the context a timestep
            of 0. Both kinds of block have the same parameters.
        has_image_proj, image_proj_dim: image tokens, E wide, go before the prompt's.
        context_kernels: patchify kernels of the context, each with parameters of its own.
        latent_channels: C, the channels of a clean latent.
        aligned: the target's input carries ``PackedContext.aligned`` behind the noisy channels.
        prediction: what the output is: ``flow`` (noise minus data).
        isolated_history: history attends to history only, and needs a timestep of 0; see ``isolate``.
        Others as in ``diffusers.HunyuanVideoTransformer3DModel``.
    """

    _skip_layerwise_casting_patterns = ("x_embedder", "context_embedder", "norm", "packing_kernels")
    _repeated_blocks = (
        "HunyuanVideoTransformerBlock",
        "HunyuanVideoSingleTransformerBlock",
        "HunyuanVideoTokenReplaceTransformerBlock",
        "HunyuanVideoTokenReplaceSingleTransformerBlock",
        "HunyuanVideoTokenRefiner",
    )

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        num_layers: int = 20,
        num_single_layers: int = 40,
        num_refiner_layers: int = 2,
        mlp_ratio: float = 4.0,
        patch_size: int = 2,
        patch_size_t: int = 1,
        qk_norm: str = "rms_norm",
        guidance_embeds: bool = True,
        text_embed_dim: int = 4096,
        pooled_projection_dim: int = 768,
        rope_theta: float = 256.0,
        rope_axes_dim: tuple[int, ...] = (16, 56, 56),
        image_condition_type: str | None = None,
        has_image_proj: bool = False,
        image_proj_dim: int = 1152,
        context_kernels: tuple[Kernel, ...] = ((1, 2, 2), (2, 4, 4), (4, 8, 8)),
        latent_channels: int = 16,
        aligned: bool = False,
        prediction: str = "flow",
        isolated_history: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            num_refiner_layers=num_refiner_layers,
            mlp_ratio=mlp_ratio,
            patch_size=patch_size,
            patch_size_t=patch_size_t,
            qk_norm=qk_norm,
            guidance_embeds=guidance_embeds,
            text_embed_dim=text_embed_dim,
            pooled_projection_dim=pooled_projection_dim,
            rope_theta=rope_theta,
            rope_axes_dim=rope_axes_dim,
            image_condition_type=image_condition_type,
        )
        width = num_attention_heads * attention_head_dim
        self.image_projection = (
            FramepackClipVisionProjection(image_proj_dim, width) if has_image_proj else None
        )
        self.packing_kernels = PatchKernels(context_kernels, latent_channels, width)
        if isolated_history:
            self.isolate()

    # Adoption --------------------------------------------------------------------------------------

    @classmethod
    def adopt(
        cls,
        base: HunyuanVideoTransformer3DModel | HunyuanVideoFramepackTransformer3DModel,
        kernels: Iterable[Kernel],
        *,
        history_timestep: str = "noisy",
    ) -> PackedHunyuanVideoTransformer3DModel:
        """Give a base the packing kernels.

        The base's modules move across and are not copied. With empty context the result equals a plain
        base bit for bit. Kernels that the base has, as the released FramePack weights do, come over; the
        others are initialised from its patch embedding.

        Args:
            base: a text-to-video HunyuanVideo, one whose start picture replaces the first frame's tokens,
                or FramePack's own.
            kernels: wanted patchify kernels.
            history_timestep: ``zero`` rebuilds the blocks so that the context can have a timestep of 0.

        Raises:
            ModelError: a base that takes its start picture as input channels.
        """
        config: dict[str, Any] = {k: v for k, v in base.config.items() if not k.startswith("_")}
        config.pop("has_clean_x_embedder", None)
        channels = config["out_channels"]
        if config["in_channels"] != channels:
            raise ModelError(
                f"a base of {config['in_channels']} input and {channels} output channels cannot be adopted: "
                "use HunyuanVideo text-to-video, token-replace image-to-video, or FramePack weights"
            )
        rebuild = history_timestep == "zero" and config["image_condition_type"] is None
        if rebuild:
            config["image_condition_type"] = "token_replace"
        found = _kernels_of(base)
        fresh = [kernel for kernel in dict.fromkeys(kernels) if kernel_name(kernel) not in found]
        with init_empty_weights(include_buffers=False):
            model = cls(
                **config,
                context_kernels=(*(conv.kernel_size for conv in found.values()), *fresh),
                latent_channels=channels,
            )
        for name, child in base.named_children():
            if rebuild and name in ("transformer_blocks", "single_transformer_blocks"):
                for block, own in zip(getattr(model, name), child, strict=True):
                    _fill_block(block, own)
            elif name not in ("clean_x_embedder", "rope"):
                setattr(model, name, child)
        if rebuild:
            model.time_text_embed.image_condition_type = "token_replace"
        model.packing_kernels = PatchKernels((), channels, base.x_embedder.proj.weight.shape[0])
        model.packing_kernels.projections.update(found)
        model.packing_kernels.add(fresh, base.x_embedder.proj)
        return model.train(base.training)

    @property
    def base_projection(self) -> nn.Conv3d:
        return self.x_embedder.proj

    @property
    def stack(self) -> tuple[Any, ...]:
        return (*self.transformer_blocks, *self.single_transformer_blocks)

    def isolate(self, *, causal: bool = False) -> None:
        """Have history attend to history only from now on: a model must be trained so, or trained on.

        What it computes of the history is then the same in every step of a section, and computed once.

        Raises:
            ModelError: blocks that cannot give the context a timestep of 0; causal history, which only
                models of the Wan family can have.
        """
        if causal:
            raise ModelError("causal history is for models of the Wan family: leave causal_history out")
        if self.config.image_condition_type != "token_replace":
            raise ModelError(
                "isolated history needs a timestep of 0, which these blocks cannot give it: adopt the base "
                "with history timestep 'zero'"
            )
        self.register_to_config(isolated_history=True)
        for block in self.stack:
            block.attn.set_processor(IsolatedHunyuanVideoAttnProcessor())

    # Inference -------------------------------------------------------------------------------------

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        positions: torch.Tensor | None = None,
        context: PackedContext = EMPTY,
    ) -> torch.Tensor:
        """Predict for the target frames.

        Args:
            hidden_states: noisy latents (B, C, T, h, w).
            timestep: (B,), sigma x 1000.
            conditioning: ``prompt`` (B, L, text_embed_dim), ``mask``, ``pooled``; ``image`` for models with
                an image projection; ``guidance`` for models that embed it.
            positions: time index of each target frame (T,); None counts from 0.
            context: clean latents, see ``PackedContext``.

        Returns:
            (B, C, T, h, w); ``config.prediction`` says of what.

        Raises:
            InputError: conditioning or a context timestep that this model does not take.
        """
        frames, h, w = hidden_states.shape[2:]
        if positions is None:
            positions = torch.arange(frames)
        size = self.config.patch_size
        base: Kernel = (self.config.patch_size_t, size, size)
        padded = self._target(hidden_states, context, base)

        x = self.x_embedder(padded)
        noisy = x.shape[1]
        turns = context.once(
            ("phases", h, w), lambda: self._phases(positions, (h, w), base, context, x.device)
        )
        memory = self._memory(context)
        times = self._time(timestep, conditioning, context if context.levels else EMPTY, x.dtype)
        text, text_mask = self._text(timestep, conditioning, context)
        if memory is None:
            x = torch.cat([*self._history(context), x], dim=1)
        else:
            if not memory.held:
                history = torch.cat(self._history(context), dim=1)
                # The blocks want text tokens, which history does not see.
                self._run(history, text, None, times, (turns[0][:-noisy], turns[1][:-noisy]), 0, memory)
            turns = (turns[0][-noisy:], turns[1][-noisy:])
        x = self._run(x, text, text_mask, times, turns, noisy, memory)

        temb, _ = times
        x = self.proj_out(self.norm_out(x, temb))
        counts = [length // k for length, k in zip(padded.shape[2:], base, strict=True)]
        x = x.unflatten(2, (-1, *base)).unflatten(1, counts)
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, :frames, :h, :w]

    def _run(
        self,
        x: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        times: tuple[torch.Tensor, torch.Tensor],
        turns: tuple[torch.Tensor, torch.Tensor],
        noisy: int,
        memory: Memory | None,
    ) -> torch.Tensor:
        """Latent tokens (B, n, D) through the blocks; gives the last ``noisy``, at the noisy timestep."""
        if self.share is not None:
            text, text_mask = self.share.enough(text, text_mask)
        x, text = self._own(x, noisy), self._own(text, text.shape[1])
        turns = (self._own(turns[0], noisy, 0), self._own(turns[1], noisy, 0))
        own = self._own_noisy(noisy)
        history = x.shape[1] - own
        mask = None
        if text_mask is not None:
            remembered = next(iter(memory.held.values()))[0].shape[1] if memory is not None else 0
            mask = self._shown(remembered + x.shape[1], text_mask)[:, None, None]
        rotary = SplitPhases(*turns, own, memory) if self.config.isolated_history else turns
        for block in self.stack:
            # Plain blocks leave the last two aside.
            inputs = (x, text, times[0], mask, rotary, times[1], history)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x, text = self._gradient_checkpointing_func(block, *inputs)
            else:
                x, text = block(*inputs)
        return self._whole(x[:, history:], noisy)

    def _phases(
        self,
        positions: torch.Tensor,
        grid: tuple[int, int],
        base: Kernel,
        context: PackedContext,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary cos and sin (n, d) of all latent tokens."""
        dims, theta = tuple(self.config.rope_axes_dim), self.config.rope_theta
        sources = [(level.positions, level.kernel, level.pool) for level in context.levels]
        rows = [
            phases(at, grid, kernel, base, dims, theta, pool, dtype=torch.float32)
            for at, kernel, pool in (*sources, (positions, base, (1, 1, 1)))
        ]
        cos, sin = (torch.cat(part).to(device) for part in zip(*rows, strict=True))
        return cos, sin

    def _time(
        self, timestep: torch.Tensor, conditioning: Conditioning, context: PackedContext, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Modulation (B, D) of the noisy tokens with the text, and of the context's tokens."""
        if conditioning.pooled is None:
            raise InputError("this model needs a pooled prompt embedding: give Conditioning.pooled")
        scale = None
        if self.config.guidance_embeds:
            if conditioning.guidance is None:
                raise InputError("this model takes guidance as an input: give Conditioning.guidance, like 10")
            # In the model's precision, as diffusers: in bfloat16 a scale of 10 goes in as 9,984.
            scale = timestep.new_full((len(timestep),), conditioning.guidance, dtype=dtype) * 1000.0
        temb, clean = self.time_text_embed(timestep, conditioning.pooled, scale)
        if context.timestep is None:
            return temb, temb
        if any(level.timestep is not None for level in context.levels):
            raise InputError(
                "this model cannot give history a timestep of noise of its own: use a method without history "
                "noise"
            )
        if clean is None or context.timestep != 0:
            raise InputError(
                f"this model cannot give history a timestep of {context.timestep:g}, only that of the noisy "
                "frames: use a method with history timestep 'noisy', or adopt the base with 'zero'"
            )
        return temb, clean

    def _text(
        self, timestep: torch.Tensor, conditioning: Conditioning, context: PackedContext
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image and prompt tokens (B, I + L', D), and where they hold something, None for everywhere.

        Columns that no row uses are dropped, so that one prompt needs no attention mask, which the fastest
        attention kernels don't take.
        """
        text, mask = conditioning.prompt, conditioning.mask
        if mask is None:
            text = self.context_embedder(text, timestep, None)
        else:
            # Looking at a mask waits for the device: once, and not in every step.
            used, kept = context.once("mask", partial(_used, mask.bool()))
            text, mask = self.context_embedder(text, timestep, mask.bool())[:, used], kept
        if conditioning.image is not None:
            if self.image_projection is None:
                raise InputError("this model has no image projection: leave Conditioning.image out")
            image = self.image_projection(conditioning.image)
            text = torch.cat([image, text], dim=1)
            if mask is not None:
                mask = torch.cat([mask.new_ones(image.shape[:2]), mask], dim=1)
        return text, mask


def _used(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Columns of (B, L) that some row uses, by number, and the mask of those; None where all rows use all.

    Raises:
        InputError: a row that uses none.
    """
    if not bool(mask.any(1).all()):
        raise InputError("a prompt's mask is empty: encode an empty prompt, which has a few tokens")
    used = mask.any(0).nonzero().flatten()
    kept = mask[:, used]
    return used, None if bool(kept.all()) else kept


def _kernels_of(base: nn.Module) -> dict[str, nn.Module]:
    """The packing kernels that FramePack weights bring, by our names."""
    released = getattr(base, "clean_x_embedder", None)
    if released is None:
        return {}
    return {kernel_name(kernel): getattr(released, name) for name, kernel in RELEASED_KERNELS.items()}


def _fill_block(block: nn.Module, own: nn.Module) -> None:
    """Move the modules of a plain block into one that modulates the context on its own."""
    for name, child in own.named_children():
        # The norms of that one take more inputs, with the same linear map.
        if name in ("norm", "norm1"):
            getattr(block, name).linear = child.linear
        else:
            setattr(block, name, child)


# Released keys -----------------------------------------------------------------------------------------


def convert_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under the keys of diffusers' ``HunyuanVideoFramepackTransformer3DModel``, under ours."""
    names = {_RELEASED_PREFIX + name: _PREFIX + kernel_name(k) for name, k in RELEASED_KERNELS.items()}
    return {_renamed(key, names): tensor for key, tensor in state.items()}


def released_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reverse of ``convert_state_dict``, for export.

    Raises:
        ModelError: a kernel that the released layout has no place for.
    """
    names = {_PREFIX + kernel_name(k): _RELEASED_PREFIX + name for name, k in RELEASED_KERNELS.items()}
    converted = {_renamed(key, names): tensor for key, tensor in state.items()}
    for key in converted:
        if key.startswith(_PREFIX):
            kernel = key.removeprefix(_PREFIX).split(".")[0]
            raise ModelError(
                f"kernel {kernel} has no place in the released layout: export a model with "
                f"{', '.join(map(kernel_name, RELEASED_KERNELS.values()))} only"
            )
    return converted


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """``key`` with the module path it begins with exchanged, if ``names`` has it."""
    for old, new in names.items():
        if key.startswith(old + "."):
            return new + key.removeprefix(old)
    return key

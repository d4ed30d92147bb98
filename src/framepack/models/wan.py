"""Wan's video transformer with packed context.

Legend: B batch, C latent channels, T target frames, h w latent grid, D model width, n tokens of one
level or of the target, L prompt tokens, d head dimension.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from torch import nn

from framepack.conditioning.embeds import Conditioning
from framepack.errors import ModelError
from framepack.models.history_attention import (
    GuidedCrossAttnProcessor,
    HistoryAttnProcessor,
    SplitPhases,
    SplitPrompt,
    TimeOrder,
    amplify_history,
)
from framepack.models.packed import PackedTransformer
from framepack.packing.context import EMPTY, PackedContext
from framepack.packing.kernels import PatchKernels
from framepack.packing.rope import axis_dims, phases
from framepack.packing.schedule import Kernel


class PackedWanTransformer3DModel(PackedTransformer, WanTransformer3DModel):
    """A Wan transformer whose sequence is [context levels, far to near | noisy target].

    Args:
        context_kernels: patchify kernels of the context, each with parameters of its own.
        latent_channels: C, the channels of a clean latent (``out_channels`` of the base).
        aligned: the target's input carries ``PackedContext.aligned`` behind the noisy channels.
        prediction: what the output is: ``flow`` (noise minus data) or ``sample`` (the clean latent).
        guided_cross_attention: only the noisy tokens attend to the prompt.
        history_scale: the keys of history are scaled in self-attention: ``scalar``, ``per_head`` or None.
        isolated_history: history attends to history only, and needs a timestep of 0; see ``isolate``.
        causal_history: what is isolated attends to its own time and earlier ones only.
        Others as in ``diffusers.WanTransformer3DModel``.

    Raises:
        ModelError: causal history that is not isolated.
    """

    _cp_plan = None  # Wan's own would split phases and tokens that are concatenated here; see models.parallel
    _skip_layerwise_casting_patterns = ("patch_embedding", "condition_embedder", "norm", "packing_kernels")
    _keep_in_fp32_modules: ClassVar[list[str]] = [  # a tuple would be taken for one name
        *WanTransformer3DModel._keep_in_fp32_modules,
        "history_key_scale",
    ]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        context_kernels: tuple[Kernel, ...] = ((1, 2, 2), (2, 4, 4), (4, 8, 8)),
        latent_channels: int = 16,
        aligned: bool = False,
        prediction: str = "flow",
        guided_cross_attention: bool = False,
        history_scale: str | None = None,
        isolated_history: bool = False,
        causal_history: bool = False,
    ) -> None:
        if causal_history and not isolated_history:
            raise ModelError("causal_history is a kind of isolated_history: set both")
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        width = num_attention_heads * attention_head_dim
        self.packing_kernels = PatchKernels(context_kernels, latent_channels, width)
        if history_scale is not None:
            for block in self.blocks:
                amplify_history(block.attn1, history_scale)
        self._guide()

    @classmethod
    def adopt(
        cls,
        base: WanTransformer3DModel,
        kernels: tuple[Kernel, ...],
        *,
        prediction: str = "flow",
        guided_cross_attention: bool = False,
    ) -> PackedWanTransformer3DModel:
        """Give a base the packing kernels, initialised from its patch embedding.

        The base's modules move across and are not copied. With empty context the result equals the
        base bit for bit. A base whose input is 3C + 2 channels wide takes aligned conditioning.

        Raises:
            ModelError: a base whose input has channels beside the noisy latents, as Wan's image-to-video
                bases have: with context they have no meaning, and without them it is another model.
        """
        config: dict[str, Any] = {k: v for k, v in base.config.items() if not k.startswith("_")}
        wide, channels = config["in_channels"], config["out_channels"] or config["in_channels"]
        aligned = wide == 3 * channels + 2
        if wide != channels and not aligned:
            raise ModelError(
                f"a base of {wide} input channels for {channels} latent channels takes a picture beside the "
                "noise: adopt a text-to-video base, such as Wan2.1-T2V, or Wan2.2-TI2V-5B"
            )
        with init_empty_weights(include_buffers=False):
            model = cls(
                **config,
                context_kernels=kernels,
                latent_channels=channels,
                aligned=aligned,
                prediction=prediction,
                guided_cross_attention=guided_cross_attention,
            )
        for name, child in base.named_children():
            setattr(model, name, child)
        for name, parameter in base.named_parameters(recurse=False):
            setattr(model, name, parameter)
        model._guide()  # the blocks are the base's now
        width = config["num_attention_heads"] * config["attention_head_dim"]
        model.packing_kernels = PatchKernels(kernels, channels, width)
        model.packing_kernels.to(base.patch_embedding.weight.device, base.patch_embedding.weight.dtype)
        model.packing_kernels.initialise(base.patch_embedding)
        return model.train(base.training)

    def _guide(self) -> None:
        for block in self.blocks:
            if self.config.guided_cross_attention:
                block.attn2.set_processor(GuidedCrossAttnProcessor())
            if self.config.isolated_history:
                block.attn1.set_processor(HistoryAttnProcessor(isolated=True))

    def isolate(self, *, causal: bool = False) -> None:
        """Have history attend to history only from now on: a model must be trained so, or trained on.

        What it computes of the history is then the same in every step of a section, and computed once.

        Args:
            causal: and to no time after its own.
        """
        self.register_to_config(isolated_history=True, causal_history=causal)
        self._guide()

    @property
    def base_projection(self) -> nn.Conv3d:
        return self.patch_embedding

    @property
    def stack(self) -> tuple[Any, ...]:
        return tuple(self.blocks)

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
            conditioning: ``prompt`` (B, L, text_dim), and ``image`` for bases that have image tokens.
            positions: time index of each target frame (T,); None counts from 0.
            context: clean latents, see ``PackedContext``.

        Returns:
            (B, C, T, h, w); ``config.prediction`` says of what.

        Raises:
            InputError: isolated history with the timestep of the noisy frames.
        """
        frames, h, w = hidden_states.shape[2:]
        if positions is None:
            positions = torch.arange(frames)
        base: Kernel = tuple(self.config.patch_size)
        padded = self._target(hidden_states, context, base)

        x = self.patch_embedding(padded).flatten(2).transpose(1, 2)
        noisy = x.shape[1]
        turns = context.once(  # the stages of a pyramid differ in size
            ("phases", h, w), lambda: self._phases(positions, (h, w), base, context, x.device)
        )
        memory = self._memory(context)
        times = None
        if self.config.causal_history and context.levels:
            times = context.once("times", lambda: TimeOrder.of(context, x.device))
        counts = None
        if memory is None:
            history = self._history(context)
            sizes = [tokens.shape[1] for tokens in history]
            timestep, counts = self._timesteps(timestep, sizes, noisy, context)
            x = torch.cat([*history, x], dim=1).contiguous()
        else:
            if not memory.held:
                tokens = torch.cat(self._history(context), dim=1).contiguous()
                past = SplitPhases(turns[0][:, :-noisy], turns[1][:, :-noisy], 0, memory, times)
                self._run(tokens, torch.zeros_like(timestep), conditioning, past)
            turns = (turns[0][:, -noisy:], turns[1][:, -noisy:])
        x, temb = self._run(x, timestep, conditioning, SplitPhases(*turns, noisy, memory, times), counts)

        shift, scale = (self.scale_shift_table.to(temb.device) + temb.unsqueeze(1)).chunk(2, dim=1)
        x = (self.norm_out(x.float()) * (1 + scale) + shift).type_as(x)
        x = self.proj_out(x)

        counts = [size // k for size, k in zip(padded.shape[2:], base, strict=True)]
        x = x.unflatten(2, (*base, -1)).unflatten(1, counts)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, :frames, :h, :w]

    def _run(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        phases: SplitPhases,
        counts: list[int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, n, D) through the blocks: the noisy ones, and the embedding (B, D) of their timestep.

        Args:
            timestep: (B,) of all tokens, or (B, k), which ``counts`` shares out among them in turn.
        """
        temb, timestep_proj, prompt, image = self.condition_embedder(
            timestep.flatten(),
            conditioning.prompt,
            conditioning.image,
            timestep_seq_len=None if counts is None else len(counts),
        )
        timestep_proj = timestep_proj.unflatten(-1, (6, -1))
        if counts is not None:
            # Each timestep is embedded once, and not for each of its tokens.
            rows = zip(timestep_proj.split(1, dim=1), counts, strict=True)
            timestep_proj = torch.cat([row.expand(-1, tokens, -1, -1) for row, tokens in rows], dim=1)
            timestep_proj, temb = self._own(timestep_proj, phases.noisy), temb[:, -1]
        noisy = phases.noisy
        x, cos, sin = (self._own(part, noisy) for part in (x, phases.cos, phases.sin))
        phases = phases._replace(cos=cos, sin=sin, noisy=self._own_noisy(noisy))
        if image is not None:
            prompt = torch.concat([image, prompt], dim=1)
        if self.config.guided_cross_attention:
            prompt = SplitPrompt(prompt, phases.noisy)
        split = self.config.history_scale is not None or self.config.isolated_history
        rotary = phases if split else phases[:2]

        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, prompt, timestep_proj, rotary)
            else:
                x = block(x, prompt, timestep_proj, rotary)
        return self._whole(x[:, x.shape[1] - phases.noisy :], noisy), temb

    def _phases(
        self,
        positions: torch.Tensor,
        grid: tuple[int, int],
        base: Kernel,
        context: PackedContext,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary cos and sin (1, n, 1, d) of the whole sequence."""
        dims = axis_dims(self.config.attention_head_dim)
        # The context may be finer than the target, but is all of one size where it is not pooled.
        sizes = [level.latents.shape[3:] for level in context.levels if level.pool == (1, 1, 1)]
        whole = (sizes[0][0], sizes[0][1]) if sizes else grid
        rows = []
        for level in context.levels:
            rows.append(phases(level.positions, whole, level.kernel, base, dims, pool=level.pool))
        rows.append(phases(positions, grid, base, base, dims))
        cos, sin = (torch.cat(part)[None, :, None].to(device) for part in zip(*rows, strict=True))
        return cos, sin

    @staticmethod
    def _timesteps(
        timestep: torch.Tensor, history: list[int], noisy: int, context: PackedContext
    ) -> tuple[torch.Tensor, list[int] | None]:
        """(B,) and None when history, of so many tokens by level, shares the noisy timestep.

        Else (B, k) timesteps in the order of the sequence, and how many tokens have each.
        """
        if context.timestep is None or not history:
            return timestep, None
        given = torch.full_like(timestep, context.timestep)
        if all(level.timestep is None for level in context.levels):
            return torch.stack([given, timestep], dim=1), [sum(history), noisy]
        own = [given if level.timestep is None else level.timestep.to(timestep) for level in context.levels]
        return torch.stack([*own, timestep], dim=1), [*history, noisy]

"""What the training benchmark trains: a transformer, and sections that see a history of a given length.

Legend: h w latent grid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from context import full_history
from framepack.errors import InputError
from framepack.models.families import spec_for
from framepack.models.loading import load_part, load_transformer
from framepack.models.source import resolve_model
from framepack.models.spec import ModelSpec
from framepack.packing.schedule import Kernel
from framepack.planning.method import Method
from framepack.planning.planners import plan
from framepack.planning.positions import is_backward
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline
from framepack.resources.hollow import PROMPT_TOKENS, made_in, without_data
from framepack.training.finetune_config import FineTuneConfig

PACKED, FULL, IMAGE = "packed", "full history", "image"
HEAD = 128


@dataclass(frozen=True, order=True)
class Point:
    """What is trained on: a section after ``history`` latent frames, or one frame alone."""

    kind: str
    history: int = 0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A transformer and how it is trained.

    real: the weights, on a device. hollow: the same module on the meta device, without data.
    latent_grid: (h, w).
    """

    spec: ModelSpec
    config: FineTuneConfig
    method: Method
    latent_grid: tuple[int, int]
    prompt_tokens: int
    real: Callable[[torch.device], Any]
    hollow: Callable[[], Any]

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.config.dtype)

    def section(self, point: Point) -> Section:
        return section_of(self.method, point, self.spec.base_kernel)

    def tokens(self, point: Point) -> int:
        """Latent tokens of a sample: context and target."""
        section, (h, w) = self.section(point), self.latent_grid
        _, p_h, p_w = self.spec.base_kernel
        return section.tokens((h, w)) + len(section.frames) * -(-h // p_h) * -(-w // p_w)


def section_of(method: Method, point: Point, base: Kernel) -> Section:
    """From the planners: the one section that is missing of a timeline that has the history.

    Full history is the method with every frame at the base kernel, each once. It and images have nothing in
    the place of frames that are absent.
    """
    size, history = method.section_size, point.history
    if point.kind == IMAGE:
        return _only(Timeline(frames=1, fps=1.0, stride=1), replace(method, absent="drop"))
    if point.kind == FULL:
        schedule = full_history(method, base, max(history, 1))
        # F1 alone shows its start frame twice.
        order = "vanilla" if method.order == "f1" else method.order
        method = replace(method.with_schedule(schedule), absent="drop", order=order)
    known = range(history)
    if is_backward(method):
        known = (*range(min(history, 1)), *range(size + 1, size + history))  # type: ignore[assignment]
    return _only(Timeline(frames=history + size, fps=1.0, stride=1, known=tuple(known)), method)


def _only(timeline: Timeline, method: Method) -> Section:
    (section,) = plan(timeline, method).sections
    return section


def given(
    model: str, recipe: Callable[[ModelSpec], FineTuneConfig], change: Callable[..., FineTuneConfig]
) -> Subject:
    """A packed model by name or folder; ``change`` is made to the recipe's configuration.

    Raises:
        UnknownNameError: no such model. ModelError: one that cannot be read.
    """
    source = resolve_model(model)
    spec, config = source.spec, change(recipe(source.spec))
    source = source.complete()

    @cache
    def weights() -> Any:
        return load_transformer(source, getattr(torch, config.dtype))

    def hollow() -> Any:
        held = (*weights().parameters(), *weights().buffers())
        return copy.deepcopy(weights(), {id(tensor): without_data(tensor, "meta") for tensor in held})

    own = "conditioner" in source.parts
    length = load_part("conditioner", source.parts["conditioner"]).config.length if own else None
    return Subject(
        spec=spec,
        config=config,
        method=spec.method(None),
        latent_grid=grid_of(spec, spec.buckets[0]),
        prompt_tokens=length or PROMPT_TOKENS[spec.family],
        real=lambda device: weights().to(device),
        hollow=hollow,
    )


def random(
    family: str,
    name: str,
    layers: int,
    width: int,
    recipe: Callable[[ModelSpec], FineTuneConfig],
    change: Callable[..., FineTuneConfig],
) -> Subject:
    """A family's architecture with random weights: ``layers`` blocks (of HunyuanVideo's two kinds, as many
    double ones and twice as many single ones), ``width`` in heads of 128.

    Raises:
        InputError: a size that no model can have.
    """
    if layers < 1 or width < HEAD or width % HEAD:
        raise InputError(f"{layers} layers of width {width}: give 1 or more, and a multiple of {HEAD}")
    spec = spec_for(family, name)
    config = change(recipe(spec))
    kernels = tuple(dict.fromkeys((spec.base_kernel, *spec.method(None).schedule.kernels)))
    sizes: dict[str, Any] = {
        "num_attention_heads": width // HEAD,
        "attention_head_dim": HEAD,
        "num_layers": layers,
        "context_kernels": kernels,
    }

    def make(device: torch.device) -> Any:
        if family == "wan":
            from framepack.models.wan import PackedWanTransformer3DModel as Transformer

            own = {"ffn_dim": 35 * width // 6}  # Wan 2.1 1.3B: 8,960 at 1,536
        else:
            from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel as Transformer

            own = {"num_single_layers": 2 * layers, "has_image_proj": True}
        with torch.device(device), made_in(getattr(torch, config.dtype)):
            transformer = Transformer(**sizes, **own)
        kept = transformer._keep_in_fp32_modules or ()
        for path, parameter in transformer.named_parameters():
            if any(part in path.split(".") for part in kept):
                parameter.data = parameter.data.float()
        return transformer

    return Subject(
        spec=spec,
        config=config,
        method=spec.method(None),
        latent_grid=grid_of(spec, spec.buckets[0]),
        prompt_tokens=PROMPT_TOKENS[family],
        real=make,
        hollow=lambda: make(torch.device("meta")),
    )


def grid_of(spec: ModelSpec, size: Sequence[int]) -> tuple[int, int]:
    """Raises InputError for sizes in px that the codec cannot take."""
    height, width = size
    if height < 1 or width < 1 or height % spec.spatial_stride or width % spec.spatial_stride:
        raise InputError(f"size {height} x {width}: give multiples of {spec.spatial_stride}")
    return height // spec.spatial_stride, width // spec.spatial_stride

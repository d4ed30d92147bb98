"""The resolved configuration of one training run of a world model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from framepack.data.latents import CacheConfig
from framepack.data.ranges import AMOUNT, COUNT, POSITIVE, SHARE, check
from framepack.errors import InputError, UnknownNameError
from framepack.models.shift import Balance, Shift
from framepack.packing.schedule import Kernel
from framepack.planning.method import METHODS, Method
from framepack.training.corruption import CorruptionConfig, RolloutConfig
from framepack.training.draw import DrawConfig


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Size of the packed transformer: ``heads`` x ``head_dim`` is its width.

    isolated_history: history attends to history only, at a timestep of 0 in every method. causal_history:
        the same, and to no time after its own.
    """

    heads: int
    head_dim: int
    layers: int
    ffn: int
    base_kernel: Kernel
    kernels: tuple[Kernel, ...]
    prompt_width: int
    prompt_length: int
    isolated_history: bool = False
    causal_history: bool = False

    def __post_init__(self) -> None:
        check(self, COUNT, "heads", "head_dim", "layers", "ffn", "prompt_width", "prompt_length")
        if self.head_dim % 2 or self.head_dim < 8:
            raise InputError(f"head_dim {self.head_dim} must be even, and 8 or more: change it")
        for kernel in self.kernels:
            if any(k % b for k, b in zip(kernel, self.base_kernel, strict=True)):
                raise InputError(f"kernel {kernel} is not a multiple of base_kernel {self.base_kernel}")

    @property
    def isolated(self) -> bool:
        """Whether history attends to history only."""
        return self.isolated_history or self.causal_history


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Sample prediction under flow matching.

    Args:
        shift: flow shift of logit-normal noise levels, fixed or balanced.
        floor: the loss weight is 1 / max(sigma, floor)^2.
        drop_prompt, drop_word: shares of prompts and of single words left out. drop_history: share of draws
            with nothing of the history.
        corruption: of the history, by noise. rollout: samples whose history the model made itself.
    """

    shift: Shift = 2.5
    floor: float = 0.2
    drop_prompt: float = 0.1
    drop_word: float = 0.07
    drop_history: float = 0.0
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        check(self, POSITIVE, "floor", *(() if isinstance(self.shift, Balance) else ("shift",)))
        check(self, SHARE, "drop_prompt", "drop_word", "drop_history")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the weights.

    Args:
        steps: optimiser steps in all; the rate is constant, then falls linearly over the last ``decay``.
        micro: clips of one draw. A step takes ``draws`` draws on each of ``processes`` processes, which
            are for CPUs: more than one run there.
        ema: decay of the averaged weights, which are what is saved for use.
        max_gap: largest gap between context frames that the methods keep, in latent frames.
        section_size: S of every method drawn by a friendly name.
        methods: further ones, each as ``Method.to_json``, by names that ``draw.methods`` may use. They are
            taken as they are.
        save_every, sheet_every, log_every: in steps; without sheets ``sheet_every`` is 0.
        init: a model to start from, by name or folder; it must be of size ``network``.
        codewords: K of a codebook, by which all friendly methods discretise their history (``+D``); None:
            none.

    Raises:
        InputError: a value that no training could have.
    """

    name: str
    network: NetworkConfig
    cache: CacheConfig
    draw: DrawConfig = field(default_factory=DrawConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    section_size: int = 6
    max_gap: int = 48
    fps: float = 8.0
    steps: int = 2400
    processes: int = 2
    draws: int = 2
    micro: int = 8
    rate: float = 2e-3
    weight_decay: float = 0.02
    decay: float = 0.6
    warmup: int = 50
    clip: float = 1.0
    ema: float = 0.997
    seed: int = 0
    save_every: int = 100
    sheet_every: int = 500
    log_every: int = 10
    device: str = "auto"
    init: str | None = None
    codewords: int | None = None
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, COUNT, "section_size", "steps", "processes", "draws", "micro", "warmup")
        check(self, COUNT, "save_every", "log_every")
        if self.codewords is not None:
            check(self, COUNT, "codewords")
        check(self, POSITIVE, "fps", "rate", "decay", "clip")
        check(self, AMOUNT, "weight_decay", "max_gap", "seed", "sheet_every")
        check(self, SHARE, "decay", "ema")
        for record in self.methods.values():
            Method.from_json(record)
        for name in self.draw.methods:
            if name not in METHODS and name not in self.methods:
                raise UnknownNameError("method", name, list(dict.fromkeys((*METHODS, *self.methods))))
        if self.processes > 1 and self.device not in ("auto", "cpu"):
            raise InputError(
                f"{self.processes} processes on device '{self.device}': several train on CPUs only; "
                "set processes=1, or device=cpu"
            )

"""The resolved configuration of one fine-tuning run on cached clips."""

from __future__ import annotations

from dataclasses import dataclass, field

from framepack.data.ranges import AMOUNT, COUNT, POSITIVE, SHARE, check
from framepack.errors import InputError, UnknownNameError
from framepack.models.shift import RELEASED, Balance, Shift
from framepack.training.corruption import CorruptionConfig, RolloutConfig
from framepack.training.draw import DrawConfig
from framepack.training.optimisers import OPTIMISERS

TIMES = ("logit-normal", "uniform")
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A LoRA on linear layers of the blocks.

    Args:
        rank: r. alpha: the change is alpha / r times B A.
        targets: a regular expression that the whole name of a layer must match; None: all projections of
            attention and feed-forward.
        kernels: whether the packing kernels are trained too, fully.
    """

    rank: int = 32
    alpha: float = 32.0
    targets: str | None = None
    kernels: bool = True

    def __post_init__(self) -> None:
        check(self, COUNT, "rank")
        check(self, POSITIVE, "alpha")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Flow matching on sections of clips.

    Args:
        times: how noise levels lie before the shift. shift: theirs, fixed or balanced.
        floor: for models that predict the clean latent, whose error counts 1 / max(sigma, floor)^2.
        drop_prompt: share of samples with the empty prompt. drop_image, drop_history: shares of draws
            without image tokens, and with nothing of the history.
        guidance: of models that take it as an input.
        corruption: of the history, by noise. rollout: draws whose history the model made itself.
    """

    times: str = "logit-normal"
    shift: Shift = RELEASED
    floor: float = 0.2
    drop_prompt: float = 0.1
    drop_image: float = 0.1
    drop_history: float = 0.0
    guidance: float | None = None
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        if self.times not in TIMES:
            raise UnknownNameError("objective.times", str(self.times), TIMES)
        check(self, POSITIVE, "floor", *(() if isinstance(self.shift, Balance) else ("shift",)))
        check(self, SHARE, "drop_prompt", "drop_image", "drop_history")
        if self.guidance is not None:
            check(self, AMOUNT, "guidance")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Videos made while training, from clips of the cache: their first latent and their caption.

    Args:
        every: in steps; None: never. count: of clips. sections: of each video, at most.
        steps: of sampling a section; None: the model's.
    """

    every: int | None = 500
    count: int = 2
    sections: int = 3
    steps: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("every", "steps") if getattr(self, name) is not None]
        check(self, COUNT, "count", "sections", *given)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The report on held-out ends of clips.

    Args:
        ends: clips of which the ends are generated, at most. seeds: videos of each.
    """

    ends: int = 8
    seeds: int = 2

    def __post_init__(self) -> None:
        check(self, COUNT, "ends", "seeds")


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """Everything that decides the weights, beside the model and the clips.

    Args:
        name: of the model that comes out, where a whole one does.
        lora: None trains all weights.
        draw: methods are those of the model by their names there, others by friendly names or notation.
        steps: optimiser steps in all. warmup: steps to the full rate, which falls linearly over the last
            ``decay`` (a share) of all steps.
        batch: samples of a step, of all processes together. micro: those of one draw, which a device holds
            at once.
        optimiser: ``adamw``, or ``adamw8bit`` whose moments take a quarter of the memory.
        ema: decay of the averaged weights, which are what is saved for use; None: no average.
        dtype: in which the model computes. What is trained has float32 masters.
        checkpointing: activations are computed again for the gradient, which saves memory.
        isolated_history: history attends to history only, at a timestep of 0; of whole models only.
            causal_history: the same, and to no time after its own; of the Wan family only.
        codewords: K of a codebook fitted to the clips, by which all methods discretise their history
            (``+D``); None: as the model has it. Of whole models only.
        held_out: share of each clip's last latents that no draw sees; above 0 there is a report on how near
            generated ends come to them before and after.
        save_every, log_every: in steps.
        tensorboard: also write its event files.
        merge: at the end, also save the model with the LoRA in its weights.
        diffusers: at the end, also save the transformer for diffusers' own class.

    Raises:
        InputError: a value that no training could have.
    """

    name: str
    lora: AdapterConfig | None
    draw: DrawConfig
    objective: FlowConfig = field(default_factory=FlowConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    held_out: float = 0.0
    steps: int = 2000
    batch: int = 8
    micro: int = 1
    optimiser: str = "adamw"
    rate: float = 1e-4
    weight_decay: float = 1e-4
    warmup: int = 50
    decay: float = 0.0
    clip: float = 1.0
    ema: float | None = 0.99
    seed: int = 0
    dtype: str = "bfloat16"
    checkpointing: bool = True
    isolated_history: bool = False
    causal_history: bool = False
    codewords: int | None = None
    device: str = "auto"
    save_every: int = 100
    log_every: int = 10
    tensorboard: bool = False
    merge: bool = False
    diffusers: bool = False

    def __post_init__(self) -> None:
        check(self, COUNT, "steps", "batch", "micro", "warmup", "save_every", "log_every")
        check(self, POSITIVE, "rate", "clip")
        check(self, AMOUNT, "weight_decay", "seed")
        check(self, SHARE, "decay", "held_out", *(["ema"] if self.ema is not None else []))
        if self.codewords is not None:
            check(self, COUNT, "codewords")
        if self.optimiser not in OPTIMISERS:
            raise UnknownNameError("optimiser", self.optimiser, OPTIMISERS)
        if self.dtype not in DTYPES:
            raise UnknownNameError("dtype", str(self.dtype), DTYPES)
        if self.batch % self.micro:
            raise InputError(f"batch {self.batch} must be a multiple of micro {self.micro}: change either")
        if self.lora is not None and (self.isolated or self.codewords is not None):
            raise InputError(
                "isolated_history and codewords make another model, which a LoRA cannot say: set lora=null"
            )
        if self.merge and self.lora is None:
            raise InputError("merge is for a LoRA, and lora is null: leave merge out")
        if self.diffusers and self.lora is not None and not self.merge:
            raise InputError("diffusers' class gets a whole transformer: set merge=true too")

    @property
    def isolated(self) -> bool:
        """Whether training makes history attend to history only."""
        return self.isolated_history or self.causal_history

    @property
    def draws(self) -> int:
        """Draws of one step."""
        return self.batch // self.micro

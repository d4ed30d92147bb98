"""Fine-tuning on clips of one's own: a LoRA or the whole model."""

from __future__ import annotations

from dataclasses import replace

from framepack.errors import InputError
from framepack.models.spec import ModelSpec
from framepack.training.draw import DrawConfig
from framepack.training.finetune_config import (
    AdapterConfig,
    FineTuneConfig,
    FlowConfig,
    ReportConfig,
    SampleConfig,
)


def lora(spec: ModelSpec) -> FineTuneConfig:
    """A LoRA for any model, with its methods, flow shift and guidance."""
    # Which history is important by its latents, no plan knows.
    names = [name for name, method in spec.methods.items() if method.importance.kind == "time"]
    draw = DrawConfig(methods=dict.fromkeys(names, 1.0))
    if spec.temporal_stride > 1:
        # A keyframe is coded alone, and the latents of a clip after its first are not.
        draw = replace(draw, end=0.0, middle=0.0)
    return FineTuneConfig(
        name=f"{spec.name}-tuned",
        lora=AdapterConfig(),
        draw=draw,
        objective=FlowConfig(shift=spec.shift, guidance=spec.embedded_guidance),
        rate=2e-4,
    )


def full(spec: ModelSpec) -> FineTuneConfig:
    """All weights of a model, whose masters, moments and average take 16 bytes each beside their own 2."""
    return replace(lora(spec), lora=None, rate=1e-5, weight_decay=1e-2, warmup=200, ema=0.999)


def wan_1_3b_lora(spec: ModelSpec) -> FineTuneConfig:
    """Wan 2.1 1.3B on one card of 24 GB: section by section, with Helios's rank and times.

    Raises:
        InputError: a model of another family.
    """
    _check_family("wan-1.3b-lora", spec, "wan")
    return replace(lora(spec), lora=AdapterConfig(rank=128, alpha=128.0), batch=8, micro=1, rate=1e-4)


def hunyuan_13b_lora(spec: ModelSpec) -> FineTuneConfig:
    """HunyuanVideo 13B with a batch of 64: two draws of four samples on each of eight cards of 80 GB.

        torchrun --nproc-per-node 8 -m framepack train --recipe hunyuan-13b-lora --model M --data D --out O

    Five samples fit such a card at 480 x 832 and sections of nine latent frames (``framepack estimate --train
    lora``). On fewer cards each takes more draws a step; 64 / micro must be a multiple of their number.

    Raises:
        InputError: a model of another family.
    """
    _check_family("hunyuan-13b-lora", spec, "hunyuan_video")
    return replace(lora(spec), batch=64, micro=4, steps=5000, ema=0.999)


def bundled_finetune(spec: ModelSpec) -> FineTuneConfig:
    """The bundled model, whole, on two CPU cores in less than a quarter of an hour, with a report.

    Two draws of three are of the default method, by which the report is made.
    """
    base = full(spec)
    weights = dict.fromkeys(base.draw.methods, 0.1) | {spec.default_method: 1.0}
    return replace(
        base,
        draw=replace(base.draw, methods=weights),
        steps=1000,
        batch=8,
        micro=8,
        rate=1e-3,
        warmup=50,
        decay=0.5,
        ema=0.99,
        checkpointing=False,
        samples=SampleConfig(every=500),
        report=ReportConfig(seeds=4),
        held_out=0.2,
    )


def _check_family(recipe: str, spec: ModelSpec, family: str) -> None:
    if spec.family != family:
        raise InputError(f"recipe {recipe} is for family {family}, {spec.name} is {spec.family}: use lora")

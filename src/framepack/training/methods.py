"""The methods that a training run teaches."""

from __future__ import annotations

from dataclasses import replace

from framepack.planning.method import Method, named_method
from framepack.training.config import TrainConfig


def trained_methods(config: TrainConfig) -> dict[str, Method]:
    """Every drawn method: records as they are; the others on the model's own base kernel, gaps clamped to
    what the clips can show.
    """
    return {name: _method(name, config) for name in config.draw.taught}


def _method(name: str, config: TrainConfig) -> Method:
    if name in config.methods:
        return Method.from_json(config.methods[name])
    base, size = config.network.base_kernel, config.section_size
    return replace(
        named_method(name, base=base, section_size=size, max_gap=config.max_gap),
        discretized=config.codewords is not None,
        history_timestep="zero" if config.network.isolated else "noisy",
    )

"""How much each row of a suite may cost: the same operations for all of them, settled before any is done.

A row whose context has many tokens learns from fewer samples, so that all rows take about as long. Counting
operations instead of minutes keeps the result the same from one run to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framepack.data.ranges import AMOUNT, COUNT, check
from framepack.packing.schedule import Grid, Level
from framepack.training.config import NetworkConfig, TrainConfig
from framepack.training.draw import draw_section
from framepack.training.methods import trained_methods

DRAWN = 256
"""Training draws over which the cost of a sample is averaged."""
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a suite is given.

    samples: for training, of a row that costs as much as vanilla FramePack. cached: clips to learn from.
    clips, revisits: of each row. sections: of a clip, of the model's own size. steps: of sampling a section.
    """

    samples: int
    cached: int
    clips: int
    revisits: int
    sections: int = 12
    steps: int = 4

    def __post_init__(self) -> None:
        check(self, COUNT, "cached", "clips", "sections", "steps")
        check(self, AMOUNT, "samples", "revisits")


BUDGETS: dict[str, Budget] = {
    # About 20 and 100 minutes on two CPU cores for the suite of rivals.
    "quick": Budget(samples=640, cached=128, clips=8, revisits=4),
    "reduced": Budget(samples=4000, cached=384, clips=40, revisits=16),
    # For a GPU.
    "full": Budget(samples=200_000, cached=8192, clips=128, revisits=64, sections=40, steps=8),
}


def operations(tokens: int, network: NetworkConfig) -> float:
    """Multiply-adds of one forward pass over so many tokens: projections, feed-forward and attention.

    Per token and block, of width D: 4 D^2 in self-attention, 2 D^2 in cross-attention, 2 D ffn; and 2 D for
    each token that it attends to.
    """
    width = network.heads * network.head_dim
    each = 6 * width**2 + 2 * width * network.ffn + 2 * width * tokens
    return float(network.layers * tokens * each)


def operations_of_sample(config: TrainConfig, grid: Grid) -> float:
    """Mean over the draws of a training run, on a latent grid (h, w)."""
    methods = trained_methods(config)
    of_frame = Level(1, config.network.base_kernel).tokens(grid)
    costs = []
    for turn in range(DRAWN):
        rng = np.random.default_rng([config.seed, turn])
        section = draw_section(rng, config.draw, methods, config.cache.frames).section
        costs.append(operations(section.tokens(grid) + len(section.frames) * of_frame, config.network))
    return float(np.mean(costs))

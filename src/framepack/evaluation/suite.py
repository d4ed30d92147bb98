"""One suite: its rows, what each is given, and how each is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.words import WordConditioner
from framepack.data.latents import CacheConfig
from framepack.errors import InputError
from framepack.evaluation.budget import BATCH, Budget, operations_of_sample
from framepack.evaluation.clips import NAMES, Asked, revisit_clips, users_clips, world_clips
from framepack.models.bundle import Bundle
from framepack.recipes.bundled import bundled
from framepack.recipes.lab import Bench
from framepack.recipes.override import override
from framepack.recipes.rows import Row
from framepack.training.config import NetworkConfig, TrainConfig
from framepack.training.draw import DrawConfig
from framepack.training.network import network_of

REFERENCE = "the world"
FORGOTTEN = "nothing remembered"
"""Drawn by the world without what is to come back: what revisits come to if it does not."""
SAVE_EVERY = 40
"""Steps of a fine-tune that a stop loses at most."""
PANORAMAS = 0.5
"""Share of the clips to learn from in which the camera turns back."""
CLIPS, REVISITS = "clips", "revisits"
TAUGHT = "row"
"""Name of a row's method in its model."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is compared, and on what.

    name, title: see ``recipes.lab``. model: name or folder of the checkpoint that all rows begin from;
        digest: of its weights.
    size: (height, width) in px. frames: of a clip. seed: of training and of every clip's noise.
    metrics: names of those that can be computed here.
    prompts: folder of a user's own pictures and prompts, in place of the procedural world.
    trains: whether rows are fine-tuned; without, all are the checkpoint as it is.
    others: folders of videos made elsewhere, by row.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    budget: Budget
    model: str
    digest: str
    size: tuple[int, int]
    frames: int
    seed: int
    metrics: tuple[str, ...]
    world: bool
    prompts: Path | None = None
    trains: bool = True
    others: tuple[tuple[str, Path], ...] = ()

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def clips(self) -> list[Asked]:
        """What every row is asked for."""
        if self.prompts is not None:
            return users_clips(self.prompts, self.budget.clips)
        return world_clips(self.budget.clips, self.frames, self.size)

    def revisits(self) -> list[Asked]:
        """Walks on which places come into view again."""
        if not (self.world and self.budget.revisits):
            return []
        return revisit_clips(self.budget.revisits, self.frames, self.size)

    def videos(self) -> Iterator[tuple[str, str, list[str]]]:
        """All that there is to be: row, `CLIPS` or `REVISITS`, and names. Videos made elsewhere are clips."""
        own = [*([REFERENCE] if self.world else []), *(row.name for row in self.rows)]
        for row in own:
            yield row, CLIPS, self.names(CLIPS)
            if self.world:
                yield row, REVISITS, self.names(REVISITS)
        if self.world and self.budget.revisits:
            yield FORGOTTEN, REVISITS, self.names(REVISITS)
        for row, _ in self.others:
            yield row, CLIPS, self.names(CLIPS)

    def names(self, of: str) -> list[str]:
        """Names of what is asked for, `CLIPS` or `REVISITS`."""
        if of == CLIPS and self.prompts is not None:
            return [path.stem for path in sorted(self.prompts.glob("*.txt"))[: self.budget.clips]]
        count = self.budget.clips if of == CLIPS else self.budget.revisits
        return [NAMES[of].format(number) for number in range(count)]

    def to_json(self) -> dict[str, Any]:
        """Plain values: all that decides the result."""
        rows = [
            {"name": r.name, "method": r.method.to_json(), "settings": list(r.settings), "weights": r.weights}
            | ({} if r.taught is None else {"taught": r.taught.to_json()})
            for r in self.rows
        ]
        return {
            "suite": self.name,
            "model": self.model,
            "weights": self.digest,
            "size": list(self.size),
            "frames": self.frames,
            "seed": self.seed,
            "budget": asdict(self.budget),
            "prompts": None if self.prompts is None else str(self.prompts),
            "trains": self.trains,
            "rows": rows,
        }


def bench_of(bundle: Bundle, frames: int) -> Bench:
    """What a model's rows have in common."""
    trained = bundle.spec.methods[bundle.spec.default_method]
    gaps = [method.max_gap for method in bundle.spec.methods.values() if method.max_gap is not None]
    return Bench(
        base=bundle.spec.base_kernel,
        section_size=trained.section_size,
        max_gap=max(gaps, default=48),
        frames=frames,
    )


def is_world(bundle: Bundle) -> bool:
    """Whether a model is one of the procedural world, which can be fine-tuned on it and has its truth."""
    return isinstance(bundle.codec, FrameAutoencoder) and isinstance(bundle.conditioner, WordConditioner)


# Training ------------------------------------------------------------------------------------------------


def train_config(suite: Suite, row: Row, bundle: Bundle, codec: str) -> TrainConfig:
    """A row's fine-tune, as long as the budget allows: see ``budget.operations``.

    Args:
        codec: digest of the codec.
    """
    vanilla = Row(name="vanilla", method=bench_of(bundle, suite.frames).named("vanilla"))
    stride = bundle.spec.spatial_stride
    grid = (suite.size[0] // stride, suite.size[1] // stride)
    network = network_of(bundle)
    plain = operations_of_sample(_config(suite, vanilla, network, codec, 1), grid)
    own = operations_of_sample(_config(suite, row, network, codec, 1), grid)
    return _config(suite, row, network, codec, max(1, round(suite.budget.samples * plain / own / BATCH)))


def _config(suite: Suite, row: Row, network: NetworkConfig, codec: str, steps: int) -> TrainConfig:
    method = row.taught or row.method
    kernels = tuple(dict.fromkeys((*network.kernels, *method.schedule.kernels)))
    cache = CacheConfig(
        clips=suite.budget.cached,
        frames=max(80, suite.frames),
        sizes=(suite.size,),
        seed=suite.seed + 1,
        codec=codec,
        panorama=PANORAMAS,
    )
    config = replace(
        bundled(codec),
        name=row.name,
        network=replace(network, kernels=kernels),
        cache=cache,
        init=suite.model,
        steps=steps,
        section_size=method.section_size,
        seed=suite.seed,
        processes=1,
        # Eight clips of full history at once would take 7 GB.
        micro=BATCH // 4,
        draws=4,
        rate=5e-4,
        warmup=20,
        ema=0.98,
        # What is tested: long videos from a picture.
        draw=DrawConfig(image=1.0, end=0.0, middle=0.0, short=0.1),
        save_every=SAVE_EVERY,
        sheet_every=0,
    )
    taught = (f"methods={json.dumps({TAUGHT: method.to_json()})}", f'draw.methods={{"{TAUGHT}": 1}}')
    return override(config, *taught, *row.settings)


def check_rows(suite: Suite) -> None:
    """Raises InputError: two rows of one name, or one that would use the weights of a row left out."""
    names = [row.name for row in suite.rows] + [name for name, _ in suite.others]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two rows are called '{name}': give each a name of its own")
    for row in suite.rows:
        if row.weights is not None and row.weights not in names:
            raise InputError(f"row '{row.name}' uses the weights of '{row.weights}': add that row")

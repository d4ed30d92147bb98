"""What a service is made of; plain values, for every process of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from framepack.serving.asked import Offer
from framepack.serving.jobs import LEASE


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """
    data: folder of the service, see ``places.py``. store: URL of its database.
    offers: models by the names that clients use, the first one the default. loras: folder of LoRA files.
    seconds: of a clip that a video goes on from or leads to, at most.
    devices: of the workers, in turn. threads: of each worker on a CPU, None for PyTorch's choice.
    niceness: how far workers stand back. lease: seconds without a word after which one is taken for dead.
    log: file that they tell what they do, None for standard error.
    """

    data: Path
    store: str
    offers: Mapping[str, Offer] = field(default_factory=lambda: {"bundled": Offer(model="bundled")})
    loras: Path | None = None
    seconds: float = 600.0
    devices: tuple[str, ...] = ("auto",)
    threads: int | None = None
    niceness: int = 10
    lease: float = LEASE
    log: Path | None = None

    def unplaced(self, message: str) -> str:
        """A message for clients: of a file among the service's own, its name alone."""
        models = [name for each in self.offers.values() for name in (each.model, *each.parts)]
        for place in (self.data, self.loras, *(Path(name) for name in models if Path(name).exists())):
            if place is not None:
                for root in (str(place.absolute()), str(place)):
                    inside = re.escape(root) + r"(/[^'\"\s]*)?(?![^'\"\s:;,)])"
                    message = re.sub(inside, lambda found: Path(found[0]).name, message)
        return message


def lora_files(folder: Path | None) -> dict[str, Path]:
    """LoRAs that are offered, by the names of their files without the suffix."""
    if folder is None or not folder.is_dir():
        return {}
    return {file.stem: file for file in sorted(folder.glob("*.safetensors")) if file.is_file()}

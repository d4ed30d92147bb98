"""What a service is made of; plain values, for every process of it."""

from __future__ import annotations

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
    devices: of the workers, in turn. threads: of each worker on a CPU, None for PyTorch's choice.
    niceness: how far workers stand back. lease: seconds without a word after which one is taken for dead.
    log: file that they tell what they do, None for standard error.
    """

    data: Path
    store: str
    offers: Mapping[str, Offer] = field(default_factory=lambda: {"bundled": Offer(model="bundled")})
    loras: Path | None = None
    devices: tuple[str, ...] = ("auto",)
    threads: int | None = None
    niceness: int = 10
    lease: float = LEASE
    log: Path | None = None


def lora_files(folder: Path | None) -> dict[str, Path]:
    """LoRAs that are offered, by the names of their files without the suffix."""
    if folder is None or not folder.is_dir():
        return {}
    return {file.stem: file for file in sorted(folder.glob("*.safetensors")) if file.is_file()}

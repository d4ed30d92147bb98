"""Hashes of values and tensors: the keys under which a run's parts are stored."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def hash_json(value: Any, length: int = 32) -> str:
    """SHA-256 of a JSON value in canonical form, as ``length`` hex digits.

    Raises:
        TypeError, ValueError: ``value`` holds something JSON cannot, NaN and infinity included.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def hash_tensor(tensor: torch.Tensor, length: int = 32) -> str:
    """SHA-256 of dtype, shape and bytes of a tensor, as ``length`` hex digits."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:length]


def hash_file(path: Path, length: int = 64) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:length]


def section_seed(seed: int, section: int, take: int = 0) -> int:
    """Seed of a section's noise: of (seed, section), and of the take when it is made anew."""
    digest = hashlib.sha256(f"{seed}/{section}/{take}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: what every generator takes

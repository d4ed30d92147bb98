"""What the text and image encoders of all families share: loaded from a folder, used, and freed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import AutoTokenizer

from framepack.codecs.loading import CONFIG_FILE, load_module, read_json
from framepack.errors import ModelError, first_line

if TYPE_CHECKING:
    pass

KEPT = 64
"""Encoded prompts that a conditioner remembers; each takes a few megabytes."""

Result = TypeVar("Result")


def run_encoder(
    kind: Any,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    compute: Callable[[Any], Result],
    *,
    streamed: bool = False,
) -> Result:
    """Load an encoder, let ``compute`` use it, and free its memory; ``compute`` must not keep it.

    Args:
        kind: its class, of transformers. dtype: None is that of the folder.
        streamed: its layers are brought to the device one by one.

    Raises:
        ModelError: it cannot be loaded.
    """
    encoder = load_module(kind, folder, dtype or "auto")
    if streamed:
        from diffusers.hooks import apply_group_offloading

        stream = device.type == "cuda"
        apply_group_offloading(
            encoder, device, offload_type="leaf_level", use_stream=stream, low_cpu_mem_usage=stream
        )
    else:
        encoder.to(device)
    try:
        with torch.no_grad():
            return compute(encoder)
    finally:
        del encoder
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    `AutoTokenizer`, since the class that HunyuanVideo's folder names, LlamaTokenizer, splits text in another
    way than its byte-level file says.

    Raises:
        ModelError: absent, or not to be read.
    """
    if not folder.is_dir():
        raise ModelError(f"'{folder}' is missing: download the model again, or check the path")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read
        reason = first_line(error)
        raise ModelError(
            f"'{folder}' has no tokenizer that can be read ({reason}): download it again"
        ) from error


def check_folders(parts: Mapping[str, Path], needed: Sequence[str]) -> None:
    """See that every part needed has a folder.

    Raises:
        ModelError: one has not.
    """
    for name in needed:
        if name not in parts:
            raise ModelError(f"the model has no {name}: it needs folders for {', '.join(needed)}")
        if not parts[name].is_dir():
            raise ModelError(f"'{parts[name]}' is missing: download the model again, or check the path")


def width_of(folder: Path, key: str) -> int:
    """The number under ``key`` of an encoder's configuration.

    Raises:
        ModelError: no configuration, or no such number in it.
    """
    found = read_json(folder / CONFIG_FILE).get(key)
    if not isinstance(found, int):
        raise ModelError(f"'{folder / CONFIG_FILE}' states no {key}: download it again")
    return found


def finite(values: torch.Tensor, folder: Path) -> torch.Tensor:
    """The same values, on the CPU.

    Raises:
        ModelError: some are not finite, so that the weights, or their dtype, are of no use.
    """
    if not values.isfinite().all():
        raise ModelError(
            f"'{folder}' gives values that are not finite: download it again, or run it in bfloat16"
        )
    return values.cpu()


def cut_remark(tokenizer: Any, prompt: str, ids: Sequence[int], limit: int) -> list[str]:
    """A line for the user if a prompt of these tokens is longer than the ``limit`` that the model reads."""
    if len(ids) <= limit:
        return []
    end = " ".join(tokenizer.decode(ids[:limit], skip_special_tokens=True).split()[-4:])
    return [
        f"the prompt '{prompt[:24].strip()}...' has {len(ids)} tokens and the model reads {limit}: "
        f"what comes after '{end}' is left out"
    ]


def remember(store: dict[str, Any], key: str, value: Any) -> None:
    """Keep a value, and drop the oldest beyond `KEPT`."""
    store[key] = value
    while len(store) > KEPT:
        del store[next(iter(store))]

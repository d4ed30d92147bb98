"""Safetensors weights read and written piece by piece, so that memory depends on no file's size.

safetensors' own writer wants all tensors of a file at once. Here the names and sizes of a file come first,
its header is written from them, and each tensor then goes straight to its place. Layout of a file: 8 bytes
N, little endian; N bytes of JSON, name -> dtype, shape, [begin, end); the data.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from framepack.codecs.loading import PICKLES, read_json
from framepack.errors import ModelError

NAME = "diffusion_pytorch_model"
SUFFIX = ".safetensors"
INDEX_NAME = f"{NAME}{SUFFIX}.index.json"

_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_SIZES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_CHECKED = 1 << 20
"""Weights looked at together for values that are none."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor by its header: ``dtype`` as safetensors writes it, ``file`` where it is stored, if it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]


class Meter:
    """Bytes of the tensors that are alive, of those handed to `watch`, and the most there were at once."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def watch(self, tensor: torch.Tensor) -> torch.Tensor:
        self.live += tensor.nbytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self._drop, tensor.nbytes).atexit = False
        return tensor

    def _drop(self, count: int) -> None:
        self.live -= count


# Reading ---------------------------------------------------------------------------------------------


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a diffusers folder, one file or sharded, in the order of files, from their headers.

    Raises:
        ModelError: no weights, a shard that is missing or cut short, a pickle, a tensor without a place.
    """
    if not (folder / INDEX_NAME).is_file():
        tensors = read_header(_only_file(folder))
        return {tensor.name: tensor for tensor in tensors}
    wanted = read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(wanted, dict) or not all(_is_plain(file) for file in wanted.values()):
        raise ModelError(f"'{folder / INDEX_NAME}' has no weight_map of files beside it: fetch it again")
    files = sorted(set(wanted.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ModelError(
            f"'{folder}' lacks shard {missing[0]}, {len(files) - len(missing)} of {len(files)} are there: "
            "fetch the rest"
        )
    found: dict[str, Tensor] = {}
    for file in files:
        found |= {
            tensor.name: tensor for tensor in read_header(folder / file) if wanted.get(tensor.name) == file
        }
    for name in wanted:
        if name not in found:
            raise ModelError(f"'{folder / wanted[name]}' lacks tensor {name} of the index: fetch it again")
    return found


def _is_plain(file: object) -> bool:
    return isinstance(file, str) and file.endswith(SUFFIX) and Path(file).name == file


def _only_file(folder: Path) -> Path:
    files = [path for path in (folder / f"{NAME}{SUFFIX}",) if path.is_file()] or sorted(
        path for path in folder.glob(f"*{SUFFIX}") if path.is_file()
    )
    if len(files) > 1:
        raise ModelError(
            f"'{folder}' has {len(files)} {SUFFIX} files and no {INDEX_NAME}: fetch that too, or leave one"
        )
    if not files:
        pickled = any(path.suffix in PICKLES for path in folder.iterdir())
        why = (
            "holds pickled weights only, which can run code when they are read"
            if pickled
            else "has no weights"
        )
        raise ModelError(f"'{folder}' {why}: fetch its {SUFFIX} files")
    return files[0]


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one file, in its order.

    Raises:
        ModelError: a pickle, a file cut short or of another kind, a dtype unknown here.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = [(name, file.get_slice(name)) for name in sorted(file.keys())]
            found = [
                Tensor(name=name, dtype=part.get_dtype(), shape=tuple(part.get_shape()), file=path)
                for name, part in slices
            ]
    except (SafetensorError, OSError) as error:
        if _begins_as_pickle(path):
            raise ModelError(
                f"'{path}' is a pickle by another name, which could run code when it is read: "
                f"fetch the weights as {SUFFIX}"
            ) from error
        raise ModelError(f"'{path}' is cut short or no {SUFFIX} file ({error}): fetch it again") from error
    for tensor in found:
        if tensor.dtype not in _SIZES:
            raise ModelError(
                f"'{path}' stores {tensor.name} as {tensor.dtype}: use weights of {', '.join(_SIZES)}"
            )
    return found


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLES)


class Reader:
    """Reads tensors in pieces of whole rows, of ``piece`` bytes if a row is no larger; one file is open."""

    def __init__(self, piece: int, meter: Meter) -> None:
        self.piece, self.meter = piece, meter
        self._path: Path | None = None
        self._file: Any = None

    def pieces(self, tensor: Tensor, piece: int | None = None) -> Iterator[torch.Tensor]:
        """The rows of a tensor from first to last; a tensor without dimensions is one piece.

        Raises:
            ModelError: a value that is not finite; the file went away.
        """
        try:
            file = self._open(tensor)
            if not tensor.shape:
                yield self._checked(tensor, file.get_tensor(tensor.name))
                return
            part = file.get_slice(tensor.name)
            step = max(1, (piece or self.piece) * tensor.shape[0] // max(1, tensor.nbytes))
            for start in range(0, tensor.shape[0], step):
                yield self._checked(tensor, part[start : start + step])
        except (SafetensorError, OSError) as error:
            raise ModelError(f"'{tensor.file}' cannot be read any more ({error}): try again") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)
        self._file = self._path = None

    def _open(self, tensor: Tensor) -> Any:
        if tensor.file != self._path:
            self.close()
            self._file = safe_open(tensor.file, framework="pt").__enter__()
            self._path = tensor.file
        return self._file

    def _checked(self, tensor: Tensor, rows: torch.Tensor) -> torch.Tensor:
        rows = self.meter.watch(rows)
        if rows.is_floating_point():
            for part in rows.flatten().split(_CHECKED):
                # 8-bit floats know no isfinite
                if not self.meter.watch(part.float()).isfinite().all():
                    raise ModelError(
                        f"'{tensor.file}' has NaN or infinite weights in {tensor.name}: fetch it again"
                    )
        return rows


# Writing ---------------------------------------------------------------------------------------------


def fill_shards(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """Share tensors out, in their order, to files of at most ``limit`` bytes; one above that has its own."""
    shards: list[list[Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def write_shards(
    folder: Path,
    shards: Sequence[Sequence[Tensor]],
    pieces: Callable[[Tensor], Iterable[torch.Tensor]],
    on_bytes: Callable[[int], None] = lambda count: None,
) -> None:
    """Write one file for each shard, and the index where there are several, as diffusers names them.

    Args:
        pieces: the data of a tensor, in order, of its dtype; nothing for zeros.
        on_bytes: told how much was written since the last time.
    """
    names = [f"{NAME}{SUFFIX}"]
    if len(shards) > 1:
        names = [f"{NAME}-{i + 1:05}-of-{len(shards):05}{SUFFIX}" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, pieces, on_bytes)
    if len(shards) > 1:
        weight_map = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(
    path: Path,
    shard: Sequence[Tensor],
    pieces: Callable[[Tensor], Iterable[torch.Tensor]],
    on_bytes: Callable[[int], None],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at: dict[str, int] = {}
    end = 0
    # Wide types first, so that every tensor begins at a multiple of its own width.
    for tensor in sorted(shard, key=lambda tensor: -_SIZES[tensor.dtype]):
        at[tensor.name], end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at[tensor.name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)  # what is never written reads as zeros
        for tensor in shard:
            file.seek(start + at[tensor.name])
            told = 0
            for piece in pieces(tensor):
                told += file.write(_raw(piece))
                on_bytes(piece.nbytes)
            assert told in (0, tensor.nbytes), f"{tensor.name}: {told} of {tensor.nbytes} bytes"
            on_bytes(tensor.nbytes - told)
        file.flush()
        os.fsync(file.fileno())  # a full disk is told at the latest here


def _raw(piece: torch.Tensor) -> memoryview:
    return piece.contiguous().flatten().view(torch.uint8).numpy().data

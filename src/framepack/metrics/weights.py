"""What a published metric needs on this machine: packages of Python, and files of weights.

One rule for where weights lie: where VBench itself puts them, so that who has run VBench has them already.
That is ``$VBENCH_CACHE_DIR``, by default ``~/.cache/vbench``; for what only VBench-2.0 has,
``$VBENCH2_CACHE_DIR``, by default ``~/.cache/vbench2``; and for what the Hugging Face hub has, its cache too.
Nothing is downloaded unless the metric is asked for by name, and then from the hub alone.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from framepack.models.hub import fetch


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One file.

    Attributes:
        path: below the folder of ``variable``. origin: where people get it.
        hub: the repository of the hub that has it, under the name ``file``; that of ``path`` by default.
    """

    path: str
    origin: str
    variable: str = "VBENCH_CACHE_DIR"
    hub: str | None = None
    file: str | None = None

    @property
    def place(self) -> Path:
        """Where it is looked for first."""
        default = Path.home() / ".cache" / self.variable.removesuffix("_CACHE_DIR").lower()
        return Path(os.environ.get(self.variable) or default).expanduser() / self.path

    def find(self) -> Path | None:
        """The file on this machine, without asking any network."""
        if self.place.is_file():
            return self.place
        if self.hub is None:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.hub, self._file)
        return Path(found) if isinstance(found, str) else None

    def get(self) -> None:
        """Download it, if the hub has it. Raises ModelError: the hub has it, but cannot be reached."""
        if self.hub is not None and self.find() is None:
            fetch(self.hub, files=[self._file])

    @property
    def _file(self) -> str:
        return self.file or Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Everything that one metric needs.

    Attributes:
        modules: packages to import; with a path behind a slash, a file that must be in them.
        install: how people get those. cuda: whether its code runs on CUDA alone.
    """

    modules: tuple[str, ...]
    install: str
    weights: tuple[Weights, ...]
    cuda: bool = False

    def __str__(self) -> str:
        files = ", ".join(f"{each.path} in ${each.variable} ({each.origin})" for each in self.weights)
        return f"{self.install}; {files}" + ("; a CUDA device" if self.cuda else "")

    def missing(self) -> str | None:
        """What is not there and what to do about it, in one line; None where all is."""
        absent = [module for module in self.modules if not _is_there(module)]
        if absent:
            return f"{', '.join(absent)} not installed: {self.install}"
        for weights in self.weights:
            if weights.find() is None:
                return f"no weights at '{weights.place}': put them there from {weights.origin}"
        if self.cuda:
            import torch

            if not torch.cuda.is_available():
                return "its code runs on CUDA alone: score on a machine with a GPU"
        return None

    def get(self) -> None:
        """Download the weights that the hub has, unless packages are missing anyway. Raises ModelError."""
        if all(_is_there(module) for module in self.modules):
            for weights in self.weights:
                weights.get()

    def file(self, path: str) -> Path:
        """The weights of a path, which are there."""
        found = next(each for each in self.weights if each.path == path).find()
        assert found is not None, path
        return found


def folder_of(package: str) -> Path:
    """Of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    return Path(spec.submodule_search_locations[0])


def _is_there(module: str) -> bool:
    package, _, path = module.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not path:
        return spec is not None
    return any((Path(place) / path).is_file() for place in spec.submodule_search_locations or ())

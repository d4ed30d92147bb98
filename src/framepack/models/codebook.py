"""The codewords of discretised history, a part of a model whose methods say ``+D``.

Legend: K codewords, C latent channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from framepack.codecs.loading import load_module
from framepack.errors import InputError

if TYPE_CHECKING:
    from framepack.planning.method import Method


class Codebook(ModelMixin, ConfigMixin):
    """K codewords over latent pixels, see ``packing.discretisation``; ``training.codebook`` fits them.

    Args:
        size: K. channels: C.
    """

    @register_to_config
    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.zeros(size, channels), requires_grad=False)

    @classmethod
    def of(cls, centroids: torch.Tensor) -> Codebook:
        """One of these centroids (K, C)."""
        book = cls(*centroids.shape)
        book.centroids.data = centroids.detach().float().cpu().contiguous()
        return book.eval()


def load_codebook(folder: Path) -> Codebook:
    """A codebook from its folder.

    Raises:
        ModelError: absent, or not to be read.
    """
    return load_module(Codebook, folder, torch.float32)


def check_codebook(method: Method, model: str, *, present: bool) -> None:
    """Refuse discretised history for a model that has no codewords for it.

    Raises:
        InputError: naming the method and the ``model``.
    """
    if method.discretized and not present:
        raise InputError(
            f"method '{method}' discretises its history, and {model} has no codebook: leave +D out, or train "
            "with --set codewords=128"
        )

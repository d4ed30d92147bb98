"""Choose the history of a section by importance, once the latents it may choose from exist.

FramePack, section 3.2: frames are ranked by similarity to an estimate of the next section, by time, or by
both. The estimate is the nearest known latent, which is what the next section begins from.

Legend: C latent channels, N candidates, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from framepack.planning.layout import choose
from framepack.planning.method import Importance, Method
from framepack.planning.sections import Section
from framepack.planning.timeline import Timeline

Fetch = Callable[[Sequence[int]], torch.Tensor]


def settle(section: Section, method: Method, timeline: Timeline, fetch: Fetch) -> Section:
    """The section with its history levels given to the most important candidates.

    Under importance by time, or with nothing to choose from, it is the section as planned.

    Args:
        fetch: timeline indices -> latents (1, C, N, h, w).
    """
    if method.importance.kind == "time" or not section.candidates:
        return section
    target = section.spans[-1].stop - 1 if method.order == "inverted" else section.spans[0].start
    nearest = min(section.candidates, key=lambda frame: abs(frame - target))
    latents = fetch(section.candidates)[0].float()
    scores = importance(
        latents,
        latents[:, section.candidates.index(nearest)],
        torch.tensor(
            [_seconds(timeline, frame) - _seconds(timeline, target) for frame in section.candidates]
        ),
        method.importance,
    ).tolist()
    ranked = sorted(
        zip(scores, section.candidates, strict=True), key=lambda pair: (-pair[0], abs(pair[1] - target))
    )
    return choose(section, [frame for _, frame in ranked], method)


def importance(
    latents: torch.Tensor, estimate: torch.Tensor, seconds: torch.Tensor, rule: Importance
) -> torch.Tensor:
    """Importance (N,) of latents (C, N, h, w) for a section estimated as (C, h, w).

    Similarity is the mean over latent pixels of the cosine along C; time is exp(-t^2) with t in seconds
    (N,) from the section; hybrid is similarity + weight * time.
    """
    time = torch.exp(-seconds.double().square())
    if rule.kind == "time":
        return time
    similarity = F.cosine_similarity(latents, estimate[:, None], dim=0).double().mean(dim=(1, 2))
    return similarity if rule.kind == "similarity" else similarity + rule.weight * time


def _seconds(timeline: Timeline, latent: int) -> float:
    return timeline.frames_of(latent).start / timeline.fps

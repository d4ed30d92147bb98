"""The architectures that FramePack is compared with, as methods and recipes over the same loop.

The figures are those of the paper's comparison on HunyuanVideo (Zhang and others 2025).
"""

from __future__ import annotations

import math
from dataclasses import replace

from framepack.packing.schedule import Kernel, Level, released
from framepack.planning.method import Method, named_method
from framepack.recipes.rows import Row

SIGMAS = (0.1, 0.3, 0.5)
"""At which history with noise is shown; the paper has the first."""
GUIDANCE = 1.5
"""Scale of guidance on the history."""


def _figures(clarity: float, dynamic: float, semantic: float, drift: float, elo: float) -> dict[str, float]:
    return {"clarity": clarity, "dynamic": dynamic, "semantic": semantic, "clarity drift": drift, "ELO": elo}


def rivals(base: Kernel, section_size: int, frames: int, max_gap: int) -> tuple[Row, ...]:
    """FramePack and the others for a model of this base kernel.

    Not quite the same start: a checkpoint that was trained for FramePack's methods, as the bundled one was,
    has seen these before the fine-tune, and the others only in it. What a row of another architecture falls
    behind by may in part be the short training.

    Where a rival keeps frames at the base kernel, they are as many as the tokens of packed history come to,
    rounded up in its favour.

    Args:
        frames: latent frames of the clips that are generated. max_gap: of all methods, in latent frames.
    """

    def named(name: str) -> Method:
        return named_method(name, base, section_size, max_gap=max_gap)

    def plain(count: int, *, start: bool = False) -> Method:
        """Forward, with the last ``count`` frames at the base kernel, and the first one before them."""
        history = f"td_{Level(count, base)}_g{section_size}"
        return replace(Method.parse(f"{Level(1, base)}_x_{history}" if start else history), max_gap=max_gap)

    vanilla = named("vanilla")
    window = math.ceil(released(base).rate(base))
    every = max(1, frames - section_size)
    clean = replace(vanilla, history_timestep="zero")
    first, *others = (
        Row(
            name=f"noisy history, sigma {sigma:g}",
            method=replace(clean, history_noise=sigma),
            note="packed history with noise that the model is told of, as Diffusion Forcing (Chen and others "
            "2024)",
        )
        for sigma in SIGMAS
    )
    forcing = '{"kind": "mix", "noise": 0.6, "share": 1, "told": true}'
    return (
        Row(
            name="repeating image-to-video",
            method=plain(1),
            note="only the last frame is seen, as when image-to-video is run again from where it ended",
            paper=_figures(56.73, 91.21, 17.74, 9.51, 1015),
        ),
        Row(
            name="anchor frames",
            method=plain(window, start=True),
            note=f"the first frame and the last {window}, as StreamingT2V (Henschel and others 2024)",
            paper=_figures(69.58, 74.97, 25.76, 2.85, 1173),
        ),
        Row(
            name="causal attention",
            method=replace(plain(every), history_timestep="zero"),
            note="all frames, each attending to itself and earlier ones, as CausVid (Yin and others 2025)",
            settings=("network.causal_history=true",),
            paper=_figures(62.88, 88.27, 19.15, 7.45, 1087),
        ),
        replace(
            first,
            taught=clean,
            settings=(f"objective.corruption={forcing}",),
            paper=_figures(66.08, 91.59, 23.14, 4.84, 1170),
        ),
        *(replace(row, weights=first.name) for row in others),
        Row(
            name="history guidance",
            method=replace(vanilla, history_guidance=GUIDANCE),
            note=f"packed history, guided by it at {GUIDANCE:g} (Song and others 2025)",
            settings=("objective.drop_history=0.15",),
            paper=_figures(68.05, 73.39, 24.88, 7.35, 1152),
        ),
        Row(
            name="full history",
            method=plain(every),
            note="all frames at the base kernel: nothing is packed, and every section costs more",
        ),
        Row(
            name="sliding window",
            method=plain(window),
            note=f"the last {window} frames, about the tokens of packed history",
        ),
        Row(name="FramePack vanilla", method=vanilla, note="forward in time"),
        Row(
            name="FramePack vanilla +D",
            method=replace(vanilla, discretized=True),
            note="the same, its history in 128 codewords",
            settings=("codewords=128",),
            paper=_figures(70.01, 91.74, 28.37, 3.13, 1224),
        ),
        Row(
            name="FramePack-F1",
            method=named("f1"),
            note="forward, the first frame kept, the same time indices for every section",
        ),
        Row(
            name="FramePack anti-drifting",
            method=named("anti-drifting"),
            note="first and last section together, then the gap",
        ),
        Row(
            name="FramePack inverted",
            method=named("inverted"),
            note="from the end back to the first frame, time indices as released",
            paper=_figures(71.15, 89.29, 28.15, 2.25, 1220),
        ),
    )

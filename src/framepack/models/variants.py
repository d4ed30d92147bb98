"""Three sizes of FramePack on HunyuanVideo: rows of numbers, each with what is expected of it.

The rows exist to plan for these sizes, to check the arithmetic, and to make them: `layers` says which
blocks of a base a size is made from. Parameters are counted on the real configuration, on the meta device;
token limits are computed by the schedule. What was published stands beside them, for a test to compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from framepack.models.families import SECTION_SIZE, family_row, spec_for
from framepack.models.spec import ModelSpec
from framepack.packing.schedule import HUNYUAN_BASE, Kernel, PackingSchedule
from framepack.planning.method import METHODS, named_method

BASE_KERNEL: Kernel = HUNYUAN_BASE
_ROW = family_row("hunyuan_video")
LATENT_CHANNELS, SPATIAL_STRIDE = _ROW.latent_channels, _ROW.spatial_stride
RELEASED_BLOCKS = (20, 40)
"""Double and single blocks of the released transformer."""


def kept_layers(have: int, want: int) -> tuple[int, ...]:
    """Which of ``have`` layers stay when ``want`` do: evenly spread, the first and the last among them.

    The ends stay because what they do, from and to pixels, no layer between them does.
    """
    assert 1 <= want <= have, (have, want)
    if want == 1:
        return (0,)
    # i * (have - 1) / (want - 1), rounded half up, in integers
    return tuple((2 * i * (have - 1) + want - 1) // (2 * (want - 1)) for i in range(want))


def repeated_layers(have: int, want: int) -> tuple[int, ...]:
    """Which of ``have`` layers each of ``want`` is a copy of: evenly spread, a copy right behind its own.

    Copies that add nothing at first, between the layers of the base, are how LLaMA Pro grows a model (Wu
    and others 2024, "block expansion").
    """
    assert 1 <= have <= want, (have, want)
    return tuple(i * have // want for i in range(want))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row.

    Args:
        double_blocks, single_blocks: of HunyuanVideo's transformer, else as released.
        lam, budget: what its schedule is built from: the closed form's lambda, or its history
            budget in frames; one of the two.
        expected_billions: parameters as published; `count_parameters` must come within 3 %.
        expected_nominal: published history budget in tokens at 480 x 832.
    """

    name: str
    double_blocks: int
    single_blocks: int
    lam: float | None = None
    budget: float | None = None
    expected_billions: float
    expected_nominal: int

    def layers(self, double_blocks: int, single_blocks: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which double and single blocks of a base each block of this size is made from.

        A base of the released 20 + 40 blocks becomes exactly this row; others change in the same
        proportion. Where an index stands twice, the second block is a repeat.
        """

        def chosen(have: int, rows: int, released: int) -> tuple[int, ...]:
            want = max((2 * have * rows + released) // (2 * released), min(have, 1))
            if want <= have:
                return kept_layers(have, want) if want else ()
            return repeated_layers(have, want)

        double, single = RELEASED_BLOCKS
        return (
            chosen(double_blocks, self.double_blocks, double),
            chosen(single_blocks, self.single_blocks, single),
        )

    def schedule(self, base: Kernel = BASE_KERNEL) -> PackingSchedule:
        """The packing schedule of the history; a method adds the pinned frames."""
        if self.lam is not None:
            return PackingSchedule.from_lambda(self.lam, base=base)
        assert self.budget is not None, self.name
        return PackingSchedule.from_budget(self.budget, base=base)

    def spec(self) -> ModelSpec:
        """The numbers that planning needs: every method, over this variant's schedule."""
        methods = {
            name: named_method(name, base=BASE_KERNEL, section_size=SECTION_SIZE).with_schedule(
                self.schedule()
            )
            for name in METHODS
        }
        return spec_for("hunyuan_video", self.name, methods)

    def count_parameters(self) -> int:
        """Parameters of the transformer with a kernel for each size in the schedule; nothing is allocated."""
        import torch
        from diffusers import HunyuanVideoFramepackTransformer3DModel

        with torch.device("meta"):
            model = HunyuanVideoFramepackTransformer3DModel(
                in_channels=LATENT_CHANNELS,
                num_layers=self.double_blocks,
                num_single_layers=self.single_blocks,
                has_image_proj=True,
                has_clean_x_embedder=False,
            )
        width = model.config.num_attention_heads * model.config.attention_head_dim
        # The base kernel is the start frame's; history at that kernel shares it.
        kernels = {*self.schedule().kernels, BASE_KERNEL}
        packing = sum(width * (LATENT_CHANNELS * math.prod(kernel) + 1) for kernel in kernels)
        return sum(p.numel() for p in model.parameters()) + packing


VARIANTS: dict[str, Variant] = {
    row.name: row
    for row in (
        Variant(
            name="base",
            double_blocks=20,
            single_blocks=40,
            lam=2.0,
            expected_billions=13.0,
            expected_nominal=3120,
        ),
        Variant(
            name="lite",
            double_blocks=10,
            single_blocks=22,
            lam=4.0,
            expected_billions=7.0,
            expected_nominal=2080,
        ),
        Variant(
            name="extended",
            double_blocks=32,
            single_blocks=62,
            budget=2.5,
            expected_billions=20.0,
            expected_nominal=3900,
        ),
    )
}

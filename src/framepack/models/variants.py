"""Three sizes of FramePack on HunyuanVideo: rows of numbers, each with what is expected of it.

Nothing of these can be loaded from here; the rows exist to plan for them and to check the
arithmetic. Parameters are counted on the real configuration, on the meta device; token limits are
computed by the schedule. What was published stands beside them, for a test to compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from framepack.models.spec import ModelSpec
from framepack.packing.schedule import Kernel, PackingSchedule
from framepack.planning.method import METHODS, named_method

BASE_KERNEL: Kernel = (1, 2, 2)
LATENT_CHANNELS = 16
SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4
SECTION_SIZE = 9
FPS = 30.0

_LANDSCAPE = ((480, 832), (416, 960), (448, 864), (512, 768), (544, 704), (576, 672), (608, 640))
# The released models' "640" set, height x width, and its transposes; 480 x 832 is the usual one.
BUCKETS = _LANDSCAPE + tuple((width, height) for height, width in _LANDSCAPE)


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

    def schedule(self) -> PackingSchedule:
        """The packing schedule of the history; a method adds the pinned frames."""
        if self.lam is not None:
            return PackingSchedule.from_lambda(self.lam, base=BASE_KERNEL)
        assert self.budget is not None, self.name
        return PackingSchedule.from_budget(self.budget, base=BASE_KERNEL)

    def spec(self) -> ModelSpec:
        """The numbers that planning needs: every method, over this variant's schedule."""
        methods = {
            name: named_method(name, base=BASE_KERNEL, section_size=SECTION_SIZE).with_schedule(
                self.schedule()
            )
            for name in METHODS
        }
        return ModelSpec(
            name=self.name,
            family="hunyuan_video",
            base_kernel=BASE_KERNEL,
            latent_channels=LATENT_CHANNELS,
            spatial_stride=SPATIAL_STRIDE,
            temporal_stride=TEMPORAL_STRIDE,
            fps=FPS,
            buckets=BUCKETS,
            methods=methods,
            default_method="inverted",
            steps=25,
            guidance=1.0,  # no CFG: their guidance of 10 is distilled, an input of the transformer
            solver="unipc",
            shift=None,
        )

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

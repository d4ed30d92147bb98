"""What is known of each family before a file of it is opened: rows of numbers, and the spec made of them.

A row holds for every size of its family; what a checkpoint's own configuration says (latent channels, base
kernel, whether guidance is distilled) goes before it. The numbers are those of the published loops:
FramePack for HunyuanVideo, Wan's own defaults for Wan, sections of nine latent frames for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from framepack.errors import UnknownNameError
from framepack.models.pyramid import Pyramid
from framepack.models.shift import RELEASED, UNCAPPED, Shift
from framepack.models.spec import FAMILIES, ModelSpec
from framepack.packing.schedule import HUNYUAN_BASE, Kernel
from framepack.planning.method import Method, named_method
from framepack.video.buckets import bucket_set

SECTION_SIZE = 9

USUAL = (480, 832)
BUCKETS = tuple(sorted(bucket_set(480 * 832), key=lambda size: (size[0] > size[1], set(size) != set(USUAL))))
"""The released "640" set, height x width in px: multiples of 32 with the area of about 640 x 640, each way
round. 480 x 832, the usual one, comes first."""

HELIOS_CLASS = "HeliosTransformer3DModel"
BASES = {"HunyuanVideoTransformer3DModel": "hunyuan_video", "WanTransformer3DModel": "wan"}
PACKED = {
    "PackedHunyuanVideoTransformer3DModel": "hunyuan_video",
    "PackedWanTransformer3DModel": "wan",
    "HunyuanVideoFramepackTransformer3DModel": "hunyuan_video",
    "HunyuanVideoTransformer3DModelPacked": "hunyuan_video",  # so the released FramePack weights name it
    HELIOS_CLASS: "wan",
}
"""``_class_name`` of a transformer's config.json, and its family: without packing kernels, and with."""
ADOPTED = {name: family for name, family in (BASES | PACKED).items() if name != HELIOS_CLASS}
"""Those that ``framepack adopt`` takes."""


@dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """Numbers that the models of one family, with one codec, have in common; fields as in `ModelSpec`.

    ``embedded_guidance`` is for models that take their guidance as an input.
    """

    family: str
    latent_channels: int
    spatial_stride: int
    temporal_stride: int
    fps: float
    default_method: str
    steps: int
    guidance: float
    embedded_guidance: float | None = None
    solver: str = "unipc"
    shift: Shift = RELEASED
    buckets: tuple[tuple[int, int], ...] = BUCKETS
    sigmas: str = "flow"
    decode: str = "continuous"
    held_start: tuple[float, float] | None = None


ROWS: dict[str, FamilyRow] = {
    "hunyuan-video": FamilyRow(
        family="hunyuan_video",
        latent_channels=16,
        spatial_stride=8,
        temporal_stride=4,
        fps=30.0,
        default_method="inverted",
        steps=25,
        guidance=1.0,  # no CFG: its guidance is distilled
        embedded_guidance=10.0,
    ),
    "wan-2.1": FamilyRow(
        family="wan",
        latent_channels=16,
        spatial_stride=8,
        temporal_stride=4,
        fps=16.0,
        default_method="f1",
        steps=50,
        guidance=5.0,
    ),
    "wan-2.2-5b": FamilyRow(
        family="wan",
        latent_channels=48,
        spatial_stride=16,
        temporal_stride=4,
        fps=24.0,
        default_method="f1",
        steps=50,
        guidance=5.0,
    ),
}

HELIOS = FamilyRow(
    family="wan",
    latent_channels=16,
    spatial_stride=8,
    temporal_stride=4,
    fps=24.0,
    default_method="f1",
    steps=50,
    guidance=5.0,
    solver="unipc2",
    buckets=((384, 640),),
    shift=UNCAPPED,
    sigmas="helios",
    decode="section",
    held_start=(0.111, 0.135),
)
"""Helios, a Wan 2.1 of its own ways, which its class tells and no number does: HeliosPipeline's defaults."""
HELIOS_STEPS = {"mid": 60, "distilled": 6}
"""In a pyramid, all stages together: 20 and 2 a stage, as the releases' own examples have it."""


def helios_spec(name: str, method: Method, base_kernel: Kernel, pyramid: Pyramid | None) -> ModelSpec:
    """The spec of Helios-Base, or of Helios-Mid or -Distilled where there is a pyramid.

    Raises:
        InputError: a base kernel or a method that no model can have.
    """
    spec = spec_for("wan", name, {"f1": method}, base_kernel=base_kernel, row=HELIOS)
    if pyramid is None:
        return spec
    steps = HELIOS_STEPS["distilled" if pyramid.distilled else "mid"]
    guidance = 1.0 if pyramid.distilled else spec.guidance
    return replace(spec, steps=steps, guidance=guidance, solver="pyramid", pyramid=pyramid)


def family_row(family: str, latent_channels: int | None = None) -> FamilyRow:
    """The row of a family with a codec of so many channels; its first row where none has as many.

    Raises:
        UnknownNameError: no such family.
    """
    rows = [row for row in ROWS.values() if row.family == family]
    if not rows:
        raise UnknownNameError("family", family, FAMILIES)
    return next((row for row in rows if row.latent_channels == latent_channels), rows[0])


def spec_for(
    family: str,
    name: str,
    methods: Mapping[str, Method] | None = None,
    *,
    default_method: str | None = None,
    latent_channels: int | None = None,
    base_kernel: Kernel = HUNYUAN_BASE,
    guidance_embeds: bool = True,
    row: FamilyRow | None = None,
) -> ModelSpec:
    """The spec of a model of which only this much is known.

    Args:
        methods: by name; the family's default method, at its released schedule, where left out.
        default_method: one of them; the family's, or else the first, where left out.
        latent_channels: of the checkpoint; the row's where left out.
        base_kernel: the checkpoint's patch size.
        guidance_embeds: whether the checkpoint takes its guidance as an input.
        row: where family and channels do not tell it.

    Raises:
        UnknownNameError: no such family, or a default that is not among the methods.
        InputError: a base kernel, channels or methods that no model can have.
    """
    row = row or family_row(family, latent_channels)
    if methods is None:
        methods = {row.default_method: named_method(row.default_method, base_kernel, SECTION_SIZE)}
    if default_method is None:
        default_method = row.default_method if row.default_method in methods else next(iter(methods), "")
    return ModelSpec(
        name=name,
        family=family,
        base_kernel=base_kernel,
        latent_channels=row.latent_channels if latent_channels is None else latent_channels,
        spatial_stride=row.spatial_stride,
        temporal_stride=row.temporal_stride,
        fps=row.fps,
        buckets=row.buckets,
        methods=dict(methods),
        default_method=default_method,
        steps=row.steps,
        guidance=row.guidance,
        solver=row.solver,
        shift=row.shift,
        embedded_guidance=row.embedded_guidance if guidance_embeds else None,
        sigmas=row.sigmas,
        decode=row.decode,
        held_start=row.held_start,
    )

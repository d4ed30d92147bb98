"""Where weights lie while they are not computed with, in what they are stored, and how pixels are decoded.

Names are put together from the three: `full`, `models`, `layers` and `split` say where weights lie, `fp8`
and `nf4` what the transformer's are stored in, and `tiled` has the codec work in tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from framepack.errors import UnknownNameError

DEVICE, MODEL, LAYER, SPLIT = "device", "model", "layer", "split"
FP8, NF4 = "fp8", "nf4"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a model is fitted into the memory there is.

    Attributes:
        name: by which it is asked for.
        placement: ``device``, transformer and codec stay on the device; ``model``, each part is moved over
            when its turn comes, the others are in system memory; ``layer``, the transformer's layers are
            moved over one by one, the next while one computes; ``split``, they are divided among several
            devices, in order.
        storage: of the transformer's weights, which each layer turns back when its turn comes: ``fp8`` (E4M3,
            diffusers' layerwise casting), ``nf4`` (bitsandbytes, blocks of 64), or None for what it
            computes in.
        tiled: the codec works in overlapping tiles.
    """

    name: str
    placement: str
    storage: str | None
    tiled: bool

    @property
    def streams_encoders(self) -> bool:
        """Whether encoders are brought layer by layer: each works once, so that this costs no time."""
        return self.name.removesuffix("-tiled") != "full"

    @property
    def for_many(self) -> bool:
        """Whether several devices can make a section together: each with all weights, or its part of them."""
        return self.placement == SPLIT or (self.placement == DEVICE and self.storage is None)

    @property
    def changes(self) -> tuple[str, ...]:
        """What of the result is not as with all memory there could be."""
        stored = {None: (), FP8: ("weights rounded to 8 bits",), NF4: ("weights rounded to 4 bits",)}
        return (*stored[self.storage], *(("faint seams of tiles",) if self.tiled else ()))

    @property
    def loss(self) -> int:
        """Grows with what is changed: tiles first, then 8 bits, then 4."""
        return 2 * (None, FP8, NF4).index(self.storage) + self.tiled


_ROWS: tuple[tuple[str, str, str | None], ...] = (
    ("full", DEVICE, None),
    ("models", MODEL, None),
    ("layers", LAYER, None),
    ("fp8", DEVICE, FP8),
    ("models-fp8", MODEL, FP8),
    ("layers-fp8", LAYER, FP8),
    ("nf4", DEVICE, NF4),
    ("models-nf4", MODEL, NF4),
    ("split", SPLIT, None),
    ("split-fp8", SPLIT, FP8),
)
"""Without nf4 layer by layer: bitsandbytes' weights cannot be moved so. Nor split: 8 bits save enough."""

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for tiled in (False, True)
    for name, placement, storage in _ROWS
    for policy in [
        Policy(
            name=f"{name}-tiled" if tiled else name,
            placement=placement,
            storage=storage,
            tiled=tiled,
        )
    ]
}
FULL, AUTO, LOW = "full", "auto", "low"
LOWEST = "layers-tiled"
"""What ``low`` stands for: the least memory of the device that leaves all weights as they are."""


def find_policy(name: str) -> Policy:
    """A policy by name, ``low`` among them; ``auto`` is for who has an estimate, see `Estimate.chosen`.

    Raises:
        UnknownNameError: no such policy.
    """
    if name != LOW and name not in POLICIES:
        raise UnknownNameError("memory policy", name, (AUTO, LOW, *POLICIES))
    return POLICIES[LOWEST if name == LOW else name]

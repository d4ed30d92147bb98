"""What video costs by its length, for packed context and what is used in its place."""

from framepack.evaluation.scale.files import tables, write
from framepack.evaluation.scale.simulation import Scale, simulate

__all__ = ["Scale", "simulate", "tables", "write"]

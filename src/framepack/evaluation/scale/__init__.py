"""What video costs by its length, for packed context and what is used in its place."""

from framepack.evaluation.scale.simulate import Scale, simulate
from framepack.evaluation.scale.write import write

__all__ = ["Scale", "simulate", "write"]

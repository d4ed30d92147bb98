"""The metrics by name.

A metric of one of the paper's seven names is the published metric with its published weights, or it is
unavailable: nothing stands in for it. The others are named as what they are.
"""

from __future__ import annotations

from framepack.metrics.metric import Metric, Subject, choose
from framepack.metrics.offline import OFFLINE
from framepack.metrics.published import PUBLISHED

__all__ = ["METRICS", "Metric", "Subject", "choose"]

METRICS: dict[str, Metric] = {**PUBLISHED, **OFFLINE}

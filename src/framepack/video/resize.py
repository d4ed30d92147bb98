"""Fit a picture to a size that a model was trained for. Sizes here are (height, width), in px."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

Size = tuple[int, int]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose shape is nearest to ``size``: aspect ratio first, then area, then list order.

    Ratios are compared as logarithms, so that twice as wide is as far as twice as high.
    """
    assert buckets, "a model has at least one bucket"

    def distance(bucket: Size) -> tuple[float, float]:
        ratio = math.log(bucket[0] / bucket[1]) - math.log(size[0] / size[1])
        area = math.log(bucket[0] * bucket[1]) - math.log(size[0] * size[1])
        return round(abs(ratio), 9), abs(area)

    return min(buckets, key=distance)


def cover_box(size: Size, target: Size) -> tuple[float, float, float, float]:
    """The largest centred box (left, top, right, bottom) of ``size`` with the shape of ``target``."""
    height, width = size
    scale = min(height / target[0], width / target[1])
    box_h, box_w = min(target[0] * scale, height), min(target[1] * scale, width)
    left, top = (width - box_w) / 2, (height - box_h) / 2
    return left, top, left + box_w, top + box_h


def to_bucket(image: Image.Image, size: Size) -> Image.Image:
    """Crop the centre of ``image`` to the shape of ``size`` and resize it to exactly that.

    The crop comes first: resizing a strip of 1 x 50,000,000 px to cover a square would not fit in
    memory.
    """
    height, width = size
    box = cover_box((image.height, image.width), size)
    if image.size == (width, height):
        return image.copy()
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)

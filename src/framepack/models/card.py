"""The README.md of an adopted model: what it is made from, what is new in it, what it still needs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framepack.models.adopt import Adopted
    from framepack.models.base import Base
    from framepack.models.spec import ModelSpec

STACKS = {"transformer_blocks": "double", "single_transformer_blocks": "single"}
FAMILIES = {"hunyuan_video": "HunyuanVideo", "wan": "Wan"}


def model_card(adopted: Adopted, base: Base, spec: ModelSpec) -> str:
    """Markdown, with the front matter that model hubs read."""
    methods = "".join(f"- `{name}`: `{text}`\n" for name, text in adopted.methods.items())
    return f"""---
library_name: framepack
pipeline_tag: image-to-video
base_model: {base.name}
tags:
- framepack
- {spec.family.replace("_", "-")}
---

# {spec.name}

A {FAMILIES[spec.family]} transformer with packing kernels for its history, so that the cost of a section does
not grow with the length of the video. Made from `{base.name}` ({base.class_name}) by `framepack adopt`
{f"as the variant {adopted.variant}" if adopted.variant else "with its layers as they are"};
{adopted.parameters:,} parameters.

{_need(adopted)}

## Methods

{methods}
The default is `{adopted.default_method}`. Kernels made from the base's patch embedding:
{_list(adopted.kernels_made)}. Kernels that the base brought: {_list(adopted.kernels_kept)}.

## Layers

{_layers(adopted, base)}

## Files

`framepack.json` holds the numbers that planning and sampling need, `transformer/` the weights,
{adopted.bytes:,} bytes. Parts of the pipeline that came with the base: {_list(list(adopted.parts))}.
The base's licence holds for all of it.

```sh
framepack generate --model {spec.name} --prompt "..." --out video.mp4
```
"""


def _need(adopted: Adopted) -> str:
    news = []
    if adopted.kernels_made:
        news.append("its new kernels see history as the base saw single frames")
    if any(len(order) != len(set(order)) for order in adopted.layers.values()):
        news.append("its repeated blocks do nothing yet")
    if adopted.variant and any(_dropped(order, adopted, stack) for stack, order in adopted.layers.items()):
        news.append("blocks that the base relied on are gone")
    why = f": {', and '.join(news)}" if news else " if the base was not trained for these methods"
    return f"**It needs a fine-tune before it gives good video**{why}."


def _dropped(order: list[int], adopted: Adopted, stack: str) -> list[int]:
    return sorted(set(range(adopted.base_layers[stack])) - set(order))


def _layers(adopted: Adopted, base: Base) -> str:
    if not adopted.layers:
        return "All layers are the base's, none dropped, none repeated."
    lines = []
    for stack, order in adopted.layers.items():
        dropped = _dropped(order, adopted, stack)
        repeated = sorted(index for index, count in Counter(order).items() if count > 1)
        lines.append(
            f"- {STACKS[stack]} blocks: {adopted.base_layers[stack]} became {len(order)}; "
            f"dropped {_list(dropped)}; repeated {_list(repeated)}."
        )
    if any(len(order) != len(set(order)) for order in adopted.layers.values()):
        lines.append(
            "\nA repeat stands right behind its original. The projections through which it adds to its "
            "input are zero, so that the model computes what its base computes until it is trained."
        )
    return "\n".join(lines)


def _list(items: list[str] | list[int]) -> str:
    return ", ".join(map(str, items)) or "none"

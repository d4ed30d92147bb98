"""Requests that a service must stand: each with a name, and with what it may be answered."""

from __future__ import annotations

from collections.abc import Iterator

import hostile_pictures as pictures
from hostile_case import EITHER, NESTED, PROMPT, REFUSED, TAKEN, Case, form, part, with_picture
from hostile_names import of_names, of_values
from hostile_wire import of_forms, of_headers, of_tokens

__all__ = ["corpus", "of_tokens"]


def of_pictures() -> Iterator[Case]:
    for name, data in pictures.bombs():
        yield form(f"bomb-{name}", *with_picture(data))
    for name, data in pictures.odd():
        yield form(f"odd-{name}", *with_picture(data), answers=EITHER)
    for name, data in pictures.damaged():
        refused = name.startswith(("TIFF", "BMP", "PPM")) or "magic" in name or name.endswith("cut-at-0.1")
        yield form(f"damaged-{name}", *with_picture(data), answers=REFUSED if refused else EITHER)
    for name, data in pictures.OTHERS.items():
        yield form(f"disguised-{name}", *with_picture(data))
    for name, data in pictures.fine():
        payload = tuple(pictures.OTHERS[tail] for tail in pictures.TAILS if name.endswith(f"-with-{tail}"))
        yield form(f"unusual-{name}", *with_picture(data), answers=TAKEN, gone=payload)
    yield form("form-in-a-form", part("prompt", NESTED), answers=TAKEN)
    yield form("picture-of-nothing", *with_picture(b""))
    for name, data in pictures.no_clips():
        for place in ("from_clip", "to_clip"):
            yield form(f"{place}-is-{name}", PROMPT, part(place, data, "a.mp4"))
    for name, data in pictures.clips():
        yield form(f"from_clip-{name}", PROMPT, part("from_clip", data, "a.mp4"), answers=TAKEN)


def corpus() -> list[Case]:
    """All but those of tokens; names are of one case each."""
    found = [*of_pictures(), *of_names(), *of_values(), *of_forms(), *of_headers()]
    assert len({case.name for case in found}) == len(found)
    return found

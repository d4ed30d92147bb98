"""Video without end, forward in time, in memory that does not grow; its prompt can be changed while it runs.

Legend: C latent channels, N latents, h w latent grid, F frames of a section, H W pixels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from framepack.codecs.streaming import stream_decoder
from framepack.errors import InputError
from framepack.generation.clock import Clock
from framepack.generation.config import RunConfig, resolve
from framepack.generation.decode import to_uint8
from framepack.generation.maker import SectionMaker
from framepack.generation.prepare import encode_given, prompt_warnings, with_loras
from framepack.generation.request import GenerateRequest, one_prompt
from framepack.generation.selection import select
from framepack.generation.store import Edit
from framepack.generation.tail import Tails
from framepack.models.bundle import Bundle
from framepack.models.codebook import check_codebook
from framepack.packing.schedule import Tail
from framepack.planning.known import Known
from framepack.planning.layout import lay_out
from framepack.planning.method import Method
from framepack.planning.prompts import read_prompt
from framepack.planning.sections import Section, Span

FORWARD = ("vanilla", "f1")
ENDLESS = 2**62
"""Latent frames of a video that ends when it is told to."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveSection:
    """A section that is ready to be seen.

    Attributes:
        index: from 0. prompt: what it was made from.
        frames: uint8 (F, H, W, 3); the first section's begin with what was given.
        seconds: from the end of the section before to its own, frames included.
    """

    index: int
    prompt: str
    frames: np.ndarray
    seconds: float


class _Window:
    """The latents that later sections still see; a timeline of which the rest is gone."""

    def __init__(self) -> None:
        self.latents: dict[int, torch.Tensor] = {}
        self.tails = Tails(str, self.latents.__getitem__)

    def fetch(self, frames: Sequence[int]) -> torch.Tensor:
        """(1, C, N, h, w)."""
        return torch.stack([self.latents[frame] for frame in frames], dim=1)[None]

    def put(self, start: int, latents: torch.Tensor) -> None:
        """Latents (C, n, h, w) from an index on."""
        for offset, latent in enumerate(latents.unbind(1)):
            self.latents[start + offset] = latent.clone()

    def keep(self, method: Method, stop: int) -> None:
        """Drop what no section from ``stop`` on sees."""
        schedule = method.schedule
        near = stop - schedule.history_frames
        for frame in [f for f in self.latents if schedule.start_frames <= f < near]:
            del self.latents[frame]


class Live:
    """A video being made without end.

    Args:
        request: as for a video; its length, keyframes and end are left aside.
        bundle: the loaded model.

    Attributes:
        prompt: set it at any time, from any thread: the next section to be begun follows it.
        warnings: one line each, for the user.

    Raises:
        InputError: a method that is not forward or does not forget, a loop, keyframes or a clip to lead to.
    """

    def __init__(self, request: GenerateRequest, bundle: Bundle) -> None:
        script = read_prompt(request.prompt) if isinstance(request.prompt, str) else request.prompt
        if len(script.prompts) > 1:
            raise InputError("a live video begins with one prompt, and is told of others while it runs")
        if request.keyframes or request.to_clip is not None or request.loop:
            raise InputError("a live video has no end: leave keyframes, an end clip and a loop out")
        spec = bundle.spec
        wanted = spec.method(request.method, request.schedule, untrained=request.untrained)
        if request.method is None and wanted.order not in FORWARD:
            forward = [name for name, method in spec.methods.items() if method.order in FORWARD]
            if not forward:
                raise InputError(f"{spec.name} has no forward method, and a live video needs one")
            request = replace(request, method=forward[0])
        # One section is all that is planned; the others are laid out as they come.
        selection = select(replace(request, seconds=None, frames=1 + spec.temporal_stride), spec)
        method = selection.method
        if method.order not in FORWARD:
            raise InputError(
                f"method {method.order} is not forward in time, as a live video is: choose "
                f"{' or '.join(FORWARD)}"
            )
        if method.schedule.tail is not Tail.DELETE or method.importance.kind != "time":
            raise InputError(f"method {method} looks at all of the past, which a live video does not keep")
        check_codebook(method, spec.name, present=bundle.codebook is not None)
        self.config: RunConfig = resolve(request, selection, bundle)
        self.method, self.fps = method, spec.fps
        known, faults = encode_given(selection, bundle)
        bundle.transformer.add_kernels(method.schedule.kernels)
        self.bundle, left_out = with_loras(bundle, request.loras)
        told = prompt_warnings(request, self.config, bundle)
        self.warnings = (*selection.remarks, *told, *faults, *left_out)
        self.clock = Clock()
        self._maker = SectionMaker(self.config, self.bundle, self.clock, selection.picture)
        self._window, self._known = _Window(), Known()
        self._given = known[0].latents if known else None
        self._prompt, self._lock = script.prompts[0], threading.Lock()

    @property
    def prompt(self) -> str:
        with self._lock:
            return self._prompt

    @prompt.setter
    def prompt(self, text: str) -> None:
        """Raises InputError: a prompt that cannot be used."""
        text = one_prompt(text)
        with self._lock:
            self._prompt = text

    def sections(self) -> Iterator[LiveSection]:
        """Sections one after the other, until it is closed. To be iterated once."""
        decoder, at, begun = stream_decoder(self.bundle.codec), 0, time.perf_counter()
        opening: list[np.ndarray] = []
        if self._given is not None:
            at = self._given.shape[1]
            self._window.put(0, self._given)
            self._known.add(0, at)
            opening.append(self._pixels(decoder.push(self._given[None])))
            self._given = None
        index = 0
        while True:
            prompt = self.prompt
            self._maker.forget([prompt])
            span = Span(at, at + self.method.section_size)
            section = lay_out(self.method, self._known, (span,), index=index, length=ENDLESS)
            latents = self._made(section, prompt)
            self._known.add(span.start, span.stop)
            self._window.put(at, latents)
            at = span.stop
            self._window.keep(self.method, at)
            frames = np.concatenate([*opening, self._pixels(decoder.push(latents[None]))])
            opening.clear()
            now = time.perf_counter()
            yield LiveSection(index=index, prompt=prompt, frames=frames, seconds=now - begun)
            # What whoever takes the section does meanwhile is not its time.
            index, begun = index + 1, time.perf_counter()

    def _made(self, section: Section, prompt: str) -> torch.Tensor:
        return self._maker.make(section, Edit(), ((prompt, 1.0),), self._window, lambda done, steps: None)

    @torch.inference_mode()
    def _pixels(self, pixels: torch.Tensor) -> np.ndarray:
        return to_uint8(pixels[0]).cpu().numpy()

"""What can be asked of the service about one video, as the store keeps it, and the request it stands for.

Names of files are those that the service gave them, inside the job's own folder; models and LoRAs are names
that the service offers. Nothing that a client wrote becomes a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from framepack.errors import InputError, UnknownNameError
from framepack.generation.given import Keyframe
from framepack.generation.request import GenerateRequest
from framepack.models.lora import Lora

FILES = ("image", "from_clip", "to_clip")
MAX_KEYFRAMES = 64
MAX_LORAS = 8


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model of the service, and how it is loaded: as the options of ``framepack generate``. The device is
    the worker's."""

    model: str
    parts: tuple[str, ...] = ()
    memory: str = "full"
    dtype: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """As in ``GenerateRequest``; what is left out is the model's own choice.

    image, from_clip, to_clip: files in the job's folder. keyframes: pairs of seconds, None for the end, and
    a file there. loras: pairs of a name that the service offers and a weight.

    Raises:
        InputError: too many keyframes or LoRAs.
    """

    model: str = "bundled"
    prompt: str = ""
    negative_prompt: str = ""
    image: str | None = None
    keyframes: tuple[tuple[float | None, str], ...] = ()
    from_clip: str | None = None
    to_clip: str | None = None
    copy_clips: bool = False
    loop: bool = False
    loras: tuple[tuple[str, float], ...] = ()
    seconds: float | None = None
    frames: int | None = None
    size: str = "auto"
    method: str | None = None
    schedule: str | None = None
    untrained: bool = False
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    embedded_guidance: float | None = None
    solver: str | None = None
    step_cache: str | None = None

    def __post_init__(self) -> None:
        for name, given, most in (
            ("keyframes", self.keyframes, MAX_KEYFRAMES),
            ("LoRAs", self.loras, MAX_LORAS),
        ):
            if len(given) > most:
                raise InputError(f"{len(given)} {name}: at most {most}")

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, and the model."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {"model": self.model, **told}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Asked:
        pairs = {
            name: tuple((first, second) for first, second in told[name])
            for name in ("keyframes", "loras")
            if name in told
        }
        return cls(**{**told, **pairs})

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files in the job's folder that it speaks of."""
        named = [getattr(self, name) for name in FILES]
        return tuple(name for name in (*named, *(file for _, file in self.keyframes)) if name is not None)

    def request(
        self, folder: Path, offers: Mapping[str, Offer], loras: Mapping[str, Path]
    ) -> GenerateRequest:
        """What a worker carries out.

        Args:
            folder: the job's, with its files.

        Raises:
            InputError: a model or LoRA that is not offered, or a value that is out of range by itself.
        """
        offer = offers.get(self.model)
        if offer is None:
            raise UnknownNameError("model", self.model, list(offers))
        for name, _ in self.loras:
            if name not in loras:
                raise UnknownNameError("LoRA", name, list(loras))
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in FILES:
            own[name] = None if own[name] is None else folder / own[name]
        own["keyframes"] = tuple(Keyframe(at=at, picture=folder / file) for at, file in self.keyframes)
        own["loras"] = tuple(Lora(loras[name], weight) for name, weight in self.loras)
        return GenerateRequest(**own | asdict(offer))

    def with_prompt(self, prompt: str) -> Asked:
        return replace(self, prompt=prompt)

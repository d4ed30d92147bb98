"""The resolved configuration of a run: everything that decides its video, and nothing that does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from framepack.errors import InputError
from framepack.generation.hashing import hash_json
from framepack.generation.request import GenerateRequest
from framepack.generation.selection import Selection
from framepack.models.lora import digest
from framepack.models.shift import Shift, shift_to_json
from framepack.models.step_cache import StepCache
from framepack.planning.script import Script
from framepack.video.images import picture_digest

if TYPE_CHECKING:
    import torch

    from framepack.models.bundle import Bundle

SAMPLING_VERSION = 3
"""Counts up when a change of the code changes the latents that a configuration comes to."""


_ONLY_WHERE_SET = {"step_cache": None, "compiled": False, "attention": None, "devices": 1}
"""What the JSON has only where it is another value: runs without them keep their names and keys."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Two requests that come to the same configuration are the same run.

    Attributes:
        sampling_version: ``SAMPLING_VERSION`` of the code that made it.
        model_digest: sha256 of the model's weights, configurations and spec.
        method: ``Method.to_json``.
        frames, fps, height, width: of the finished video, pixels.
        seed, steps, guidance, solver: of sampling. embedded_guidance: of distilled models, else None.
        shift: of the noise levels, fixed or balanced. sigmas: the rule of the noise levels.
        prompt: as worded. cues: a prompt that changes with time, see ``Script.to_json``; None for one prompt.
        negative_prompt: as worded; empty where guidance leaves it unused.
        image: sha256 of the start image's pixels, cropped and resized; None for text-to-video.
        given: latent frame and sha256 of the pixels of all else that is given.
        loop: its end leads to its start. copied: clips are shown as they were given.
        loras: digest of the LoRA files and their weights; None without.
        device, dtype: other devices and precisions round differently.
        step_cache: ``StepCache.to_json``; None without. compiled, attention: other code rounds differently;
            None is the attention that framepack takes by itself.
        devices: how many compute each section together, which rounds differently too; where they only have
            its layers split among them, as one.
    """

    model_digest: str
    method: dict[str, Any]
    frames: int
    fps: float
    height: int
    width: int
    seed: int
    steps: int
    guidance: float
    solver: str
    shift: Shift
    prompt: str
    negative_prompt: str
    image: str | None
    device: str
    dtype: str
    embedded_guidance: float | None = None
    loras: str | None = None
    given: tuple[tuple[int, str], ...] = ()
    loop: bool = False
    copied: bool = False
    cues: list[dict[str, Any]] | None = None
    sigmas: str = "flow"
    step_cache: dict[str, Any] | None = None
    compiled: bool = False
    attention: str | None = None
    devices: int = 1
    sampling_version: int = SAMPLING_VERSION

    @property
    def job(self) -> str:
        """Short hash of all of it: the name of the run."""
        return hash_json(self.to_json(), 12)

    def to_json(self) -> dict[str, Any]:
        given = [list(each) for each in self.given]
        told = asdict(self) | {"shift": shift_to_json(self.shift), "given": given}
        left_out = [name for name, unset in _ONLY_WHERE_SET.items() if told[name] == unset]
        return {name: value for name, value in told.items() if name not in left_out}

    @property
    def script(self) -> Script:
        """The prompts by time."""
        return Script.of(self.prompt) if self.cues is None else Script.from_json(self.cues)

    def sampling(self) -> dict[str, Any]:
        """What every section is made with: part of each section's key.

        Length, prompt and picture are not in it: a section depends on them only through its own
        row of the plan, its prompt and its context.
        """
        elsewhere = {"frames", "fps", "seed", "prompt", "cues", "image", "given", "loop", "copied"}
        return {name: value for name, value in self.to_json().items() if name not in elsewhere}


def resolve(request: GenerateRequest, selection: Selection, bundle: Bundle) -> RunConfig:
    """The configuration that a request and its selection come to with a loaded model.

    Raises:
        InputError: a step cache that the model, or the way it was loaded, does not take.
    """
    spec, script = bundle.spec, selection.script
    changes = len(script.cues) > 1
    guidance = float(spec.guidance if request.guidance is None else request.guidance)
    cache = None
    if request.step_cache is not None:
        cache = StepCache.parse(request.step_cache).of(spec, bundle.mag_ratios)
        if bundle.compiled:
            raise InputError(
                f"step cache '{cache.kind}' and compiled blocks do not go together, for its hooks would have "
                "every section compiled anew: leave one of them out"
            )
    return RunConfig(
        model_digest=bundle.digest,
        method=selection.method.to_json(),
        frames=selection.timeline.frames,
        fps=selection.timeline.fps,
        height=selection.size[0],
        width=selection.size[1],
        seed=request.seed,
        steps=spec.steps if request.steps is None else request.steps,
        guidance=guidance,
        solver=request.solver or spec.solver,
        shift=spec.shift,
        prompt=str(script) if changes else script.cues[0].prompt,
        cues=script.to_json() if changes else None,
        negative_prompt="" if guidance == 1 else request.negative_prompt,
        image=None if selection.picture is None else picture_digest(selection.picture),
        devices=1 if bundle.devices else request.devices,
        device=bundle.device.type,
        dtype=dtype_name(bundle.transformer.dtype),
        embedded_guidance=(
            spec.embedded_guidance if request.embedded_guidance is None else request.embedded_guidance
        ),
        loras=digest(request.loras) if request.loras else None,
        given=tuple((each.at, each.digest) for each in selection.given if each.at or each.clip),
        loop=request.loop,
        copied=request.copy_clips and any(each.clip for each in selection.given),
        sigmas=spec.sigmas,
        step_cache=None if cache is None else cache.to_json(),
        compiled=bundle.compiled,
        attention=bundle.attention,
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

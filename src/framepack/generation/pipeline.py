"""The front door for Python: a model by name, called as diffusers' pipelines are."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from framepack.conditioning.embeds import Conditioning, GivenConditioner
from framepack.errors import InputError
from framepack.generation.decode import decode_frames
from framepack.generation.events import Event, Step
from framepack.generation.given import Keyframe
from framepack.generation.placement import load_placed, no_room
from framepack.generation.prepare import prepare, with_loras
from framepack.generation.request import GenerateRequest
from framepack.generation.run import PreparedRun, latents_of
from framepack.generation.settings import (
    OUTPUT_TYPES,
    RENAMED,
    OutputType,
    Picture,
    Settings,
    draw_seed,
    read_loras,
    read_picture,
    shown,
)
from framepack.models.attention import check_attention
from framepack.models.bundle import Bundle, compiled
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import check_given, move_companions
from framepack.models.lora import Lora
from framepack.models.source import resolve_model
from framepack.models.spec import ModelSpec
from framepack.models.step_cache import calibrating, check_stages
from framepack.planning.script import Script
from framepack.resources.policy import AUTO, FULL, SPLIT, Policy, find_policy


@dataclass(frozen=True, kw_only=True)
class FramePackOutput:
    """A finished video.

    Attributes:
        frames: by ``output_type``: a list of PIL images; ``np``, (F, H, W, 3) in [0, 1]; ``pt``,
            (F, 3, H, W) in [0, 1]; ``latent``, (C, N, h, w), untrimmed.
        fps: frames a second.
        warnings: one line each, for the user.
    """

    frames: Any
    fps: float
    warnings: tuple[str, ...]


class FramePackPipeline:
    """A loaded model and all that can be done with it.

        pipe = FramePackPipeline.from_pretrained("bundled")
        video = pipe(image="picture.png", prompt="the red ball moves left", num_frames=41).frames

    The same settings give the same latents as ``framepack generate``. It makes one video at a time: while a
    call or a stream is under way, whatever would change the model under it is refused with ``InputError``.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._busy = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path = "bundled",
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        parts: Sequence[str | Path] = (),
        memory: str = FULL,
        devices: int = 1,
    ) -> FramePackPipeline:
        """Load a model.

        Args:
            name_or_dir: ``bundled``, a model folder, a safetensors file or a hub id.
            torch_dtype: of the transformer; None is bfloat16 where the device computes in it, else float32.
            device: None takes CUDA, else MPS, else the CPU.
            revision: branch, tag or commit of a hub id.
            parts: folders or hub ids of what the model comes without, such as text encoders.
            memory: a policy, which says where weights lie and what they are stored in; `framepack estimate`
                tells which fit. Weights that are rounded for storage are another model.
            devices: GPUs that a policy which splits has; 1 is all that can be seen.

        Raises:
            UnknownNameError: no such model or policy. ModelError: it cannot be loaded. InputError: no such
                device, or a policy that it or the model cannot have or there is no room for.
        """
        name = str(name_or_dir) if revision is None else f"{name_or_dir}@{revision}"
        policy = _policy(memory, devices)
        source = resolve_model(name, [str(part) for part in parts])
        place = pick_device(None if device is None else str(device))
        dtype = torch_dtype or pick_dtype("auto", place)
        told = no_room(source, policy, place, dtype, devices)
        if told is not None:
            raise InputError(f"{told}: framepack estimate tells which policies fit")
        return cls(load_placed(source, policy, place, dtype, devices))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that ``from_pretrained`` loads; LoRAs on it are not part of it.

        Raises:
            InputError: weights that were rounded for storage, which is not what was loaded.
        """
        with self._alone():
            if any(weight.dtype.itemsize == 1 for weight in self.transformer.parameters()):
                raise InputError(
                    f"{self.spec.name}'s weights are rounded for storage: load it again with memory='full', "
                    "and save that"
                )
            bundle, _ = with_loras(self.bundle, ())
            try:
                bundle.save(Path(folder))
            finally:
                self.bundle, _ = with_loras(bundle, self.bundle.loras)

    # What it is ------------------------------------------------------------------------------------

    @property
    def spec(self) -> ModelSpec:
        """The model's numbers: frame rate, sizes, methods, defaults."""
        return self.bundle.spec

    @property
    def transformer(self) -> Any:
        """The packed transformer, a diffusers model."""
        return self.bundle.transformer

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self.bundle.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's weights."""
        return self.bundle.transformer.dtype

    def load_lora(self, *files: str | Path | Lora) -> list[str]:
        """Have the model act with these LoRA files (``FILE``, ``FILE:weight`` or ``Lora``), and no others.

        Returns:
            What of them was left out, one line each.

        Raises:
            InputError: no such file. ModelError: a LoRA of another model; the model is then as it was.
        """
        with self._alone():
            self.bundle, told = with_loras(self.bundle, read_loras(files))
        return told

    # Where its weights lie -------------------------------------------------------------------------

    def to(self, device: str | torch.device) -> FramePackPipeline:
        """Have the model compute on a device; text encoders are loaded there when they are needed.

        Raises:
            InputError: no such device, or a model whose memory policy moves its weights about.
        """
        place = pick_device(str(device))
        with self._alone():
            if self.bundle.execution is not None:
                raise InputError(
                    f"{self.spec.name}'s weights are where its memory policy has them: load it anew for "
                    f"'{place}'"
                )
            self.bundle.transformer.to(place)
            move_companions(self.bundle, place)
        return self

    # How it computes -------------------------------------------------------------------------------

    def compile_repeated_blocks(self) -> None:
        """Have PyTorch compile the transformer's blocks, each when it is first called; for GPUs.

        They round differently then: a run begun without is not resumed with them.
        """
        with self._alone():
            self.bundle = compiled(self.bundle)

    def set_attention_backend(self, name: str | None) -> None:
        """Compute attention with one of diffusers' backends; None is framepack's own choice.

        Raises:
            UnknownNameError: none that this machine has.
        """
        with self._alone():
            self.bundle = replace(self.bundle, attention=check_attention(name, self.device))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No call, stream or change of the model beside this one, which would share its LoRAs and weights."""
        if not self._busy.acquire(blocking=False):
            raise InputError(
                "this pipeline is making a video: let it end or close its stream, or load another pipeline"
            )
        try:
            yield
        finally:
            self._busy.release()

    # What it makes ---------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | Script = "",
        image: Picture | None = None,
        *,
        output_type: OutputType = "pil",
        on_event: Callable[[Event], None] = lambda event: None,
        **settings: Unpack[Settings],
    ) -> FramePackOutput:
        """Make a video in memory.

        Args:
            prompt: what happens; by time or by section as in ``planning.prompts``, or as a ``Script``.
            image: start picture, a file, PIL image or uint8 array (H, W, 3); without it, text-to-video.
            output_type: what ``frames`` of the result are.
            on_event: told of each step and finished section; an exception from it ends the call.
            settings: see ``Settings``.

        Raises:
            InputError: a value that cannot be used. ModelError: a LoRA of another model.
            TypeError: a setting that there is not.
        """
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output type '{output_type}': choose one of {', '.join(OUTPUT_TYPES)}")
        with self._alone():
            run, latents = self._made(prompt, image, settings, on_event)
            frames = latents[0]
            if output_type != "latent":
                frames = shown(np.stack([*self._decode(run, latents)]), output_type)
        return FramePackOutput(frames=frames, fps=run.config.fps, warnings=run.warnings)

    def calibrate_step_cache(
        self, prompt: str | Script = "", image: Picture | None = None, **settings: Unpack[Settings]
    ) -> tuple[float, ...]:
        """Measure how the model's residual changes from step to step, for ``step_cache="mag"``.

        A video is made as in a call, every step of it computed. Calls from now on have what was measured, and
        ``save_pretrained`` keeps it.

        Returns:
            magnitude ratios, one a step: means over sections and branches of guidance.

        Raises:
            InputError: a model that takes no step cache; or as in a call.
        """
        check_stages("mag", self.spec)
        rows: list[list[float]] = []
        with (
            self._alone(),
            calibrating(self.transformer, settings.get("num_inference_steps") or self.spec.steps) as ratios,
        ):

            def told(event: Event) -> None:
                if isinstance(event, Step) and event.step == event.steps - 1:
                    rows.extend(ratios())

            self._made(prompt, image, settings, told)
            found = tuple(round(ratio, 5) for ratio in np.mean(rows, axis=0).tolist())
            self.bundle = replace(self.bundle, mag_ratios=found)
        return found

    def _made(
        self,
        prompt: str | Script,
        image: Picture | None,
        settings: Settings,
        on_event: Callable[[Event], None],
    ) -> tuple[PreparedRun, torch.Tensor]:
        """The run of a call and its latents; the folder it was made in is gone."""
        with tempfile.TemporaryDirectory(prefix="framepack-") as folder:
            request, bundle = self._request(prompt, image, settings)
            run = prepare(replace(request, out=Path(folder) / "video.mp4"), bundle)
            try:
                return run, latents_of(run, on_event)
            finally:
                with_loras(run.bundle, self.bundle.loras)

    def stream(
        self,
        prompt: str | Script = "",
        image: Picture | None = None,
        *,
        out: str | Path,
        workdir: str | Path | None = None,
        overwrite: bool = False,
        **settings: Unpack[Settings],
    ) -> Iterator[Event]:
        """Make a video file and yield what happens, from ``Started`` to ``Finished``.

        Closing the iterator stops the run; the same call resumes it.

        Args:
            prompt, image, settings: as in a call.
            out: the MP4. workdir: folder of finished sections; one named by the run beside ``out``.
            overwrite: replace a file of another origin at ``out``.

        Raises:
            InputError, ModelError, TypeError: as in a call.
            OutputError, RunConflictError: places that cannot be used.
        """
        with self._alone():
            request, bundle = self._request(prompt, image, settings)
            place = None if workdir is None else Path(workdir)
            run = prepare(replace(request, out=Path(out), workdir=place, overwrite=overwrite), bundle)
            try:
                yield from run.events()
            finally:
                with_loras(run.bundle, self.bundle.loras)

    def _request(
        self, prompt: str | Script, image: Picture | None, settings: Settings
    ) -> tuple[GenerateRequest, Bundle]:
        """What is asked for, and the model with given embeddings in the place of its conditioner."""
        if unknown := set(settings) - set(Settings.__annotations__):
            names = ", ".join(Settings.__annotations__)
            raise TypeError(f"there is no setting {', '.join(sorted(unknown))}: choose among {names}")
        asked: dict[str, Any] = {**settings}
        height, width = asked.pop("height", None), asked.pop("width", None)
        if (height is None) != (width is None):
            raise InputError(f"height {height} and width {width}: give both, or neither")
        given: dict[str, Conditioning] = {}
        said: dict[str, Any] = {"prompt": prompt, "negative_prompt": asked.pop("negative_prompt", "")}
        for name, text in said.items():
            embeds = asked.pop(f"{name}_embeds", None)
            if embeds is not None:
                if text:
                    raise InputError(f"{name} and {name}_embeds were both given: give one")
                embeds = embeds if isinstance(embeds, Conditioning) else Conditioning(prompt=embeds)
                check_given(self.bundle, embeds, f"{name}_embeds")
                said[name] = f"embeds:{embeds.digest()}"
                given[said[name]] = embeds
        bundle = self.bundle
        if given:
            bundle = replace(bundle, conditioner=GivenConditioner(bundle.conditioner, given))
        generator, loras = asked.pop("generator", None), asked.pop("loras", None)
        seed = asked.pop("seed", None)
        if seed is None:
            seed = 0 if generator is None else draw_seed(generator)
        last = read_picture(asked.pop("last_image", None))
        ends = () if last is None else (Keyframe(picture=last),)
        for name in ("from_clip", "to_clip"):
            if asked.get(name) is not None:
                asked[name] = Path(asked[name])
        return GenerateRequest(
            **said,
            keyframes=(*asked.pop("keyframes", ()), *ends),
            image=read_picture(image),
            size="auto" if height is None else f"{width}x{height}",
            seed=seed,
            loras=self.bundle.loras if loras is None else read_loras(loras),
            **{RENAMED.get(name, name): value for name, value in asked.items()},
        ), bundle

    @staticmethod
    def _decode(run: PreparedRun, latents: torch.Tensor) -> Iterator[np.ndarray]:
        decoded = decode_frames(run.bundle.codec, lambda at: latents[:, :, list(at)], run.plan.shown)
        return run.shown(decoded)


def _policy(memory: str, devices: int) -> Policy:
    """Of a pipeline, which knows of no video yet, and stays in one process."""
    if memory == AUTO:
        raise InputError(
            "memory 'auto' needs a video to choose for: ask framepack estimate, and give the policy it names"
        )
    policy = find_policy(memory)
    if devices > 1 and policy.placement != SPLIT:
        raise InputError(
            f"{devices} devices: a pipeline has one with memory '{memory}': choose 'split', or framepack "
            "generate --devices"
        )
    return policy

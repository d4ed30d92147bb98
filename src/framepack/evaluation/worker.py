"""What one process does for a suite, task by task. A task that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from framepack.codecs.frame import FrameAutoencoder
from framepack.data.fingerprint import module_digest
from framepack.data.latents import build_cache
from framepack.evaluation.clips import Asked, through_codec
from framepack.evaluation.folder import TOLD, TRAINED, row_folder
from framepack.evaluation.revisit import revisits
from framepack.evaluation.score import Scorer, subject_of
from framepack.evaluation.suite import CLIPS, FORGOTTEN, REFERENCE, TAUGHT, Suite, is_world, train_config
from framepack.generation.manifest import write_file
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.models.bundle import Bundle
from framepack.models.device import pick_device, pick_dtype
from framepack.models.loading import load_bundle
from framepack.models.source import resolve_model
from framepack.recipes.rows import Row
from framepack.training.config import TrainConfig
from framepack.training.loop import train
from framepack.video.io import write_video

Tell = Callable[[int, int], None]
"""(done, of all) of a task."""


@dataclass(frozen=True)
class Task:
    """kind: ``encode`` a part of the clips to learn from, ``train`` a row, ``make`` some of its videos.

    of: for ``make``, `CLIPS` or `REVISITS`; numbers: which of them. For ``encode``, part of how many parts.
    """

    kind: str
    row: str = ""
    of: str = ""
    numbers: tuple[int, ...] = ()


class Worker:
    """Carries out tasks of a suite in ``out`` on one device."""

    def __init__(self, suite: Suite, out: Path, device: str) -> None:
        self.suite, self.out, self.device = suite, out, pick_device(device)
        self._held: tuple[Path | None, Bundle] | None = None

    def do(self, task: Task, tell: Tell) -> None:
        if task.kind == "encode":
            self._encode(task, tell)
        elif task.kind == "train":
            self._train(self.suite.row(task.row), tell)
        else:
            asked = self.clips if task.of == CLIPS else self.revisits
            for done, number in enumerate(task.numbers):
                tell(done, len(task.numbers))
                self._clip(task.row, task.of, asked[number], number)

    # Training ------------------------------------------------------------------------------------------

    @cached_property
    def codec_folder(self) -> Path:
        return resolve_model(self.suite.model).complete().parts["codec"]

    def config(self, row: Row) -> TrainConfig:
        base = self._bundle(None)
        config = train_config(self.suite, row, base, module_digest(base.codec))
        return replace(config, device=str(self.device))

    def _encode(self, task: Task, tell: Tell) -> None:
        part, parts = task.numbers
        config, codec = self.config(self.suite.rows[0]).cache, self._bundle(None).codec
        assert isinstance(codec, FrameAutoencoder)
        build_cache(self.out / "cache", codec, config, rank=part, world_size=parts, on_shard=tell)

    def _train(self, row: Row, tell: Tell) -> None:
        folder = self.folder(row.name) / "train"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "cache").exists():
            (folder / "cache").symlink_to("../../../cache", target_is_directory=True)
        with _Spent(folder / "cost.json"):
            train(self.config(row), folder, self.codec_folder, on_step=tell)
        (folder / TRAINED).touch()
        # As large as the model many times over, and of use to a training that goes on alone.
        (folder / "state.safetensors").unlink(missing_ok=True)

    # Videos --------------------------------------------------------------------------------------------

    @cached_property
    def clips(self) -> list[Asked]:
        return self.suite.clips()

    @cached_property
    def revisits(self) -> list[Asked]:
        return self.suite.revisits()

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.suite.metrics, str(self.device))

    def folder(self, row: str) -> Path:
        return row_folder(self.out, row)

    def _clip(self, name: str, of: str, asked: Asked, number: int) -> None:
        """Make a clip if it is not there, and what of its scores is missing."""
        video = self.folder(name) / of / f"{asked.name}.mp4"
        told = self.folder(name) / TOLD[of] / f"{asked.name}.json"
        told.parent.mkdir(parents=True, exist_ok=True)
        record = json.loads(told.read_text()) if told.exists() else {}
        if not video.exists():
            video.parent.mkdir(parents=True, exist_ok=True)
            begun = time.perf_counter()
            record = {"context_tokens": self._make(name, asked, number, video)}
            record["seconds"] = time.perf_counter() - begun
        if of == CLIPS:
            record["values"] = self.scorer.missing(lambda: subject_of(video, asked), record.get("values", {}))
        elif "error" not in record:
            assert asked.scene is not None
            found = revisits(asked.scene, subject_of(video, asked).frames, clip=asked.name)
            record |= {"away": found.away, "error": found.error, "at": found.at}
        write_file(told, (json.dumps(record) + "\n").encode())

    def _make(self, name: str, asked: Asked, number: int, video: Path) -> int:
        """Write a row's video of a clip; returns the tokens of its context."""
        if name in (REFERENCE, FORGOTTEN):
            assert asked.scene is not None
            scene = asked.scene if name == REFERENCE else replace(asked.scene, aside="")
            drawn = scene.render(range(self.suite.frames), *self.suite.size)
            shown = through_codec(self._bundle(None), drawn)
            write_video(video, iter(shown), self._bundle(None).spec.fps)
            return 0
        row = self.suite.row(name)
        bundle = self._bundle(self._weights(row))
        spec = replace(bundle.spec, methods={TAUGHT: row.method}, default_method=TAUGHT)
        height, width = self.suite.size
        work = video.parent / f".{asked.name}"
        request = GenerateRequest(
            prompt=asked.prompt,
            image=None if asked.picture is None else Image.fromarray(asked.picture),
            frames=self.suite.frames,
            size=f"{width}x{height}",
            method=TAUGHT,
            untrained=True,
            seed=1000 * self.suite.seed + number,
            steps=self.suite.budget.steps,
            # Of the model's own guidance half of the time goes into the branch without the prompt.
            guidance=1.0 if is_world(bundle) else None,
            out=video,
            workdir=work,
        )
        run = prepare(request, replace(bundle, spec=spec))
        run.carry_out(lambda event: None)
        shutil.rmtree(work)
        run.places.config.unlink(missing_ok=True)  # the same stands in the video
        return run.context_tokens

    def _weights(self, row: Row) -> Path | None:
        """The model that a row generates with; None is the checkpoint."""
        return self.folder(row.weights or row.name) / "train" / "model" if self.suite.trains else None

    def _bundle(self, folder: Path | None) -> Bundle:
        """One model is held at a time, beside the checkpoint."""
        if folder is None:
            return self._base
        if self._held is None or self._held[0] != folder:
            dtype = pick_dtype("auto", self.device)
            self._held = folder, load_bundle(str(folder), self.device, dtype)
        return self._held[1]

    @cached_property
    def _base(self) -> Bundle:
        return load_bundle(self.suite.model, self.device, pick_dtype("auto", self.device))


class _Spent:
    """Adds the seconds of its context to ``{"seconds": ...}`` in a file, also where it was stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        before = json.loads(self.path.read_text())["seconds"] if self.path.exists() else 0.0
        spent = before + time.perf_counter() - self.begun
        write_file(self.path, json.dumps({"seconds": spent}).encode())

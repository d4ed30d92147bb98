"""What a packed model is: the numbers that planning and sampling need before any weight is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framepack.errors import ModelError, UnknownNameError, UntrainedMethodError
from framepack.packing.schedule import Kernel, PackingSchedule
from framepack.planning.method import METHODS, Method, named_method

SPEC_FILE = "framepack.json"
BUNDLED = Path(__file__).parent / "bundled"


def model_folder(name: str) -> Path:
    """The folder that a name or path stands for.

    Raises:
        UnknownNameError: neither ``bundled`` nor a folder with a ``framepack.json``.
    """
    folder = BUNDLED if name == "bundled" else Path(name)
    if not (folder / SPEC_FILE).is_file():
        raise UnknownNameError("model", name, ["bundled", f"a folder with {SPEC_FILE}"])
    return folder


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One packed model.

    Args:
        name, family: for people, and the key of the classes that load it.
        base_kernel: patchify kernel of the noisy target on the latent grid.
        latent_channels, spatial_stride, temporal_stride: of the codec.
        fps: frames per second the model was trained at.
        buckets: (height, width) in pixels.
        methods: those it was trained for, by friendly name.
        default_method: one of them.
        steps, guidance: defaults of sampling. solver: a name of ``sampling.SOLVERS``.
        shift: a fixed flow shift; None for the balanced rule.
    """

    name: str
    family: str
    base_kernel: Kernel
    latent_channels: int
    spatial_stride: int
    temporal_stride: int
    fps: float
    buckets: tuple[tuple[int, int], ...]
    methods: dict[str, Method]
    default_method: str
    steps: int
    guidance: float
    solver: str
    shift: float | None

    def method(self, wanted: str | None, schedule: str | None = None, *, untrained: bool = False) -> Method:
        """The method asked for by name or in the paper's notation, with its schedule replaced if given.

        Raises:
            UnknownNameError, NotationError: neither a name nor a string that parses.
            UntrainedMethodError: the checkpoint was not trained for it, and ``untrained`` is off.
        """
        wanted = wanted or self.default_method
        trained = self.methods[self.default_method]
        if wanted in self.methods:
            method = self.methods[wanted]
        elif wanted in METHODS:
            method = named_method(wanted, base=self.base_kernel, section_size=trained.section_size)
        elif "_" not in wanted:
            raise UnknownNameError("method", wanted, list(METHODS))
        else:
            method = Method.parse(wanted)
            same = [m for m in self.methods.values() if str(m) == str(method) and m.order == method.order]
            method = same[0] if same else method
        if schedule is not None:
            method = method.with_schedule(PackingSchedule.from_spec(schedule, base=self.base_kernel))
        if method not in self.methods.values() and not untrained:
            names = ", ".join(f"{name} ({m})" for name, m in self.methods.items())
            raise UntrainedMethodError(
                f"method '{method}' ({method.order}): {self.name} was trained for {names}; "
                "choose one of these, or add --untrained to try it all the same"
            )
        return method

    def save(self, folder: Path) -> None:
        data = asdict(self) | {"methods": {name: m.to_json() for name, m in self.methods.items()}}
        (folder / SPEC_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ModelSpec:
        """Read ``framepack.json`` of a model folder.

        Raises:
            ModelError: absent, or not one of ours.
        """
        try:
            data: dict[str, Any] = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
            data["methods"] = {name: Method.from_json(m) for name, m in data["methods"].items()}
            data["base_kernel"] = tuple(data["base_kernel"])
            data["buckets"] = tuple(tuple(size) for size in data["buckets"])
            return cls(**data)
        except FileNotFoundError:
            raise ModelError(f"'{folder}' has no {SPEC_FILE}: give a folder saved by framepack") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"'{folder / SPEC_FILE}' cannot be read ({error}): save the model again"
            ) from error

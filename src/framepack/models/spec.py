"""What a packed model is: the numbers that planning and sampling need before any weight is loaded."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framepack.errors import InputError, ModelError, UnknownNameError, UntrainedMethodError
from framepack.models.pyramid import Pyramid
from framepack.models.shift import Balance, Shift, shift_from_json, shift_to_json
from framepack.packing.schedule import Kernel, PackingSchedule
from framepack.planning import records
from framepack.planning.method import METHODS, Method, method_from_spec

SPEC_FILE = "framepack.json"
BUNDLED = Path(__file__).parent / "bundled"
FAMILIES = ("wan", "hunyuan_video")
DECODES = ("continuous", "section")
MAX_KERNEL_VOLUME = 4096
"""Latent pixels to a token, 16 times those of the paper's coarsest kernel; its weights grow with them."""


def _whole(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} {value!r} must be a whole number of at least 1")
    return value


def _number(what: str, value: object, *, zero: bool) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (fits and (value > 0 or (zero and value == 0))):  # type: ignore[operator]
        raise InputError(f"{what} {value!r} must be a number {'of at least' if zero else 'above'} 0")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One packed model.

    Args:
        name: for people. family: one of `FAMILIES`, the architecture.
        base_kernel: patchify kernel of the noisy target on the latent grid.
        latent_channels, spatial_stride, temporal_stride: of the codec.
        fps: frames per second the model was trained at.
        buckets: (height, width) in pixels.
        methods: those it was trained for, by friendly name.
        default_method: one of them.
        steps, guidance: defaults of sampling. solver: a name of ``sampling.SOLVERS``.
        embedded_guidance: default scale of models with distilled guidance, else None.
        shift: a fixed flow shift, or the anchors of a balanced one.
        sigmas: the rule of its noise levels, a name of ``sampling.SIGMAS``.
        decode: ``continuous``, all latents are one video for the codec; ``section``, those of each section
            are one by themselves.
        held_start: noise levels (low, high). A start picture is seen in the history as the last latent of a
            section in which it is held, and both it and that are noised by a level between these; None
            shows it as it is.
        pyramid: the stages of models whose solver is ``pyramid``, else None.

    Raises:
        InputError: a value that no model can have, or values that do not go together.
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
    shift: Shift
    embedded_guidance: float | None = None
    sigmas: str = "flow"
    decode: str = "continuous"
    held_start: tuple[float, float] | None = None
    pyramid: Pyramid | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UnknownNameError("family", str(self.family), FAMILIES)
        if self.decode not in DECODES:
            raise UnknownNameError("decode", str(self.decode), DECODES)
        for what in ("latent_channels", "spatial_stride", "temporal_stride", "steps"):
            _whole(what, getattr(self, what))
        for what in ("fps", "guidance", *(() if isinstance(self.shift, Balance) else ("shift",))):
            _number(what, getattr(self, what), zero=what == "guidance")
        if len(self.base_kernel) != 3 or self.base_kernel[0] != 1:
            raise InputError(f"base_kernel {self.base_kernel} must be three sizes, the one in time 1")
        for size in self.base_kernel:
            _whole("base_kernel", size)
        if not self.buckets:
            raise InputError("buckets must hold at least one size")
        for bucket in self.buckets:
            if len(bucket) != 2:
                raise InputError(f"bucket {bucket} must be a height and a width")
            for side in bucket:
                if _whole("bucket", side) % self.spatial_stride:
                    raise InputError(f"bucket {bucket} must be of multiples of {self.spatial_stride}")
        held = self.held_start
        if held is not None and not (len(held) == 2 and 0 <= held[0] <= held[1] < 1):
            raise InputError(f"held_start {held} must be two noise levels from 0 to below 1")
        if (self.solver == "pyramid") != (self.pyramid is not None):
            raise InputError(
                f"solver '{self.solver}': it is 'pyramid' where there is a pyramid, and only there"
            )
        if self.default_method not in self.methods:
            raise UnknownNameError("default_method", str(self.default_method), tuple(self.methods))
        for method in self.methods.values():
            self._check_kernels(method)

    def _check_kernels(self, method: Method) -> None:
        """Refuse a method of whose kernels this model can have none."""
        for kernel in method.schedule.kernels:
            if any(size % unit for size, unit in zip(kernel, self.base_kernel, strict=True)):
                raise InputError(
                    f"kernel {kernel} of '{method}' is no multiple of {self.name}'s base kernel "
                    f"{self.base_kernel}: choose another schedule"
                )
            if math.prod(kernel) > MAX_KERNEL_VOLUME:
                raise InputError(
                    f"kernel {kernel} of '{method}' has {math.prod(kernel):,} latent pixels to a token, "
                    f"above {MAX_KERNEL_VOLUME:,}: choose another schedule"
                )

    def clip(self, method: Method) -> int | None:
        """Latent frames that the codec takes as a video of their own, see `Timeline`."""
        return method.section_size if self.decode == "section" else None

    def method(self, wanted: str | None, schedule: str | None = None, *, untrained: bool = False) -> Method:
        """The method asked for by name or in the paper's notation, with its schedule replaced if given.

        Raises:
            UnknownNameError, NotationError: neither a name nor a string that parses.
            InputError: kernels that this model cannot have.
            UntrainedMethodError: the checkpoint was not trained for it, and ``untrained`` is off.
        """
        wanted = wanted or self.default_method
        trained = self.methods[self.default_method]
        if wanted in self.methods:
            method = self.methods[wanted]
        else:
            method = method_from_spec(wanted, self.base_kernel, trained.section_size, max_gap=trained.max_gap)
            if wanted not in METHODS:  # a string says less than a name: what it leaves out is as trained
                same = [m for m in self.methods.values() if str(m) == str(method) and m.order == method.order]
                method = same[0] if same else method
        if schedule is not None:
            method = method.with_schedule(PackingSchedule.from_spec(schedule, base=self.base_kernel))
        self._check_kernels(method)
        if method not in self.methods.values() and not untrained:
            names = ", ".join(f"{name} ({m})" for name, m in self.methods.items())
            raise UntrainedMethodError(
                f"method '{method}' ({method.order}): {self.name} was trained for {names}; "
                "choose one of these, or add --untrained to try it all the same"
            )
        return method

    def save(self, folder: Path) -> None:
        methods = {name: method.to_json() for name, method in self.methods.items()}
        data = asdict(self) | {"methods": methods, "shift": shift_to_json(self.shift)}
        (folder / SPEC_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ModelSpec:
        """Read ``framepack.json`` of a model folder.

        Raises:
            ModelError: absent, or not one of ours.
        """
        try:
            data: dict[str, Any] = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
            methods = records.mapping(data["methods"], "methods")
            data["methods"] = {
                name: Method.from_json(records.mapping(m, "method")) for name, m in methods.items()
            }
            data["base_kernel"] = tuple(data["base_kernel"])
            data["buckets"] = tuple(tuple(size) for size in data["buckets"])
            data["shift"] = shift_from_json(data["shift"])
            if data.get("held_start") is not None:
                data["held_start"] = tuple(data["held_start"])
            if data.get("pyramid") is not None:
                data["pyramid"] = Pyramid.from_json(records.mapping(data["pyramid"], "pyramid"))
            return cls(**data)
        except FileNotFoundError:
            raise ModelError(f"'{folder}' has no {SPEC_FILE}: give a folder saved by framepack") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"'{folder / SPEC_FILE}' cannot be read ({error}): save the model again"
            ) from error

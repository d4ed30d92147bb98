"""A run on several devices: processes beside this one, each with the transformer on a device of its own.

This process plans, encodes, stores and decodes by itself. For each section it tells the others all that
sampling is given, and every process samples the whole of it. In each call of the transformer they share the
tokens and put the result together again, so that all have the same latents at every step: nothing else has to
be told on the way, and nothing can get out of step.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from framepack.errors import FramePackError, InputError, LostProcessError, first_line, ran_out
from framepack.generation import helper
from framepack.generation.clock import Clock, peak_memory
from framepack.models.loading import load_on
from framepack.models.lora import Lora, apply_loras
from framepack.models.parallel import check_shareable, shared, shares_attention
from framepack.models.source import Source, resolve_model
from framepack.packing.schedule import Kernel
from framepack.sampling.section import sample_section
from framepack.sampling.solvers import Solver

if TYPE_CHECKING:
    from framepack.generation.run import PreparedRun

PATIENCE = timedelta(days=1)
"""How long a process waits for the others in a collective; those that die are found otherwise."""
GRACE = 20.0
"""Seconds from the death of a process to the end of all, where nothing else has ended them: NCCL waits on."""
_IMPORTED = (helper.__name__, __name__, "framepack.models.wan", "framepack.models.hunyuan_video")

MakeSolver = Callable[[], Solver]
OnStep = Callable[[int, int], None]


class Sample(Protocol):
    """See ``sample``."""

    def __call__(
        self, model: Any, make_solver: MakeSolver, given: Mapping[str, Any], on_step: OnStep
    ) -> torch.Tensor: ...


def sample(
    model: Any, make_solver: MakeSolver, given: Mapping[str, Any], on_step: OnStep = lambda done, steps: None
) -> torch.Tensor:
    """``sample_section`` with the solver that ``make_solver`` makes, and all else in ``given``."""
    return sample_section(model, solver=make_solver(), on_step=on_step, **given)


def check_devices(count: int, device: torch.device, source: Source, attention: str | None = None) -> None:
    """See that a model can be sampled on so many devices; nothing is loaded.

    Args:
        attention: backend that was asked for.

    Raises:
        InputError: more than there are, of a kind that is alone, or a model that cannot be shared.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or dist.is_initialized():
        raise InputError(
            f"{count} devices in a process that is one of several: framepack starts the others itself, start "
            "it without torchrun"
        )
    if device.type not in ("cuda", "cpu"):
        raise InputError(f"several processes cannot share device '{device.type}': use cuda or cpu")
    if device.index is not None:
        raise InputError(f"device '{device}' is one, not {count}: give --device {device.type}")
    there, what = torch.cuda.device_count(), "GPUs"
    if device.type == "cpu":
        there, what = os.cpu_count() or 1, "CPU cores"
    if count > there:
        raise InputError(f"{count} devices: this machine has {there} {what}: use at most {there}")
    if attention is not None and not shares_attention(attention):
        raise InputError(f"attention '{attention}' cannot be shared by {count} devices: leave it out")
    check_shareable(source, count)


@contextmanager
def sampling(job: PreparedRun, clock: Clock) -> Iterator[Sample]:
    """What samples a run's sections: this process, or as many as it was configured for.

    ``clock`` has the memory that the others took, afterwards.
    """
    if job.config.devices == 1:
        yield sample
        return
    assert job.request is not None
    transformer = job.bundle.transformer
    task = Task(
        model=job.request.model,
        parts=job.request.parts,
        device=job.bundle.device.type,
        dtype=transformer.dtype,
        kernels=tuple(tuple(kernel) for kernel in transformer.config.context_kernels),  # JSON has lists
        loras=job.bundle.loras,
        count=job.config.devices,
        threads=max(1, torch.get_num_threads() // job.config.devices),
    )
    with Devices(task) as devices:
        yield devices.sample
    clock.other_peaks = devices.peaks


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process has to know before the first section.

    Attributes:
        model, parts: of the request. kernels: all that the transformer has. loras: those it acts with.
        device: its type. count: of processes. threads: of each, on CPUs.
    """

    model: str
    parts: tuple[str, ...]
    device: str
    dtype: torch.dtype
    kernels: tuple[Kernel, ...]
    loras: tuple[Lora, ...]
    count: int
    threads: int

    def transformer(self, rank: int) -> Any:
        """The transformer on the device of process ``rank``, as the first process has it."""
        source = resolve_model(self.model, self.parts).complete()
        transformer = load_on(source, self.device_of(rank), self.dtype)
        transformer.add_kernels(self.kernels)
        if self.loras:
            apply_loras(transformer, self.loras)
        return transformer

    def device_of(self, rank: int) -> torch.device:
        return torch.device(self.device, rank) if self.device == "cuda" else torch.device(self.device)

    @contextmanager
    def joined(self, rank: int, model: Any, meeting: Path) -> Iterator[None]:
        """Process ``rank`` with the others, who meet at a file; ``model`` shares its tokens with theirs."""
        device, cuda = self.device_of(rank), self.device == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        # Sizes are told on the CPU, which waits for no GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.FileStore(str(meeting), self.count),
            rank=rank,
            world_size=self.count,
            timeout=PATIENCE,
        )
        try:
            with shared(model, device), nullcontext() if cuda else _threads(self.threads):
                yield
        except BaseException:
            _leave(abort=cuda)
            raise
        _leave(abort=False)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes of one CPU have its cores together."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _leave(*, abort: bool) -> None:
    """``abort``: what was begun with a process that is gone would be waited for without end."""
    if abort:
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


class Devices:
    """The processes of one run; the others are started when the first section is to be sampled.

    To be entered; on the way out all others end, and ``peaks`` has the most bytes that each has held. One
    that ends before takes all with it: by a ``LostProcessError`` here, or, where this process waits for it
    without end, by the end of this process, which then says the same on standard error.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._others: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
        self._over = threading.Event()
        self._open = ExitStack()
        self._told: dict[int, tuple[str, bool]] = {}
        self.peaks: tuple[int, ...] = ()

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._over.set()
        for process, pipe in self._others:
            with suppress(OSError):
                if kind is None:
                    pipe.send_bytes(b"")
                else:
                    process.kill()
        try:
            self._open.__exit__(kind, *rest)  # type: ignore[arg-type]
        finally:
            if kind is None:
                with suppress(OSError, EOFError):
                    self.peaks = tuple(pipe.recv() for _, pipe in self._others)
            for process, pipe in self._others:
                process.join()
                pipe.close()

    def sample(
        self, model: Any, make_solver: MakeSolver, given: Mapping[str, Any], on_step: OnStep
    ) -> torch.Tensor:
        """As ``sample``, in all processes; latents and steps are those of this one.

        Raises:
            LostProcessError: another process ended. MemoryError: its memory ran out.
        """
        told = io.BytesIO()
        torch.save((make_solver, dict(given)), told)
        try:
            if not self._others:
                self._start(model)
            for _, pipe in self._others:
                pipe.send_bytes(told.getbuffer())
            return sample(model, make_solver, given, on_step)
        except (RuntimeError, OSError, EOFError) as error:
            if not isinstance(error, FramePackError) and not ran_out(error):
                self._blame(error)
            raise

    def _start(self, model: Any) -> None:
        folder = Path(tempfile.mkdtemp(prefix="framepack-"))
        self._open.callback(shutil.rmtree, folder, ignore_errors=True)
        # A server that has imported PyTorch starts processes at once; once CUDA was looked at, none can fork.
        server = self.task.device == "cpu" and "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if server else "spawn")
        if server:
            context.set_forkserver_preload([*_IMPORTED])
        for rank in range(1, self.task.count):
            here, there = context.Pipe()
            process = context.Process(
                target=helper.help_out, args=(self.task, rank, there, folder / "meeting"), daemon=True
            )
            process.start()
            there.close()
            self._others.append((process, here))
        threading.Thread(target=self._watch, daemon=True).start()
        for rank, (_, pipe) in enumerate(self._others, 1):
            told = pipe.recv()
            if told is not None:
                self._told[rank] = told
                raise RuntimeError("blamed on that process")
        self._open.enter_context(self.task.joined(0, model, folder / "meeting"))

    def _blame(self, error: Exception) -> None:
        """Raise what the first process that has ended told; return where none has."""
        wait([process.sentinel for process, _ in self._others], timeout=5.0)
        lost = self._lost()
        if lost is not None:
            raise lost from error

    def _lost(self) -> LostProcessError | MemoryError | None:
        """What happened to those that are not there any more; None where all are."""
        found: list[tuple[bool, LostProcessError | MemoryError]] = []
        for rank, (process, pipe) in enumerate(self._others, 1):
            if process.is_alive():
                continue
            with suppress(OSError, EOFError):
                while pipe.poll():
                    self._told[rank] = pipe.recv()
            line, short = self._told.get(rank, (f"exit code {process.exitcode}", False))
            if short:
                return MemoryError(f"out of memory in process {rank}: {line}")
            lost = LostProcessError(
                f"process {rank} of devices 0 to {self.task.count - 1} ended ({line}): what is finished is "
                "kept, and the same command goes on from there"
            )
            # Of several, one that was killed: the others told that they miss it.
            found.append(((process.exitcode or 0) >= 0, lost))
        return min(found, key=lambda each: each[0])[1] if found else None

    def _watch(self) -> None:
        """End this process if another has ended and nothing else did it."""
        wait([process.sentinel for process, _ in self._others])
        if not self._over.wait(GRACE):
            print(f"error: {self._lost()}", file=sys.stderr, flush=True)
            os._exit(2)


def serve(task: Task, rank: int, pipe: Connection, meeting: Path) -> None:
    """A process beside the first: load, tell that it has, and sample what it is given until nothing comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one ends all
    helper.end_with_parent()
    try:
        model = task.transformer(rank)
        pipe.send(None)
        with task.joined(rank, model, meeting):
            places = {"cuda:0": f"cuda:{rank}"}
            while told := pipe.recv_bytes():
                make_solver, given = torch.load(io.BytesIO(told), map_location=places, weights_only=False)
                sample(model, make_solver, given)
            pipe.send(peak_memory(task.device_of(rank)))
    except BaseException as error:
        with suppress(OSError):
            pipe.send((first_line(error), ran_out(error)))
        os._exit(1)

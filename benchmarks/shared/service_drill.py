"""A service under load whose processes are killed: what is asked of it over HTTP, and what came of it."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from framepack.errors import FramePackError, InputError
from framepack.serving.asked import Asked
from framepack.serving.config import ServiceConfig
from framepack.serving.jobs import ENDED, Job, NewJob, Status
from framepack.serving.places import ServiceFolder
from framepack.serving.store import JobStore
from framepack.serving.worker import Worker
from framepack.video.io import read_video

PROMPTS = (
    "A red heart moves right over green hills.",
    "A blue star moves up over snow.",
    "A yellow circle moves left over lavender fields.",
)
PAUSE = 0.1
PATIENCE = 600.0
"""Seconds without a job that ends, after which something is wrong."""
HASTE = 0.5
"""Seconds at most from when a kill is due to the kill."""


class DrillError(FramePackError):
    """A service that did not do what it was asked."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """jobs from clients, and how often workers and the server are killed meanwhile.

    seconds, steps: of each video. seed: of the kills, and of the first video. status_rate: status calls a
    second, beside all else.
    """

    jobs: int = 200
    clients: int = 20
    worker_kills: int = 20
    server_kills: int = 3
    workers: int = 1
    seconds: float = 1.5
    steps: int = 1
    seed: int = 8
    status_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.worker_kills + self.server_kills > self.jobs:
            raise InputError(f"{self.worker_kills + self.server_kills} kills of {self.jobs} jobs: one a job")

    def asked(self, number: int) -> dict[str, Any]:
        body = {"seconds": self.seconds, "steps": self.steps, "guidance": 1.0, "seed": self.seed + number}
        return {"prompt": PROMPTS[number % len(PROMPTS)], **body}


@dataclass(kw_only=True)
class Outcome:
    """statuses: of the jobs, by how they ended. twice, missing: requests with more than one, and no job.
    unplayable: videos of other than the frames asked for. changed: jobs of other latents than undisturbed.
    attempts: most of one job. asked_again: calls that a killed server did not answer.
    waits: seconds of each status call.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    twice: int = 0
    missing: int = 0
    unplayable: int = 0
    changed: int = 0
    attempts: int = 0
    worker_kills: int = 0
    server_kills: int = 0
    asked_again: int = 0
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def right(self) -> bool:
        wrong = self.twice + self.missing + self.unplayable + self.changed
        return set(self.statuses) == {Status.COMPLETED.value} and not wrong

    def wait(self, share: float) -> float:
        """Seconds within which this share of the status calls were answered; NaN of none."""
        ordered = sorted(self.waits)
        return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


class ServerProcess:
    """``framepack serve`` with workers of its own, started again wherever it was killed."""

    def __init__(self, drill: Drill, data: Path, store: str, tokens: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = data.parent / "server.log"
        options = {"port": self.port, "data": data, "store": store, "workers": drill.workers, "threads": 1}
        options["max-queued"] = drill.jobs
        told = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._command = [sys.executable, "-c", "from framepack.cli import main; main()", "serve", *told]
        named = ",".join(f"{name}:{secret}" for name, secret in tokens.items())
        self._environment = {**os.environ, "FRAMEPACK_TOKENS": named, "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        begun = time.monotonic()
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=10).status_code == 200:
                    return
            if self.process.poll() is not None or time.monotonic() - begun > PATIENCE:
                raise DrillError(f"the server does not come up: {self.log.read_text()[-2000:]}")
            time.sleep(PAUSE)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def worker_processes(self, store: JobStore) -> list[int]:
        """Workers that this very server has started and that have come up."""
        assert self.process is not None
        told = [int(about["process"]) for about in store.workers().values()]
        return sorted(number for number in told if _parent(number) == self.process.pid)


def _parent(process: int) -> int | None:
    try:
        # The name of the program, in brackets, may hold anything.
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None


def carry_out(
    drill: Drill, folder: Path, store_url: str | None = None, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Ask for all jobs, kill as told, wait for the end, and compare with an undisturbed run.

    Args:
        folder: for all files, empty. store_url: an empty database; None for SQLite in the folder.

    Raises:
        InputError: a database that has jobs. DrillError: the service stands still.
    """
    data = folder / "service"
    data.mkdir(parents=True)
    url = store_url or ServiceFolder(data).default_store
    store = JobStore(url)
    try:
        if store.listed(limit=1):
            raise InputError("the store has jobs already: give an empty database")
        tokens = {f"client{n:02d}": f"secret-of-client-{n:02d}" for n in range(drill.clients)}
        outcome, server = Outcome(), ServerProcess(drill, data, url, tokens)
        begun = time.monotonic()
        try:
            server.start()
            with _status_calls(drill, server, tokens, store, outcome):
                asking = _clients(drill, server, tokens, outcome)
                _watch(drill, server, store, outcome, say)
                for thread in asking:
                    thread.join()
            outcome.seconds = time.monotonic() - begun
            jobs = [job for client in tokens for job in reversed(store.listed(client, limit=drill.jobs))]
            _count(drill, jobs, outcome)
            _play(server, tokens, jobs, outcome)
        finally:
            server.stop()
        say("the same requests, undisturbed")
        _compare(drill, data, jobs, folder / "undisturbed", outcome)
        return outcome
    finally:
        store.close()


def _clients(
    drill: Drill, server: ServerProcess, tokens: dict[str, str], outcome: Outcome
) -> list[threading.Thread]:
    """One thread each, which asks for its share of the jobs."""

    def ask(client: int, secret: str) -> None:
        with _http(server, secret) as http:
            for number in range(client, drill.jobs, drill.clients):
                while not _there(http, drill.seed + number):
                    try:
                        http.post("/v1/videos", json=drill.asked(number)).raise_for_status()
                        break
                    except httpx.HTTPError:
                        # Whether it was heard before the server died, only the list of videos tells.
                        outcome.asked_again += 1
                        time.sleep(PAUSE)

    threads = [
        threading.Thread(target=ask, args=(n, secret), daemon=True)
        for n, secret in enumerate(tokens.values())
    ]
    for thread in threads:
        thread.start()
    return threads


def _there(http: httpx.Client, seed: int) -> bool:
    while True:
        try:
            told = http.get("/v1/videos", params={"limit": 100}).raise_for_status().json()
            return seed in [video["framepack"]["asked"].get("seed", 0) for video in told["data"]]
        except httpx.HTTPError:
            time.sleep(PAUSE)


def _http(server: ServerProcess, secret: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=30, trust_env=False)


def _watch(
    drill: Drill, server: ServerProcess, store: JobStore, outcome: Outcome, say: Callable[[str], None]
) -> None:
    """Kill when so many jobs are done as chance has it, one kill for each number, until all are."""
    chance = random.Random(drill.seed)
    when = sorted(chance.sample(range(drill.jobs), drill.worker_kills + drill.server_kills))
    kinds = ["server"] * drill.server_kills + ["worker"] * drill.worker_kills
    chance.shuffle(kinds)
    due = list(zip(when, kinds, strict=True))
    done, heard = -1, time.monotonic()
    while True:
        counts = store.counts()
        ended = sum(counts[status] for status in ENDED)
        if ended != done:
            done, heard = ended, time.monotonic()
            say(f"{done} of {drill.jobs} jobs ended, {len(due)} kills to come")
        if time.monotonic() - heard > PATIENCE:
            raise DrillError(f"no job has ended for {PATIENCE:g} s: {server.log.read_text()[-2000:]}")
        if done >= drill.jobs and not due:
            return
        if due and done >= due[0][0] and (counts[Status.RUNNING] or done >= drill.jobs):
            time.sleep(chance.uniform(0, HASTE))
            if _kill(due[0][1], server, store, chance, outcome):
                due.pop(0)
        time.sleep(PAUSE)


def _kill(kind: str, server: ServerProcess, store: JobStore, chance: random.Random, outcome: Outcome) -> bool:
    """False: there is no worker to kill yet."""
    if kind == "server":
        server.kill()
        outcome.server_kills += 1
        server.start()
        return True
    alive = server.worker_processes(store)
    if not alive:
        return False
    with suppress(ProcessLookupError):
        os.kill(chance.choice(alive), signal.SIGKILL)
        outcome.worker_kills += 1
        return True
    return False


@contextmanager
def _status_calls(
    drill: Drill, server: ServerProcess, tokens: dict[str, str], store: JobStore, outcome: Outcome
) -> Iterator[None]:
    """So many a second as long as it lasts; each is timed from when it was due."""
    end = threading.Event()
    callers = 4

    def call(first: int) -> None:
        secret = list(tokens.values())[first % len(tokens)]
        with _http(server, secret) as http:
            begun, number = time.monotonic(), first
            name = None
            while not end.is_set():
                due = begun + number / drill.status_rate
                end.wait(max(0.0, due - time.monotonic()))
                try:
                    if name is None:
                        listed = http.get("/v1/videos", params={"limit": 1}).raise_for_status().json()["data"]
                        name = listed[0]["id"] if listed else None
                        begun, number = time.monotonic() - number / drill.status_rate, number
                    else:
                        http.get(f"/v1/videos/{name}").raise_for_status()
                        outcome.waits.append(time.monotonic() - due)
                except httpx.HTTPError:
                    outcome.asked_again += 1
                    begun = time.monotonic() - number / drill.status_rate
                number += callers

    if drill.status_rate:  # a server that has just begun still loads its page
        with _http(server, next(iter(tokens.values()))) as http, suppress(httpx.HTTPError):
            http.get("/")
    threads = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(callers)]
    for thread in threads if drill.status_rate else []:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads if drill.status_rate else []:
            thread.join()


def _count(drill: Drill, jobs: list[Job], outcome: Outcome) -> None:
    outcome.statuses = Counter(job.status.value for job in jobs)
    seeds = Counter(job.asked.get("seed", 0) for job in jobs)
    outcome.twice = sum(count > 1 for count in seeds.values())
    outcome.missing = sum(drill.seed + number not in seeds for number in range(drill.jobs))
    outcome.attempts = max((job.attempt for job in jobs), default=0)


def _play(server: ServerProcess, tokens: dict[str, str], jobs: list[Job], outcome: Outcome) -> None:
    """Fetch each video as its client would, and decode it."""
    place = server.log.with_name("played.mp4")
    for job in jobs:
        with _http(server, tokens[job.client]) as http:
            place.write_bytes(http.get(f"/v1/videos/{job.id}/content").content)
        try:
            frames = sum(1 for _ in read_video(place).frames)
        except FramePackError:
            frames = 0
        outcome.unplayable += frames == 0 or frames != job.progress.get("frames")


def _compare(drill: Drill, data: Path, jobs: list[Job], folder: Path, outcome: Outcome) -> None:
    """Make the same videos again where nobody kills anything."""
    places = ServiceFolder(folder)
    folder.mkdir()
    store = JobStore(places.default_store)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        worker = Worker(store, ServiceConfig(data=folder, store=store.url, threads=1), "undisturbed")
        for job in jobs:
            asked = Asked.from_json(job.asked)
            new = NewJob(client="c", model=asked.model, prompt=asked.prompt, asked=asked.to_json())
            places.job(new.id).path.mkdir(parents=True)
            name = store.add(new).id
            worker.once()
            theirs = _latents(ServiceFolder(data), job.id)
            outcome.changed += not theirs or theirs != _latents(places, name)
    finally:
        torch.set_num_threads(threads)
        store.close()


def _latents(places: ServiceFolder, name: str) -> dict[str, bytes]:
    folder = places.job(name).run / "latents"
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}

"""Workers as actors of Ray, started here; two machines are two of its nodes, of which one is taken away."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framepack.errors import InputError
from framepack.generation.manifest import read_log
from framepack.serving.asked import Asked
from framepack.serving.config import ServiceConfig
from framepack.serving.engines import ENGINES, Staff
from framepack.serving.jobs import Job, NewJob, Status, new_id
from framepack.serving.places import ServiceFolder
from framepack.serving.ray_engine import ENVIRONMENT, INSTALL, RayEngine, placed
from framepack.serving.store import JobStore
from framepack.serving.worker import Worker

pytestmark = pytest.mark.usefixtures("one_thread")

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason=f"Ray is not installed: {INSTALL}"
)
PROMPTS = [
    "A red heart moves right over green hills.",
    "A blue star moves up over snow.",
]
ASKED = {"seconds": 8.0, "steps": 1, "guidance": 1.0, "seed": 5}
LEASE = 6.0
PATIENCE = 900.0
"""Seconds; only a machine that is busy with other things comes near them."""
OBJECTS = 80 * 2**20


class Place:
    """A service's folder and its store."""

    def __init__(self, data: Path) -> None:
        self.places = ServiceFolder(data)
        self.config = ServiceConfig(
            data=data,
            store=self.places.default_store,
            devices=("cpu",),
            threads=1,
            niceness=0,
            lease=LEASE,
            log=data / "workers.log",
        )
        self.store = JobStore(self.config.store, lease=LEASE)

    def ask(self, asked: Asked) -> str:
        name = new_id()
        self.places.job(name).path.mkdir(parents=True)
        new = NewJob(id=name, client="c", model=asked.model, prompt=asked.prompt, asked=asked.to_json())
        return self.store.add(new).id

    def latents(self, name: str) -> dict[str, bytes]:
        folder = self.places.job(name).run / "latents"
        return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def until(wanted: Callable[[], Any], what: Callable[[], Any]) -> Any:
    begun = time.monotonic()
    while not (found := wanted()):
        assert time.monotonic() - begun < PATIENCE, what()
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray with a head that has one core; nothing of it is heard of outside."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": OBJECTS}
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()


@needs_ray
def test_there_are_as_many_actors_as_jobs(tmp_path: Path, cluster: Any) -> None:
    """None without work, no more than may be, and none again some time after the last job."""
    place = Place(tmp_path / "service")
    engine = RayEngine(place.store, place.config, 0, 1, address=cluster.address, idle=1.0)
    engine.start()
    try:
        time.sleep(1.5)
        assert engine.processes == [] and engine.workers == 0
        names = [place.ask(Asked(prompt=PROMPTS[0], method="nonsense")) for _ in range(3)]
        most = 0

        def ended() -> bool:
            nonlocal most
            most = max(most, engine.workers)
            return all(place.store.get(name).ended is not None for name in names)

        until(ended, place.store.listed)
        jobs = [place.store.get(name) for name in names]
        assert {(job.status, job.attempt) for job in jobs} == {(Status.FAILED, 1)}
        assert all(job.error and "nonsense" in job.error["message"] for job in jobs)
        assert most == 1
        until(lambda: engine.workers == 0, place.store.workers)
    finally:
        engine.close()
    assert engine.workers == 0 and "begun, attempt 1" in (tmp_path / "service" / "workers.log").read_text()
    place.store.close()


@needs_ray
def test_what_no_machine_can_hold_is_refused(tmp_path: Path, cluster: Any) -> None:
    place = Place(tmp_path)
    for config, said in (
        (replace(place.config, threads=64), "no machine of Ray's cluster has 64 cores"),
        (replace(place.config, devices=("cuda:1",)), "device 'cuda:1': Ray places workers by itself"),
    ):
        with pytest.raises(InputError, match=said):
            RayEngine(place.store, config, 0, address=cluster.address).start()
    place.store.close()


@needs_ray
def test_a_machine_that_goes_takes_nothing_along(tmp_path: Path, cluster: Any) -> None:
    """It is removed in the middle of a job, which ends on the other, of the same latents as undisturbed."""
    there = Place(tmp_path / "service")
    names = [there.ask(Asked(prompt=prompt, **ASKED)) for prompt in PROMPTS]
    node = cluster.add_node(num_cpus=1, object_store_memory=OBJECTS)
    raylet = node.all_processes["raylet"][0].process.pid
    engine = RayEngine(there.store, there.config, 2, 2, address=cluster.address)
    engine.start()

    def on_node() -> Job | None:
        """A job whose worker is a process of that node, and which has a section."""
        processes = {name: about["process"] for name, about in there.store.workers().items()}
        for job in there.store.listed(statuses=[Status.RUNNING]):
            process = processes.get(job.worker or "")
            if process and _parent(process) == raylet:
                return job if job.progress.get("section", 0) > 0 else None
        if not there.store.counts()[Status.QUEUED]:  # the other node was faster: there is always one for it
            names.append(there.ask(Asked(prompt=PROMPTS[len(names) % 2], **ASKED)))
        return None

    try:
        taken = until(on_node, lambda: (there.store.listed(), there.store.workers()))
        process = there.store.workers()[taken.worker]["process"]
        assert taken.progress["section"] < taken.progress["sections"]
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: all(there.store.get(name).ended for name in names), there.store.listed)
    finally:
        engine.close()
    assert not Path(f"/proc/{process}").exists()
    jobs = [there.store.get(name) for name in names]
    assert [job.status for job in jobs] == [Status.COMPLETED] * len(names), [job.error for job in jobs]
    again = there.store.get(taken.id)
    assert again.attempt > taken.attempt and again.progress["kept"] >= 1

    plain = Place(tmp_path / "plain")
    originals = [plain.ask(Asked(prompt=prompt, **ASKED)) for prompt in PROMPTS]
    worker = Worker(plain.store, plain.config, "plain", "cpu")
    while worker.once():
        pass
    for name, original in zip(names, itertools.cycle(originals), strict=False):
        latents = there.latents(name)
        assert latents == plain.latents(original) and len(latents) > 2
        _, records, _ = read_log(there.places.job(name).run)
        made = [record["key"] for record in records if record["kind"] == "latents"]
        assert len(made) == len(set(made)) == len(latents), "a section was made twice"
        videos = [place.places.job(job).video for place, job in ((there, name), (plain, original))]
        assert videos[0].read_bytes() == videos[1].read_bytes()
    for place in (there, plain):
        place.store.close()


def _parent(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


@pytest.mark.parametrize(
    ("nodes", "device", "threads", "found"),
    [
        ([{"CPU": 4.0}, {"CPU": 16.0}], "auto", None, ({"num_gpus": 0, "num_cpus": 4}, 4, 5)),
        ([{"CPU": 4.0}, {"CPU": 16.0}], "auto", 8, ({"num_gpus": 0, "num_cpus": 8}, 8, 2)),
        ([{"CPU": 2.0}], "auto", 8, ({"num_gpus": 0, "num_cpus": 8}, 8, 0)),
        ([{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}], "auto", None, ({"num_gpus": 1, "num_cpus": 1}, None, 2)),
        ([{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}], "cpu", None, ({"num_gpus": 0, "num_cpus": 4}, 4, 3)),
        ([{"GPU": 1.0}, {"memory": 5.0}], "cuda", 2, ({"num_gpus": 1, "num_cpus": 1}, 2, 1)),
    ],
)
def test_actors_take_a_gpu_each_where_there_are_any(
    nodes: list[dict[str, float]], device: str, threads: int | None, found: tuple[object, ...]
) -> None:
    assert placed(nodes, device, threads) == found


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "changed")
    place = Place(tmp_path)
    engine = ENGINES["ray"](place.store, place.config, Staff())
    with pytest.raises(InputError, match=r"not installed.*pip install") as told:
        engine.start()
    assert "\n" not in str(told.value) and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    place.store.close()

"""The service under load: many clients, and processes that are killed at random moments.

Jobs are asked for over HTTP from a real server with workers of its own. Meanwhile workers and the server are
killed (SIGKILL), each kill when some number of jobs is done, as the seed has it. At the end every job must be
there once, its video must play, and its latents must be those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from framepack.resources.machine import machine
from shared.report import Report, Table, carry_out, finite
from shared.service_drill import Drill, Outcome
from shared.service_drill import carry_out as carry_out_drill

SHARES = (0.5, 0.99, 1.0)


def jobs_table(drill: Drill, outcome: Outcome) -> Table:
    completed = outcome.statuses["completed"]
    return Table(
        title=f"{drill.jobs} jobs from {drill.clients} clients, {drill.workers} workers",
        columns=("", "found"),
        rows=(
            ("completed", str(completed)),
            ("ended otherwise", str(outcome.statuses.total() - completed)),
            ("not there", str(outcome.missing)),
            ("there twice", str(outcome.twice)),
            ("videos that do not play, or have other frames", str(outcome.unplayable)),
            ("latents unlike those of undisturbed runs", str(outcome.changed)),
            ("workers killed", str(outcome.worker_kills)),
            ("servers killed and started again", str(outcome.server_kills)),
            ("most workers that one job had", str(outcome.attempts)),
            ("calls that a server did not answer", str(outcome.asked_again)),
            ("seconds in all", f"{outcome.seconds:.1f}"),
            ("seconds for one job", f"{outcome.seconds / drill.jobs:.2f}"),
        ),
    )


def status_table(drill: Drill, outcome: Outcome) -> Table:
    names = ("p50", "p99", "max")
    return Table(
        title=f"{len(outcome.waits)} status calls, {drill.status_rate:g} a second, while videos are made",
        columns=("", "milliseconds"),
        rows=tuple(
            (name, f"{1000 * outcome.wait(share):.1f}") for name, share in zip(names, SHARES, strict=True)
        ),
        notes=(
            "from when a call is due to its answer, over HTTP on this machine",
            "calls that met a killed server are left out, and the seconds in which the page is loaded",
        ),
    )


def benchmark(options: argparse.Namespace, command: str, console: Console) -> Report:
    drill = Drill(
        jobs=options.jobs,
        clients=options.clients,
        worker_kills=options.worker_kills,
        server_kills=options.server_kills,
        workers=options.workers,
        seconds=options.seconds,
        steps=options.steps,
        seed=options.seed,
        status_rate=options.status_rate,
    )
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as name:
        outcome = carry_out_drill(drill, Path(name), options.store, lambda text: console.print(text))
    tables = [jobs_table(drill, outcome)] + ([status_table(drill, outcome)] if drill.status_rate else [])
    verdict = "every job was made once, whole, and as if undisturbed" if outcome.right else "NOT all is right"
    found = {**vars(outcome), "statuses": dict(outcome.statuses), "waits": len(outcome.waits)}
    found |= {"right": outcome.right, "drill": asdict(drill)}
    found["milliseconds"] = {f"{share:g}": finite(1000 * outcome.wait(share)) for share in SHARES}
    return Report(
        name="Service",
        command=command,
        machine=machine(),
        tables=tuple(tables),
        findings=(verdict,),
        data=found,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = Drill()
    parser.add_argument("--jobs", type=int, default=usual.jobs)
    parser.add_argument("--clients", type=int, default=usual.clients)
    parser.add_argument("--worker-kills", type=int, default=usual.worker_kills)
    parser.add_argument("--server-kills", type=int, default=usual.server_kills)
    parser.add_argument("--workers", type=int, default=usual.workers)
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of each video")
    parser.add_argument("--steps", type=int, default=usual.steps, help="of each section")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the kills and the videos")
    parser.add_argument("--store", help="URL of an empty database; SQLite in a temporary folder by default")
    parser.add_argument("--status-rate", type=float, default=usual.status_rate, help="status calls a second")
    return carry_out("service", parser, argv, benchmark)


if __name__ == "__main__":
    raise SystemExit(main())

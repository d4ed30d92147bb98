"""A service whose worker and whose server are killed: clients get every video once, as if undisturbed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from shared.service_drill import Drill, Outcome, carry_out

pytestmark = pytest.mark.usefixtures("one_thread")


def test_kills_of_a_worker_and_of_the_server_lose_nothing(tmp_path: Path) -> None:
    drill = Drill(jobs=3, clients=2, worker_kills=1, server_kills=1, status_rate=5.0)
    outcome = carry_out(drill, tmp_path)
    assert outcome.right, outcome
    assert (outcome.statuses["completed"], outcome.worker_kills, outcome.server_kills) == (3, 1, 1)
    assert outcome.attempts >= 2, "a killed worker had a job"
    assert outcome.waits and outcome.wait(1.0) >= outcome.wait(0.5) > 0


@pytest.mark.parametrize("wrong", ["twice", "missing", "unplayable", "changed"])
def test_one_wrong_job_is_one_too_many(wrong: str) -> None:
    outcome = Outcome(waits=[3.0, 1.0, 2.0, 4.0])
    outcome.statuses["completed"] = 3
    assert outcome.right and (outcome.wait(0.5), outcome.wait(0.99)) == (2.0, 4.0)
    setattr(outcome, wrong, 1)
    assert not outcome.right
    failed = Outcome()
    failed.statuses.update(["completed", "failed"])
    assert not failed.right and not Outcome().right

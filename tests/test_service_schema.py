"""Requests made up from the service's own description: none of them is a fault of the program."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest

from framepack.serving.app import create_app
from framepack.serving.jobs import Status
from framepack.serving.service import Limits
from framepack.serving.worker import Worker
from service_site import Site

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")

pytestmark = pytest.mark.usefixtures("one_thread")

EACH = 10
"""Cases of one endpoint in a row."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, str]:
    """A service with one finished video."""
    limits = Limits(queued=10**6, posts=10**6, spare=0.0)
    site = Site(tmp_path_factory.mktemp("schema") / "service", limits=limits)
    name = site.make()["id"]
    assert Worker(site.store, site.config, "w").once()
    assert site.store.get(name).status is Status.COMPLETED
    return site, name


def statuses(site: Site, name: str, cases: int) -> Counter[int]:
    """Answers to so many cases, valid and invalid by turns, of made-up videos and of one that is there."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(site.service))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 18
    seen: Counter[int] = Counter()
    turn = 0
    while seen.total() < cases:
        mode = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[turn % 2]
        there = turn // 2 % 2 == 0
        for operation in operations:
            fixed = {"video_id": name} if there and "{video_id}" in operation.path else None
            if fixed and operation.method == "delete":
                continue

            @seed(turn)
            @settings(
                max_examples=EACH,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode, path_parameters=fixed))
            def ask(case: schemathesis.Case) -> None:
                answer = case.call()
                seen[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            # Where nothing can be wrong, there are no wrong cases.
            with suppress(Unsatisfiable, schemathesis.errors.SchemathesisError):
                ask()
        turn += 1
    return seen


def check(made: tuple[Site, str], cases: int) -> None:
    seen = statuses(*made, cases)
    print(f"{seen.total()} cases: {dict(sorted(seen.items()))}")
    assert {200, 400, 404} <= seen.keys() and seen[200] > cases / 20, seen
    assert made[0].http.get("/health").json()["status"] == "ok"


def test_no_faults(made: tuple[Site, str]) -> None:
    check(made, 200)


@pytest.mark.slow
def test_no_faults_in_2000_cases(made: tuple[Site, str]) -> None:
    check(made, 2000)

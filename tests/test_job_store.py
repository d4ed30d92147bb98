"""The job store, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import text

from framepack.errors import InputError
from framepack.serving.jobs import (
    ENDED,
    Job,
    LeaseLost,
    NewJob,
    NoSuchJob,
    QueueFull,
    Status,
    Wish,
    WrongState,
)
from framepack.serving.migrate import NewerStore
from framepack.serving.store import DEATHS, JobStore, StoreError
from postgres import Server, server

SHORT = 0.4


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite"
    made: Server = request.getfixturevalue("postgres")
    made_url = made.url
    cleared = JobStore(made_url)
    with cleared.engine.begin() as db:
        for table in ("jobs", "workers"):
            db.execute(text(f"DELETE FROM {table}"))
    cleared.close()
    return made_url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    made = JobStore(url, lease=SHORT)
    yield made
    made.close()


def new(client: str = "ann", prompt: str = "a heart", **more: object) -> NewJob:
    asked = {"model": "bundled", "prompt": prompt, "seconds": 1.5}
    return NewJob(client=client, model="bundled", prompt=prompt, asked=asked, **more)


def taken(store: JobStore, worker: str = "w") -> tuple:
    found = store.lease(worker)
    assert found is not None
    return found


def test_a_job_is_as_it_was_asked_for(store: JobStore) -> None:
    made = store.add(new(prompt="赤いハート 'quoted\" \\ --"))
    assert store.get(made.id) == made
    assert (
        made.status is Status.QUEUED and made.asked["prompt"] == made.prompt == "赤いハート 'quoted\" \\ --"
    )
    assert abs(made.created - time.time()) < 5, "the database's clock is in seconds since 1970"


def test_jobs_are_taken_in_their_order_and_ended_once(store: JobStore) -> None:
    asked = [store.add(new()).id for _ in range(3)]
    order = []
    while (found := store.lease("w")) is not None:
        lease, job = found
        order.append(job.id)
        assert job.status is Status.RUNNING and job.attempt == 1 and job.deaths == 0
        store.finish(lease, Status.COMPLETED, {"stage": "done"}, size=7)
        with pytest.raises(LeaseLost):
            store.finish(lease, Status.FAILED, {})
    assert order == asked
    ended = store.get(asked[0])
    assert (ended.status, ended.size, ended.worker) == (Status.COMPLETED, 7, None)
    assert (
        ended.ended is not None
        and ended.started is not None
        and ended.created <= ended.started <= ended.ended
    )


def test_another_takes_what_a_silent_worker_had_and_the_silent_one_changes_nothing(store: JobStore) -> None:
    name = store.add(new()).id
    old, _ = taken(store, "old")
    assert store.lease("new") is None, "it is renewed in time so far"
    time.sleep(SHORT * 1.5)
    lease, job = taken(store, "new")
    assert (job.id, job.attempt, job.deaths, job.worker) == (name, 2, 1, "new")
    for late in (
        lambda: store.renew(old, {"section": 5}),
        lambda: store.finish(old, Status.COMPLETED, {}),
        lambda: store.give_back(old),
        lambda: store.drop(old),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert store.renew(lease, {"section": 1}) is None
    assert store.get(name).progress == {"section": 1}


def test_a_worker_that_renews_keeps_its_job(store: JobStore) -> None:
    store.add(new())
    lease, _ = taken(store)
    for _ in range(6):
        time.sleep(SHORT / 3)
        store.renew(lease)
        assert store.lease("other") is None


def test_a_dead_worker_frees_its_job_at_once_and_a_job_that_kills_is_given_up(store: JobStore) -> None:
    name = store.add(new()).id
    for deaths in range(DEATHS):
        _, job = taken(store, f"w{deaths}")
        assert job.deaths == deaths
        store.dead(f"w{deaths}")
    assert store.lease("last") is None
    failed = store.get(name)
    assert failed.status is Status.FAILED and failed.error is not None
    assert failed.error["code"] == "worker_died" and failed.ended is not None


def test_deaths_count_from_the_last_finished_section(store: JobStore) -> None:
    name = store.add(new()).id
    for number in range(2 * DEATHS):
        lease, _ = taken(store, f"w{number}")
        store.renew(lease, {"section": number}, further=True)
        store.dead(f"w{number}")
    assert store.get(name).status is Status.RUNNING
    assert taken(store)[1].deaths == 1


def test_what_is_given_back_is_taken_again_after_its_time(store: JobStore) -> None:
    name = store.add(new()).id
    lease, _ = taken(store)
    store.give_back(lease, after=SHORT)
    assert store.lease("w") is None
    time.sleep(SHORT * 1.2)
    assert taken(store)[1].id == name


@pytest.mark.parametrize("running", [False, True])
def test_pause_and_resume(store: JobStore, running: bool) -> None:
    name = store.add(new()).id
    if running:
        lease, _ = taken(store)
        store.wish(name, Wish.PAUSE)
        assert store.renew(lease) is Wish.PAUSE
        store.give_back(lease, Status.PAUSED)
    else:
        store.wish(name, Wish.PAUSE)
    assert store.get(name).status is Status.PAUSED and store.lease("w") is None
    store.resume(name)
    assert taken(store)[1].id == name
    with pytest.raises(WrongState, match="in_progress, not paused"):
        store.resume(name)


def test_a_pause_is_taken_back_before_the_worker_hears_of_it(store: JobStore) -> None:
    name = store.add(new()).id
    lease, _ = taken(store)
    store.wish(name, Wish.PAUSE)
    store.resume(name)
    assert store.renew(lease) is None


def test_a_job_deleted_in_its_last_moment_stays_deleted(store: JobStore) -> None:
    name = store.add(new()).id
    lease, _ = taken(store)
    store.wish(name, Wish.DELETE)
    store.finish(lease, Status.COMPLETED, {})
    assert store.listed() == []


@pytest.mark.parametrize("wish", list(Wish))
def test_wishes_are_met_where_the_worker_stops_without_having_heard(store: JobStore, wish: Wish) -> None:
    name = store.add(new()).id
    lease, _ = taken(store)
    store.wish(name, wish)
    store.give_back(lease)
    met = {Wish.PAUSE: [Status.PAUSED], Wish.CANCEL: [Status.CANCELLED], Wish.DELETE: []}
    assert [job.status for job in store.listed() if job.id == name] == met[wish]


@pytest.mark.parametrize("wish", list(Wish))
def test_wishes_are_kept_where_the_worker_dies(store: JobStore, wish: Wish) -> None:
    name = store.add(new()).id
    taken(store)
    store.wish(name, wish)
    store.dead("w")
    assert store.lease("w") is None
    if wish is Wish.DELETE:
        with pytest.raises(NoSuchJob):
            store.get(name)
    else:
        expected = {Wish.PAUSE: Status.PAUSED, Wish.CANCEL: Status.CANCELLED}[wish]
        assert store.get(name).status is expected


def test_what_has_ended_can_be_deleted_alone(store: JobStore) -> None:
    name = store.add(new()).id
    store.wish(name, Wish.CANCEL)
    for wish in (Wish.PAUSE, Wish.CANCEL):
        with pytest.raises(WrongState, match="is cancelled"):
            store.wish(name, wish)
    store.wish(name, Wish.DELETE)
    with pytest.raises(NoSuchJob, match=name):
        store.get(name)


def test_a_client_sees_its_own_jobs_alone(store: JobStore) -> None:
    mine, theirs = store.add(new("ann")).id, store.add(new("bob")).id
    assert [job.id for job in store.listed("ann")] == [mine]
    for reach in (
        lambda: store.get(theirs, "ann"),
        lambda: store.wish(theirs, Wish.CANCEL, "ann"),
        lambda: store.resume(theirs, "ann"),
        lambda: store.move(theirs, None, "ann"),
    ):
        with pytest.raises(NoSuchJob):
            reach()


def test_pages_of_a_list(store: JobStore) -> None:
    names = []
    for _ in range(5):
        names.append(store.add(new()).id)
        time.sleep(0.002)
    assert [job.id for job in store.listed(limit=2)] == names[:2:-1]
    assert [job.id for job in store.listed(limit=2, after=names[3])] == names[2:0:-1]
    assert [job.id for job in store.listed(newest_first=False, after=names[3])] == names[4:]


def test_a_client_may_have_so_many_jobs_at_once(store: JobStore) -> None:
    first = store.add(new(), limit=2).id
    store.add(new(), limit=2)
    with pytest.raises(QueueFull, match="2 videos of yours"):
        store.add(new(), limit=2)
    store.add(new("bob"), limit=2)
    store.wish(first, Wish.CANCEL)
    store.add(new(), limit=2)


def test_jobs_move_in_the_queue(store: JobStore) -> None:
    a, b, c, d = (store.add(new()).id for _ in range(4))

    def order() -> list[str]:
        return [job.id for job in store.queue()]

    store.move(d, b)
    assert order() == [a, d, b, c]
    store.move(a, None)
    assert order() == [d, b, c, a]
    for _ in range(60):  # positions between two others get finer and finer
        store.move(c, b)
        store.move(b, c)
    assert order() == [d, b, c, a]
    taken(store)
    with pytest.raises(WrongState, match="only what waits"):
        store.move(d, None)
    with pytest.raises(WrongState, match="does not wait"):
        store.move(a, d)


def test_many_workers_take_each_job_once(url: str) -> None:
    stores = [JobStore(url, lease=30) for _ in range(4)]
    names = {stores[0].add(new()).id for _ in range(40)}
    done: list[str] = []
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while (found := stores[number].lease(f"w{number}")) is not None:
                stores[number].renew(found[0], {"section": 1})
                done.append(found[1].id)
                stores[number].finish(found[0], Status.COMPLETED, {})
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # PostgreSQL passes over rows that another one has just locked, so one may find none for a moment.
    work(0)
    assert not faults
    assert sorted(done) == sorted(names)
    assert stores[0].counts()[Status.COMPLETED] == 40
    for each in stores:
        each.close()


def test_workers_are_known_while_they_are_heard_of(store: JobStore) -> None:
    store.greet("w", {"threads": 1})
    store.greet("w", {"threads": 2})
    assert store.workers() == {"w": {"threads": 2}}
    store.add(new())
    lease, _ = taken(store)
    for _ in range(3):  # one that is busy says nothing but that
        time.sleep(SHORT * 0.5)
        store.renew(lease)
    assert store.workers() == {"w": {"threads": 2}}
    time.sleep(SHORT * 1.2)
    assert store.workers() == {}


def test_stores_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mysql.*give sqlite:///FILE or postgresql"):
        JobStore("mysql://user:secret@host/name")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        JobStore("postgresql+psycopg://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot be opened"):
        JobStore("nonsense")
    (tmp_path / "text").write_text("not a database, " * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        JobStore(f"sqlite:///{tmp_path}/text")


def test_a_store_of_a_newer_version_is_refused(url: str) -> None:
    store = JobStore(url)
    with store.engine.begin() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '999'"))
    with pytest.raises(NewerStore, match="newer"):
        JobStore(url)
    with store.engine.begin() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '1'"))
    store.close()


class Service(RuleBasedStateMachine):
    """Whatever people and workers do in whatever order, each job ends at most once, and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.store = JobStore("sqlite://", lease=1e9)
        self.known: set[str] = set()
        self.deleted: set[str] = set()
        self.ended: dict[str, Status] = {}
        self.held: list[tuple] = []

    def teardown(self) -> None:
        self.store.close()

    def pick(self, number: int) -> str | None:
        names = sorted(self.known - self.deleted)
        return names[number % len(names)] if names else None

    @rule()
    def ask(self) -> None:
        self.known.add(self.store.add(new()).id)

    @rule(worker=st.sampled_from("abc"))
    def lease(self, worker: str) -> None:
        found = self.store.lease(worker)
        if found is not None:
            lease, job = found
            assert job.id not in self.ended, "what has ended is taken again"
            assert all(held.job != job.id or held.attempt < lease.attempt for held, _ in self.held)
            self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 9), status=st.sampled_from([Status.COMPLETED, Status.FAILED, None]))
    def end(self, number: int, status: Status | None) -> None:
        lease, job = self.held.pop(number % len(self.held))
        try:
            if status is None:
                self.store.give_back(lease)
            else:
                self.store.finish(lease, status, {})
                assert job.id not in self.ended, "it ended twice"
                self.ended[job.id] = status
        except LeaseLost:
            pass

    @rule(worker=st.sampled_from("abc"))
    def die(self, worker: str) -> None:
        self.store.dead(worker)

    @rule(number=st.integers(0, 9), wish=st.sampled_from(list(Wish)))
    def wish(self, number: int, wish: Wish) -> None:
        name = self.pick(number)
        if name is not None:
            try:
                self.store.wish(name, wish)
            except WrongState:
                assert self.status(name) in ENDED
            else:
                if wish is Wish.DELETE:
                    self.deleted.add(name)

    @rule(number=st.integers(0, 9))
    def resume(self, number: int) -> None:
        name = self.pick(number)
        if name is not None:
            with suppress(WrongState):
                self.store.resume(name)

    def status(self, name: str) -> Status:
        return self.store.get(name).status

    @invariant()
    def none_is_lost(self) -> None:
        there: dict[str, Job] = {job.id: job for job in self.store.listed(limit=1000)}
        assert set(there) == self.known - self.deleted
        for name, status in self.ended.items():
            if name in there:
                assert there[name].status is status, "what has ended changed"


TestService = Service.TestCase
TestService.settings = hypothesis_settings(max_examples=30, stateful_step_count=30, deadline=None)

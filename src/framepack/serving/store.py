"""Jobs in a database, SQLite or PostgreSQL: asked for, leased to workers, and ended, each exactly once.

A worker holds a job by a lease that it renews. All that it writes names the lease, so that a worker which was
taken for dead, and is not, changes nothing any more. Time is the database's, for hosts disagree about theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    and_,
    create_engine,
    delete,
    event,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import text as sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from framepack.errors import FramePackError, InputError, first_line
from framepack.serving.jobs import (
    ENDED,
    LEASE,
    Job,
    Lease,
    LeaseLost,
    NewJob,
    NoSuchJob,
    QueueFull,
    Status,
    Wish,
    WrongState,
)
from framepack.serving.migrate import migrate
from framepack.serving.tables import jobs, workers

DEATHS = 3
"""Workers that may end over one job before it comes further; then it is the job's fault."""
BUSY = 30
"""Seconds that SQLite waits for another process's write."""
QUEUE = 1
"""Key of PostgreSQL's lock on the order of the queue."""
NOW = {
    "sqlite": sql("SELECT (julianday('now') - 2440587.5) * 86400.0"),
    "postgresql": sql("SELECT CAST(extract(epoch from clock_timestamp()) AS double precision)"),
}
WAITING = (Status.QUEUED, Status.PAUSED)


class StoreError(FramePackError):
    """A database that cannot be used."""


class JobStore:
    """All jobs of a service; any number of processes may have it open.

    Args:
        url: of SQLAlchemy: ``sqlite:///FILE`` or ``postgresql+psycopg://...``. It is brought to this version.
        lease: seconds without a word after which a worker is taken for dead.

    Raises:
        StoreError: it cannot be opened, or was written by a newer version.
    """

    def __init__(self, url: str, *, lease: float = LEASE) -> None:
        self.url, self.lease_seconds = url, lease
        self.engine = _engine(url)
        try:
            migrate(self.engine)
        except SQLAlchemyError as error:
            raise StoreError(f"the job store {_shown(url)} cannot be opened: {first_line(error)}") from error

    def close(self) -> None:
        self.engine.dispose()

    # Asked for ---------------------------------------------------------------------------------------------

    def add(self, new: NewJob, *, limit: int | None = None) -> Job:
        """Queue a job. Raises QueueFull: its client has ``limit`` jobs that have not ended."""
        with self._writing() as db:
            self._lock_queue(db)
            if limit is not None:
                active = and_(jobs.c.client == new.client, jobs.c.status.not_in(ENDED))
                count = db.scalar(select(func.count()).select_from(jobs).where(active)) or 0
                if count >= limit:
                    raise QueueFull(
                        f"{count} videos of yours are queued or being made, and {limit} may be: "
                        "wait for one, or cancel one"
                    )
            last = db.scalar(select(func.max(jobs.c.position))) or 0.0
            values = {
                "id": new.id,
                "client": new.client,
                "status": Status.QUEUED,
                "model": new.model,
                "prompt": new.prompt,
                "asked": new.asked,
                "parent": new.parent,
                "redo": new.redo,
                "position": last + 1.0,
                "ready": 0.0,
                "created": self._now(db),
                "progress": {},
                "attempt": 0,
                "deaths": 0,
                "size": 0,
                "version": 1,
            }
            db.execute(insert(jobs).values(values))
            return _job(db.execute(select(jobs).where(jobs.c.id == new.id)).one())

    def get(self, name: str, client: str | None = None) -> Job:
        """A job. Raises NoSuchJob: there is none, it is to be deleted, or, with ``client``, another's."""
        with self._reading() as db:
            return _job(_found(db, name, client))

    def listed(
        self,
        client: str | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = True,
        statuses: Sequence[Status] = (),
    ) -> list[Job]:
        """Jobs by the time they were asked for, those past ``after`` in this direction."""
        query = select(jobs).where(_there())
        if client is not None:
            query = query.where(jobs.c.client == client)
        if statuses:
            query = query.where(jobs.c.status.in_(statuses))
        if after is not None:
            query = query.where(jobs.c.id < after if newest_first else jobs.c.id > after)
        order = jobs.c.id.desc() if newest_first else jobs.c.id
        with self._reading() as db:
            return [_job(row) for row in db.execute(query.order_by(order).limit(limit))]

    def queue(self) -> list[Job]:
        """Jobs that wait, the next one first, after those that are being made."""
        query = select(jobs).where(_there(), jobs.c.status.not_in(ENDED))
        with self._reading() as db:
            found = [_job(row) for row in db.execute(query.order_by(jobs.c.position, jobs.c.id))]
        return sorted(found, key=lambda job: job.status is not Status.RUNNING)

    def now(self) -> float:
        """Seconds since 1970, by the store's clock."""
        with self._reading() as db:
            return self._now(db)

    def counts(self) -> dict[Status, int]:
        """Jobs by status."""
        query = select(jobs.c.status, func.count()).where(_there()).group_by(jobs.c.status)
        with self._reading() as db:
            found = {Status(row[0]): int(row[1]) for row in db.execute(query)}
        return {status: found.get(status, 0) for status in Status}

    # Changed by people -------------------------------------------------------------------------------------

    def wish(self, name: str, wish: Wish, client: str | None = None) -> bool:
        """Have a job paused, cancelled or deleted: at once, or by its worker where it has one.

        Returns:
            Whether it is so already.

        Raises:
            NoSuchJob. WrongState: it has ended, and can only be deleted.
        """
        with self._writing() as db:
            job = _job(_found(db, name, client, lock=True))
            if wish is not Wish.DELETE and job.status in ENDED:
                raise WrongState(f"video '{name}' is {job.status}: it cannot be {_PAST[wish]} any more")
            if job.status is Status.RUNNING:
                self._set(db, job, wish=wish)
            elif wish is Wish.DELETE:
                db.execute(delete(jobs).where(jobs.c.id == name))
            elif wish is Wish.CANCEL:
                self._set(db, job, status=Status.CANCELLED, ended=self._now(db))
            else:
                self._set(db, job, status=Status.PAUSED)
            return job.status is not Status.RUNNING

    def resume(self, name: str, client: str | None = None) -> None:
        """Let a paused job go on. Raises NoSuchJob; WrongState: it is not paused."""
        with self._writing() as db:
            job = _job(_found(db, name, client, lock=True))
            if job.status is Status.RUNNING and job.wish is Wish.PAUSE:
                self._set(db, job, wish=None)
            elif job.status is Status.PAUSED:
                self._set(db, job, status=Status.QUEUED)
            else:
                raise WrongState(f"video '{name}' is {job.status}, not paused")

    def move(self, name: str, before: str | None, client: str | None = None) -> None:
        """Put a waiting job before another one, or last. Raises NoSuchJob; WrongState: one does not wait."""
        with self._writing() as db:
            self._lock_queue(db)
            job = _job(_found(db, name, client, lock=True))
            if job.status not in WAITING:
                raise WrongState(f"video '{name}' is {job.status}: only what waits can be moved")
            query = select(jobs).where(jobs.c.status.in_(WAITING)).order_by(jobs.c.position, jobs.c.id)
            waiting = [_job(row) for row in db.execute(query)]
            order = [each for each in waiting if each.id != name]
            places = [each.id for each in order]
            if before is not None and before not in places:
                raise WrongState(f"video '{before}' does not wait: name one that does, or none for the end")
            order.insert(len(order) if before is None else places.index(before), job)
            # The same positions in another order: they never run out.
            for each, there in zip(order, [each.position for each in waiting], strict=True):
                if each.position != there:
                    self._set(db, each, position=there)

    # Worked on ---------------------------------------------------------------------------------------------

    def lease(self, worker: str) -> tuple[Lease, Job] | None:
        """The next job, if there is one: it waits, or its worker is silent for too long."""
        while True:
            with self._writing() as db:
                now = self._now(db)
                waits = and_(jobs.c.status == Status.QUEUED, jobs.c.ready <= now)
                left = and_(jobs.c.status == Status.RUNNING, jobs.c.leased_until < now)
                query = select(jobs).where(or_(waits, left)).order_by(jobs.c.position, jobs.c.id).limit(1)
                row = db.execute(query.with_for_update(skip_locked=True)).first()
                if row is None:
                    return None
                job = _job(row)
                if job.status is Status.RUNNING and self._settled(db, job, now):
                    continue
                attempt = job.attempt + 1
                self._set(
                    db,
                    job,
                    status=Status.RUNNING,
                    worker=worker,
                    leased_until=now + self.lease_seconds,
                    attempt=attempt,
                    deaths=job.deaths + (job.status is Status.RUNNING),
                    started=job.started or now,
                )
                taken = _job(db.execute(select(jobs).where(jobs.c.id == job.id)).one())
                return Lease(job.id, worker, attempt), taken

    def _settled(self, db: Connection, job: Job, now: float) -> bool:
        """End a job whose worker died where nobody wants it any more, or where it was the last that may."""
        if job.wish is Wish.DELETE:
            db.execute(delete(jobs).where(jobs.c.id == job.id))
        elif job.wish is Wish.CANCEL:
            self._set(db, job, status=Status.CANCELLED, ended=now, **_FREE)
        elif job.wish is Wish.PAUSE:
            self._set(db, job, status=Status.PAUSED, **_FREE)
        elif job.deaths + 1 >= DEATHS:
            told = f"{DEATHS} workers ended over the same section: the service's log may say why"
            error = {"code": "worker_died", "message": told}
            self._set(db, job, status=Status.FAILED, ended=now, error=error, **_FREE)
        else:
            return False
        return True

    def renew(
        self, lease: Lease, progress: dict[str, Any] | None = None, *, further: bool = False
    ) -> Wish | None:
        """Say that the worker is there, and how far it is; learn what is wanted of it.

        Args:
            further: a section more is done, so that no worker has died over what comes now.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        with self._writing() as db:
            now = self._now(db)
            values: dict[str, Any] = {"leased_until": now + self.lease_seconds}
            if progress is not None:
                values |= {"progress": progress, "version": jobs.c.version + 1}
            if further:
                values["deaths"] = 0
            changed = update(jobs).where(_mine(lease)).values(values)
            if db.execute(changed).rowcount != 1:
                raise LeaseLost(lease.job)
            db.execute(update(workers).where(workers.c.id == lease.worker).values(seen=now))
            told = db.scalar(select(jobs.c.wish).where(jobs.c.id == lease.job))
        return None if told is None else Wish(told)

    def finish(
        self,
        lease: Lease,
        status: Status,
        progress: dict[str, Any],
        *,
        error: dict[str, str] | None = None,
        size: int = 0,
    ) -> bool:
        """End a job. False: it was to be deleted, and is. Raises LeaseLost: somebody else may end it now."""
        with self._writing() as db:
            ended = {"status": status, "ended": self._now(db), "progress": progress, "error": error}
            return self._end(db, lease, ended | {"size": size, **_FREE})

    def give_back(self, lease: Lease, status: Status = Status.QUEUED, *, after: float = 0.0) -> bool:
        """Let go of a job that is not done: paused, or for others after so many seconds.

        False: it was to be deleted, and is. Raises LeaseLost.
        """
        with self._writing() as db:
            return self._end(db, lease, {"status": status, "ready": self._now(db) + after, **_FREE})

    def drop(self, lease: Lease) -> None:
        """Delete the job that one has. Raises LeaseLost."""
        with self._writing() as db:
            if db.execute(delete(jobs).where(_mine(lease))).rowcount != 1:
                raise LeaseLost(lease.job)

    def _end(self, db: Connection, lease: Lease, values: dict[str, Any]) -> bool:
        """Let go of a job; a wish that its worker has not heard of is met here. False: it is deleted."""
        row = db.execute(select(jobs.c.wish).where(_mine(lease)).with_for_update()).first()
        if row is None:
            raise LeaseLost(lease.job)
        if row.wish == Wish.DELETE:
            db.execute(delete(jobs).where(_mine(lease)))
            return False
        if values["status"] is Status.QUEUED and row.wish is not None:
            met = {Wish.PAUSE: Status.PAUSED, Wish.CANCEL: Status.CANCELLED}[Wish(row.wish)]
            values |= {"status": met, "ended": self._now(db) if met in ENDED else None}
        db.execute(update(jobs).where(_mine(lease)).values(values | {"version": jobs.c.version + 1}))
        return True

    # Workers -----------------------------------------------------------------------------------------------

    def greet(self, worker: str, about: dict[str, Any]) -> None:
        """Note that a worker is there, and what it is."""
        with self._writing() as db:
            now = self._now(db)
            known = update(workers).where(workers.c.id == worker).values(about=about, seen=now)
            if not db.execute(known).rowcount:
                db.execute(insert(workers).values(id=worker, about=about, started=now, seen=now))

    def dead(self, worker: str) -> None:
        """Note that a worker has ended: its job is free at once."""
        with self._writing() as db:
            theirs = and_(jobs.c.worker == worker, jobs.c.status == Status.RUNNING)
            db.execute(update(jobs).where(theirs).values(leased_until=0.0))
            db.execute(delete(workers).where(workers.c.id == worker))

    def workers(self) -> dict[str, dict[str, Any]]:
        """Workers that were heard of within a lease, by id, with what they are."""
        with self._reading() as db:
            alive = workers.c.seen > self._now(db) - self.lease_seconds
            return {row.id: dict(row.about) for row in db.execute(select(workers).where(alive))}

    # The database ------------------------------------------------------------------------------------------

    def _set(self, db: Connection, job: Job, **values: Any) -> None:
        db.execute(update(jobs).where(jobs.c.id == job.id).values(**values, version=job.version + 1))

    def _now(self, db: Connection) -> float:
        return float(db.scalar(NOW[db.dialect.name]) or 0.0)

    def _lock_queue(self, db: Connection) -> None:
        """One at a time; SQLite has but one writer anyway."""
        if db.dialect.name == "postgresql":
            db.execute(select(func.pg_advisory_xact_lock(QUEUE)))

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self.engine.begin() as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(writes=True) as db, db.begin():
            yield db


_FREE: dict[str, Any] = {"worker": None, "leased_until": None, "wish": None}
_PAST = {Wish.PAUSE: "paused", Wish.CANCEL: "cancelled", Wish.DELETE: "deleted"}


def _there() -> Any:
    """Not about to be deleted."""
    return or_(jobs.c.wish.is_(None), jobs.c.wish != Wish.DELETE)


def _mine(lease: Lease) -> Any:
    held = and_(jobs.c.worker == lease.worker, jobs.c.attempt == lease.attempt)
    return and_(jobs.c.id == lease.job, held, jobs.c.status == Status.RUNNING)


def _found(db: Connection, name: str, client: str | None, *, lock: bool = False) -> Row[Any]:
    if "\0" in name:  # which PostgreSQL does not take
        raise NoSuchJob(name)
    query = select(jobs).where(jobs.c.id == name, _there())
    if client is not None:
        query = query.where(jobs.c.client == client)
    row = db.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NoSuchJob(name)
    return row


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    wish = values["wish"]
    return Job(**values | {"status": Status(values["status"]), "wish": None if wish is None else Wish(wish)})


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in NOW:
            raise InputError(
                f"job store {_shown(url)} is none that is known: give sqlite:///FILE or postgresql+psycopg://HOST/NAME"
            )
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
        if parsed.database:
            Path(parsed.database).absolute().parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": BUSY}, hide_parameters=True)
    except (ArgumentError, NoSuchModuleError, ImportError, OSError) as error:
        raise StoreError(f"the job store {_shown(url)} cannot be opened: {first_line(error)}") from error
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(db: Connection) -> None:
    # A transaction that reads first and writes then would fail where another wrote between.
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("writes") else "BEGIN")


def _shown(url: str) -> str:
    """Without its password."""
    try:
        return f"'{make_url(url).render_as_string(hide_password=True)}'"
    except ArgumentError:
        return "that was given"

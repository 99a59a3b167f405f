"""The ledger: the durable record of every resource, from the intention to create it to its end.

One service writes, any number of readers look on. The service keeps a mirror of all that is not gone, so a cycle
reads no SQL; a change is committed first and mirrored after, so a commit that fails leaves the mirror as it was.

What is guaranteed once a call has returned (SQLite, write-ahead log):

======================================== ============== ========================================================
call                                     kill -9 of us  power loss
======================================== ============== ========================================================
`intend`                                 kept           kept: the log is synced before the call returns (as far
                                                        as the disk does what a sync asks for)
`record`, decisions, snapshots, notes    kept           the last ones may be missing, never in part; the next
                                                        `intend` syncs all that came before it
======================================== ============== ========================================================

A change that a power loss took is found again by reconciling: the resource itself is in the ledger, since its
intention is. The file must lie on a local disk: a write-ahead log does not work over a network file system.

Volatile, and kept in the mirror only: `Resource.slot` and `Resource.missing`. After a restart the pool says the
first again, and absences are counted anew, which is the patient side. No secret ever comes here.

Several factories can share a PostgreSQL server (``postgresql://user@host/database``, with psycopg installed). There
every commit is as durable as the server makes it, and whoever holds the ledger does so by an advisory lock.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from apf_elastic import ledger_schema as schema
from apf_elastic.ledger_place import File, Hold, LedgerDamaged, LedgerError, LedgerHeld, Server, find_place, utc
from apf_elastic.model import QueueHistory, Resource, Shape, State

log = logging.getLogger(__name__)

__all__ = ["Decided", "Ledger", "LedgerDamaged", "LedgerError", "LedgerHeld", "Reader"]

#: Decisions kept per queue.
DECISIONS = 200
#: APF's throttle: pilots started within the last hour, short if they ran less than 10 s.
INTERVAL_S = 3600.0
SHORT_S = 10.0
#: A reason is for reading: one that a server made longer than this is cut.
LONGEST_REASON = 1000

STARTED = frozenset({State.STARTING, State.RUNNING, State.READY, State.DRAINING})
WAS_ACCEPTED = frozenset({State.SUBMITTED, State.PENDING})

#: Written out, not bound: only then do the databases use the partial indexes.
_GONE: sa.ColumnElement[str] = sa.literal_column("'gone'")
_live = schema.resources.c.state != _GONE
_gone = schema.resources.c.state == _GONE


# --------------------------------------------------------------------------------------- resources and their rows


@dataclass(frozen=True, slots=True)
class _Run:
    """When a resource began to run, and when it ended."""

    started_at: float
    ended_at: float | None = None


def _row(resource: Resource, run: _Run | None) -> dict[str, Any]:
    shape = resource.shape
    return {
        "queue": resource.queue,
        "backend": resource.backend,
        "offering": resource.offering,
        "cores": shape.cores,
        "memory_mb": shape.memory_mb,
        "disk_mb": shape.disk_mb,
        "gpus": shape.gpus,
        "walltime_s": shape.walltime_s,
        "arch": shape.arch,
        "state": resource.state.value,
        "created_at": resource.created_at,
        "changed_at": resource.changed_at,
        "remote_id": resource.remote_id,
        "pool": resource.pool,
        "joined_at": resource.joined_at,
        "started_at": run.started_at if run else None,
        "ended_at": resource.changed_at if resource.state is State.GONE else None,
        "reason": resource.reason,
        "outcome": resource.outcome,
        "price_per_hour": resource.price_per_hour,
    }


class _Shared:
    """Makes resources from rows; equal words and shapes are one object, which keeps a large mirror small."""

    def __init__(self) -> None:
        self._words: dict[str, str] = {}
        self._shapes: dict[Shape, Shape] = {}

    def word(self, word: Any) -> Any:
        return word if word is None else self._words.setdefault(word, word)

    def resource(self, row: sa.Row[Any]) -> Resource:
        shape = Shape(row.cores, row.memory_mb, row.disk_mb, row.gpus, row.walltime_s, self.word(row.arch))
        return Resource(
            id=row.id,
            queue=self.word(row.queue),
            backend=self.word(row.backend),
            offering=self.word(row.offering),
            shape=self._shapes.setdefault(shape, shape),
            state=State(row.state),
            created_at=row.created_at,
            changed_at=row.changed_at,
            remote_id=row.remote_id,
            pool=self.word(row.pool),
            joined_at=row.joined_at,
            reason=self.word(row.reason),
            outcome=self.word(row.outcome),
            price_per_hour=row.price_per_hour,
        )


#: What is written of a resource, as one tuple.
_record_of = attrgetter(*(field.name for field in fields(Resource) if field.name not in ("slot", "missing")))


def _same_record(one: Resource, other: Resource) -> bool:
    """Whether two versions differ in nothing that is written."""
    return one is other or _record_of(one) == _record_of(other)


def _readable(text: str) -> str:
    """A server's words as text that every database takes."""
    if len(text) <= LONGEST_REASON and text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:LONGEST_REASON]


def _storable(resource: Resource) -> Resource:
    reason, outcome = _readable(resource.reason), _readable(resource.outcome)
    if reason is resource.reason and outcome is resource.outcome:
        return resource
    return replace(resource, reason=reason, outcome=outcome)


def _was_made(resource: Resource | None, run: _Run | None) -> bool:
    """Whether a resource counts as submitted: from the intention on, unless nothing came of it."""
    if resource is None:
        return False
    return resource.state is not State.GONE or resource.remote_id is not None or run is not None


def _run(old: Resource | None, new: Resource, run: _Run | None) -> _Run | None:
    """When `new` began to run and ended. What was accepted and ended unseen ran too short for any list to show."""
    ended_at = new.changed_at if new.state is State.GONE else None
    if run is not None:
        return run if run.ended_at == ended_at else _Run(run.started_at, ended_at)
    unseen = ended_at is not None and old is not None and old.state in WAS_ACCEPTED
    return _Run(new.changed_at, ended_at) if new.state in STARTED or unseen else None


@dataclass(frozen=True, slots=True)
class _Change:
    """One resource as it was recorded before (None: never), and as it is now, with its runs."""

    old: Resource | None
    new: Resource
    old_run: _Run | None
    run: _Run | None

    @property
    def gain(self) -> int:
        """What it adds to the count of submitted resources."""
        return _was_made(self.new, self.run) - _was_made(self.old, self.old_run)


def _history(submitted: int, runs: Iterable[_Run], since: float, short_s: float) -> QueueHistory:
    recent = [run for run in runs if run.started_at >= since]
    short = sum(1 for run in recent if run.ended_at is not None and run.ended_at - run.started_at < short_s)
    return QueueHistory(submitted=submitted, recent_started=len(recent), recent_short=short)


# ------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision as it was stored: when it was first made, when last, and what it was."""

    at: float
    seen_at: float
    record: dict[str, Any]


class Reader:
    """A look into a ledger, while a service writes it or not. Every call reads what is committed now."""

    def __init__(self, place: File | Server, factory: str, clock: Callable[[], float], *, writes: bool) -> None:
        self.factory = factory
        self.clock = clock
        self._place = place
        self._lock = threading.RLock()
        self._engine = place.engine(writes=writes)

    @contextmanager
    def _reading(self, what: str) -> Iterator[Connection]:
        with self._lock:
            try:
                with self._engine.begin() as connection:
                    yield connection
            except SQLAlchemyError as error:
                raise self._place.error(what, error) from error

    def _mine(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.factory == self.factory

    def resources(self) -> Mapping[str, Resource]:
        """Every resource that is not gone, by id."""
        shared = _Shared()
        with self._reading("read the resources") as connection:
            rows = connection.execute(sa.select(schema.resources).where(self._mine(schema.resources), _live))
            return {row.id: shared.resource(row) for row in rows}

    def everything(self) -> list[Resource]:
        """Every resource that was not pruned, also those that are gone, oldest first."""
        shared = _Shared()
        with self._reading("read the resources") as connection:
            rows = connection.execute(
                sa.select(schema.resources)
                .where(self._mine(schema.resources))
                .order_by(schema.resources.c.created_at, schema.resources.c.id)
            )
            return [shared.resource(row) for row in rows]

    def find(self, id: str) -> Resource | None:
        """A resource by id, also one that is gone; None if it never was, or was pruned."""
        found = self._find([id]).get(id)
        return found[0] if found else None

    def _find(self, ids: Sequence[str]) -> dict[str, tuple[Resource, _Run | None]]:
        shared, found = _Shared(), {}
        with self._reading("read a resource") as connection:
            for start in range(0, len(ids), 500):
                rows = connection.execute(
                    sa.select(schema.resources).where(
                        self._mine(schema.resources), schema.resources.c.id.in_(ids[start : start + 500])
                    )
                )
                for row in rows:
                    run = None if row.started_at is None else _Run(row.started_at, row.ended_at)
                    found[row.id] = (shared.resource(row), run)
        return found

    def history(self, queue: str, interval_s: float = INTERVAL_S, short_s: float = SHORT_S) -> QueueHistory:
        """What is remembered of a queue: resources submitted over its life (pruning does not change that), those
        that started within the last `interval_s`, and those of them that ended within `short_s` of their start."""
        since = self.clock() - interval_s
        return _history(self._submitted().get(queue, 0), self._runs(since).get(queue, {}).values(), since, short_s)

    def _submitted(self) -> dict[str, int]:
        with self._reading("read the counters") as connection:
            rows = connection.execute(
                sa.select(schema.counters.c.queue, schema.counters.c.submitted).where(self._mine(schema.counters))
            ).all()
        return {row.queue: int(row.submitted) for row in rows}

    def _runs(self, since: float) -> dict[str, dict[str, _Run]]:
        """The runs of all that is not gone, and of what ended after `since`; by queue and id."""
        columns = schema.resources.c
        runs: dict[str, dict[str, _Run]] = {}
        with self._reading("read the history") as connection:
            for part in (_live, _gone & (columns.ended_at >= since)):
                rows = connection.execute(
                    sa.select(columns.queue, columns.id, columns.started_at, columns.ended_at).where(
                        self._mine(schema.resources), columns.started_at.is_not(None), part
                    )
                )
                for row in rows:
                    runs.setdefault(row.queue, {})[row.id] = _Run(row.started_at, row.ended_at)
        return runs

    def last_decisions(self, queue: str, n: int = 1) -> list[Decided]:
        """The last `n` different decisions for a queue, newest first."""
        with self._reading("read the decisions") as connection:
            rows = connection.execute(
                sa.select(schema.decisions.c.at, schema.decisions.c.seen_at, schema.decisions.c.record)
                .where(self._mine(schema.decisions), schema.decisions.c.queue == queue)
                .order_by(schema.decisions.c.n.desc())
                .limit(n)
            ).all()
        return [Decided(row.at, row.seen_at, json.loads(row.record)) for row in rows]

    def last_snapshot(self) -> tuple[float, dict[str, Any]] | None:
        """When the service last described itself, and how; None if it never did."""
        note = self._note("snapshot")
        return None if note is None else (note[0], json.loads(note[1]))

    def meta_get(self, key: str) -> Any:
        """A noted value; None when there is none."""
        note = self._note(f"meta {key}")
        return None if note is None else json.loads(note[1])

    def _note(self, name: str) -> tuple[float, str] | None:
        with self._reading("read a note") as connection:
            row = connection.execute(
                sa.select(schema.notes.c.at, schema.notes.c.value).where(
                    self._mine(schema.notes), schema.notes.c.name == name
                )
            ).first()
        return None if row is None else (row.at, row.value)

    def copy(self, path: Path, since: float = 0.0) -> None:
        """Make a ledger at `path`, where none is, that says the same; of what is gone only what ended after `since`.

        For a dry run: what is done to the copy is not done here. Raises LedgerError.
        """
        columns = schema.resources.c
        parts = {
            schema.resources: _live | (columns.ended_at >= since),
            schema.counters: sa.true(),
            schema.decisions: sa.true(),
            schema.notes: sa.true(),
        }
        place = File(path.absolute())
        place.make_directory()
        place.prepare(self.clock(), replace_damaged=False)
        engine = place.engine(writes=True)
        try:
            with self._reading("copy it") as source, engine.execution_options(commit="fast").begin() as target:
                for table, part in parts.items():
                    rows = source.execute(sa.select(table).where(self._mine(table), part)).mappings().all()
                    if rows:
                        target.execute(sa.insert(table), [dict(row) for row in rows])
        finally:
            engine.dispose()

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_newer(place: File | Server, found: int) -> None:
    if found > schema.SCHEMA:
        raise LedgerError(
            f"ledger {place.name} was written by a newer apf-elastic (schema {found}, this one knows {schema.SCHEMA}):"
            " install that release again"
        )


def _factory_in(reader: Reader, wanted: str | None) -> str:
    """The factory that a reader asks about: the only one in the ledger unless it is named."""
    if wanted is not None:
        return wanted
    holder = schema.notes.c.name == "holder"
    with reader._reading("read the factory's name") as connection:
        query = sa.select(schema.notes.c.factory).where(holder).order_by(schema.notes.c.at.desc())
        found = connection.execute(query).scalars().all()
    if len(found) > 1 and isinstance(reader._place, Server):
        raise LedgerError(f"ledger {reader._place.name} has several factories: name one of {', '.join(sorted(found))}")
    return found[0] if found else ""


# ------------------------------------------------------------------------------------------------------- writing


@dataclass(slots=True)
class _Last:
    """The last decision of a queue. `seen_at` is written along with whatever is written next."""

    n: int
    text: str
    seen_at: float
    unwritten: bool = False


class Ledger(Reader):
    """The record as the service holds it: one per file (or per factory on a server), until closed."""

    def __init__(self, place: File | Server, factory: str, clock: Callable[[], float], hold: Hold | None) -> None:
        self._hold = hold
        super().__init__(place, factory, clock, writes=True)
        self._writer = self._engine.execution_options(commit="fast")
        self._durable_writer = self._engine.execution_options(commit="durable")
        self._mirror: dict[str, Resource] = {}
        self._view = MappingProxyType(self._mirror)
        self._run_of: dict[str, dict[str, _Run]] = {}
        self._count: dict[str, int] = {}
        self._last: dict[str, _Last] = {}
        self._written: dict[str, str] = {}
        self._horizon_s = INTERVAL_S
        self._in_doubt = False

    @classmethod
    def open(
        cls,
        where: str | Path,
        factory: str,
        *,
        clock: Callable[[], float] = time.time,
        on_damage: Literal["raise", "replace"] = "raise",
    ) -> Ledger:
        """Hold the ledger at a path or URL for the service of `factory`; it is made if there is none.

        A directory that is made gets mode 0700, the file 0600. Raises LedgerHeld when another service has it,
        LedgerDamaged when it is not whole (with ``on_damage="replace"`` it is moved aside and a fresh one started),
        LedgerError when it cannot be opened, is from a newer release, or belongs to another factory.
        """
        place = find_place(where, factory)
        hold = None
        try:
            if isinstance(place, File):
                place.make_directory()
                hold = Hold(place.path.with_name(f"{place.path.name}.lock"), factory, clock())
                place.prepare(clock(), replace_damaged=on_damage == "replace")
            ledger = cls(place, factory, clock, hold)
        except OSError as error:
            if hold is not None:
                hold.release()
            raise LedgerError(
                f"ledger {place.name}: cannot open it: {error}: check owner, mode and free space of its directory"
            ) from error
        except BaseException:
            if hold is not None:
                hold.release()
            raise
        try:
            ledger._begin()
        except BaseException:
            ledger._let_go()
            raise
        return ledger

    @staticmethod
    def read(where: str | Path, factory: str | None = None, *, clock: Callable[[], float] = time.time) -> Reader:
        """Look into a ledger without holding it. `factory` may be left out where there is only one.

        Raises LedgerError when there is none yet, or when its schema is not this release's.
        """
        place = find_place(where, factory or "")
        if isinstance(place, File) and not place.path.exists():
            raise LedgerError(f"there is no ledger at {place.name} yet: the service makes it when it first starts")
        reader = Reader(place, factory or "", clock, writes=False)
        try:
            with reader._reading("read it") as connection:
                found = schema.found_version(connection)
            if found is None:
                raise LedgerError(f"{place.name} is not a ledger of apf-elastic")
            if found < schema.SCHEMA:
                raise LedgerError(f"ledger {place.name} has the older schema {found}: start the service once")
            _refuse_newer(place, found)
            reader.factory = _factory_in(reader, factory)
        except BaseException:
            reader.close()
            raise
        return reader

    def _begin(self) -> None:
        """Bring the schema up to date, say who holds it, and load the mirror."""
        try:
            with self._writing("prepare it", durable=True) as connection:
                found = schema.found_version(connection)
                if found is None and isinstance(self._place, File):
                    raise LedgerError(f"{self._place.name} is a database, but not a ledger of apf-elastic")
                _refuse_newer(self._place, found or 0)
                schema.migrate(connection, found or 0)
                self._refuse_stranger(connection)
                holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": self.clock()}
                self._put_note(connection, "holder", json.dumps(holder), self.clock())
        except LedgerHeld as error:
            raise LedgerHeld(f"{error}{self._who_holds()}") from None
        self._load()

    def _refuse_stranger(self, connection: Connection) -> None:
        """A file belongs to one factory: under a new name its resources would be left to run unseen."""
        if isinstance(self._place, Server):
            return
        other = connection.execute(
            sa.select(schema.resources.c.factory).where(schema.resources.c.factory != self.factory, _live).limit(1)
        ).scalar()
        if other is not None:
            raise LedgerError(
                f"ledger {self._place.name} has resources of factory {other!r}, and this is {self.factory!r}:"
                " set the name back, or give this factory a ledger of its own"
            )

    def _who_holds(self) -> str:
        with Reader(self._place, self.factory, self.clock, writes=False) as reader:
            holder = reader._note("holder")
        if holder is None:
            return ""
        values = json.loads(holder[1])
        return f": process {values['pid']} on {values['host']} since {utc(values['since'])}: stop that service first"

    def _load(self) -> None:
        """Make the mirror equal to the database; what is volatile stays with those that are still there."""
        loaded = super().resources()
        kept = {
            id: replace(resource, slot=old.slot, missing=old.missing) if (old := self._mirror.get(id)) else resource
            for id, resource in loaded.items()
        }
        self._mirror.clear()
        self._mirror.update(kept)
        self._run_of = self._runs(self.clock() - self._horizon_s)
        self._count = self._submitted()
        self._last = self._last_of_each()
        self._written.clear()
        self._in_doubt = False

    def _last_of_each(self) -> dict[str, _Last]:
        newest = (
            sa.select(schema.decisions.c.queue, sa.func.max(schema.decisions.c.n).label("n"))
            .where(self._mine(schema.decisions))
            .group_by(schema.decisions.c.queue)
            .subquery()
        )
        with self._reading("read the decisions") as connection:
            rows = connection.execute(
                sa.select(schema.decisions)
                .join(newest, sa.and_(schema.decisions.c.queue == newest.c.queue, schema.decisions.c.n == newest.c.n))
                .where(self._mine(schema.decisions))
            ).all()
        return {row.queue: _Last(row.n, row.record, row.seen_at) for row in rows}

    @contextmanager
    def _writing(self, what: str, *, durable: bool = False) -> Iterator[Connection]:
        """One transaction. Raises LedgerError if it was not committed; then nothing of it was."""
        with self._lock:
            if self._in_doubt:
                self._load()
            self._place.check()
            if self._hold is not None:
                self._hold.check()
            try:
                with (self._durable_writer if durable else self._writer).begin() as connection:
                    yield connection
            except (SQLAlchemyError, UnicodeError, OverflowError) as error:  # the last two: values of no column
                # a server that went away during the commit may have done it
                self._in_doubt = isinstance(error, DBAPIError) and error.connection_invalidated
                raise self._place.error(what, error) from error

    # --------------------------------------------------------------------------------------------- resources

    def resources(self) -> Mapping[str, Resource]:
        """Every resource that is not gone, by id: a live view of the mirror, which reads no SQL."""
        return self._view

    def find(self, id: str) -> Resource | None:
        """A resource by id, also one that is gone; None if it never was, or was pruned."""
        return self._mirror.get(id) or super().find(id)

    def intend(self, resources: Iterable[Resource]) -> None:
        """Commit intentions, before any call is made for them; on return they survive a power loss.

        Raises LedgerError when they could not be committed (then none was), or when an id was used before;
        ValueError for a resource that is not in state `intended`.
        """
        new = [_storable(resource) for resource in resources]
        wrong = [resource.id for resource in new if resource.state is not State.INTENDED]
        if wrong:
            raise ValueError(f"{wrong[0]} is not an intention")
        self._store([_Change(None, resource, None, None) for resource in new], durable=True)

    def record(self, resources: Iterable[Resource]) -> None:
        """Commit new versions of resources, known or adopted; those that say nothing new are skipped.

        What differs only in `slot` or `missing` goes to the mirror and is not written. A resource that is gone
        leaves the mirror; its row stays until `prune`. Raises LedgerError when they could not be committed (then
        none was, and the mirror is as before).
        """
        with self._lock:
            latest = {resource.id: _storable(resource) for resource in resources}
            volatile: list[Resource] = []
            changes: list[_Change] = []
            strangers: list[Resource] = []
            for resource in latest.values():
                old = self._mirror.get(resource.id)
                if old is None:
                    strangers.append(resource)
                elif not _same_record(old, resource):
                    run = self._run_of.get(old.queue, {}).get(old.id)
                    changes.append(_Change(old, resource, run, _run(old, resource, run)))
                elif old is not resource:
                    volatile.append(resource)
            self._store(changes + self._changes_of_strangers(strangers), durable=False)
            self._mirror.update((resource.id, resource) for resource in volatile)

    def _changes_of_strangers(self, strangers: list[Resource]) -> list[_Change]:
        """Resources that the mirror does not have: adopted ones, new here or once thought gone."""
        found = self._find([resource.id for resource in strangers])
        changes = []
        for resource in strangers:
            old, run = found.get(resource.id, (None, None))
            if old is None or not _same_record(old, resource):
                changes.append(_Change(old, resource, run, _run(old, resource, run)))
        return changes

    def _store(self, changes: list[_Change], *, durable: bool) -> None:
        """Commit changes, then mirror them."""
        if not changes:
            return
        with self._lock:
            with self._writing("record resources", durable=durable) as connection:
                self._write_rows(connection, changes)
                counts = self._write_counts(connection, changes)
            self._count |= counts
            for change in changes:
                self._mirror_change(change)

    def _write_rows(self, connection: Connection, changes: list[_Change]) -> None:
        table = schema.resources
        new = [_row(c.new, c.run) | {"factory": self.factory, "id": c.new.id} for c in changes if c.old is None]
        known = [_row(c.new, c.run) | {"this": c.new.id} for c in changes if c.old is not None]
        if new:
            connection.execute(sa.insert(table), new)
        if known:
            connection.execute(sa.update(table).where(self._mine(table), table.c.id == sa.bindparam("this")), known)

    def _write_counts(self, connection: Connection, changes: list[_Change]) -> dict[str, int]:
        """Bring the counters of the queues up to date; returns those that changed."""
        table = schema.counters
        gains = Counter[str]()
        for change in changes:
            gains[change.new.queue] += change.gain
        counts = {queue: self._count.get(queue, 0) + gain for queue, gain in gains.items() if gain}
        for queue, count in counts.items():
            if queue in self._count:
                mine = self._mine(table) & (table.c.queue == queue)
                connection.execute(sa.update(table).where(mine).values(submitted=count))
            else:
                connection.execute(sa.insert(table).values(factory=self.factory, queue=queue, submitted=count))
        return counts

    def _mirror_change(self, change: _Change) -> None:
        new = change.new
        if new.state is State.GONE:
            self._mirror.pop(new.id, None)
        else:
            self._mirror[new.id] = new
        if change.run is not None:
            self._run_of.setdefault(new.queue, {})[new.id] = change.run

    def prune(self, before: float, limit: int = 10_000) -> int:
        """Forget resources that ended before a time, at most `limit` of them (a bounded pause); returns how many.

        What was counted of them stays counted. Call again while it returns `limit`.
        """
        table = schema.resources
        doomed = (
            sa.select(table.c.id)
            .where(self._mine(table), _gone, table.c.ended_at < before)
            .order_by(table.c.ended_at)
            .limit(limit)
        )
        with self._writing("prune it") as connection:
            return connection.execute(
                sa.delete(table).where(self._mine(table), table.c.id.in_(doomed.scalar_subquery()))
            ).rowcount

    # ----------------------------------------------------------------------------------------------- history

    def history(self, queue: str, interval_s: float = INTERVAL_S, short_s: float = SHORT_S) -> QueueHistory:
        """As `Reader.history`, from memory; an interval longer than any before is read from the database once."""
        with self._lock:
            now = self.clock()
            if interval_s > self._horizon_s:
                self._horizon_s = interval_s
                self._run_of = self._runs(now - interval_s)
            runs = self._run_of.get(queue, {})
            horizon = now - self._horizon_s
            for id in [id for id, run in runs.items() if run.ended_at is not None and run.started_at < horizon]:
                del runs[id]
            return _history(self._count.get(queue, 0), runs.values(), now - interval_s, short_s)

    # --------------------------------------------------------------------------------- decisions, snapshot, notes

    def decided(self, queue: str, at: float, record: Mapping[str, Any]) -> None:
        """Store what was decided for a queue, if it differs from the last time; the newest 200 are kept.

        That the same was decided again is written along with whatever is written next. Raises LedgerError when it
        could not be committed, TypeError for what JSON has no form for.
        """
        text = _json(record)
        with self._lock:
            last = self._last.get(queue)
            if last is not None and last.text == text:
                last.seen_at, last.unwritten = at, True
                return
            new = _Last(last.n + 1 if last else 1, text, at)
            row = {"factory": self.factory, "queue": queue, "n": new.n, "at": at, "seen_at": at, "record": text}
            table = schema.decisions
            old = self._mine(table) & (table.c.queue == queue) & (table.c.n <= new.n - DECISIONS)
            with self._writing("record a decision") as connection:
                self._write_seen(connection)
                connection.execute(sa.insert(table).values(row))
                connection.execute(sa.delete(table).where(old))
            self._seen_is_written()
            self._last[queue] = new

    def _write_seen(self, connection: Connection) -> None:
        table = schema.decisions
        for queue, last in self._last.items():
            if last.unwritten:
                mine = self._mine(table) & (table.c.queue == queue) & (table.c.n == last.n)
                connection.execute(sa.update(table).where(mine).values(seen_at=last.seen_at))

    def _seen_is_written(self) -> None:
        for last in self._last.values():
            last.unwritten = False

    def snapshot(self, values: Mapping[str, Any], at: float) -> None:
        """Store how the service describes itself, in place of the last description. Raises LedgerError."""
        text = _json(values)
        with self._lock:
            with self._writing("record the status") as connection:
                self._write_seen(connection)
                self._put_note(connection, "snapshot", text, at)
            self._seen_is_written()

    def meta_set(self, key: str, value: Any) -> None:
        """Note a value (as JSON) under a key; the same value again is not written. Raises LedgerError."""
        name, text = f"meta {key}", _json(value)
        with self._lock:
            if self._written.get(name) == text:
                return
            with self._writing("note a value") as connection:
                self._put_note(connection, name, text, self.clock())
            self._written[name] = text

    def _put_note(self, connection: Connection, name: str, value: str, at: float) -> None:
        table = schema.notes
        updated = connection.execute(
            sa.update(table).where(self._mine(table), table.c.name == name).values(at=at, value=value)
        )
        if not updated.rowcount:
            connection.execute(sa.insert(table).values(factory=self.factory, name=name, at=at, value=value))

    # ------------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Write what is left and let go of the ledger; resources stay. May be called twice."""
        with self._lock:
            if any(last.unwritten for last in self._last.values()):
                try:
                    with self._writing("record the last decisions") as connection:
                        self._write_seen(connection)
                except LedgerError as error:
                    log.warning("%s", error)
                self._seen_is_written()
            self._let_go()

    def _let_go(self) -> None:
        super().close()
        if self._hold is not None:
            self._hold.release()
            self._hold = None


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))

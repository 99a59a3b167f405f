"""The embedded work queue and pool: one SQLite file in a directory.

It is there so that a newcomer sees the whole loop work without any server, and for demonstrations and tests: tasks
wait here, workers (`apf_elastic.embedded.worker`) join here and claim them. It is no batch system: one machine, one
user, a local disk, and everyone who may write the directory is trusted.

Only the standard library is imported, and little of it: every worker starts by importing this. Times in the tables
are seconds since the epoch, except heartbeats: those are CLOCK_MONOTONIC, which all processes of a machine share and
which neither a changed clock nor a suspended laptop disturbs.

::

    task    waiting -> running -> done | failed
               ^_________/  its worker died
    worker  joined -> (draining) -> left, or lost when its heart has not beaten for `DEAD_S`
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

FILE = "embedded.sqlite"
#: A worker beats each second; one that was silent for so long is dead.
DEAD_S = 5.0
#: A task whose worker dies under it so many times takes its workers down: it has failed.
ATTEMPTS = 5
#: A secret that was not used for so long lets no one join.
CREDENTIAL_S = 86400.0
BUSY_S = 5.0

_VERSION = 1
_SCHEMA = """
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, cores INTEGER NOT NULL, memory_mb INTEGER NOT NULL,
    seconds REAL NOT NULL, command TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
    submitted_at REAL NOT NULL, started_at REAL, ended_at REAL,
    worker TEXT, attempt INTEGER NOT NULL DEFAULT 0, exit_code INTEGER);
CREATE INDEX tasks_waiting ON tasks (queue, cores DESC, memory_mb DESC, id) WHERE state = 'waiting';
CREATE INDEX tasks_to_claim ON tasks (cores DESC, memory_mb DESC, id) WHERE state = 'waiting';
CREATE INDEX tasks_running ON tasks (worker) WHERE state = 'running';
CREATE TABLE workers (
    id TEXT PRIMARY KEY, factory TEXT NOT NULL, queue TEXT NOT NULL, backend TEXT NOT NULL, offering TEXT NOT NULL,
    machine TEXT NOT NULL, cores INTEGER NOT NULL, memory_mb INTEGER NOT NULL,
    joined_at REAL NOT NULL, heartbeat REAL NOT NULL, draining INTEGER NOT NULL DEFAULT 0,
    idle_since REAL, left_at REAL);
CREATE INDEX workers_joined ON workers (id) WHERE left_at IS NULL;
CREATE TABLE leases (factory TEXT PRIMARY KEY, serial INTEGER NOT NULL, renewed_at REAL NOT NULL);
CREATE TABLE credentials (
    id TEXT NOT NULL, sha256 TEXT NOT NULL, factory TEXT NOT NULL, issued_at REAL NOT NULL, PRIMARY KEY (id, sha256));
"""


class StoreError(Exception):
    """The work queue cannot be read or written: says where, why, and what to do."""


class Refusal(Exception):
    """A worker may not join: says why."""


class Task(NamedTuple):
    """Work to submit: sleep `seconds`, or run `command` (an argument list, no shell) if there is one."""

    queue: str = "default"
    cores: int = 1
    memory_mb: int = 0
    seconds: float = 0.0
    command: tuple[str, ...] = ()


class Claim(NamedTuple):
    """A task that a worker has to run. `attempt` tells this run from an earlier one on a worker that died."""

    id: int
    attempt: int
    cores: int
    memory_mb: int
    seconds: float
    command: tuple[str, ...]


class Record(NamedTuple):
    """A task as it stands; times in seconds since the epoch, `worker` the one that runs or last ran it."""

    id: int
    queue: str
    cores: int
    memory_mb: int
    seconds: float
    state: str
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    worker: str | None
    attempt: int
    exit_code: int | None


class Group(NamedTuple):
    """The tasks of one queue and size: how many wait and run, since when the oldest waits, and how many have waited
    at least as long as each threshold."""

    queue: str
    cores: int
    memory_mb: int
    waiting: int
    running: int
    oldest_submitted_at: float | None
    waited: Mapping[float, int]


class Worker(NamedTuple):
    """What a worker says of itself when it joins."""

    id: str
    queue: str
    backend: str
    offering: str
    cores: int
    memory_mb: int
    machine: str = ""


class Joined(NamedTuple):
    """A worker that has joined and not left. `idle_since` is None while it runs something."""

    id: str
    queue: str
    backend: str
    offering: str
    machine: str
    cores: int
    memory_mb: int
    joined_at: float
    draining: bool
    idle_since: float | None
    jobs: int
    busy_cores: int
    busy_memory_mb: int


class Orders(NamedTuple):
    """What a worker is told at each heartbeat. `joined` is False once it was taken for dead."""

    joined: bool
    draining: bool
    lease: int


class Store:
    """One connection to a directory's work queue; one thread at a time. Every method raises StoreError."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        create: bool = False,
        clock: Callable[[], float] = time.time,
        pulse: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the work queue of a directory; with `create` it is made if there is none."""
        self.path = os.path.join(os.path.abspath(directory), FILE)
        self.clock = clock
        self.pulse = pulse
        if create and not os.path.exists(self.path):
            self._create()
        self._connection = self._connect(self.path)

    def _create(self) -> None:
        """Made beside its place and moved there whole, so nobody ever opens half of one."""
        if os.path.exists(f"{self.path}-wal") and not os.path.exists(self.path):
            raise StoreError(f"work queue {self.path} was removed, and its log was not: remove {self.path}-wal too")
        new = f"{self.path}.{os.getpid()}.new"
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            connection = sqlite3.connect(new, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode=WAL").fetchall()
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
            finally:
                connection.close()
            try:
                os.link(new, self.path)  # unlike a rename, leaves one that another made meanwhile as it is
            except FileExistsError:
                pass
            finally:
                os.unlink(new)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"work queue {self.path}: cannot make it: {error}") from error

    @staticmethod
    def _connect(path: str) -> sqlite3.Connection:
        if not os.path.exists(path):
            raise StoreError(f"there is no work queue at {path}: it is made when the first task is submitted")
        quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        try:
            connection = sqlite3.connect(
                f"file:{quoted}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise StoreError(f"work queue {path}: cannot open it: {error}: check its owner and mode") from error
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            connection.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            connection.close()
            raise StoreError(f"work queue {path}: cannot open it: {error}") from error
        if version != _VERSION:
            connection.close()
            raise StoreError(f"work queue {path}: is damaged, or of another release (version {version}): remove it")
        return connection

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute(f"BEGIN {kind}")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"work queue {self.path}: {error}") from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------- tasks

    def submit(self, tasks: Iterable[Task]) -> list[int]:
        """Add tasks, all or none; returns their ids. Raises ValueError for one that asks for nonsense."""
        now = self.clock()
        rows = []
        for task in tasks:
            if task.cores < 1 or task.memory_mb < 0 or not 0 <= task.seconds < float("inf"):
                raise ValueError(f"{task}: a task needs at least one core, and no amount below zero")
            words = json.dumps(task.command)
            rows.append((task.queue, task.cores, task.memory_mb, float(task.seconds), words, now))
        insert = "INSERT INTO tasks (queue, cores, memory_mb, seconds, command, submitted_at) VALUES (?, ?, ?, ?, ?, ?)"
        with self._transaction() as connection:
            return [connection.execute(insert, row).lastrowid or 0 for row in rows]

    def counts(self, queue: str | None = None) -> dict[str, int]:
        """How many tasks are waiting, running, done and failed; of one queue, or of all."""
        counts = {"waiting": 0, "running": 0, "done": 0, "failed": 0}
        with self._transaction("DEFERRED") as connection:
            counts.update(
                connection.execute(
                    "SELECT state, count(*) FROM tasks WHERE ?1 IS NULL OR queue = ?1 GROUP BY state", (queue,)
                )
            )
        return counts

    def tasks(self, queue: str | None = None) -> list[Record]:
        """Every task, in the order of submission; of one queue, or of all."""
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(
                f"SELECT {', '.join(Record._fields)} FROM tasks WHERE ?1 IS NULL OR queue = ?1 ORDER BY id", (queue,)
            )
            return [Record(*row) for row in rows]

    def groups(self, thresholds: Sequence[float] = ()) -> list[Group]:
        """The waiting and running tasks by queue and size; `thresholds` in s, for `Group.waited`."""
        now = self.clock()
        waited = "".join(f", sum(state = 'waiting' AND submitted_at <= ?{i + 1})" for i in range(len(thresholds)))
        query = (
            "SELECT queue, cores, memory_mb, sum(state = 'waiting'), sum(state = 'running'),"
            f" min(CASE state WHEN 'waiting' THEN submitted_at END){waited}"
            " FROM (SELECT * FROM tasks WHERE state = 'waiting' UNION ALL SELECT * FROM tasks WHERE state = 'running')"
            " GROUP BY queue, cores, memory_mb ORDER BY queue, cores, memory_mb"
        )
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(query, [now - threshold for threshold in thresholds]).fetchall()
        return [
            Group(queue, cores, memory_mb, waiting, running, oldest, dict(zip(thresholds, counts, strict=True)))
            for queue, cores, memory_mb, waiting, running, oldest, *counts in rows
        ]

    # --------------------------------------------------------------------------------------- what a worker does

    def join(self, worker: Worker, secret: bytes) -> None:
        """A worker joins with its secret, which opens once. Raises Refusal."""
        now = self.clock()
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT factory, issued_at FROM credentials WHERE id = ? AND sha256 = ?", (worker.id, _digest(secret))
            ).fetchone()
            if connection.execute("SELECT 1 FROM workers WHERE id = ?", (worker.id,)).fetchone():
                raise Refusal(f"{worker.id} has joined before")
            if row is None:
                raise Refusal(f"{worker.id}: its secret is not one that was issued to it")
            if now - row[1] > CREDENTIAL_S:
                raise Refusal(f"{worker.id}: its secret was issued more than {CREDENTIAL_S:.0f} s ago")
            connection.execute("DELETE FROM credentials WHERE id = ?", (worker.id,))
            connection.execute(
                "INSERT INTO workers (id, factory, queue, backend, offering, machine, cores, memory_mb,"
                " joined_at, heartbeat, idle_since) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    worker.id,
                    row[0],
                    worker.queue,
                    worker.backend,
                    worker.offering,
                    worker.machine,
                    worker.cores,
                    worker.memory_mb,
                    now,
                    self.pulse(),
                    now,
                ),
            )

    def beat(self, id: str) -> Orders:
        """A worker's heartbeat; returns its orders. Bury the dead on the way."""
        with self._transaction() as connection:
            connection.execute("UPDATE workers SET heartbeat = ? WHERE id = ? AND left_at IS NULL", (self.pulse(), id))
            self._bury(connection)
            row = connection.execute(
                "SELECT left_at IS NULL, draining, coalesce(serial, 0)"
                " FROM workers LEFT JOIN leases USING (factory) WHERE id = ?",
                (id,),
            ).fetchone()
        return Orders(bool(row[0]), bool(row[1]), row[2]) if row else Orders(False, False, 0)

    def version(self) -> int:
        """A number that changes when anybody else has written: asking costs microseconds."""
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise StoreError(f"work queue {self.path}: {error}") from error

    def claim(self, id: str, cores: int, memory_mb: int) -> list[Claim]:
        """Tasks for a worker with so much free, which are now its own: those of its queue first, then any; of these
        the biggest that fits, then the oldest. None for a worker that drains or was taken for dead."""
        if not self._any_fits(cores, memory_mb):
            return []
        claims = []
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT queue FROM workers WHERE id = ? AND left_at IS NULL AND NOT draining", (id,)
            ).fetchone()
            while row is not None and (claim := self._claim_one(connection, id, row[0], cores, memory_mb)):
                claims.append(claim)
                cores, memory_mb = cores - claim.cores, memory_mb - claim.memory_mb
            if claims:
                connection.execute("UPDATE workers SET idle_since = NULL WHERE id = ?", (id,))
        return claims

    def _any_fits(self, cores: int, memory_mb: int) -> bool:
        """A look without a lock, so that workers with nothing to do do not queue for it."""
        with self._transaction("DEFERRED") as connection:
            query = "SELECT 1 FROM tasks WHERE state = 'waiting' AND cores <= ? AND memory_mb <= ? LIMIT 1"
            return connection.execute(query, (cores, memory_mb)).fetchone() is not None

    def _claim_one(
        self, connection: sqlite3.Connection, id: str, queue: str, cores: int, memory_mb: int
    ) -> Claim | None:
        fits = "state = 'waiting' AND cores <= ?1 AND memory_mb <= ?2"
        biggest = "ORDER BY cores DESC, memory_mb DESC, id LIMIT 1"
        columns = "id, attempt, cores, memory_mb, seconds, command"
        for where in (f"queue = ?3 AND {fits}", f"?3 = ?3 AND {fits}"):
            row = connection.execute(
                f"SELECT {columns} FROM tasks WHERE {where} {biggest}", (cores, memory_mb, queue)
            ).fetchone()
            if row is not None:
                connection.execute(
                    "UPDATE tasks SET state = 'running', worker = ?, started_at = ?, attempt = attempt + 1"
                    " WHERE id = ?",
                    (id, self.clock(), row[0]),
                )
                claim = Claim(*row)
                return claim._replace(attempt=claim.attempt + 1, command=tuple(json.loads(row[-1])))
        return None

    def finish(self, id: str, ended: Iterable[tuple[Claim, int]]) -> int:
        """A worker's tasks ended with these exit codes; returns how many of them counted: a task that was taken
        from a worker thought dead does not end a second time."""
        now = self.clock()
        counted = 0
        with self._transaction() as connection:
            for claim, code in ended:
                counted += connection.execute(
                    "UPDATE tasks SET state = ?, ended_at = ?, exit_code = ?"
                    " WHERE id = ? AND worker = ? AND attempt = ? AND state = 'running'",
                    ("failed" if code else "done", now, code, claim.id, id, claim.attempt),
                ).rowcount
            connection.execute(
                "UPDATE workers SET idle_since = ?1 WHERE id = ?2 AND idle_since IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM tasks WHERE state = 'running' AND worker = ?2)",
                (now, id),
            )
        return counted

    def leave(self, id: str, *, only_if_draining: bool = False) -> bool:
        """A worker without tasks leaves, in one step: from here on nobody counts on it. False, and nothing done, if
        it has a task, or with `only_if_draining` was taken back meanwhile."""
        with self._transaction() as connection:
            return bool(
                connection.execute(
                    "UPDATE workers SET left_at = ?1, idle_since = coalesce(idle_since, ?1)"
                    " WHERE id = ?2 AND left_at IS NULL AND (draining OR NOT ?3)"
                    " AND NOT EXISTS (SELECT 1 FROM tasks WHERE state = 'running' AND worker = ?2)",
                    (self.clock(), id, only_if_draining),
                ).rowcount
            )

    # ----------------------------------------------------------------------------------------- what a pool does

    def issue(self, factory: str, secrets: Mapping[str, bytes]) -> None:
        """Let each of these ids join once with its secret, of which only a digest is kept.

        A second secret for an id leaves the first one good: whichever joins first ends both.
        """
        now = self.clock()
        rows = [(id, _digest(secret), factory, now) for id, secret in secrets.items()]
        with self._transaction() as connection:
            connection.execute("DELETE FROM credentials WHERE issued_at < ?", (now - 2 * CREDENTIAL_S,))
            connection.executemany("INSERT OR REPLACE INTO credentials VALUES (?, ?, ?, ?)", rows)

    def joined(self, factory: str) -> list[Joined]:
        """The workers of a factory that have joined and neither left nor died."""
        self.bury()
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(
                "SELECT w.id, w.queue, backend, offering, machine, w.cores, w.memory_mb, joined_at, draining,"
                " idle_since, count(t.id), coalesce(sum(t.cores), 0), coalesce(sum(t.memory_mb), 0)"
                " FROM workers w LEFT JOIN tasks t ON t.worker = w.id AND t.state = 'running'"
                " WHERE left_at IS NULL AND factory = ? GROUP BY w.id ORDER BY joined_at, w.id",
                (factory,),
            ).fetchall()
        return [Joined(*row)._replace(draining=bool(row[8])) for row in rows]

    def bury(self) -> int:
        """Give the tasks of dead workers back to the queue; returns how many workers had died."""
        with self._transaction("DEFERRED") as connection:
            if not self._dead(connection):
                return 0
        with self._transaction() as connection:
            return self._bury(connection)

    def _dead(self, connection: sqlite3.Connection) -> list[str]:
        # a heartbeat from the future is one from before a reboot
        query = "SELECT id FROM workers WHERE left_at IS NULL AND abs(? - heartbeat) > ?"
        return [row[0] for row in connection.execute(query, (self.pulse(), DEAD_S))]

    def _bury(self, connection: sqlite3.Connection) -> int:
        dead = self._dead(connection)
        now = self.clock()
        for id in dead:
            connection.execute(
                "UPDATE tasks SET state = 'failed', ended_at = ? WHERE worker = ? AND state = 'running'"
                " AND attempt >= ?",
                (now, id, ATTEMPTS),
            )
            connection.execute(
                "UPDATE tasks SET state = 'waiting', worker = NULL, started_at = NULL"
                " WHERE worker = ? AND state = 'running'",
                (id,),
            )
            connection.execute("UPDATE workers SET left_at = ? WHERE id = ?", (now, id))
        return len(dead)

    def drain(self, factory: str, ids: Sequence[str], *, back: bool = False) -> dict[str, str]:
        """Let workers claim nothing more, or take them back; returns id -> reason for those that cannot be."""
        failed = {}
        with self._transaction() as connection:
            for id in ids:
                row = connection.execute(
                    "SELECT left_at FROM workers WHERE id = ? AND factory = ?", (id, factory)
                ).fetchone()
                if row is None:
                    failed[id] = "has not joined"
                elif row[0] is not None:
                    failed[id] = "has left already"
                else:
                    connection.execute("UPDATE workers SET draining = ? WHERE id = ?", (not back, id))
        return failed

    def renew_lease(self, factory: str) -> int:
        """Tell the workers of a factory that it lives; returns the lease's serial number."""
        with self._transaction() as connection:
            row = connection.execute(
                "INSERT INTO leases (factory, serial, renewed_at) VALUES (?, 1, ?)"
                " ON CONFLICT (factory) DO UPDATE SET serial = serial + 1, renewed_at = excluded.renewed_at"
                " RETURNING serial",
                (factory, self.clock()),
            ).fetchone()
        return int(row[0])


def _digest(secret: bytes) -> str:
    import hashlib  # only here: half of what this module would otherwise cost to import

    return hashlib.sha256(secret).hexdigest()

"""Where a ledger lies: a file or a server. Connects to it, holds it for one service, and says what is wrong there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from apf_elastic.ledger_schema import migrate

log = logging.getLogger(__name__)

#: How long a write waits for another program that holds the database, s.
BUSY_S = 5.0


class LedgerError(Exception):
    """The ledger cannot be read or written: says which, what failed, and what to do. Nothing was changed."""


class LedgerHeld(LedgerError):
    """Another service holds this ledger: says who, and since when."""


class LedgerDamaged(LedgerError):
    """The ledger's file is not readable as one: says the cure."""


class Place:
    """Where a ledger lies: connects to it, and puts what goes wrong there into words."""

    def __init__(self, name: str) -> None:
        self.name = name

    def engine(self, *, writes: bool) -> Engine:
        """Connects there. Execution option ``commit``: "durable" survives a power loss, "fast" our own end only;
        without it a transaction reads."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise LedgerError if what is open is no longer what lies there."""

    def error(self, what: str, error: Exception) -> LedgerError:
        cause = getattr(error, "orig", None) or error
        return LedgerError(f"ledger {self.name}: cannot {what}: {cause}")


class File(Place):
    """An SQLite file."""

    CURES: Mapping[str, str] = MappingProxyType(
        {
            "SQLITE_FULL": "the disk is full: free some space; the service goes on by itself",
            "SQLITE_BUSY": f"another program has kept it locked for {BUSY_S:.0f} s: find it with"
            " `fuser` and end it; the service goes on by itself",
            "SQLITE_LOCKED": "another program keeps it locked",
            "SQLITE_READONLY": "it may not be written: check owner and mode of the file and of its directory,"
            " and that the file system is not mounted read-only",
            "SQLITE_CANTOPEN": "it cannot be opened: check that its directory exists and may be entered",
            "SQLITE_IOERR": "the disk or its file system failed, or a size limit was reached:"
            " see the kernel's messages and `ulimit -f`",
        }
    )

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._inode: tuple[int, int] | None = None

    def engine(self, *, writes: bool) -> Engine:
        engine = _engine("sqlite://", creator=lambda: self._connect(writes))
        if writes:
            self._inode = self._find_inode()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            commit = connection.get_execution_options().get("commit")
            if commit is None:
                connection.exec_driver_sql("BEGIN")
                return
            connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if commit == 'durable' else 'NORMAL'}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def _connect(self, writes: bool) -> sqlite3.Connection:
        mode = "mode=rw" if writes else "mode=ro"
        wal = self.path.with_name(f"{self.path.name}-wal")
        if not writes and not wal.exists() and not os.access(self.path.parent, os.W_OK):
            mode = "immutable=1"  # nobody writes now, and SQLite may not lay its shared memory beside the file
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?{mode}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA temp_store=MEMORY")
            if writes:
                connection.execute("PRAGMA journal_mode=WAL").fetchall()
                connection.execute("PRAGMA journal_size_limit=8388608")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _find_inode(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check(self) -> None:
        if self._find_inode() != self._inode:
            raise LedgerError(
                f"ledger {self.name}: the file was deleted or replaced while the service ran, so nothing written now"
                " would last: restart the service, which adopts what runs from the backends' lists"
            )

    def error(self, what: str, error: Exception) -> LedgerError:
        cause = getattr(error, "orig", None) or error
        code: str = getattr(cause, "sqlite_errorname", "")
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return self.damaged(str(cause))
        for prefix, cure in self.CURES.items():
            if code.startswith(prefix):
                return LedgerError(f"ledger {self.name}: cannot {what}: {cause}: {cure}")
        return super().error(what, error)

    def damaged(self, why: str) -> LedgerDamaged:
        return LedgerDamaged(
            f"ledger {self.name} is damaged: {why}. Restore it from a backup, or let a fresh one be started"
            ' (on_damage="replace" moves this one aside): what runs is then adopted from the backends\' lists'
        )

    # ------------------------------------------------------------------------------------- making and mending

    def prepare(self, at: float, *, replace_damaged: bool) -> None:
        """Have a whole ledger lie here, for its owner only: the one that is there, or an empty one.

        Call it while holding the ledger. Raises LedgerDamaged if the one that is there is not whole and may not
        be replaced; otherwise it is moved aside.
        """
        if self.path.exists():
            try:
                self._examine()
            except LedgerDamaged as damage:
                if not replace_damaged:
                    raise
                log.error("%s; moved aside to %s", damage, self._move_aside(at))
        if not self.path.exists():
            self._create()
        if os.stat(self.path).st_mode & 0o077:
            os.chmod(self.path, 0o600)

    def make_directory(self) -> None:
        for directory in reversed((self.path.parent, *self.path.parent.parents)):
            if not directory.exists():
                directory.mkdir(mode=0o700, exist_ok=True)

    def _examine(self) -> None:
        if self.path.stat().st_size == 0:
            raise self.damaged("the file is empty")
        try:
            with closing(self._connect(writes=True)) as connection:
                answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            raise self.error("open it", error) from error
        if answer != "ok":
            raise self.damaged(str(answer).replace("\n", " "))

    def _create(self) -> None:
        """Make an empty ledger beside its place and move it there whole: an empty file is never a new ledger."""
        new = File(self.path.with_name(f"{self.path.name}.new"))
        for leftover in (new.path, *new._companions(), *self._companions()):
            leftover.unlink(missing_ok=True)  # SQLite would play the log of a ledger that was removed into the new one
        os.close(os.open(new.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        engine = new.engine(writes=True)
        try:
            with engine.execution_options(commit="durable").begin() as connection:
                migrate(connection, 0)
        except SQLAlchemyError as error:
            raise self.error("make it", error) from error
        finally:
            engine.dispose()
        os.rename(new.path, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def _companions(self) -> list[Path]:
        """SQLite's log and shared memory."""
        return [self.path.with_name(self.path.name + suffix) for suffix in ("-wal", "-shm")]

    def _move_aside(self, at: float) -> Path:
        stamp = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{number}")
        for companion in self._companions():
            if companion.exists():
                os.rename(companion, f"{aside}{companion.name.removeprefix(self.path.name)}")
        os.rename(self.path, aside)
        return aside


class Server(Place):
    """A database server (PostgreSQL). The one connection that writes also holds the factory's advisory lock, so who
    has lost the lock cannot write. Every commit is as durable as the server makes it."""

    def __init__(self, url: sa.URL, factory: str) -> None:
        super().__init__(url.render_as_string(hide_password=True))
        self.url = url
        self.factory = factory

    def engine(self, *, writes: bool) -> Engine:
        try:
            engine = _engine(self.url, pool_pre_ping=True)
        except ImportError as error:
            raise LedgerError(f"ledger {self.name}: needs a driver ({error}): pip install 'psycopg[binary]'") from error
        if writes:
            event.listen(engine, "connect", self._hold)
        return engine

    def _hold(self, connection: Any, record: object) -> None:
        key = int.from_bytes(hashlib.sha256(f"apf-elastic {self.factory}".encode()).digest()[:8], "big", signed=True)
        with closing(connection.cursor()) as cursor:
            cursor.execute(f"SELECT pg_try_advisory_lock({key})")
            held = cursor.fetchone()[0]
        connection.commit()
        if not held:
            connection.close()
            raise LedgerHeld(f"ledger {self.name} is held by another service of factory {self.factory!r}")


def _engine(url: str | sa.URL, **options: Any) -> Engine:
    return sa.create_engine(url, poolclass=QueuePool, pool_size=1, max_overflow=0, **options)


def find_place(where: str | Path, factory: str) -> File | Server:
    """Where a path or a URL leads."""
    if isinstance(where, Path) or "://" not in where:
        return File(Path(where).expanduser().absolute())
    try:
        url = sa.make_url(where)
    except (ArgumentError, ValueError):
        raise LedgerError("the ledger's URL is not of the form postgresql://user@host/database") from None
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise LedgerError(f"ledger {where}: name a file, as in sqlite:///path")
        return File(Path(url.database).absolute())
    if url.get_backend_name() != "postgresql":
        raise LedgerError(f"ledger {url.get_backend_name()}: only SQLite and PostgreSQL can hold one")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return Server(url, factory)


# ----------------------------------------------------------------------------------------------------- the hold


class Hold:
    """The exclusive hold on a ledger's file: a lock that the kernel drops when its process ends, however it ends."""

    def __init__(self, path: Path, factory: str, at: float) -> None:
        self.path = path
        self._file = self._take()
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": utc(at), "factory": factory})
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def _take(self) -> int:
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file), os.stat(self.path)):
                    return file
            except FileNotFoundError:
                pass  # it was removed between our two calls: lock the one that lies there now
            except BlockingIOError:
                holder = self._holder(file)
                os.close(file)
                raise LedgerHeld(f"ledger {str(self.path).removesuffix('.lock')} is held by {holder}") from None
            os.close(file)

    @staticmethod
    def _holder(file: int) -> str:
        try:
            holder = json.loads(os.pread(file, 4096, 0))
            return (
                f"process {holder['pid']} on {holder['host']} (factory {holder['factory']}) since {holder['since']}:"
                " stop that service first"
            )
        except (ValueError, KeyError, TypeError):
            return "another service, which is just starting"

    def check(self) -> None:
        """Raise LedgerError if the lock was taken from under us: then another service may hold the ledger too."""
        try:
            if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                return
        except FileNotFoundError:
            pass
        raise LedgerError(f"{self.path} was removed while the service ran: restart the service, and leave that file")

    def release(self) -> None:
        os.close(self._file)


def utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

"""The ledger on a real PostgreSQL: the same words, shared by factories, held by one service each."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apf_elastic.ledger import DECISIONS, Ledger, LedgerError, LedgerHeld
from apf_elastic.model import Resource, Shape, State

pytestmark = pytest.mark.real
NOBODY = 65534
NOW = 1_800_000_000.1


def programs() -> Path:
    """Where PostgreSQL's programs are: the package pgserver brings them, a distribution has them elsewhere."""
    package = importlib.util.find_spec("pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall"
    found = sorted(Path("/usr/lib/postgresql").glob("*"))
    if not found and os.environ.get("CI") == "true":
        pytest.fail("CI needs a PostgreSQL: install what requirements-test.lock names")
    return found[-1] if found else pytest.skip("no PostgreSQL: neither the package pgserver nor the distribution's")


def copied(programs: Path, to: Path) -> Path:
    """A copy that the server's user can reach: a checkout below root's home is closed to it. The libraries lie where
    the programs look for them, beside the package."""
    libraries = programs.parent.parent / "pgserver.libs"
    if libraries.exists():
        shutil.copytree(libraries, to / libraries.name, symlinks=True)
    return Path(shutil.copytree(programs, to / programs.parent.name / programs.name, symlinks=True))


class Postgres:
    """A private server on a socket in its own directory; it refuses to run as root, so then it runs as nobody."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.programs = programs()
        if os.getuid() == 0:
            self.programs = copied(self.programs, base / "install")
        self.url = f"postgresql://apf@/postgres?host={base}"
        self._user: dict[str, Any] = {"user": NOBODY, "group": NOBODY} if os.getuid() == 0 else {}
        if self._user:
            os.chown(base, NOBODY, NOBODY)
        self._run("initdb", "-D", str(base / "data"), "-U", "apf", "-A", "trust", "-E", "UTF8")
        self.start()

    def program(self, name: str) -> str:
        return str(self.programs / "bin" / name)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [self.program(name), *arguments], cwd=self.base, check=True, stdout=subprocess.DEVNULL, **self._user
        )

    def start(self) -> None:
        arguments = ["-D", str(self.base / "data"), "-k", str(self.base), "-c", "listen_addresses="]
        with (self.base / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program("postgres"), *arguments], cwd=self.base, stderr=log, **self._user
            )
        deadline = time.monotonic() + 30
        while subprocess.run([self.program("pg_isready"), "-q", "-h", str(self.base)]).returncode:
            assert time.monotonic() < deadline, (self.base / "log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(how)
        self.process.wait(30)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    base = Path(tempfile.mkdtemp(prefix="apf-elastic-pg-"))
    try:
        postgres = Postgres(base)
        yield postgres
        postgres.stop()
    finally:
        shutil.rmtree(base, ignore_errors=True)


def intentions(name: str, n: int) -> list[Resource]:
    shape = Shape(8, 16000, 2**50)
    return [Resource(f"{name}.{i}", "q", "site", "big", shape, State.INTENDED, NOW, NOW) for i in range(n)]


def test_what_is_recorded_is_read_back(postgres: Postgres) -> None:
    with Ledger.open(postgres.url, "words") as ledger, Ledger.read(postgres.url, "words") as reader:
        new = intentions("w", 1000)
        ledger.intend(new)
        ledger.record([replace(r, state=State.SUBMITTED, remote_id="7", reason="a \0 b \udcff") for r in new])
        gone = [replace(r, state=State.GONE, changed_at=NOW + i) for i, r in enumerate(ledger.resources().values())]
        ledger.record(gone[:10])
        for n in range(DECISIONS + 5):
            ledger.decided("q", NOW + n, {"n": n})
        ledger.snapshot({"a": 1}, NOW)
        ledger.meta_set("k", [1])
        assert dict(reader.resources()) == dict(ledger.resources())
        assert len(ledger.resources()) == 990
        assert ledger.prune(NOW + 5) == 5
        assert ledger.history("q").submitted == 1000
        assert [d.record["n"] for d in reader.last_decisions("q", 2)] == [DECISIONS + 4, DECISIONS + 3]
        assert (reader.last_snapshot(), reader.meta_get("k")) == ((NOW, {"a": 1}), [1])
    with Ledger.open(postgres.url, "words") as ledger:
        assert len(ledger.resources()) == 990


def test_each_factory_has_its_own_part_and_one_service(postgres: Postgres) -> None:
    with Ledger.open(postgres.url, "one") as one, Ledger.open(postgres.url, "two") as two:
        one.intend(intentions("same", 3))
        two.intend(intentions("same", 2))
        assert (len(one.resources()), len(two.resources())) == (3, 2)
        with pytest.raises(LedgerHeld, match=rf"another service of factory 'one': process {os.getpid()} on"):
            Ledger.open(postgres.url, "one")
        with pytest.raises(LedgerError, match="several factories"):
            Ledger.read(postgres.url)


def test_a_failed_write_changes_nothing(postgres: Postgres) -> None:
    with Ledger.open(postgres.url, "failed") as ledger, Ledger.read(postgres.url, "failed") as reader:
        ledger.intend(intentions("f", 2))
        with pytest.raises(LedgerError, match="duplicate key"):
            ledger.intend([*intentions("new", 3), *intentions("f", 1)])
        assert dict(reader.resources()) == dict(ledger.resources())
        assert len(ledger.resources()) == 2


def test_a_server_that_died_and_came_back_lost_nothing_that_was_acknowledged(postgres: Postgres) -> None:
    with Ledger.open(postgres.url, "crash") as ledger, Ledger.read(postgres.url, "crash") as reader:
        ledger.intend(intentions("before", 20))
        ledger.record([replace(r, state=State.SUBMITTED) for r in intentions("before", 10)])
        before = dict(ledger.resources())
        postgres.stop(signal.SIGQUIT)  # without any last write
        with pytest.raises(LedgerError):
            ledger.intend(intentions("lost", 1))
        assert ledger.resources() == before
        postgres.start()
        eventually(lambda: ledger.intend(intentions("after", 1)))
        assert reader.resources() == dict(ledger.resources())
        assert len(ledger.resources()) == 21
        with pytest.raises(LedgerHeld):
            Ledger.open(postgres.url, "crash")


def eventually(call: Callable[[], object]) -> None:
    """A connection that broke is found out by using it once."""
    try:
        call()
    except LedgerError:
        call()

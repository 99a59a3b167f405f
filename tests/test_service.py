"""The real service in a process of its own, on the embedded work queue and with processes as resources: signals,
kills, a second service, and what every command says."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer

from apf_elastic.backends.local import LocalBackend, LocalOptions
from apf_elastic.commands import run
from apf_elastic.config import load
from apf_elastic.contracts import Context, Handle, Status
from apf_elastic.embedded.store import Store, Task
from apf_elastic.ledger import Ledger, LedgerError
from apf_elastic.model import Resource
from apf_elastic.service import inline_lane, make_cycle, reconfigure
from tests.real.service import ServiceProcess, wait_until
from tests.site import Site

PATIENCE_S = 60.0

CONFIG = """\
[factory]
name = "proof"
state_dir = "{base}/state"
cycle = "1 s"

[sources.tasks]
type = "embedded"
directory = "{tasks}"
every = "0.3 s"

[pools.workers]
type = "embedded"
directory = "{base}/work"
every = "0.3 s"
idle = "60 s"

[backends.here]
type = "local"
every = "0.3 s"
stop_grace_s = 1
[backends.here.deadlines]
uncertain = "3 s"
[backends.here.offerings.one]
cores = 1
memory = "100 MB"
limit = {limit}

[queues.q]
source = "tasks"
pool = "workers"
backends = ["here"]
[queues.q.retirement]
idle = "1 s"
hysteresis = "1 s"
"""


class Factory(ServiceProcess):
    """A configuration with its work queue and its resources, and the service on it."""

    def __init__(self, base: Path) -> None:
        super().__init__(base / "apf-elastic.toml")
        self.base = base
        self.tasks = base / "work"
        self.configure()
        with Store(base / "work", create=True):
            pass

    def configure(self, limit: object = 6, tasks: Path | None = None) -> None:
        self.tasks = tasks or self.tasks
        self.config.write_text(CONFIG.format(base=self.base, limit=limit, tasks=self.tasks))

    def submit(self, count: int, seconds: float) -> None:
        with Store(self.tasks, create=True) as store:
            store.submit(Task("q", memory_mb=10, seconds=seconds) for _ in range(count))

    def done(self) -> int:
        with Store(self.base / "work") as store:
            return store.counts()["done"]

    def begin(self) -> Factory:
        """Start the service, and wait until it heeds signals."""
        before = self.log.count("factory proof:")
        self.start()
        wait_until(lambda: self.log.count("factory proof:") > before, PATIENCE_S, "the service starts", self.story)
        return self

    def story(self) -> str:
        return f"{self.log}\nresources: {[(r.id, r.state.value, r.reason) for r in self.live().values()]}"

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, PATIENCE_S, what, self.story)

    def wait_for_busy(self, count: int) -> None:
        def busy() -> bool:
            found = self.status()["endpoints"] if self.ledger_path.exists() else []
            return bool(sum(e["resources"].get("busy", 0) for e in found if e["kind"] == "backend") == count)

        self.wait(busy, f"{count} resources are busy")

    def status(self) -> dict[str, Any]:
        """What the service last wrote of itself; nothing yet is nothing."""
        with Ledger.read(self.ledger_path) as ledger:
            found = ledger.last_snapshot()
        return {"at": found[0], **found[1]} if found else {"at": 0.0, "endpoints": [], "queues": {}}

    # ---------------------------------------------------------------------------------------- what there really is

    @property
    def backend(self) -> LocalBackend:
        return LocalBackend("here", LocalOptions(stop_grace_s=0.0), Context("proof", self.base / "state/backend.here"))

    def running(self) -> set[str]:
        """What runs, as the machine says it and not the service."""
        return {entry.id for entry in self.backend.list() if entry.status is Status.RUNNING}

    def directories(self) -> set[str]:
        """Everything that was ever started."""
        root = self.base / "state/backend.here/resources"
        return {path.name for path in root.glob("[!.]*")}

    def assert_nothing_doubled(self) -> None:
        """The ledger and the machine know the same resources, but for intentions that never became one."""
        never = {r.id for r in self.ever() if r.outcome.startswith("never created")}
        assert {r.id for r in self.ever()} - never == self.directories() - never

    def clean_up(self) -> None:
        """Leave no process behind."""
        self.end()
        backend = self.backend
        wait_until(lambda: not self._remove(backend), PATIENCE_S, "everything is removed")

    def _remove(self, backend: LocalBackend) -> set[str]:
        left = self.running()
        backend.delete([Handle(id, None) for id in left])
        return left


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    made = Factory(tmp_path)
    yield made
    made.clean_up()


def joined(resources: list[Resource]) -> list[str]:
    return sorted(r.id for r in resources if r.joined_at)


# ---------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stop_leaves_resources_running_and_a_restart_adopts_them(factory: Factory, number: signal.Signals) -> None:
    factory.submit(2, seconds=6)
    factory.begin().wait_for_busy(2)
    before = factory.running()
    factory.process.send_signal(number)
    assert factory.process.wait(PATIENCE_S) == 0
    assert "stopped; 2 resources go on" in factory.log
    assert factory.running() == before == set(factory.live())
    factory.begin()
    factory.wait(lambda: factory.done() == 2, "the tasks end")
    factory.wait(lambda: factory.live() == {}, "everything is given back")
    assert factory.stop() == 0
    assert {r.id for r in factory.ever()} == before == factory.directories()
    assert factory.running() == set()


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_burst_files_the_answers_of_its_calls(factory: Factory) -> None:
    factory.submit(6, seconds=20)
    factory.begin()
    factory.wait(lambda: bool(factory.live()), "the first intentions")
    assert factory.stop() == 0
    assert {r.state.value for r in factory.live().values()} & {"intended"} == set()
    assert factory.running() <= set(factory.live())


@pytest.mark.slow
def test_sighup_takes_a_raised_limit_without_a_restart(factory: Factory) -> None:
    factory.configure(limit=1)
    factory.submit(3, seconds=30)
    factory.begin().wait_for_busy(1)
    first, pid = factory.running(), factory.process.pid
    factory.configure(limit=3)
    factory.process.send_signal(signal.SIGHUP)
    factory.wait_for_busy(3)
    assert "new configuration taken" in factory.log
    assert (factory.process.poll(), factory.process.pid) == (None, pid)
    assert first < factory.running() == set(factory.live())
    assert factory.stop() == 0


@pytest.mark.slow
def test_sighup_with_a_wrong_file_is_refused_and_the_old_one_stays(factory: Factory) -> None:
    factory.configure(limit=2)
    factory.submit(1, seconds=30)
    factory.begin().wait_for_busy(1)
    factory.configure(limit='"many"')
    factory.process.send_signal(signal.SIGHUP)
    factory.wait(lambda: "was not taken" in factory.log, "the refusal")
    told = factory.log.partition("was not taken")[2]
    assert str(factory.config) in told
    assert "backends.here.offerings.one.limit" in told
    factory.submit(3, seconds=30)
    factory.wait_for_busy(2)
    with Ledger.read(factory.ledger_path) as ledger:
        account = ledger.last_decisions("q")[0].record["accounts"][0]
    assert list(account["withheld"].values()) == [2], account
    assert factory.stop() == 0


@pytest.mark.slow
def test_sighup_for_another_factory_name_is_refused(factory: Factory) -> None:
    factory.begin()
    factory.config.write_text(factory.config.read_text().replace('name = "proof"', 'name = "other"'))
    factory.process.send_signal(signal.SIGHUP)
    factory.wait(lambda: "cannot change while it runs" in factory.log, "the refusal")
    assert factory.stop() == 0


@pytest.mark.slow
def test_a_second_service_on_the_same_ledger_refuses_and_disturbs_nobody(factory: Factory) -> None:
    factory.submit(2, seconds=6)
    factory.begin().wait_for_busy(2)
    for command in ("run", "once"):
        second = factory.ask(command)
        assert second.returncode not in (0, -signal.SIGTERM)
        assert f"held by process {factory.process.pid} " in second.stderr
        assert "Traceback" not in second.stderr
    factory.wait(lambda: factory.done() == 2 and not factory.live(), "the first goes on")
    assert factory.stop() == 0
    assert len(factory.ever()) == 2


# ------------------------------------------------------------------------------------------------------ kills


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_and_doubles_nothing(factory: Factory) -> None:
    factory.submit(12, seconds=2)
    for delay_s in (0.0, 0.05, 0.15, 0.3, 0.5, 0.8, 1.5, 2.5):
        factory.begin()
        moment(delay_s)
        factory.kill()
    factory.begin()
    factory.wait(lambda: factory.done() == 12, "every task is done")
    factory.wait(lambda: factory.live() == {}, "everything is given back")
    assert factory.stop() == 0
    with Store(factory.tasks) as store:
        assert [task.attempt for task in store.tasks()] == [1] * 12
    factory.assert_nothing_doubled()
    assert factory.running() == set()


@pytest.mark.slow
def test_a_kill_the_moment_an_intention_is_written_loses_and_doubles_nothing(factory: Factory) -> None:
    factory.submit(4, seconds=2)
    for _ in range(3):
        seen = len(factory.live())
        factory.begin()
        deadline = time.monotonic() + 3.0
        while len(factory.live()) == seen and time.monotonic() < deadline:
            time.sleep(0.002)
        factory.kill()
    factory.begin()
    factory.wait(lambda: factory.done() == 4 and not factory.live(), "all done, everything given back")
    assert factory.stop() == 0
    factory.assert_nothing_doubled()
    assert factory.running() == set()


def moment(seconds: float) -> None:
    """The moment of the kill is the subject of the test, so time itself must pass."""
    time.sleep(seconds)


# ---------------------------------------------------------------------------------------------- what disappears


@pytest.mark.slow
def test_a_source_whose_directory_disappears_is_unknown_and_nothing_is_retired(factory: Factory) -> None:
    """The resources idle longer than they may: only the waiting work that nobody can see now keeps them."""
    tasks = factory.base / "tasks"
    factory.configure(tasks=tasks)
    factory.submit(2, seconds=1)  # in a queue of its own, where no worker finds them
    factory.begin()
    factory.wait(lambda: len(joined(list(factory.live().values()))) == 2, "two resources join")
    tasks.rename(factory.base / "away")
    lost_at = time.time()
    factory.wait(lambda: _unknown(factory) != "", "the source is unknown")
    assert "no work queue" in _unknown(factory)
    shown = factory.ask("status").stdout
    assert "there is no work queue" in shown.replace("\n", " "), shown
    told = factory.ask("explain", "q").stdout
    assert "Holds, nothing is created or retired" in told
    factory.wait(lambda: factory.status()["at"] > lost_at + 4, "some cycles pass")
    assert factory.process.poll() is None
    assert factory.running() == set(factory.live())
    assert len(factory.running()) == 2
    (factory.base / "away").rename(tasks)
    factory.wait(lambda: _unknown(factory) == "", "the source is known again")
    with closing(sqlite3.connect(tasks / "embedded.sqlite")) as queue, queue:
        queue.execute("DELETE FROM tasks")
    factory.wait(lambda: factory.live() == {}, "an honest end of the work retires them")
    assert factory.stop() == 0
    assert len(factory.ever()) == 2


def _unknown(factory: Factory) -> str:
    return str(factory.status()["queues"]["q"].get("unknown", ""))


# ------------------------------------------------------------------------------------------- without a process


def test_a_call_to_a_backend_that_is_no_longer_configured_is_not_waited_for(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.submit(1)
    site.outside()
    observer = site.cycle.observer
    observer.ask_all()
    site.cycle.tick()
    assert list(site.cycle.actor.in_flight.values()) == ["create"]
    rest = {key: endpoint for key, endpoint in observer.endpoints.items() if endpoint.kind != "backend"}
    observer.take_over(rest, observer.queues_of)
    site.cycle.file(site.inbox.take())
    assert site.cycle.actor.in_flight == {}
    assert site.states() == {"intended": 1}
    site.stop()


def test_a_plugin_that_cannot_let_go_keeps_no_configuration_from_being_taken(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LocalBackend) -> None:
        raise OSError("cannot let go")

    old = load(factory.config)
    factory.configure(limit=3)
    new = load(factory.config)
    with Ledger.open(old.factory.ledger, "proof") as ledger:
        cycle = make_cycle(old, ledger, make_lane=inline_lane)
        monkeypatch.setattr(LocalBackend, "close", fail)
        reconfigure(cycle, old, new, inline_lane)
        assert cycle.settings is new.settings


@pytest.mark.parametrize(
    ("command", "verb"),
    [(run.run, "meta_get"), (run.once, "meta_get"), (run.once, "snapshot")],
    ids=["run at once", "once at once", "once at the end"],
)
def test_a_ledger_that_fails_later_is_told_in_words(
    factory: Factory, monkeypatch: pytest.MonkeyPatch, command: Callable[[Path], None], verb: str
) -> None:
    def fail(*anything: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(Ledger, verb, fail)
    with pytest.raises(typer.Exit) as ended:
        command(factory.config)
    assert ended.value.exit_code == 1


# --------------------------------------------------------------------------------------------- once, and plan


@pytest.mark.slow
def test_once_does_one_cycle_and_ends(factory: Factory) -> None:
    factory.submit(2, seconds=6)
    done = factory.ask("once", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queues"]["q"]["actions"]
    assert {r.state.value for r in factory.live().values()} == {"submitted"}
    assert len(factory.live()) == 2
    with closing(sqlite3.connect(factory.tasks / "embedded.sqlite")) as queue:
        assert queue.execute("SELECT factory FROM leases").fetchall() == [("proof",)], (
            "resources would end by themselves"
        )
    again = factory.ask("once")
    assert (again.returncode, "0 created and 0 retired" in again.stdout) == (0, True), again.stdout
    assert factory.running() == set(factory.live()) == factory.directories()


def test_plan_before_the_first_start_makes_no_ledger_and_no_resource(factory: Factory) -> None:
    factory.submit(2, seconds=1)
    planned = factory.ask("plan")
    assert planned.returncode == 0, planned.stderr
    assert "2 created and 0 retired would be done." in planned.stdout
    assert not factory.ledger_path.exists()
    assert factory.directories() == set()


@pytest.mark.slow
def test_plan_changes_nothing_beside_a_stopped_service(factory: Factory) -> None:
    factory.submit(1, seconds=20)
    factory.begin().wait_for_busy(1)
    assert factory.stop() == 0
    factory.submit(2, seconds=20)
    ledger, running = rows(factory.ledger_path), factory.running()
    size, changed_at = factory.ledger_path.stat().st_size, factory.ledger_path.stat().st_mtime_ns
    planned = factory.ask("plan", "--json")
    assert "create 2 x one at here" in json.loads(planned.stdout)["queues"]["q"]["actions"][0]
    assert rows(factory.ledger_path) == ledger
    assert (factory.ledger_path.stat().st_size, factory.ledger_path.stat().st_mtime_ns) == (size, changed_at)
    assert factory.running() == running == factory.directories()


@pytest.mark.slow
def test_plan_changes_nothing_beside_a_running_service(factory: Factory) -> None:
    factory.configure(limit=1)
    factory.submit(2, seconds=20)
    factory.begin().wait_for_busy(1)
    resources, running = rows(factory.ledger_path)["resources"], factory.running()
    planned = factory.ask("plan")
    assert (planned.returncode, "0 created and 0 retired would be done." in planned.stdout) == (0, True), planned
    assert rows(factory.ledger_path)["resources"] == resources
    assert factory.running() == running == factory.directories()
    assert factory.process.poll() is None


def rows(ledger: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in a ledger."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


# ----------------------------------------------------------------------------------------- what the commands say


@pytest.mark.slow
def test_the_commands_tell_what_the_service_does(factory: Factory) -> None:
    factory.submit(2, seconds=20)
    factory.begin().wait_for_busy(2)
    status = json.loads(factory.ask("status", "--json").stdout)
    assert status["queues"]["q"]["demand"]["running"] == 2
    assert status["age_s"] < PATIENCE_S
    shown = factory.ask("status")
    assert (shown.returncode, "2 busy" in shown.stdout) == (0, True), shown.stdout
    account = json.loads(factory.ask("explain", "q", "--json", "--last", "20").stdout)
    assert any("create 2 x one at here" in action for decision in account for action in decision["actions"])
    told = factory.ask("explain", "q", "--last", "20").stdout
    assert "Create 2 x one at here: 2 waiting jobs have no place yet." in told


class View:
    """`watch` on a terminal."""

    def __init__(self, factory: Factory) -> None:
        self._terminal, its_end = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
        command = [*factory.command("watch"), "--every", "0.2"]
        self.process = subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end, env=environment)
        os.close(its_end)
        self.painted = ""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.painted:
            assert time.monotonic() < deadline, self.painted
            assert self._read(), self.painted

    def end(self) -> int:
        """Read until it has ended; its exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        """What the terminal shows next; False when whoever paints it has ended."""
        if not select.select([self._terminal], [], [], PATIENCE_S)[0]:
            return False
        try:
            self.painted += os.read(self._terminal, 65536).decode(errors="replace")
        except OSError:
            return False
        return True


@pytest.mark.slow
def test_watch_shows_what_runs_until_ctrl_c(factory: Factory) -> None:
    factory.submit(2, seconds=20)
    factory.begin().wait_for_busy(2)
    with View(factory) as view:
        view.wait_for("2 busy")
        view.process.send_signal(signal.SIGINT)
        assert view.end() == 0
    assert "Traceback" not in view.painted
    assert factory.process.poll() is None


@pytest.mark.slow
def test_a_ledger_that_is_damaged_under_a_watch_is_told_in_words(factory: Factory) -> None:
    assert factory.ask("once").returncode == 0
    with View(factory) as view:
        view.wait_for("factory proof")
        factory.ledger_path.write_bytes(b"no database any more" * 1000)
        assert view.end() == 1
    assert f"error: ledger {factory.ledger_path}" in "".join(view.painted.split("\r\n")).replace("\x1b[0m", "")
    assert "Traceback" not in view.painted


COMMANDS = ("run", "once", "plan", "status", "explain q", "watch")


def refused(factory: Factory, command: str) -> str:
    """What a command says that cannot do its work."""
    done = factory.ask(*command.split())
    assert done.returncode not in (0, None), done.stdout
    assert done.returncode > 0, "it was killed"
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_configuration_is_told_in_words(factory: Factory, command: str) -> None:
    factory.config.unlink()
    assert "does not exist" in refused(factory, command)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_ledger_is_told_in_words(factory: Factory, command: str) -> None:
    factory.ledger_path.parent.mkdir()
    factory.ledger_path.write_bytes(b"this is no database" * 100)
    assert f"{factory.ledger_path} is damaged" in refused(factory, command)
    assert factory.directories() == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_in_place_of_the_ledger_is_told_in_words(factory: Factory, command: str) -> None:
    factory.ledger_path.mkdir(parents=True)
    assert str(factory.ledger_path) in refused(factory, command)


@pytest.mark.parametrize("command", ["status", "explain q", "watch"])
def test_before_the_first_start_there_is_nothing_to_tell(factory: Factory, command: str) -> None:
    assert "there is no ledger" in refused(factory, command)


@pytest.mark.slow
def test_an_unknown_queue_is_told_with_those_that_are_known(factory: Factory) -> None:
    assert factory.ask("once").returncode == 0
    assert "queue elsewhere: known queues: q" in refused(factory, "explain elsewhere")

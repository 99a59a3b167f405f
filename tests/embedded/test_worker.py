"""A worker runs what fits, obeys its pool, and leaves by itself. Real processes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from apf_elastic.embedded import store as store_module
from apf_elastic.embedded import worker as worker_module
from apf_elastic.embedded.store import Store, Task, Worker

pytestmark = pytest.mark.slow

PATIENCE_S = 30.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.03)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "queue", create=True) as store:
        store.renew_lease("f")
        yield store


class Crew:
    """Starts workers, and ends those that a test leaves behind."""

    def __init__(self, base: Path, store: Store) -> None:
        self.base = base
        self.store = store
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self, id: str, *, token: bytes | None = None, joins: bool = True, **settings: Any
    ) -> subprocess.Popen[bytes]:
        place = self.place(id)
        place.mkdir()
        self.store.issue("f", {id: b"secret"})
        (place / "token").write_bytes(token or b"secret")
        values = {"id": id, "directory": self.base / "queue", "queue": "q", "cores": 2, "memory_mb": 1000} | settings
        environment = {f"ELASTIC_{name.upper()}": str(value) for name, value in values.items() if value is not None}
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "apf_elastic.embedded.worker"],
                cwd=place,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)} | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        if joins:
            wait_until(lambda: id in self.joined(), f"{id} has joined: {self.log(id)}")
        return process

    def place(self, id: str) -> Path:
        return self.base / id

    def log(self, id: str) -> str:
        return (self.place(id) / "log").read_text()

    def joined(self) -> set[str]:
        return {joined.id for joined in self.store.joined("f")}

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def crew(tmp_path: Path, store: Store) -> Iterator[Crew]:
    crew = Crew(tmp_path, store)
    yield crew
    crew.end()


def left(process: subprocess.Popen[bytes]) -> int:
    return process.wait(PATIENCE_S)


def test_it_runs_what_waits_and_leaves_when_idle_for_long_enough(store: Store, crew: Crew) -> None:
    store.submit([Task("q", seconds=0.1)] * 5)
    worker = crew.start("w", idle_s=0.5)
    assert left(worker) == 0
    assert store.counts() == {"waiting": 0, "running": 0, "done": 5, "failed": 0}
    assert crew.joined() == set()
    idle_since = max(record.ended_at or 0.0 for record in store.tasks())
    assert time.time() - idle_since >= 0.5


def test_it_runs_as_many_at_once_as_fit(store: Store, crew: Crew) -> None:
    store.submit([Task("q", 1, 300, seconds=60)] * 5 + [Task("q", 3, 0), Task("q", 1, 2000)])
    crew.start("w", cores=4)
    wait_until(lambda: store.joined("f")[0].jobs == 3, "three run")
    time.sleep(0.5)
    assert store.joined("f")[0].jobs == 3  # a fourth would need more memory


def test_a_command_runs_without_a_shell_and_its_exit_code_is_recorded(store: Store, crew: Crew, tmp_path: Path) -> None:
    store.submit(
        [
            Task("q", command=("touch", str(tmp_path / "it's $HOME"))),
            Task("q", command=("false",)),
            Task("q", command=("/no/such/program",)),
            Task("q", command=(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")),
        ]
    )
    left(crew.start("w", idle_s=0.3))
    assert [record.exit_code for record in store.tasks()] == [0, 1, 127, -9]
    assert (tmp_path / "it's $HOME").exists()
    assert "/no/such/program" in crew.log("w")


def test_a_task_sees_nothing_of_how_its_worker_joined(store: Store, crew: Crew) -> None:
    store.submit([Task("q", command=("env",)), Task("q", command=("ls",))])
    left(crew.start("w", idle_s=0.3))
    assert "ELASTIC" not in crew.log("w")
    assert "token" not in crew.log("w")


def test_the_secret_is_removed_once_read(crew: Crew) -> None:
    crew.start("w")
    assert not (crew.place("w") / "token").exists()


def test_a_wrong_secret_lets_no_one_in(store: Store, crew: Crew) -> None:
    assert left(crew.start("w", token=b"guessed", joins=False)) == 1
    assert "cannot join: w: its secret is not one that was issued to it" in crew.log("w")
    assert crew.joined() == set()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"directory": None}, "ELASTIC_DIRECTORY"),
        ({"cores": "many"}, "ELASTIC_CORES=many: a number is expected"),
        ({"directory": "/nowhere"}, "no work queue at /nowhere"),
    ],
)
def test_wrong_settings_are_told(crew: Crew, settings: dict[str, Any], complaint: str) -> None:
    assert left(crew.start("w", joins=False, **settings)) == 1
    assert complaint in crew.log("w")


def test_a_drained_worker_ends_its_tasks_takes_no_new_one_and_leaves(store: Store, crew: Crew) -> None:
    store.submit([Task("q", 2, seconds=2.0)] * 2)
    worker = crew.start("w")
    wait_until(lambda: store.joined("f")[0].jobs == 1, "a task runs")
    store.drain("f", ["w"])
    assert left(worker) == 0
    assert store.counts() == {"waiting": 1, "running": 0, "done": 1, "failed": 0}


def test_a_worker_that_is_taken_back_takes_tasks_again(store: Store, crew: Crew) -> None:
    (long,) = store.submit([Task("q", 1, seconds=60)])
    worker = crew.start("w")
    wait_until(lambda: store.counts()["running"] == 1, "a task runs")
    store.drain("f", ["w"])
    (next,) = store.submit([Task("q", 1, seconds=60)])
    time.sleep(1.5)
    assert [record.state for record in store.tasks()] == ["running", "waiting"]
    assert store.drain("f", ["w"], back=True) == {}
    wait_until(lambda: store.counts()["running"] == 2, f"task {next} runs beside {long}")
    assert worker.poll() is None


def test_sigterm_ends_a_worker_once_its_tasks_are_done(store: Store, crew: Crew) -> None:
    store.submit([Task("q", 2, seconds=1.0)] * 2)
    worker = crew.start("w")
    wait_until(lambda: store.counts()["running"] == 1, "a task runs")
    worker.terminate()
    store.drain("f", ["w"], back=True)
    assert left(worker) == 0
    assert store.counts()["done"] == 1
    assert store.counts()["waiting"] == 1
    assert store.drain("f", ["w"], back=True) == {"w": "has left already"}


def test_a_worker_leaves_when_the_lease_runs_out_and_ends_its_tasks_first(store: Store, crew: Crew) -> None:
    store.submit([Task("q", 1, seconds=4.0)])
    worker = crew.start("w", lease_s=1.5)
    wait_until(lambda: store.counts()["running"] == 1, "a task runs")
    time.sleep(2.0)
    store.submit([Task("q", 1)])
    assert left(worker) == 0
    assert store.counts() == {"waiting": 1, "running": 0, "done": 1, "failed": 0}


def test_a_worker_stays_while_the_lease_is_renewed(store: Store, crew: Crew) -> None:
    worker = crew.start("w", lease_s=1.5)
    for _ in range(8):
        time.sleep(0.4)
        store.renew_lease("f")
    assert worker.poll() is None


def test_a_worker_leaves_when_the_work_queue_is_broken_for_as_long_as_a_lease(
    store: Store, crew: Crew, tmp_path: Path
) -> None:
    worker = crew.start("w", lease_s=1.0)
    with closing(sqlite3.connect(tmp_path / "queue" / store_module.FILE)) as other:
        other.execute("DROP TABLE workers")
    assert left(worker) == 0
    assert "leaving: work queue" in crew.log("w")


def test_a_worker_leaves_when_the_work_queue_is_removed(crew: Crew, tmp_path: Path) -> None:
    worker = crew.start("w", lease_s=1.0)
    shutil.rmtree(tmp_path / "queue")
    assert left(worker) == 0


def test_a_task_whose_worker_is_killed_runs_elsewhere_and_ends_once(
    store: Store, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DEAD_S", 2.5)  # as this process judges; the workers wait for twice as long
    (id,) = store.submit([Task("q", 2, seconds=1.0)])
    first = crew.start("w1")
    wait_until(lambda: store.counts()["running"] == 1, "the task runs")
    crew.start("w2")
    first.kill()
    first.wait()
    assert "w1" in crew.joined()
    wait_until(lambda: crew.joined() == {"w2"}, "the pool knows that w1 is dead")
    wait_until(lambda: store.counts()["done"] == 1, "the task is done")
    (record,) = store.tasks()
    assert (record.id, record.worker, record.attempt, record.exit_code) == (id, "w2", 2, 0)


def test_other_workers_bury_a_dead_one_by_themselves(store: Store, crew: Crew) -> None:
    store.submit([Task("q", 2, seconds=0.5)])
    first = crew.start("w1")
    wait_until(lambda: store.counts()["running"] == 1, "the task runs")
    first.kill()
    crew.start("w2", cores=2)
    wait_until(lambda: store.counts()["done"] == 1, "the task is done")


def test_a_worker_that_was_taken_for_dead_ends_its_tasks_and_goes(
    store: Store, crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DEAD_S", 2.5)
    store.submit([Task("q", command=("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600"))])
    worker = crew.start("w1")
    wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()), "the command runs")
    worker.send_signal(signal.SIGSTOP)
    wait_until(lambda: crew.joined() == set(), "the pool takes it for dead")
    worker.send_signal(signal.SIGCONT)
    assert left(worker) == 0
    assert store.counts() == {"waiting": 1, "running": 0, "done": 0, "failed": 0}
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_an_idle_worker_uses_next_to_no_cpu(crew: Crew) -> None:
    worker = crew.start("w")

    def ticks() -> int:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(2.0)
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") < 0.05 * 2.0


def test_a_worker_starts_fast() -> None:
    code = "import time; t = time.perf_counter(); import apf_elastic.embedded.worker; print(time.perf_counter() - t)"
    took = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    assert min(took) < 0.06


def test_a_worker_imports_nothing_but_the_standard_library() -> None:
    code = "import sys, apf_elastic.embedded.worker; print(*{name.partition('.')[0] for name in sys.modules})"
    names = set(
        subprocess.run(
            [sys.executable, "-S", "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(Path(worker_module.__file__).parents[2])},
        ).stdout.split()
    )
    assert names - sys.stdlib_module_names - {"__main__", "apf_elastic"} == set()


def test_settings_have_defaults() -> None:
    settings = worker_module.settings_from({"ELASTIC_ID": "w", "ELASTIC_DIRECTORY": "d"})
    assert settings == worker_module.Settings("d", Worker("w", "", "", "", 1, 0, os.uname().nodename), 30.0, 60.0)

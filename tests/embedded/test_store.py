"""The embedded work queue hands every task to one worker, and loses none when workers die."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apf_elastic.embedded import store as store_module
from apf_elastic.embedded.store import (
    ATTEMPTS,
    CREDENTIAL_S,
    DEAD_S,
    Claim,
    Refusal,
    Store,
    StoreError,
    Task,
    Worker,
)

NOW = 1_800_000_000.0


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def pulse() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def store(tmp_path: Path, clock: Clock, pulse: Clock) -> Iterator[Store]:
    with Store(tmp_path, create=True, clock=clock, pulse=pulse) as store:
        yield store


def join(store: Store, id: str = "w", cores: int = 4, memory_mb: int = 4000, queue: str = "q") -> None:
    store.issue("f", {id: b"secret"})
    store.join(Worker(id, queue, "local", "big", cores, memory_mb, "laptop"), b"secret")


def sizes(claims: list[Claim]) -> list[tuple[int, int]]:
    return [(claim.cores, claim.memory_mb) for claim in claims]


# ---------------------------------------------------------------------------------------------------------- tasks


def test_tasks_wait_run_and_end(store: Store, clock: Clock) -> None:
    store.submit([Task("q", seconds=1.5), Task("q", command=("true",))])
    join(store, cores=1)
    (first,) = store.claim("w", 1, 4000)
    assert store.counts() == {"waiting": 1, "running": 1, "done": 0, "failed": 0}
    clock.now += 2
    assert [store.finish("w", [(first, 0)]), store.finish("w", [(first, 1)])] == [1, 0]
    (second,) = store.claim("w", 1, 4000)
    store.finish("w", [(second, 3)])
    assert (first.seconds, first.command, second.command) == (1.5, (), ("true",))
    assert store.counts("q") == {"waiting": 0, "running": 0, "done": 1, "failed": 1}
    assert store.counts("another")["done"] == 0
    done, failed = store.tasks("q")
    assert (done.state, done.submitted_at, done.started_at, done.ended_at) == ("done", NOW, NOW, NOW + 2)
    assert (failed.state, failed.exit_code, failed.worker) == ("failed", 3, "w")


def test_the_biggest_task_that_fits_is_claimed_first(store: Store) -> None:
    store.submit([Task("q", 1, 10), Task("q", 8, 10), Task("q", 2, 500), Task("q", 2, 900), Task("q", 1, 90)])
    join(store)
    assert sizes(store.claim("w", 4, 1000)) == [(2, 900), (1, 90), (1, 10)]
    assert store.claim("w", 0, 0) == []


def test_equal_tasks_are_claimed_in_the_order_of_submission(store: Store) -> None:
    ids = store.submit([Task("q")] * 3)
    join(store)
    assert [claim.id for claim in store.claim("w", 3, 0)] == ids


def test_a_worker_claims_the_tasks_of_its_own_queue_first(store: Store) -> None:
    other, own = store.submit([Task("other", 2), Task("q", 1)])
    join(store)
    assert [claim.id for claim in store.claim("w", 1, 0)] == [own]
    assert [claim.id for claim in store.claim("w", 2, 0)] == [other]


@pytest.mark.parametrize("task", [Task(cores=0), Task(memory_mb=-1), Task(seconds=-1.0), Task(seconds=float("nan"))])
def test_a_task_that_asks_for_nonsense_is_refused_with_all_beside_it(store: Store, task: Task) -> None:
    with pytest.raises(ValueError, match="a task needs"):
        store.submit([Task(), task])
    assert store.counts()["waiting"] == 0


def test_groups_count_waits_to_the_task(store: Store, clock: Clock) -> None:
    store.submit([Task("a", 1)] * 2 + [Task("b", 2, 100)])
    clock.now += 10
    store.submit([Task("a", 1)] * 3)
    clock.now += 5
    join(store)
    store.claim("w", 1, 0)
    a, b = store.groups([5.0, 5.1, 15.0, 15.1])
    assert (a.queue, a.cores, a.waiting, a.running, a.oldest_submitted_at) == ("a", 1, 4, 1, NOW)
    assert a.waited == {5.0: 4, 5.1: 1, 15.0: 1, 15.1: 0}
    assert (b.queue, b.memory_mb, b.waiting, b.running) == ("b", 100, 1, 0)


def test_tasks_that_ended_are_in_no_group(store: Store) -> None:
    store.submit([Task()])
    join(store)
    store.finish("w", [(claim, 0) for claim in store.claim("w", 1, 0)])
    assert store.groups() == []


@given(
    tasks=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=25),
    workers=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4),
    order=st.lists(st.integers(0, 3), max_size=30),
    dies=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_task_has_at_most_one_worker_and_no_worker_more_than_it_has(
    tmp_path_factory: pytest.TempPathFactory,
    tasks: list[tuple[int, int]],
    workers: list[tuple[int, int]],
    order: list[int],
    dies: bool,
) -> None:
    pulse = Clock(1000.0)
    with Store(tmp_path_factory.mktemp("store"), create=True, pulse=pulse) as store:
        ids = store.submit(Task("q", *task) for task in tasks)
        free = {f"w{n}": size for n, size in enumerate(workers)}
        for id, size in free.items():
            join(store, id, *size)
        held: dict[str, list[Claim]] = {id: [] for id in free}
        for n in order:
            id = f"w{n % len(workers)}"
            if held[id]:
                store.finish(id, [(held[id].pop(), 0)])
            cores = free[id][0] - sum(claim.cores for claim in held[id])
            memory_mb = free[id][1] - sum(claim.memory_mb for claim in held[id])
            claims = store.claim(id, cores, memory_mb)
            assert sum(claim.cores for claim in claims) <= cores
            assert sum(claim.memory_mb for claim in claims) <= memory_mb
            held[id] += claims
        claimed = [claim.id for claims in held.values() for claim in claims]
        assert len(claimed) == len(set(claimed))
        if dies:
            pulse.now += DEAD_S + 1
            assert store.bury() == len(workers)
            claimed = []
        states = Counter(record.state for record in store.tasks())
        assert states["running"] == len(claimed)
        assert states.total() == len(ids)
        assert states == {k: v for k, v in store.counts().items() if v}


def _claim_all(directory: Path, id: str, start: Any, answers: Any) -> None:
    with Store(directory) as store:
        start.wait(20)
        claimed = []
        while claims := store.claim(id, 2, 0):
            claimed += [claim.id for claim in claims]
            store.finish(id, [(claim, 0) for claim in claims])
        answers.put((id, claimed))


def test_many_processes_and_threads_claim_every_task_once(store: Store, tmp_path: Path) -> None:
    ids = store.submit([Task("q")] * 400)
    context = multiprocessing.get_context("spawn")
    start, answers = context.Event(), context.Queue()
    processes = []
    for n in range(4):
        join(store, f"p{n}")
        processes.append(context.Process(target=_claim_all, args=(tmp_path, f"p{n}", start, answers)))
    threads = []
    for n in range(4):
        join(store, f"t{n}")
        threads.append(threading.Thread(target=_claim_all, args=(tmp_path, f"t{n}", start, answers)))
    workers: list[Any] = [*processes, *threads]
    for worker in workers:
        worker.start()
    start.set()
    claimed = dict(answers.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(20)
    assert sorted(id for ids in claimed.values() for id in ids) == ids
    assert {(record.worker, record.state, record.attempt) for record in store.tasks()} <= {
        (id, "done", 1) for id in claimed
    }


# -------------------------------------------------------------------------------------------------------- workers


def test_a_worker_joins_once_with_its_own_secret(store: Store) -> None:
    store.issue("f", {"w": b"secret", "other": b"another"})
    worker = Worker("w", "q", "local", "big", 4, 4000)
    with pytest.raises(Refusal, match="not one that was issued to it"):
        store.join(worker, b"another")
    with pytest.raises(Refusal, match="not one that was issued to it"):
        store.join(worker._replace(id="unheard of"), b"secret")
    store.join(worker, b"secret")
    with pytest.raises(Refusal, match="has joined before"):
        store.join(worker, b"secret")
    assert [joined.id for joined in store.joined("f")] == ["w"]


def test_a_second_secret_leaves_the_first_good_until_one_of_them_is_used(store: Store) -> None:
    store.issue("f", {"w": b"first"})
    store.issue("f", {"w": b"second"})
    store.join(Worker("w", "q", "local", "big", 4, 4000), b"first")
    store.issue("f", {"w": b"third"})
    with pytest.raises(Refusal, match="has joined before"):
        store.join(Worker("w", "q", "local", "big", 4, 4000), b"third")


def test_a_secret_ends_with_time(store: Store, clock: Clock) -> None:
    store.issue("f", {"w": b"secret"})
    clock.now += CREDENTIAL_S + 1
    with pytest.raises(Refusal, match="issued more than"):
        store.join(Worker("w", "q", "local", "big", 4, 4000), b"secret")


def test_only_digests_of_secrets_are_kept(store: Store, tmp_path: Path) -> None:
    store.issue("f", {"w": b"a very secret secret"})
    for file in tmp_path.iterdir():
        assert b"a very secret secret" not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0


def test_the_pool_sees_what_a_worker_does(store: Store, clock: Clock) -> None:
    join(store)
    (idle,) = store.joined("f")
    assert (idle.jobs, idle.idle_since, idle.joined_at, idle.draining) == (0, NOW, NOW, False)
    store.submit([Task("q", 1, 100), Task("q", 2, 300)])
    clock.now += 1
    claims = store.claim("w", 4, 4000)
    (busy,) = store.joined("f")
    assert (busy.jobs, busy.busy_cores, busy.busy_memory_mb, busy.idle_since) == (2, 3, 400, None)
    clock.now += 1
    store.finish("w", [(claims[0], 0)])
    assert store.joined("f")[0].idle_since is None
    clock.now += 1
    store.finish("w", [(claims[1], 0)])
    assert store.joined("f")[0].idle_since == NOW + 3
    store.finish("w", [])
    assert store.leave("w")
    assert store.joined("f") == []


def test_a_factory_sees_its_own_workers_only(store: Store) -> None:
    join(store)
    assert store.joined("another") == []
    assert store.drain("another", ["w"]) == {"w": "has not joined"}


def test_a_draining_worker_claims_nothing_until_it_is_taken_back(store: Store) -> None:
    join(store)
    store.submit([Task("q")])
    assert store.drain("f", ["w", "unheard of"]) == {"unheard of": "has not joined"}
    assert store.beat("w").draining
    assert store.claim("w", 4, 4000) == []
    assert store.drain("f", ["w"], back=True) == {}
    assert not store.beat("w").draining
    assert len(store.claim("w", 4, 4000)) == 1


def test_a_worker_that_was_taken_back_does_not_leave_for_its_drain(store: Store) -> None:
    join(store)
    store.drain("f", ["w"])
    store.drain("f", ["w"], back=True)
    assert not store.leave("w", only_if_draining=True)
    store.drain("f", ["w"])
    assert store.leave("w", only_if_draining=True)
    assert store.drain("f", ["w"], back=True) == {"w": "has left already"}


def test_a_worker_with_a_task_does_not_leave(store: Store) -> None:
    join(store)
    store.submit([Task("q")])
    (claim,) = store.claim("w", 4, 4000)
    assert not store.leave("w")
    store.finish("w", [(claim, 0)])
    assert store.leave("w")
    assert store.claim("w", 4, 4000) == []


def test_the_tasks_of_a_dead_worker_wait_again_once(store: Store, pulse: Clock) -> None:
    store.submit([Task("q")] * 2)
    join(store, "w1")
    join(store, "w2")
    lost = store.claim("w1", 2, 0)
    pulse.now += DEAD_S - 0.1
    store.beat("w2")
    assert store.bury() == 0
    pulse.now += 0.2
    assert [joined.id for joined in store.joined("f")] == ["w2"]
    assert store.counts() == {"waiting": 2, "running": 0, "done": 0, "failed": 0}
    again = store.claim("w2", 2, 0)
    assert [(claim.id, claim.attempt) for claim in again] == [(claim.id, 2) for claim in lost]
    assert store.bury() == 0
    assert store.counts()["running"] == 2


def test_a_worker_that_was_taken_for_dead_ends_no_task_and_learns_of_it(store: Store, pulse: Clock) -> None:
    store.submit([Task("q")])
    join(store, "w1")
    join(store, "w2")
    (lost,) = store.claim("w1", 1, 0)
    pulse.now += DEAD_S + 1
    assert store.beat("w2").joined  # late, but nobody had given it up
    (again,) = store.claim("w2", 1, 0)
    assert not store.beat("w1").joined
    assert store.finish("w1", [(lost, 0)]) == 0
    assert store.claim("w1", 1, 0) == []
    assert store.finish("w2", [(again, 0)]) == 1
    assert [record.worker for record in store.tasks()] == ["w2"]


def test_a_heartbeat_from_before_a_reboot_is_none(store: Store, pulse: Clock) -> None:
    join(store)
    pulse.now = 10.0
    assert store.bury() == 1


def test_a_change_of_the_wall_clock_kills_no_worker(store: Store, clock: Clock) -> None:
    join(store)
    clock.now += 86400
    assert store.bury() == 0


def test_a_task_that_takes_its_workers_down_has_failed(store: Store, pulse: Clock) -> None:
    store.submit([Task("q")])
    for n in range(ATTEMPTS):
        join(store, f"w{n}")
        assert len(store.claim(f"w{n}", 1, 0)) == 1
        pulse.now += DEAD_S + 1
        store.bury()
    assert store.counts() == {"waiting": 0, "running": 0, "done": 0, "failed": 1}


def test_a_renewed_lease_has_a_new_serial_number(store: Store) -> None:
    join(store)
    assert store.beat("w").lease == 0
    assert [store.renew_lease("f"), store.renew_lease("f"), store.renew_lease("another")] == [1, 2, 1]
    assert store.beat("w").lease == 2


def test_the_version_tells_of_other_writers_only(store: Store, tmp_path: Path) -> None:
    before = store.version()
    store.submit([Task()])
    assert store.version() == before
    with Store(tmp_path) as other:
        other.submit([Task()])
    assert store.version() != before


# --------------------------------------------------------------------------------------------------------- faults


def test_a_work_queue_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no work queue at"):
        Store(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", [b"", b"no database" * 1000])
def test_a_damaged_work_queue_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / store_module.FILE).write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged|not a database"):
        Store(tmp_path, create=True)


def test_the_log_of_a_removed_work_queue_does_not_spoil_a_new_one(store: Store, tmp_path: Path) -> None:
    store.submit([Task()])
    (tmp_path / store_module.FILE).unlink()
    with pytest.raises(StoreError, match=r"remove .*-wal too"):
        Store(tmp_path, create=True)


def test_tables_that_are_gone_are_an_error(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / store_module.FILE)) as other:
        other.execute("DROP TABLE tasks")
    with pytest.raises(StoreError, match="no such table"):
        store.groups()


def test_a_locked_work_queue_is_an_error_and_works_again_after(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_S", 0.1)
    with (
        Store(tmp_path) as impatient,
        closing(sqlite3.connect(tmp_path / store_module.FILE, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            impatient.submit([Task()])
        other.execute("ROLLBACK")
        impatient.submit([Task()])


def test_a_directory_with_odd_letters_is_no_trouble(tmp_path: Path) -> None:
    with Store(tmp_path / "50% of? my #work", create=True) as store:
        store.submit([Task()])


def test_two_may_make_it_at_once(tmp_path: Path) -> None:
    with Store(tmp_path, create=True) as one:
        one.submit([Task()])
        one._create()
        with Store(tmp_path, create=True) as other:
            assert other.counts()["waiting"] == 1
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".new")]

"""The embedded source counts tasks by queue and shape, and never takes a broken work queue for an empty one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apf_elastic.contracts import CallError, Context, Selection, Source
from apf_elastic.embedded.store import FILE, Store, Task, Worker
from apf_elastic.model import Demand, JobGroup, Shape
from apf_elastic.sources.embedded import EmbeddedSource


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, create=True) as store:
        yield store


def source(directory: Path, **queues: Selection) -> EmbeddedSource:
    options = EmbeddedSource.Options.model_validate({"directory": str(directory)})
    return EmbeddedSource("tasks", options, Context("f", directory), queues)


def aged(store: Store, task: Task, wait_s: float) -> None:
    now = store.clock
    store.clock = lambda: now() - wait_s
    store.submit([task])
    store.clock = now


def test_it_is_a_source(tmp_path: Path) -> None:
    assert isinstance(source(tmp_path), Source)


def test_an_empty_work_queue_is_an_empty_demand(store: Store, tmp_path: Path) -> None:
    assert source(tmp_path, q=Selection()).demand() == {"q": Demand()}


def test_tasks_are_grouped_by_shape(store: Store, tmp_path: Path) -> None:
    store.submit([Task("a", 1, 100)] * 3 + [Task("a", 2, 100)] + [Task("a", 1, 200)])
    groups = source(tmp_path, q=Selection("a")).demand()["q"].groups
    assert [(group.shape, group.waiting) for group in groups] == [
        (Shape(1, 100), 3),
        (Shape(1, 200), 1),
        (Shape(2, 100), 1),
    ]


def test_each_queue_gets_its_own_and_an_empty_selection_the_rest(store: Store, tmp_path: Path) -> None:
    store.submit([Task("a")] + [Task("b")] * 2 + [Task("c")] * 4)
    store.submit([Task("d", 2)])
    demand = source(tmp_path, one=Selection("a"), two=Selection("b"), rest=Selection(), none=Selection("x")).demand()
    assert {name: it.waiting for name, it in demand.items()} == {"one": 1, "two": 2, "rest": 5, "none": 0}
    assert [(group.shape.cores, group.waiting) for group in demand["rest"].groups] == [(1, 4), (2, 1)]


def test_running_tasks_are_counted_and_ended_ones_not(store: Store, tmp_path: Path) -> None:
    store.submit([Task("a")] * 3)
    store.issue("f", {"w": b"s"})
    store.join(Worker("w", "q", "b", "o", 2, 0), b"s")
    claims = store.claim("w", 2, 0)
    store.finish("w", [(claims[0], 0)])
    (group,) = source(tmp_path, q=Selection()).demand()["q"].groups
    assert (group.waiting, group.running) == (1, 1)


def test_waits_are_counted_exactly(store: Store, tmp_path: Path) -> None:
    for wait_s in (0.0, 50.0, 70.0, 200.0):
        aged(store, Task("a"), wait_s)
    aged(store, Task("b"), 500.0)
    demand = source(
        tmp_path, a=Selection("a", burst_after_s=(60.0, 300.0)), all=Selection(burst_after_s=(60.0, 400.0, 30.0))
    ).demand()
    (group,) = demand["a"].groups
    assert [group.waiting_since(s) for s in (0.0, 60.0, 300.0)] == [4, 2, 0]
    assert group.oldest_wait_s == pytest.approx(200.0, abs=5.0)
    (group,) = demand["all"].groups
    assert [group.waiting_since(s) for s in (30.0, 60.0, 400.0)] == [1, 1, 1]


def test_nothing_waiting_has_no_oldest_wait(store: Store, tmp_path: Path) -> None:
    store.submit([Task("a")])
    store.issue("f", {"w": b"s"})
    store.join(Worker("w", "q", "b", "o", 2, 0), b"s")
    store.claim("w", 2, 0)
    assert source(tmp_path, q=Selection()).demand()["q"].groups == (
        JobGroup(Shape(1), waiting=0, running=1, oldest_wait_s=None),
    )


def test_a_missing_work_queue_is_unknown_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="there is no work queue at"):
        source(tmp_path / "nowhere", q=Selection()).demand()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", [b"", b"garbage" * 2000])
def test_a_broken_work_queue_is_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CallError, match="work queue"):
        source(tmp_path, q=Selection()).demand()


def test_a_work_queue_that_came_back_is_counted_again(tmp_path: Path) -> None:
    counting = source(tmp_path, q=Selection())
    with pytest.raises(CallError):
        counting.demand()
    with Store(tmp_path, create=True) as store:
        store.submit([Task()])
    assert counting.demand()["q"].waiting == 1
    counting.close()

"""The fakes keep the contracts that they stand in for, and do what a test scripts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from apf_elastic.contracts import (
    Backend,
    CallError,
    Context,
    Created,
    Deleted,
    Handle,
    NotDeleted,
    Payload,
    Pool,
    Refused,
    Request,
    Selection,
    Source,
    Status,
    Uncertain,
)
from apf_elastic.model import Demand, Resource, Shape, State
from apf_elastic.testing.backend_contract import BackendContract, living
from apf_elastic.testing.fakes import Behaviour, FakeBackend, FakeClock, FakeCloud, FakePool, FakeSource


class FakeKit:
    """A FakeCloud that lists what it made after a while, as real clouds do."""

    def __init__(self) -> None:
        self.cloud = FakeCloud(FakeClock(), start_s=30.0, lag_s=2.0)
        self._ids = count()

    def make(self) -> Backend:
        return FakeBackend(context=Context("ours", Path("state")), cloud=self.cloud)

    def make_other_factory(self) -> Backend:
        return FakeBackend(context=Context("theirs", Path("state")), cloud=self.cloud)

    def request(self, id: str | None = None) -> Request:
        id = f"r{next(self._ids)}" if id is None else id
        return Request(id, "queue", self.make().offerings()[0], Payload(Path("start.sh")))

    def wait_until(self, predicate: Callable[[], bool], deadline_s: float) -> None:
        deadline = self.cloud.clock() + deadline_s
        while not predicate():
            assert self.cloud.clock() < deadline
            self.cloud.clock.advance(1.0)

    def foreign(self) -> AbstractContextManager[object] | None:
        return self._foreign()

    @contextmanager
    def _foreign(self) -> Iterator[None]:
        strangers = FakeBackend(context=Context("strangers", Path("state")), cloud=self.cloud)
        strangers.create([self.request("not-ours")])
        yield
        strangers.delete([Handle("not-ours", None)])


class TestFakeBackend(BackendContract):
    @pytest.fixture
    def backend_kit(self) -> FakeKit:
        return FakeKit()


@pytest.fixture
def kit() -> FakeKit:
    return FakeKit()


def test_a_resource_is_accepted_then_pending_then_running_then_ended(kit: FakeKit) -> None:
    backend = kit.make()
    kit.cloud.run_s = 100.0
    backend.create([kit.request("a")])
    assert backend.list() == []
    seen = []
    for seconds in (2, 28, 100):
        kit.cloud.clock.advance(seconds)
        seen.append(backend.list()[0].status)
    assert seen == [Status.PENDING, Status.RUNNING, Status.ENDED]


def test_requests_are_answered_as_scripted(kit: FakeKit) -> None:
    backend = kit.make()
    kit.cloud.lag_s = 0.0
    kit.cloud.answers.extend(
        [Behaviour.REFUSE, Behaviour.UNCERTAIN, Behaviour.UNCERTAIN_NOT_MADE, Behaviour.LOSE, Behaviour.HOLD]
    )
    answers = backend.create([kit.request(id) for id in "abcdef"])
    assert [type(answer) for answer in answers] == [Refused, Uncertain, Uncertain, Created, Created, Created]
    assert living(backend).keys() == {"b", "e", "f"}
    assert living(backend)["e"].status is Status.HELD


def test_a_limit_refuses_and_says_when_to_ask_again(kit: FakeKit) -> None:
    kit.cloud.limit = 1
    first, second = kit.make().create([kit.request("a"), kit.request("b")])
    assert isinstance(first, Created)
    assert isinstance(second, Refused)
    assert second.retry_after_s


def test_a_verb_raises_until_the_faults_are_cleared(kit: FakeKit) -> None:
    backend = kit.make()
    kit.cloud.faults.raise_on("list")
    with pytest.raises(CallError, match="list"):
        backend.list()
    kit.cloud.faults.clear()
    assert backend.list() == []


def test_a_verb_hangs_until_its_event_is_set(kit: FakeKit) -> None:
    backend = kit.make()
    gate = kit.cloud.faults.hang_on("create")
    creating = threading.Thread(target=backend.create, args=([kit.request("a")],))
    creating.start()
    assert kit.cloud.machines == {}
    gate.set()
    creating.join(10)
    assert kit.cloud.machines.keys() == {"a"}


def test_what_refuses_to_die_is_not_deleted(kit: FakeKit) -> None:
    backend = kit.make()
    backend.create([kit.request("a")])
    kit.cloud.refuse_to_die("a")
    assert isinstance(backend.delete([Handle("a", None)])[0], NotDeleted)
    kit.cloud.refuse_to_die("a", False)
    assert backend.delete([Handle("a", None)]) == [Deleted("a")]


def test_what_is_lost_is_listed_no_more(kit: FakeKit) -> None:
    backend = kit.make()
    backend.create([kit.request("a")])
    kit.cloud.lose("a")
    kit.cloud.clock.advance(10)
    assert backend.list() == []


def test_the_fakes_are_what_they_say() -> None:
    assert isinstance(FakeBackend(), Backend)
    assert isinstance(FakePool(), Pool)
    assert isinstance(FakeSource(), Source)


def test_a_slot_joins_works_idles_and_leaves() -> None:
    pool = FakePool(clock=FakeClock(100.0))
    pool.join("a", Shape(4), queue="q")
    pool.work("a", 2)
    assert (pool.slots()[0].jobs, pool.slots()[0].idle_since, pool.slots()[0].queue) == (2, None, "q")
    pool.clock.advance(50)
    pool.work("a", 0)
    assert pool.slots()[0].idle_since == 150.0
    pool.leave("a")
    assert pool.slots() == ()


def test_draining_says_what_failed() -> None:
    pool = FakePool()
    pool.join("a")
    pool.join("b")
    pool.refuses["b"] = "scripted"
    assert pool.drain(["a", "b", "c"]) == {"b": "scripted", "c": "is not in the pool"}
    assert [slot.draining for slot in pool.slots()] == [True, False]
    assert pool.undrain(["a"]) == {}
    assert not pool.slots()[0].draining


def test_each_resource_gets_a_secret_of_its_own() -> None:
    one = Resource("a", "q", "b", "o", Shape(), State.INTENDED, 0.0, 0.0)
    payloads = FakePool().payloads([one, replace(one, id="b")])
    assert [payload.secrets["token"] for payload in payloads] == [b"for a", b"for b"]


def test_a_lease_is_renewed_at_the_clocks_time() -> None:
    pool = FakePool(clock=FakeClock(7.0))
    pool.renew_lease()
    assert pool.renewed_at == 7.0


def test_a_source_says_what_it_was_told() -> None:
    source = FakeSource(queues={"q": Selection()})
    assert source.demand() == {"q": Demand()}
    source.wait("q", 5, Shape(8), running=2)
    assert (source.demand()["q"].waiting, source.demand()["q"].running) == (5, 2)
    source.faults.raise_on("demand")
    with pytest.raises(CallError):
        source.demand()

"""The contract of a backend, as tests. Every backend passes them, in this repository and in anyone else's.

In a test module of yours::

    from apf_elastic.testing.backend_contract import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend_kit(self, tmp_path): return MyKit(tmp_path)

where the kit says how to make your backend and a request, see `BackendKit`. The tests leave nothing behind.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from apf_elastic.contracts import (
    Answer,
    Backend,
    Created,
    Deleted,
    Handle,
    Listed,
    NotDeleted,
    Refused,
    Request,
    Status,
    Uncertain,
)

#: How long a backend may take to show or to end what it was asked for.
PATIENCE_S = 60.0

HOSTILE_IDS = (
    *("", ".", "..", "../escape", "/tmp/escape", "a/../../b", "-rf", ".hidden", "~root", "*"),
    *(
        "a b",
        "a;b",
        "$(id)",
        "`id`",
        "a'b",
        'a"b',
        "a\\b",
        "a\nb",
        "a\tb",
        "a\0b",
        "a\x1b[2Jb",
        "%s%n",
        "{id}",
    ),
    *("snö☃", "a\u202eb", "\udcff", "x" * 300, "x" * 100_000),
)


class BackendKit(Protocol):
    """What the suite needs from the author of a backend."""

    def make(self) -> Backend:
        """A fresh instance, bound to the same place and factory every time: as after a restart."""
        ...

    def make_other_factory(self) -> Backend:
        """The same place, seen by a factory with another name."""
        ...

    def request(self, id: str | None = None) -> Request:
        """A request that the backend can serve, for something that lives until it is deleted; None: a new id."""
        ...

    def wait_until(self, predicate: Callable[[], bool], deadline_s: float) -> None:
        """Return when it is true, raise AssertionError at the deadline. See `poll`."""
        ...

    def foreign(self) -> AbstractContextManager[object] | None:
        """Other users' work at that place while the context lasts, or None if it cannot be arranged."""
        ...


def poll(predicate: Callable[[], bool], deadline_s: float, pause_s: float = 0.02) -> None:
    """`wait_until` for kits whose time is real."""
    deadline = time.monotonic() + deadline_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s"
        time.sleep(pause_s)


def living(backend: Backend) -> Mapping[str, Listed]:
    """What the backend lists, by our id, without what has ended. Fails if an id comes twice."""
    listed = backend.list()
    twice = [id for id, times in Counter(entry.id for entry in listed).items() if times > 1]
    assert not twice, f"listed more than once: {twice}"
    return {entry.id: entry for entry in listed if entry.status is not Status.ENDED}


def remove(backend: Backend, ids: Iterable[str]) -> Mapping[str, Deleted | NotDeleted]:
    """Delete these; the answers by id."""
    return {answer.id: answer for answer in backend.delete([Handle(id, None) for id in ids])}


class BackendContract:
    """Derive from it, and give it the fixture `backend_kit`."""

    @pytest.fixture
    def backend(self, backend_kit: BackendKit) -> Iterator[Backend]:
        """An instance; what it made is removed afterwards."""
        backend = backend_kit.make()
        yield backend
        for instance in (backend, backend_kit.make_other_factory()):
            self._remove_all(instance, backend_kit)
            instance.close()

    def _remove_all(self, backend: Backend, kit: BackendKit) -> None:
        def emptied() -> bool:
            remove(backend, living(backend))
            return not living(backend)

        kit.wait_until(emptied, PATIENCE_S)

    def _wait_for(self, backend: Backend, kit: BackendKit, ids: Iterable[str]) -> None:
        wanted = set(ids)
        kit.wait_until(lambda: wanted <= living(backend).keys(), PATIENCE_S)

    def _make(self, backend: Backend, kit: BackendKit, count: int) -> Sequence[Request]:
        """Create so many, and wait until they are listed."""
        requests = [kit.request() for _ in range(count)]
        answers = backend.create(requests)
        assert all(isinstance(answer, Created) for answer in answers), answers
        self._wait_for(backend, kit, [request.id for request in requests])
        return requests

    # -------------------------------------------------------------------------------------------------- offers

    def test_offers_something_with_distinct_names(self, backend: Backend) -> None:
        names = [offering.name for offering in backend.offerings()]
        assert names
        assert len(set(names)) == len(names)

    def test_is_a_backend(self, backend: Backend) -> None:
        assert isinstance(backend, Backend)

    # -------------------------------------------------------------------------------------------------- create

    def test_bulk_create_answers_each_request_once(self, backend: Backend, backend_kit: BackendKit) -> None:
        requests = [backend_kit.request() for _ in range(10)]
        answers = backend.create(requests)
        assert sorted(answer.id for answer in answers) == sorted(request.id for request in requests)
        self._wait_for(backend, backend_kit, [request.id for request in requests])

    def test_same_id_twice_makes_one(self, backend: Backend, backend_kit: BackendKit) -> None:
        request = backend_kit.request()
        first = backend.create([request])[0]
        self._wait_for(backend, backend_kit, [request.id])
        second = backend.create([request])[0]
        assert isinstance(first, Created)
        assert isinstance(second, Created)
        assert first.remote_id == second.remote_id == living(backend)[request.id].remote_id

    def test_same_id_twice_in_one_call_makes_one(self, backend: Backend, backend_kit: BackendKit) -> None:
        request = backend_kit.request()
        answers = backend.create([request, request])
        assert {answer.id for answer in answers} == {request.id}
        self._wait_for(backend, backend_kit, [request.id])

    def test_same_id_from_two_instances_at_once_makes_one(self, backend: Backend, backend_kit: BackendKit) -> None:
        requests = [backend_kit.request() for _ in range(5)]
        other = backend_kit.make()
        barrier = threading.Barrier(2)

        def create(instance: Backend) -> Sequence[Answer]:
            barrier.wait(PATIENCE_S)
            return instance.create(requests)

        with ThreadPoolExecutor(2) as threads:
            answers = [answer for batch in threads.map(create, (backend, other)) for answer in batch]
        assert {answer.id for answer in answers if not isinstance(answer, Refused)} == {r.id for r in requests}
        self._wait_for(backend, backend_kit, [request.id for request in requests])
        assert living(backend).keys() == living(other).keys() == {request.id for request in requests}
        other.close()

    def test_partly_failing_bulk_create_answers_each_request(self, backend: Backend, backend_kit: BackendKit) -> None:
        good = [backend_kit.request() for _ in range(3)]
        scriptless = backend_kit.request()
        payload = replace(scriptless.payload, script=Path("/nonexistent/start.sh"))
        bad = [replace(scriptless, payload=payload), backend_kit.request("../escape")]
        requests = [good[0], bad[0], good[1], bad[1], good[2]]
        answers = {answer.id: answer for answer in backend.create(requests)}
        assert answers.keys() == {request.id for request in requests}
        assert all(isinstance(answers[request.id], Created) for request in good)
        self._wait_for(backend, backend_kit, [request.id for request in good])
        made = {id for id, answer in answers.items() if not isinstance(answer, Refused)}
        assert living(backend).keys() <= made

    # ---------------------------------------------------------------------------------------------------- list

    def test_lists_everything_of_ours_and_nothing_of_another_factory(
        self, backend: Backend, backend_kit: BackendKit
    ) -> None:
        other = backend_kit.make_other_factory()
        with backend_kit.foreign() or nullcontext():
            theirs = {request.id for request in self._make(other, backend_kit, 2)}
            ours = {request.id for request in self._make(backend, backend_kit, 3)}
            assert living(backend).keys() == ours
            assert living(other).keys() == theirs
        other.close()

    def test_our_marks_come_back_from_the_backends_own_records(self, backend: Backend, backend_kit: BackendKit) -> None:
        request = self._make(backend, backend_kit, 1)[0]
        fresh = backend_kit.make()
        entry = living(fresh)[request.id]
        assert (entry.queue, entry.offering) == (request.queue, request.offering.name)
        assert entry.remote_id
        fresh.close()

    def test_the_list_is_the_same_after_a_restart(self, backend: Backend, backend_kit: BackendKit) -> None:
        self._make(backend, backend_kit, 3)
        before = {entry.remote_id for entry in living(backend).values()}
        backend.close()
        fresh = backend_kit.make()
        assert {entry.remote_id for entry in living(fresh).values()} == before
        fresh.close()

    def test_list_never_raises_nor_loses_while_creates_run(self, backend: Backend, backend_kit: BackendKit) -> None:
        requests = [backend_kit.request() for _ in range(20)]
        seen: set[str] = set()
        with ThreadPoolExecutor(1) as thread:
            creating = thread.submit(lambda: [backend.create([request]) for request in requests])
            while not creating.done():
                now = living(backend).keys()
                assert seen <= now
                seen |= now
            creating.result()
        self._wait_for(backend, backend_kit, [request.id for request in requests])

    # -------------------------------------------------------------------------------------------------- delete

    def test_delete_by_identity_removes_exactly_those(self, backend: Backend, backend_kit: BackendKit) -> None:
        ids = [request.id for request in self._make(backend, backend_kit, 4)]
        assert remove(backend, ids[:2]).keys() == set(ids[:2])
        backend_kit.wait_until(lambda: living(backend).keys() == set(ids[2:]), PATIENCE_S)

    def test_deleting_what_is_gone_counts_as_deleted(self, backend: Backend, backend_kit: BackendKit) -> None:
        id = self._make(backend, backend_kit, 1)[0].id
        backend_kit.wait_until(lambda: isinstance(remove(backend, [id])[id], Deleted), PATIENCE_S)
        backend_kit.wait_until(lambda: not living(backend), PATIENCE_S)
        assert remove(backend, [id]) == {id: Deleted(id)}

    def test_deleting_what_never_was_counts_as_deleted(self, backend: Backend, backend_kit: BackendKit) -> None:
        id = backend_kit.request().id
        assert remove(backend, [id]) == {id: Deleted(id)}

    def test_never_deletes_what_another_factory_made(self, backend: Backend, backend_kit: BackendKit) -> None:
        other = backend_kit.make_other_factory()
        id = self._make(other, backend_kit, 1)[0].id
        remove(backend, [id])
        assert id in living(other)
        other.close()

    def test_pending_only_spares_what_has_started(self, backend: Backend, backend_kit: BackendKit) -> None:
        id = self._make(backend, backend_kit, 1)[0].id
        backend_kit.wait_until(lambda: living(backend)[id].status is Status.RUNNING, PATIENCE_S)
        answer = backend.delete([Handle(id, None, pending_only=True)])[0]
        assert isinstance(answer, NotDeleted)
        assert living(backend)[id].status is Status.RUNNING

    def test_empty_calls_do_nothing(self, backend: Backend) -> None:
        assert not backend.create([])
        assert not backend.delete([])
        assert not living(backend)

    # ------------------------------------------------------------------------------------------------- hostile

    def test_hostile_ids_are_refused_or_carried_verbatim(self, backend: Backend, backend_kit: BackendKit) -> None:
        answers = backend.create([backend_kit.request(id) for id in HOSTILE_IDS])
        assert [answer.id for answer in answers if answer.id not in HOSTILE_IDS] == []
        made = {answer.id for answer in answers if not isinstance(answer, Refused)}
        backend_kit.wait_until(lambda: living(backend).keys() == made, PATIENCE_S)
        assert all(isinstance(remove(backend, [id])[id], Deleted) for id in set(HOSTILE_IDS) - made)

    def test_hostile_values_are_refused_or_carried_verbatim(
        self, backend: Backend, backend_kit: BackendKit, tmp_path: Path
    ) -> None:
        canary = tmp_path / "canary"
        requests = [self._hostile(backend_kit.request(), value) for value in _hostile_values(canary)]
        answers = {answer.id: answer for answer in backend.create(requests)}
        assert answers.keys() == {request.id for request in requests}
        assert not any(isinstance(answer, Uncertain) for answer in answers.values())
        made = {request.id: request for request in requests if isinstance(answers[request.id], Created)}

        def all_listed_verbatim() -> bool:
            listed = {entry.id: entry for entry in backend.list()}
            assert all(entry.queue in ("", made[id].queue) for id, entry in listed.items())
            return listed.keys() == made.keys()

        backend_kit.wait_until(all_listed_verbatim, PATIENCE_S)
        done = {Status.RUNNING, Status.ENDED, Status.HELD}
        backend_kit.wait_until(lambda: all(it.status in done for it in backend.list()), PATIENCE_S)
        assert not canary.exists()

    def _hostile(self, request: Request, value: str) -> Request:
        payload = replace(request.payload, arguments=(value,), environment={"APF_TEST_HOSTILE": value})
        return replace(request, queue=value, payload=payload)


def _hostile_values(canary: Path) -> Sequence[str]:
    """What would make `canary` appear, or break a format, wherever it is interpreted."""
    touch = f"touch {canary}"
    return (
        *(f"; {touch}", f"$({touch})", f"`{touch}`", f"' ; {touch} '", f'" ; {touch} "', f"| {touch}"),
        *(f"a\n{touch}\n", f"a\r\n{touch}", f"x'\"'$({touch})", f"() {{ :;}}; {touch}"),
        *(
            f'x"\n+PreCmd = "{canary}',
            "a\nqueue 1000",
            "#SBATCH --array=1-1000",
            "${jndi:x}",
            "{{ 7 * 7 }}",
            "%s%n",
        ),
        *("\x1b]0;owned\x07\x1b[2J", "snö☃ \u202e 𝕏", "", " ", "\\", "a\0b", "\udcff", "x" * 100_000),
    )

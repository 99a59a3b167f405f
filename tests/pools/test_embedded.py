"""The embedded pool lets workers in, sees and drains them, and never takes a broken store for an empty pool."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apf_elastic.contracts import CallError, Context, Payload, Pool
from apf_elastic.embedded.store import FILE, Store, Task, Worker
from apf_elastic.model import Resource, Shape, Slot, State
from apf_elastic.pools.embedded import EmbeddedPool

PATIENCE_S = 30.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, create=True) as store:
        yield store


def make_pool(directory: Path, factory: str = "f", **options: Any) -> EmbeddedPool:
    given = EmbeddedPool.Options.model_validate({"directory": str(directory), **options})
    return EmbeddedPool("workers", given, Context(factory, directory))


@pytest.fixture
def pool(store: Store, tmp_path: Path) -> EmbeddedPool:
    return make_pool(tmp_path)


def resource(id: str) -> Resource:
    return Resource(id, "q", "here", "small", Shape(2, 1000), State.INTENDED, 0.0, 0.0, pool="workers")


def join(pool: EmbeddedPool, store: Store, id: str) -> None:
    (payload,) = pool.payloads([resource(id)])
    store.join(Worker(id, "q", "here", "small", 2, 1000, "laptop"), payload.secrets["token"])


def test_it_is_a_pool(pool: object) -> None:
    assert isinstance(pool, Pool)
    assert pool.lease_s == 60.0


def test_a_slot_tells_what_is_free_and_since_when_it_is_idle(pool: EmbeddedPool, store: Store) -> None:
    join(pool, store, "f.q.1")
    store.clock = lambda: 1000.0
    store.submit([Task("q", 1, 400)])
    (claim,) = store.claim("f.q.1", 2, 1000)
    busy = Slot("f.q.1", Shape(1, 600), jobs=1, machine="laptop", queue="q", backend="here", offering="small")
    assert pool.slots() == [busy]
    store.finish("f.q.1", [(claim, 0)])
    assert pool.slots() == [
        Slot("f.q.1", Shape(2, 1000), 0, 1000.0, machine="laptop", queue="q", backend="here", offering="small")
    ]


def test_a_pool_without_workers_is_empty(pool: EmbeddedPool) -> None:
    assert pool.slots() == []


def test_a_factory_sees_its_own_workers_only(pool: EmbeddedPool, store: Store, tmp_path: Path) -> None:
    join(pool, store, "f.q.1")
    assert make_pool(tmp_path, factory="another").slots() == []


def test_drain_and_undrain_answer_for_those_that_failed(pool: EmbeddedPool, store: Store) -> None:
    join(pool, store, "f.q.1")
    join(pool, store, "f.q.2")
    store.leave("f.q.2")
    assert pool.drain(["f.q.1", "f.q.2", "x"]) == {"f.q.2": "has left already", "x": "has not joined"}
    assert pool.slots()[0].draining
    assert pool.undrain(["f.q.1", "f.q.2"]) == {"f.q.2": "has left already"}
    assert not pool.slots()[0].draining
    assert pool.drain([]) == pool.undrain([]) == {}


def test_a_payload_has_its_own_secret_and_shows_it_nowhere_else(pool: EmbeddedPool) -> None:
    payloads = pool.payloads([resource(f"f.q.{n}") for n in range(20)])
    tokens = {payload.secrets["token"] for payload in payloads}
    assert len(tokens) == 20
    assert min(len(token) for token in tokens) >= 32
    for payload in payloads:
        shown = repr(payload) + " ".join(payload.arguments) + " ".join(payload.environment.values())
        assert not any(token.decode() in shown for token in tokens)


def test_a_payload_says_what_the_worker_is(tmp_path: Path, store: Store) -> None:
    (payload,) = make_pool(tmp_path, lease_s=7, idle_s=3).payloads([resource("f.q.1")])
    values = {k.removeprefix("ELASTIC_").lower(): v for k, v in payload.environment.items()}
    del values["python"], values["path"]
    assert values == {
        "directory": str(tmp_path),
        "id": "f.q.1",
        "queue": "q",
        "backend": "here",
        "offering": "small",
        "cores": "2",
        "memory_mb": "1000",
        "idle_s": "3.0",
        "lease_s": "7.0",
    }


def test_the_launcher_can_be_run(pool: EmbeddedPool) -> None:
    (payload,) = pool.payloads([resource("f.q.1")])
    assert os.access(payload.script, os.X_OK)
    assert payload.script.read_text().startswith("#!/bin/sh\n")


def run(payload: Payload, place: Path) -> subprocess.Popen[bytes]:
    """As a backend does it: a directory of its own, the secrets in it, and nothing of our environment."""
    place.mkdir(parents=True)
    for name, secret in payload.secrets.items():
        with open(os.open(place / name, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secret)
    return subprocess.Popen(
        [payload.script, *payload.arguments], cwd=place, env=dict(payload.environment), stdin=subprocess.DEVNULL
    )


def test_payloads_join_work_are_drained_and_leave(store: Store, tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    pool.renew_lease()
    store.submit([Task("q", seconds=0.2)] * 6)
    resources = [resource(f"f.q.{n}") for n in range(2)]
    payloads = pool.payloads(resources)
    workers = [run(p, tmp_path / "places" / r.id) for p, r in zip(payloads, resources, strict=True)]
    try:
        deadline = time.monotonic() + PATIENCE_S
        while store.counts()["done"] < 6 or len(pool.slots()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        slots = pool.slots()
        assert {slot.id for slot in slots} == {"f.q.0", "f.q.1"}
        assert all(slot.jobs == 0 and slot.free == Shape(2, 1000) and slot.idle_since for slot in slots)
        assert pool.drain([slot.id for slot in slots]) == {}
        assert [worker.wait(PATIENCE_S) for worker in workers] == [0, 0]
        assert pool.slots() == []
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


def test_a_missing_store_is_unknown_whatever_is_asked(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "nowhere")
    for call in (
        pool.slots,
        pool.renew_lease,
        lambda: pool.drain(["x"]),
        lambda: pool.undrain(["x"]),
        lambda: pool.payloads([resource("x")]),
    ):
        with pytest.raises(CallError, match="there is no work queue at"):
            call()
    assert not (tmp_path / "nowhere").exists()
    pool.close()


@pytest.mark.parametrize("content", [b"", b"garbage" * 2000])
def test_a_broken_store_is_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CallError, match="work queue"):
        make_pool(tmp_path).slots()


@pytest.mark.parametrize("options", [{"lease_s": 0}, {"idle_s": -1}, {"colour": "red"}])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make_pool(tmp_path, **options)

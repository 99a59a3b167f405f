"""A backend, a pool, a source and a clock that live in memory: examples for authors, fixtures for tests.

Time moves only when the test says so, and faults happen only when it asks for them::

    clock = FakeClock()
    cloud = FakeCloud(clock, start_s=30)
    cloud.answers.extend([Behaviour.REFUSE, Behaviour.UNCERTAIN])   # for the next two requests
    cloud.faults.raise_on("list")                                   # until cloud.faults.clear()
    backend = FakeBackend("cloud", cloud=cloud)

A second `FakeBackend` on the same `FakeCloud` is the backend after a restart of the service.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from apf_elastic.contracts import (
    Answer,
    CallError,
    Context,
    Created,
    Deleted,
    Handle,
    Listed,
    NotDeleted,
    Payload,
    Refused,
    Request,
    Selection,
    Status,
    Uncertain,
)
from apf_elastic.model import Demand, JobGroup, Offering, Resource, Shape, Slot

_CONTEXT = Context("factory", Path("state"))


class FakeClock:
    """Seconds since the epoch, as the test says: ``clock()`` reads it, ``clock.advance(s)`` moves it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Faults:
    """Makes verbs raise or hang, until told otherwise. Every fake calls ``self.faults.strike(verb)`` first."""

    def __init__(self) -> None:
        self._errors: dict[str, Exception] = {}
        self._gates: dict[str, threading.Event] = {}

    def raise_on(self, verb: str, error: Exception | None = None) -> None:
        """The verb raises `error` (default: a CallError) on every call."""
        self._errors[verb] = error or CallError(f"{verb}: scripted failure")

    def hang_on(self, verb: str) -> threading.Event:
        """The verb blocks until the returned event is set."""
        return self._gates.setdefault(verb, threading.Event())

    def clear(self) -> None:
        """Answer again; what hangs goes on."""
        self._errors.clear()
        for gate in self._gates.values():
            gate.set()
        self._gates.clear()

    def strike(self, verb: str) -> None:
        gate = self._gates.get(verb)
        if gate is not None:
            gate.wait()
        error = self._errors.get(verb)
        if error is not None:
            raise error


# ----------------------------------------------------------------------------------------------------- backend


class Behaviour(StrEnum):
    """What becomes of one request. Ordered from as promised to worst."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    UNCERTAIN = "uncertain"  # it exists, but the answer is lost
    UNCERTAIN_NOT_MADE = "uncertain, not made"  # the answer is lost, and it does not exist
    NEVER_START = "never start"  # it stays pending
    HOLD = "hold"  # it is held
    LOSE = "lose"  # answered as created, and never seen again


@dataclass(slots=True)
class _Machine:
    request: Request
    factory: str
    remote_id: str
    made_at: float
    behaviour: Behaviour
    undying: bool = False


@dataclass(slots=True)
class FakeCloud:
    """What survives the service: the machines behind a FakeBackend, and the script of their faults.

    Seconds: a machine is listed `lag_s` after its creation, runs after `start_s`, and ends by itself `run_s`
    later (None: never). `limit` refuses more than so many. `calls` records (verb, ids) as they come.
    """

    clock: FakeClock = field(default_factory=FakeClock)
    start_s: float = 30.0
    lag_s: float = 0.0
    run_s: float | None = None
    limit: int | None = None
    answers: deque[Behaviour] = field(default_factory=deque)
    faults: Faults = field(default_factory=Faults)
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    machines: dict[str, _Machine] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    made: int = 0

    def lose(self, id: str) -> None:
        """The machine dies without a word."""
        with self.lock:
            self.machines.pop(id, None)

    def refuse_to_die(self, id: str, undying: bool = True) -> None:
        """Deleting it is answered as not deleted."""
        self.machines[id].undying = undying

    def status(self, machine: _Machine) -> Status:
        if machine.behaviour is Behaviour.HOLD:
            return Status.HELD
        age_s = self.clock() - machine.made_at
        if age_s < self.start_s or machine.behaviour is Behaviour.NEVER_START:
            return Status.PENDING
        if self.run_s is not None and age_s >= self.start_s + self.run_s:
            return Status.ENDED
        return Status.RUNNING


class FakeBackendOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cores: int = 1
    memory_mb: int = 2000


class FakeBackend:
    """A backend as the contract wants it, on a FakeCloud."""

    Options: ClassVar[type[BaseModel]] = FakeBackendOptions

    def __init__(
        self,
        name: str = "fake",
        options: FakeBackendOptions | None = None,
        context: Context = _CONTEXT,
        *,
        cloud: FakeCloud | None = None,
        offerings: Sequence[Offering] = (),
    ) -> None:
        options = options or FakeBackendOptions()
        self.name = name
        self.cloud = cloud or FakeCloud()
        self.offered = [*offerings] or [Offering("small", Shape(options.cores, options.memory_mb))]
        self._factory = context.factory

    def offerings(self) -> Sequence[Offering]:
        self.cloud.faults.strike("offerings")
        return tuple(self.offered)

    def create(self, requests: Sequence[Request]) -> Sequence[Answer]:
        self.cloud.calls.append(("create", tuple(request.id for request in requests)))
        self.cloud.faults.strike("create")
        with self.cloud.lock:
            return [self._create(request) for request in requests]

    def _create(self, request: Request) -> Answer:
        cloud = self.cloud
        if (known := cloud.machines.get(request.id)) is not None:
            if known.factory != self._factory:
                return Refused(request.id, f"belongs to factory {known.factory}")
            return Created(request.id, known.remote_id)
        behaviour = cloud.answers.popleft() if cloud.answers else Behaviour.ACCEPT
        if behaviour is Behaviour.REFUSE:
            return Refused(request.id, "scripted refusal")
        if cloud.limit is not None and len(cloud.machines) >= cloud.limit:
            return Refused(request.id, f"limit of {cloud.limit} reached", retry_after_s=60.0)
        if behaviour is Behaviour.UNCERTAIN_NOT_MADE:
            return Uncertain(request.id, "scripted: no answer")
        cloud.made += 1
        machine = _Machine(request, self._factory, f"vm-{cloud.made}", cloud.clock(), behaviour)
        if behaviour is not Behaviour.LOSE:
            cloud.machines[request.id] = machine
        if behaviour is Behaviour.UNCERTAIN:
            return Uncertain(request.id, "scripted: no answer")
        return Created(request.id, machine.remote_id)

    def list(self) -> Sequence[Listed]:
        self.cloud.calls.append(("list", ()))
        self.cloud.faults.strike("list")
        with self.cloud.lock:
            return [
                _listed(machine, self.cloud.status(machine))
                for machine in self.cloud.machines.values()
                if machine.factory == self._factory and self.cloud.clock() >= machine.made_at + self.cloud.lag_s
            ]

    def delete(self, handles: Sequence[Handle]) -> Sequence[Deleted | NotDeleted]:
        self.cloud.calls.append(("delete", tuple(handle.id for handle in handles)))
        self.cloud.faults.strike("delete")
        with self.cloud.lock:
            return [self._delete(handle) for handle in handles]

    def _delete(self, handle: Handle) -> Deleted | NotDeleted:
        machine = self.cloud.machines.get(handle.id)
        if machine is None:
            return Deleted(handle.id)
        if machine.factory != self._factory:
            return NotDeleted(handle.id, f"belongs to factory {machine.factory}")
        if handle.pending_only and self.cloud.status(machine) is Status.RUNNING:
            return NotDeleted(handle.id, "has started")
        if machine.undying:
            return NotDeleted(handle.id, "scripted: refuses to die")
        del self.cloud.machines[handle.id]
        return Deleted(handle.id)

    def close(self) -> None:
        pass


def _listed(machine: _Machine, status: Status) -> Listed:
    request = machine.request
    return Listed(
        request.id,
        machine.remote_id,
        status,
        native=status.value,
        queue=request.queue,
        offering=request.offering.name,
    )


# -------------------------------------------------------------------------------------------------------- pool


class FakePoolOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lease_s: float = 600.0


class FakePool:
    """A pool whose slots the test moves: `join`, `work`, `leave`."""

    Options: ClassVar[type[BaseModel]] = FakePoolOptions

    def __init__(
        self,
        name: str = "pool",
        options: FakePoolOptions | None = None,
        context: Context = _CONTEXT,
        *,
        clock: FakeClock | None = None,
    ) -> None:
        self.name = name
        self.lease_s = (options or FakePoolOptions()).lease_s
        self.clock = clock or FakeClock()
        self.faults = Faults()
        self.joined: dict[str, Slot] = {}
        self.refuses: dict[str, str] = {}  # id -> why draining and undraining it fails
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.renewed_at: float | None = None
        self._context = context

    def join(self, id: str, shape: Shape | None = None, **where: str) -> None:
        """A resource joins, idle. `where`: queue, backend, offering, machine, as the glidein would say."""
        self.joined[id] = Slot(id, free=shape or Shape(), idle_since=self.clock(), **where)  # type: ignore[arg-type]

    def work(self, id: str, jobs: int) -> None:
        """From now on so many jobs run there; 0: it is idle."""
        idle_since = None if jobs else self.clock()
        self.joined[id] = replace(self.joined[id], jobs=jobs, idle_since=idle_since)

    def leave(self, id: str) -> None:
        self.joined.pop(id, None)

    def slots(self) -> Sequence[Slot]:
        self.faults.strike("slots")
        return tuple(self.joined.values())

    def drain(self, ids: Sequence[str]) -> Mapping[str, str]:
        return self._set_draining("drain", ids, True)

    def undrain(self, ids: Sequence[str]) -> Mapping[str, str]:
        return self._set_draining("undrain", ids, False)

    def _set_draining(self, verb: str, ids: Sequence[str], draining: bool) -> Mapping[str, str]:
        self.calls.append((verb, tuple(ids)))
        self.faults.strike(verb)
        failed = {}
        for id in ids:
            if id in self.refuses:
                failed[id] = self.refuses[id]
            elif id not in self.joined:
                failed[id] = "is not in the pool"
            else:
                self.joined[id] = replace(self.joined[id], draining=draining)
        return failed

    def payloads(self, resources: Sequence[Resource]) -> Sequence[Payload]:
        self.faults.strike("payloads")
        script = self._context.state_dir / "start.sh"
        return [
            Payload(script, environment={"ID": it.id}, secrets={"token": f"for {it.id}".encode()}) for it in resources
        ]

    def renew_lease(self) -> None:
        self.faults.strike("renew_lease")
        self.renewed_at = self.clock()

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------------ source


class FakeSourceOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FakeSource:
    """A source that says what the test told it: ``source.demands["q"] = Demand(...)``, or `wait`."""

    Options: ClassVar[type[BaseModel]] = FakeSourceOptions

    def __init__(
        self,
        name: str = "source",
        options: FakeSourceOptions | None = None,
        context: Context = _CONTEXT,
        queues: Mapping[str, Selection] | None = None,
    ) -> None:
        self.name = name
        self.faults = Faults()
        self.demands: dict[str, Demand] = {queue: Demand() for queue in queues or {}}

    def wait(self, queue: str, jobs: int, shape: Shape | None = None, running: int = 0) -> None:
        """So many jobs of one shape wait in the queue, and nothing else does."""
        self.demands[queue] = Demand((JobGroup(shape or Shape(), jobs, running),))

    def demand(self) -> Mapping[str, Demand]:
        self.faults.strike("demand")
        return dict(self.demands)

    def close(self) -> None:
        pass

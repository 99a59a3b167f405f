"""The contracts: what a backend, a source, a pool, a policy step and a monitor must do.

All are found through entry points, built-in ones too, so a third party adds one from its own package:
``apf_elastic.backends``, ``apf_elastic.sources``, ``apf_elastic.pools``, ``apf_elastic.steps``,
``apf_elastic.monitors``. A backend, source or pool is a class with an inner pydantic model ``Options`` (its part of
the configuration file) that is made as ``Class(name, options, context)``.

Every call runs in a worker of its own with a deadline. An exception means *unknown*: it is reported, changes
nothing, and stays in its own worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from apf_elastic.model import Demand, Offering, Plan, Resource, Slot


class CallError(Exception):
    """A server or tool answered wrong, or not at all: says what, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every plugin is given: the factory's name (its mark) and a private directory below the state dir."""

    factory: str
    state_dir: Path


# --------------------------------------------------------------------------------------------- starting things


@dataclass(frozen=True, slots=True)
class Payload:
    """What a resource runs to become useful: a script, its environment, and files to lay beside it.

    The script is started in a directory of its own that holds `files` (copied from local paths) and `secrets`
    (written 0600, readable by the resource's user only). Nothing secret is in `arguments` or `environment`.
    """

    script: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """One resource to create. `id` is ours: it must travel with the resource and come back in `list`."""

    id: str
    queue: str
    offering: Offering
    payload: Payload


@dataclass(frozen=True, slots=True)
class Created:
    id: str
    remote_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Certainly not created. `retry_after_s`: do not ask again before (None: no opinion)."""

    id: str
    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Uncertain:
    """It may or may not exist: only the backend's own list can tell."""

    id: str
    reason: str


Answer = Created | Refused | Uncertain


class Status(StrEnum):
    """What a backend says of a resource. An unmapped native state is PENDING, with the native word in `reason`."""

    PENDING = "pending"
    HELD = "held"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a backend's list. `native` is the backend's own word for the state.

    `queue` and `offering` come from the marks that travelled with the resource: with them a service that lost its
    ledger adopts what it made.
    """

    id: str
    remote_id: str
    status: Status
    native: str = ""
    reason: str = ""
    queue: str = ""
    offering: str = ""


@dataclass(frozen=True, slots=True)
class Handle:
    """Names one resource to the backend: our id, and the backend's if it is known.

    With `pending_only` it is removed only if the backend itself still has it waiting, checked as close to the
    removal as the backend allows; one that has started is answered `NotDeleted("has started")`.
    """

    id: str
    remote_id: str | None
    pending_only: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    id: str


@dataclass(frozen=True, slots=True)
class NotDeleted:
    id: str
    reason: str


@runtime_checkable
class Backend(Protocol):
    """Supplies resources."""

    name: str

    @property
    def Options(self) -> type[BaseModel]:
        """The pydantic model of its part of the configuration: an inner class."""
        ...

    def offerings(self) -> Sequence[Offering]:
        """What it can supply now; may be static configuration."""
        ...

    def create(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Create in bulk; one answer per request, in any order.

        The same id twice must not make two: where the service has idempotency tokens they are used, elsewhere the
        mark is looked up first and the existing one is answered as *created*.
        """
        ...

    def list(self) -> Sequence[Listed]:
        """Everything of this factory that lives, and nothing of others. Incomplete answers raise."""
        ...

    def delete(self, handles: Sequence[Handle]) -> Sequence[Deleted | NotDeleted]:
        """Remove by identity. Idempotent: what is already gone counts as deleted."""
        ...

    def close(self) -> None:
        """Let go of connections and helper processes; resources stay."""
        ...


@runtime_checkable
class Source(Protocol):
    """Counts waiting work.

    Made as ``Class(name, options, context, queues)``: `queues` maps each queue that uses it to a `Selection`.
    """

    name: str

    @property
    def Options(self) -> type[BaseModel]:
        """The pydantic model of its part of the configuration: an inner class."""
        ...

    def demand(self) -> Mapping[str, Demand]:
        """The demand of every queue, in one bulk query. A queue without jobs has an empty Demand."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a source's work that belongs to one queue.

    `select` is in the source's own language (a ClassAd expression for HTCondor; empty: all). `burst_after_s` are
    the waiting thresholds to count, see `JobGroup.waited`.
    """

    select: str = ""
    burst_after_s: tuple[float, ...] = ()


@runtime_checkable
class Pool(Protocol):
    """What glideins join: tells which have joined, which are busy or idle, and drains them."""

    name: str

    @property
    def Options(self) -> type[BaseModel]:
        """The pydantic model of its part of the configuration: an inner class."""
        ...

    lease_s: float

    def slots(self) -> Sequence[Slot]:
        """One entry per joined resource of this factory. Incomplete answers raise."""
        ...

    def drain(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Take no new job on these resources; running jobs finish. Returns id -> reason for those that failed."""
        ...

    def undrain(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Take back what is draining. Returns id -> reason for those that failed."""
        ...

    def payloads(self, resources: Sequence[Resource]) -> Sequence[Payload]:
        """What makes each of `resources` join, in their order: start script, settings, a credential of its own."""
        ...

    def renew_lease(self) -> None:
        """Tell every joined resource that the factory lives. Resources end by themselves when this stops."""
        ...

    def close(self) -> None: ...


class Monitor(Protocol):
    """Receives plans and transitions; may never block the cycle."""

    def decided(self, plan: Plan, at: float) -> None: ...

    def changed(self, resources: Iterable[Resource], at: float) -> None: ...


class Plugin(Protocol):
    """How the cycle makes any of the above."""

    def __call__(self, name: str, options: Any, context: Context) -> Any: ...

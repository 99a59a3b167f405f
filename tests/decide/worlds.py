"""Small worlds for tests of decide: every helper has defaults, so that a test states only what it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from apf_elastic.decide import decide
from apf_elastic.model import (
    Account,
    BackendView,
    Decision,
    Demand,
    Health,
    JobGroup,
    Offering,
    Plan,
    QueueHistory,
    Resource,
    Seen,
    Shape,
    Slot,
    State,
    Unknown,
    Verb,
    World,
)
from apf_elastic.settings import BackendSettings, BackendUse, Limits, QueueSettings, Settings, StepSettings

NOW = 1_700_000_000.0
SMALL = Offering("small", Shape(1, 2000), start_s=100)
MEDIUM = Offering("medium", Shape(4, 8000), start_s=100)
LARGE = Offering("large", Shape(8, 16000), start_s=100)


def jobs(waiting: int, cores: int = 1, memory_mb: int = 1000, **more: Any) -> JobGroup:
    """A group of waiting jobs. `waited` maps thresholds (s) to counts."""
    group = {key: more.pop(key) for key in ("running", "held", "oldest_wait_s") if key in more}
    waited = tuple(more.pop("waited", {}).items())
    return JobGroup(Shape(cores, memory_mb, **more), waiting, waited=waited, **group)


def queue(*backends: str | BackendUse, name: str = "q", chain: str = "", **more: Any) -> QueueSettings:
    """A queue with a pool; `chain` as in ``Ready, MaxPending`` with its options in `options`."""
    options: Mapping[str, Mapping[str, object]] = more.pop("options", {})
    steps = tuple(StepSettings(one, options.get(one, {})) for one in chain.replace(" ", "").split(",") if one)
    uses = tuple(BackendUse(use) if isinstance(use, str) else use for use in backends or ("cloud",))
    made = QueueSettings(name, "jobs", uses, pool="home", chain=steps)
    return replace(made, **more)


def resource(number: int, state: State = State.PENDING, offering: Offering = SMALL, **more: Any) -> Resource:
    """A resource of queue q at backend cloud. `idle_s`: joined and idle for so long; `busy`: so many jobs."""
    idle_s, busy = more.pop("idle_s", None), more.pop("busy", 0)
    free, draining = more.pop("free", None), more.pop("slot_draining", False)
    slot = None
    if state in (State.READY, State.DRAINING):
        shape = offering.shape
        room = free or (Shape(max(0, shape.cores - busy), shape.memory_mb) if busy else shape)
        since = None if busy else NOW - (idle_s or 0)
        slot = Slot(f"r{number}", room, busy, since, draining)
        more.setdefault("joined_at", NOW - 1000)
    made = Resource(
        id=f"r{number}",
        queue="q",
        backend="cloud",
        offering=offering.name,
        shape=offering.shape,
        state=state,
        created_at=NOW - 2000 + number,
        changed_at=NOW - 1000,
        pool="home",
        slot=slot,
        price_per_hour=offering.price_per_hour,
    )
    return replace(made, **more)


def some(count: int, state: State = State.PENDING, offering: Offering = SMALL, **more: Any) -> list[Resource]:
    """Alike resources; `first` is the number of the first."""
    first = more.pop("first", 0)
    return [resource(first + at, state, offering, **more) for at in range(count)]


def backend(*offerings: Offering, **more: Any) -> BackendView:
    return BackendView(Seen(offerings or (SMALL,), NOW), Seen(None, NOW), **more)


def settings(*queues: QueueSettings, limits: Limits | None = None, **backends: Limits) -> Settings:
    """Backend limits by name."""
    names = {use.backend for one in queues for use in one.backends} | set(backends)
    return Settings(
        "f",
        {one.name: one for one in queues},
        {name: BackendSettings(name, backends.get(name, Limits())) for name in sorted(names)},
        limits or Limits(),
    )


def world(
    demand: Mapping[str, Iterable[JobGroup]] | Iterable[JobGroup] = (),
    resources: Iterable[Resource] = (),
    status: str = "online",
    **more: Any,
) -> World:
    """Demand of queue q, or of several by name. Backends default to one, cloud, that offers SMALL."""
    by_queue = demand if isinstance(demand, Mapping) else {"q": demand}
    more.setdefault("backends", {"cloud": backend()})
    more.setdefault("pools", {"home": Seen(None, NOW)})
    return World(
        now=NOW,
        demand={name: Seen(Demand(tuple(groups), status), NOW) for name, groups in by_queue.items()},
        resources=list(resources),
        **more,
    )


UNKNOWN = Unknown("timeout", NOW - 10)


def plan(it: World, *queues: QueueSettings, limits: Limits | None = None, **backends: Limits) -> Plan:
    """Decide for these queues (default: queue q with backend cloud)."""
    return decide(it, settings(*(queues or (queue(),)), limits=limits, **backends))


def created(made: Plan, **only: str) -> dict[tuple[str, str], int]:
    """How many of which (backend, offering)."""
    counts: dict[tuple[str, str], int] = {}
    for create in made.creates:
        if all(getattr(create, key) == value for key, value in only.items()):
            key = (create.backend, create.offering.name)
            counts[key] = counts.get(key, 0) + create.count
    return counts


def total(made: Plan, **only: str) -> int:
    return sum(created(made, **only).values())


def retired(made: Plan, verb: Verb) -> list[str]:
    return [retire.id for retire in made.retirements if retire.verb is verb]


def decision(made: Plan, name: str = "q") -> Decision:
    return next(one for one in made.decisions if one.queue == name)


def account(made: Plan, name: str = "q") -> Account:
    """The only account of a queue."""
    (one,) = decision(made, name).accounts
    return one


def history(**more: Any) -> QueueHistory:
    return QueueHistory(**more)


def health(view: BackendView, state: Health) -> BackendView:
    return replace(view, health=state)

"""Reconcile: match the ledger's resources with the backends' lists and the pools' slots, by our own id.

Pure: values in, values out. What we intended and the backend has is adopted; what carries our mark and the ledger
does not know is adopted too; what the backend has not listed for long enough is gone; every state but `gone` has a
deadline. An unknown list or pool changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from apf_elastic.contracts import Listed, Status
from apf_elastic.health import Stage
from apf_elastic.model import (
    WAITING_AT_BACKEND,
    Observation,
    Offering,
    Resource,
    Retire,
    Seen,
    Shape,
    Slot,
    State,
    Unknown,
    Verb,
)
from apf_elastic.settings import BackendSettings, Settings

#: A resource that the backend holds (a bad credential, a missing file) is given so long to be released.
HELD_S = 60.0
#: A drain that the pool does not show after so long is asked for again.
REDRAIN_S = 60.0
#: A removal that the backend still lists after so long is asked for again.
REMOVE_AGAIN_S = 30.0
#: How long a drained resource may take to end by itself once its last job is done.
LEAVE_S = 120.0

Listings = Mapping[str, Observation[Mapping[str, Listed]]]
Slots = Mapping[str, Observation[Mapping[str, Slot]]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A resource failed at `stage`: counted against its offering at its backend."""

    backend: str
    offering: str
    stage: Stage
    reason: str


@dataclass(frozen=True, slots=True)
class Success:
    backend: str
    offering: str
    stage: Stage


@dataclass(slots=True)
class Reconciled:
    """What changed: new versions of resources, what must be removed or drained again, and what it says of backends."""

    changed: list[Resource] = field(default_factory=list)
    again: list[Retire] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    successes: list[Success] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything reconcile looks at. `fresh` names the backends whose list is new since the last reconcile;
    `in_flight` the resources whose last call has not been answered."""

    resources: Mapping[str, Resource]
    listings: Listings
    slots: Slots
    now: float
    fresh: Set[str] = frozenset()
    in_flight: Set[str] = frozenset()


def reconcile(sight: Sight, settings: Settings) -> Reconciled:
    """Bring the ledger's resources up to date with what backends and pools say."""
    out = Reconciled()
    for resource in sight.resources.values():
        _one(resource, sight, settings, out)
    _adopt(sight, settings, out)
    return out


def _one(resource: Resource, sight: Sight, settings: Settings, out: Reconciled) -> None:
    backend = settings.backends.get(resource.backend) or BackendSettings(resource.backend)
    listing = sight.listings.get(resource.backend)
    slot = _slot_of(resource, sight)
    entry = None
    new = resource
    if isinstance(listing, Seen):
        entry = listing.value.get(resource.id)
        new = _listed(new, entry, sight, out) if entry else _absent(new, listing.asked_at, slot, backend, sight, out)
    if new.state is not State.GONE:
        new = _joined(new, slot, sight, out)
        new = _deadline(new, entry, backend, sight, out)
    if new is not resource:
        out.changed.append(new)


def _slot_of(resource: Resource, sight: Sight) -> Observation[Slot | None] | None:
    """The pool's word about a resource; None when it joins no pool of ours."""
    if resource.pool is None:
        return None
    pool = sight.slots.get(resource.pool)
    if isinstance(pool, Seen):
        return Seen(pool.value.get(resource.id), pool.asked_at)
    return pool


# ------------------------------------------------------------------------------------ what the backend's list says


def _listed(resource: Resource, entry: Listed, sight: Sight, out: Reconciled) -> Resource:
    if entry.status is Status.ENDED:
        return _ended(resource, entry, sight, out)
    if resource.missing or (entry.remote_id and entry.remote_id != resource.remote_id):
        resource = replace(resource, missing=0, remote_id=entry.remote_id or resource.remote_id)
    if resource.state in (State.READY, State.DRAINING, State.REMOVING):
        return resource
    state = _state_listed(resource, entry)
    if state is resource.state:
        return resource
    if state in (State.STARTING, State.RUNNING):
        out.successes.append(Success(resource.backend, resource.offering, Stage.START))
    reason = f"held: {entry.reason}" if entry.status is Status.HELD else ""
    return replace(resource, state=state, changed_at=sight.now, reason=reason)


def _state_listed(resource: Resource, entry: Listed) -> State:
    if entry.status is not Status.RUNNING:
        return State.PENDING
    if resource.pool is None:
        return State.RUNNING
    return State.STARTING


def _ended(resource: Resource, entry: Listed, sight: Sight, out: Reconciled) -> Resource:
    word = entry.reason or entry.native or "ended"
    never_joined = resource.pool is not None and resource.joined_at is None
    if never_joined and resource.state is not State.REMOVING:
        out.faults.append(
            Fault(resource.backend, resource.offering, Stage.JOIN, f"ended before it joined the pool: {word}")
        )
        word = f"never joined: {word}"
    return _gone(resource, word, sight.now)


def _absent(
    resource: Resource,
    asked_at: float,
    slot: Observation[Slot | None] | None,
    backend: BackendSettings,
    sight: Sight,
    out: Reconciled,
) -> Resource:
    """The backend's complete list does not show it: gone, if that was so for long enough."""
    if resource.id in sight.in_flight or resource.backend not in sight.fresh:
        return resource
    if asked_at <= resource.changed_at:
        return resource
    removing = resource.state is State.REMOVING
    if not removing and (isinstance(slot, Unknown) or (isinstance(slot, Seen) and slot.value is not None)):
        return resource  # the pool still sees it, or cannot say: not gone
    patience = backend.uncertain_s if resource.state in (State.INTENDED, State.SUBMITTED) else 0.0
    if asked_at <= resource.changed_at + patience:
        return resource
    missing = resource.missing + 1
    if missing < backend.gone_lists and resource.state not in (State.INTENDED, State.REMOVING):
        return replace(resource, missing=missing)
    return _gone(resource, _farewell(resource), sight.now)


def _farewell(resource: Resource) -> str:
    match resource.state:
        case State.INTENDED:
            return "never created"
        case State.SUBMITTED:
            return "accepted, but never listed by the backend"
        case State.PENDING:
            return "vanished while pending"
        case State.DRAINING | State.REMOVING:
            return resource.reason or "removed"
        case _:
            return "ended by itself"


def _gone(resource: Resource, outcome: str, now: float) -> Resource:
    if resource.state in (State.DRAINING, State.REMOVING) and resource.reason:
        outcome = resource.reason
    return replace(resource, state=State.GONE, changed_at=now, outcome=outcome, slot=None, missing=0)


# ----------------------------------------------------------------------------------------------- what the pool says


def _joined(resource: Resource, slot: Observation[Slot | None] | None, sight: Sight, out: Reconciled) -> Resource:
    if not isinstance(slot, Seen):
        return resource
    seen = slot.value
    if seen is None:
        if resource.slot is None:
            return resource
        # one that drains may be busy in truth: its time to leave counts from here, not from its drain
        since = sight.now if resource.state is State.DRAINING else resource.changed_at
        return replace(resource, slot=None, changed_at=since)
    if resource.state in (State.INTENDED, State.SUBMITTED, State.PENDING, State.STARTING):
        out.successes.append(Success(resource.backend, resource.offering, Stage.JOIN))
        return replace(resource, state=State.READY, changed_at=sight.now, joined_at=sight.now, slot=seen, reason="")
    if seen.draining and resource.state is State.READY and slot.asked_at > resource.changed_at:
        return replace(resource, state=State.DRAINING, changed_at=sight.now, slot=seen, reason="drained in the pool")
    return replace(resource, slot=seen) if seen != resource.slot else resource


# ------------------------------------------------------------------------------------------------------- deadlines


def _deadline(
    resource: Resource, entry: Listed | None, backend: BackendSettings, sight: Sight, out: Reconciled
) -> Resource:
    if resource.id in sight.in_flight:
        return resource
    age = sight.now - resource.changed_at
    match resource.state:
        case State.PENDING if entry is not None and entry.status is Status.HELD and age > HELD_S:
            return _give_up(resource, f"held by the backend: {entry.reason or entry.native}", sight, out)
        case State.PENDING if backend.pending_s is not None and age > backend.pending_s:
            return _give_up(resource, f"not started within {backend.pending_s:.0f} s", sight, out)
        case State.STARTING if age > backend.join_s and _pool_known(resource, sight):
            return _give_up(resource, f"did not join the pool within {backend.join_s:.0f} s", sight, out)
        case State.DRAINING:
            return _draining(resource, entry, age, backend, sight, out)
        case State.REMOVING if age > REMOVE_AGAIN_S and entry is not None:
            out.again.append(Retire(Verb.DELETE, resource.id, resource.reason))
    return resource


def _pool_known(resource: Resource, sight: Sight) -> bool:
    return resource.pool is None or isinstance(sight.slots.get(resource.pool), Seen)


def _give_up(resource: Resource, reason: str, sight: Sight, out: Reconciled) -> Resource:
    stage = Stage.START if resource.state in WAITING_AT_BACKEND else Stage.JOIN
    out.faults.append(Fault(resource.backend, resource.offering, stage, reason))
    verb = Verb.CANCEL if resource.state in WAITING_AT_BACKEND else Verb.DELETE
    out.again.append(Retire(verb, resource.id, reason))
    return resource


def _draining(
    resource: Resource,
    entry: Listed | None,
    age: float,
    backend: BackendSettings,
    sight: Sight,
    out: Reconciled,
) -> Resource:
    if not _pool_known(resource, sight):
        return resource
    slot = resource.slot
    if slot is not None and slot.jobs:
        if backend.drain_s is not None and age > backend.drain_s:
            out.notes.append(f"{resource.id} still runs {slot.jobs} jobs {age:.0f} s after its drain")
        if not slot.draining and age > REDRAIN_S:
            out.again.append(Retire(Verb.DRAIN, resource.id, resource.reason))
        return resource
    if slot is not None and not slot.draining and age > REDRAIN_S:
        out.again.append(Retire(Verb.DRAIN, resource.id, resource.reason))
    elif entry is not None and age > LEAVE_S:
        out.again.append(Retire(Verb.DELETE, resource.id, resource.reason))
    return resource


# -------------------------------------------------------------------------------------------------------- adoption


def _adopt(sight: Sight, settings: Settings, out: Reconciled) -> None:
    """Take in what carries our mark and the ledger does not know (a lost ledger, a late create)."""
    for backend, listing in sight.listings.items():
        if not isinstance(listing, Seen):
            continue
        for entry in listing.value.values():
            if entry.id in sight.resources or entry.status is Status.ENDED:
                continue
            out.changed.append(_adopted(backend, entry, sight, settings))
            out.notes.append(f"adopted {entry.id}, which {backend} runs for us and the ledger did not know")


def _adopted(backend: str, entry: Listed, sight: Sight, settings: Settings) -> Resource:
    slot = _find_slot(entry.id, sight.slots)
    queue_name = entry.queue or (slot.queue if slot else "")
    queue = settings.queues.get(queue_name)
    resource = Resource(
        id=entry.id,
        queue=queue_name,
        backend=backend,
        offering=entry.offering or (slot.offering if slot else ""),
        shape=Shape(cores=slot.free.cores, memory_mb=slot.free.memory_mb) if slot else Shape(),
        state=State.SUBMITTED,
        created_at=sight.now,
        changed_at=sight.now,
        remote_id=entry.remote_id,
        pool=queue.pool if queue else None,
        reason="adopted",
    )
    return replace(resource, state=_state_listed(resource, entry))


def _find_slot(id: str, slots: Slots) -> Slot | None:
    for pool in slots.values():
        if isinstance(pool, Seen) and id in pool.value:
            return pool.value[id]
    return None


def shape_of(offering: str, offerings: Iterable[Offering]) -> Shape | None:
    """The shape of an offering by its name."""
    return next((o.shape for o in offerings if o.name == offering), None)

"""What there is: the resources, sorted once into queues and kinds, and for packing into lots of equal ones."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from apf_elastic.model import Resource, Shape, State

#: Room in a dimension that an offering does not state.
UNSTATED = 1 << 60
ENDLESS = float("inf")
#: `Resource.reason` of what somebody else drained in the pool: we do not take it back.
DRAINED_BY_OTHERS = "drained in the pool"


class Kind:
    """A queue's resources of one offering at one backend, by what they do now."""

    __slots__ = (
        "backend",
        "busy",
        "draining",
        "idle",
        "intended",
        "offering",
        "removing",
        "running",
        "starting",
        "unseen",
        "waiting",
    )

    def __init__(self, backend: str, offering: str) -> None:
        self.backend = backend
        self.offering = offering
        self.intended: list[Resource] = []
        self.waiting: list[Resource] = []  # accepted by the backend, not started
        self.starting: list[Resource] = []
        self.idle: list[Resource] = []
        self.busy: list[Resource] = []
        self.unseen: list[Resource] = []  # joined, and not shown by its pool now (or drained there just now)
        self.running: list[Resource] = []
        self.draining: list[Resource] = []
        self.removing = 0

    @property
    def pending(self) -> int:
        """P of APF: the backend has not started them."""
        return len(self.intended) + len(self.waiting)

    @property
    def on_its_way(self) -> int:
        return len(self.intended) + len(self.waiting) + len(self.starting)

    @property
    def joined(self) -> int:
        return len(self.idle) + len(self.busy) + len(self.unseen)

    @property
    def started(self) -> int:
        """R of APF: started, and not draining."""
        return len(self.starting) + self.joined + len(self.running)

    @property
    def total(self) -> int:
        return self.on_its_way + self.joined + len(self.running) + len(self.draining) + self.removing


class Fleet:
    """All resources of one queue. `kinds` is sorted by backend and offering."""

    __slots__ = ("_kinds", "kinds")

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], Kind] = {}
        self.kinds: list[Kind] = []

    def _fill(self, resources: list[Resource]) -> None:
        kinds = self._kinds
        ready = State.READY
        for resource in resources:
            key = (resource.backend, resource.offering)
            kind = kinds.get(key)
            if kind is None:
                kind = kinds[key] = Kind(*key)
            state = resource.state
            if state is ready:
                slot = resource.slot
                if slot is None or slot.draining:
                    kind.unseen.append(resource)
                elif slot.jobs:
                    kind.busy.append(resource)
                else:
                    kind.idle.append(resource)
            else:
                _file(kind, resource, state)
        self.kinds = [kinds[key] for key in sorted(kinds)]

    @property
    def pending(self) -> int:
        return sum(kind.pending for kind in self.kinds)

    @property
    def started(self) -> int:
        return sum(kind.started for kind in self.kinds)

    @property
    def draining(self) -> int:
        return sum(len(kind.draining) for kind in self.kinds)

    @property
    def joined(self) -> int:
        return sum(kind.joined for kind in self.kinds)

    @property
    def on_its_way(self) -> int:
        return sum(kind.on_its_way for kind in self.kinds)

    @property
    def total(self) -> int:
        return sum(kind.total for kind in self.kinds)

    def resources(self) -> Iterable[Resource]:
        """Everything but what is being removed."""
        for kind in self.kinds:
            for some in (kind.intended, kind.waiting, kind.starting, kind.idle, kind.busy, kind.unseen, kind.running):
                yield from some
            yield from kind.draining


def _file(kind: Kind, resource: Resource, state: State) -> None:
    if state is State.INTENDED:
        kind.intended.append(resource)
    elif state is State.SUBMITTED or state is State.PENDING:
        kind.waiting.append(resource)
    elif state is State.STARTING:
        kind.starting.append(resource)
    elif state is State.RUNNING:
        kind.running.append(resource)
    elif state is State.DRAINING:
        kind.draining.append(resource)
    elif state is State.REMOVING:
        kind.removing += 1


def index(resources: Iterable[Resource]) -> dict[str, Fleet]:
    """The fleet of every queue that has one, in one pass."""
    by_queue: defaultdict[str, list[Resource]] = defaultdict(list)
    for resource in resources:
        by_queue[resource.queue].append(resource)
    fleets = {}
    for queue in sorted(by_queue):
        fleet = fleets[queue] = Fleet()
        fleet._fill(by_queue[queue])
    return fleets


# ----------------------------------------------------------------------------------------------------------- lots


class Stage(IntEnum):
    """What a lot does now. Ordered as jobs are packed on it: what is busy already keeps idle ones free to leave."""

    BUSY = 0
    IDLE = 1
    COMING = 2
    DRAINING = 3


@dataclass(slots=True)
class Lot:
    """Resources that are alike for packing: the same room in the same stage. `untouched` have no job packed on."""

    stage: Stage
    kind: Kind
    room: Shape
    lifetime_s: float
    members: list[Resource] = field(default_factory=list)
    untouched: int = 0


def lots(fleet: Fleet, walltimes: Sequence[int], now: float) -> list[Lot]:
    """Everything that can take a job, now or soon. `walltimes` (sorted) are those that the queue's jobs ask for:
    between two of them, remaining lifetimes are alike."""
    found: list[Lot] = []
    for kind in fleet.kinds:
        some: dict[tuple[Stage, Shape, float], Lot] = {}
        for resource in kind.busy:
            if resource.slot is not None and resource.slot.free.cores > 0:
                _put(some, kind, Stage.BUSY, resource.slot.free, resource, walltimes, now)
        for resource in kind.idle:
            _put(some, kind, Stage.IDLE, _idle_room(resource), resource, walltimes, now)
        for coming in (kind.starting, kind.intended, kind.waiting):
            for resource in coming:
                _put(some, kind, Stage.COMING, resource.shape, resource, walltimes, now)
        found += [some[key] for key in sorted(some)]
    return found


def draining_lots(fleet: Fleet, walltimes: Sequence[int], now: float) -> list[Lot]:
    """What we drain and could take back."""
    found: list[Lot] = []
    for kind in fleet.kinds:
        some: dict[tuple[Stage, Shape, float], Lot] = {}
        for resource in kind.draining:
            if resource.slot is None or resource.reason == DRAINED_BY_OTHERS:
                continue
            room = resource.slot.free if resource.slot.jobs else _idle_room(resource)
            _put(some, kind, Stage.DRAINING, room, resource, walltimes, now)
        found += [some[key] for key in sorted(some)]
    return found


def remaining_s(resource: Resource, now: float) -> float:
    """How long a resource will still live (seconds)."""
    lifetime_s = resource.shape.walltime_s
    if lifetime_s is None:
        return ENDLESS
    return lifetime_s - (now - resource.joined_at) if resource.joined_at is not None else float(lifetime_s)


def _put(
    some: dict[tuple[Stage, Shape, float], Lot],
    kind: Kind,
    stage: Stage,
    room: Shape,
    resource: Resource,
    walltimes: Sequence[int],
    now: float,
) -> None:
    shape = resource.shape
    lifetime = ENDLESS
    if shape.walltime_s is not None:
        lifetime = remaining_s(resource, now)
        if lifetime <= 0:
            return
        place = bisect_right(walltimes, lifetime)
        lifetime = float(walltimes[place - 1]) if place else 0.0
    if room.walltime_s is not None or room.arch != shape.arch:
        room = Shape(room.cores, room.memory_mb, room.disk_mb, room.gpus, None, room.arch or shape.arch)
    key = (stage, room, lifetime)
    lot = some.get(key)
    if lot is None:
        lot = some[key] = Lot(stage, kind, room, lifetime)
    lot.members.append(resource)


def _idle_room(resource: Resource) -> Shape:
    """The room of a resource without jobs: what its pool says; what the pool does not state, as it was bought."""
    shape = resource.shape
    if resource.slot is None:
        return shape
    free = resource.slot.free
    if free.cores and (free.memory_mb or not shape.memory_mb) and (free.disk_mb or not shape.disk_mb):
        return free
    return Shape(
        free.cores or shape.cores,
        free.memory_mb or shape.memory_mb,
        free.disk_mb or shape.disk_mb,
        free.gpus,
        None,
        free.arch or shape.arch,
    )

"""What there is: the resources, sorted once into queues and kinds, and for packing into lots of equal ones."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

from apf_elastic.model import Resource, State

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
            for some in (
                kind.intended,
                kind.waiting,
                kind.starting,
                kind.idle,
                kind.busy,
                kind.unseen,
                kind.running,
            ):
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


#: cores, memory (MB), disk (MB), GPUs, architecture, lifetime (s)
Room = tuple[int, int, int, int, str, float]


@dataclass(slots=True)
class Lot:
    """Resources that are alike for packing: the same room in the same stage. `untouched` have no job packed on."""

    stage: Stage
    kind: Kind
    room: Room
    members: list[Resource]
    untouched: int = 0


class _Rooms:
    """Finds the room of a resource. `walltimes` (sorted) are those that the queue's jobs ask for: between two of
    them, remaining lifetimes are alike."""

    def __init__(self, walltimes: Sequence[int], now: float) -> None:
        self.walltimes = walltimes
        self.now = now

    def lots(self, kind: Kind, stage: Stage, resources: Iterable[Resource]) -> list[Lot]:
        by_room: dict[Room, list[Resource]] = {}
        room_of = self.coming if stage is Stage.COMING else self.joined
        for resource in resources:
            room = room_of(resource)
            if room is not None:
                members = by_room.get(room)
                if members is None:
                    by_room[room] = [resource]
                else:
                    members.append(resource)
        return [Lot(stage, kind, room, by_room[room]) for room in sorted(by_room)]

    def coming(self, resource: Resource) -> Room | None:
        it = resource.shape
        lifetime = ENDLESS if it.walltime_s is None else self.alike(it.walltime_s)
        return (it.cores, it.memory_mb or UNSTATED, it.disk_mb or UNSTATED, it.gpus, it.arch, lifetime)

    def joined(self, resource: Resource) -> Room | None:
        """What its pool says. An idle one of which the pool does not state memory or disk has what was bought."""
        it = resource.shape
        slot = resource.slot
        if slot is None or slot.free.cores <= 0:
            return None
        free = slot.free
        lifetime = ENDLESS
        if it.walltime_s is not None or free.walltime_s is not None:
            left = remaining_s(resource, self.now)
            if left <= 0:
                return None
            lifetime = self.alike(left)
        memory, disk = free.memory_mb, free.disk_mb
        if not slot.jobs:
            memory = memory or it.memory_mb or UNSTATED
            disk = disk or it.disk_mb or UNSTATED
        return (free.cores, memory, disk, free.gpus, free.arch or it.arch, lifetime)

    def alike(self, lifetime_s: float) -> float:
        place = bisect_right(self.walltimes, lifetime_s)
        return float(self.walltimes[place - 1]) if place else 0.0


def lots(fleet: Fleet, walltimes: Sequence[int], now: float) -> list[Lot]:
    """Everything that can take a job, now or soon."""
    rooms = _Rooms(walltimes, now)
    found: list[Lot] = []
    for kind in fleet.kinds:
        found += rooms.lots(kind, Stage.BUSY, kind.busy)
        found += rooms.lots(kind, Stage.IDLE, kind.idle)
        found += rooms.lots(kind, Stage.COMING, chain(kind.starting, kind.intended, kind.waiting))
    return found


def draining_lots(fleet: Fleet, walltimes: Sequence[int], now: float, pools: Collection[str]) -> list[Lot]:
    """What we drain, and could take back: it joined a pool that is known."""
    rooms = _Rooms(walltimes, now)
    found: list[Lot] = []
    for kind in fleet.kinds:
        ours = [r for r in kind.draining if r.pool in pools and r.reason != DRAINED_BY_OTHERS]
        found += rooms.lots(kind, Stage.DRAINING, ours)
    return found


def remaining_s(resource: Resource, now: float) -> float:
    """How long a resource will still live (seconds): by its offering, or as its pool says."""
    lifetime_s = resource.shape.walltime_s
    left = ENDLESS if lifetime_s is None else float(lifetime_s)
    if lifetime_s is not None and resource.joined_at is not None:
        left = lifetime_s - (now - resource.joined_at)
    if resource.slot is not None and resource.slot.free.walltime_s is not None:
        left = min(left, resource.slot.free.walltime_s)
    return left

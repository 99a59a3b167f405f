"""The words of apf-elastic, as frozen values.

Every module speaks in these types; this one imports nothing of ours. Times are seconds since the epoch
(float, UTC), durations are seconds and end in ``_s``, memory and disk are MB (2**20 bytes) and end in ``_mb``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


# --------------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What one job asks for, or what one resource offers.

    For a job, `walltime_s` is how long it says it may run (None: it does not say) and `arch` the
    architecture it needs (empty: any). For an offering, `walltime_s` is how long a resource lives (None: without
    end) and `arch` what it has (empty: not stated, taken to suit every job).
    """

    cores: int = 1
    memory_mb: int = 0
    disk_mb: int = 0
    gpus: int = 0
    walltime_s: int | None = None
    arch: str = ""

    def __str__(self) -> str:
        words = [f"{self.cores} core" + ("" if self.cores == 1 else "s")]
        if self.memory_mb:
            words.append(f"{self.memory_mb} MB")
        if self.disk_mb:
            words.append(f"{self.disk_mb} MB disk")
        if self.gpus:
            words.append(f"{self.gpus} GPU" + ("" if self.gpus == 1 else "s"))
        if self.walltime_s is not None:
            words.append(f"{self.walltime_s} s")
        if self.arch:
            words.append(self.arch)
        return ", ".join(words)


# -------------------------------------------------------------------------------------------------- demand


@dataclass(frozen=True, slots=True)
class JobGroup:
    """Jobs of one shape in one queue: how many wait, run and are held.

    `waited` counts, for each threshold that some backend of the queue needs (``burst_after``), how many of the
    waiting jobs have waited at least so long: ``((threshold_s, jobs), ...)``.
    """

    shape: Shape
    waiting: int
    running: int = 0
    held: int = 0
    oldest_wait_s: float | None = None
    waited: tuple[tuple[float, int], ...] = ()

    def waiting_since(self, threshold_s: float) -> int:
        """How many jobs have waited at least `threshold_s`; 0 when the source did not count them."""
        if threshold_s <= 0:
            return self.waiting
        return min(self.waiting, dict(self.waited).get(threshold_s, 0))


@dataclass(frozen=True, slots=True)
class Demand:
    """What a source says about one queue. `status` is the site status: online, test, offline, ..."""

    groups: tuple[JobGroup, ...] = ()
    status: str = "online"
    notes: tuple[str, ...] = ()

    @property
    def waiting(self) -> int:
        return sum(group.waiting for group in self.groups)

    @property
    def running(self) -> int:
        return sum(group.running for group in self.groups)

    @property
    def held(self) -> int:
        return sum(group.held for group in self.groups)

    @property
    def oldest_wait_s(self) -> float | None:
        return max((g.oldest_wait_s for g in self.groups if g.oldest_wait_s is not None), default=None)


# -------------------------------------------------------------------------------------------- observations


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """An answer, with the time at which it was *asked*: its age counts from there."""

    value: T
    asked_at: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """No usable answer. Never the same as an empty one."""

    reason: str
    since: float


Observation = Seen[T] | Unknown


# ----------------------------------------------------------------------------------- offerings and resources


@dataclass(frozen=True, slots=True)
class Offering:
    """One kind of resource that a backend supplies. `start_s` is the expected delay from create to joined."""

    name: str
    shape: Shape
    price_per_hour: float = 0.0
    limit: int | None = None
    start_s: float | None = None
    options: Mapping[str, object] = field(default_factory=dict, compare=False)


class State(StrEnum):
    """Life cycle of a resource.

    ::

        intended -> submitted -> pending -> starting -> ready (idle | busy) -> draining -> gone
                                                    \\-> running (joins no pool of ours) -> gone
        any state -> removing -> gone

    `running` is for pilots that serve a workload manager of their own: we never drain them. `removing` waits for
    the backend's word that a cancelled, drained or never joined resource is no more.
    """

    INTENDED = "intended"  # in the ledger; the create call has not been answered
    SUBMITTED = "submitted"  # the backend accepted it; no list has shown it yet
    PENDING = "pending"  # the backend lists it as waiting
    STARTING = "starting"  # it runs, and has not joined the pool
    READY = "ready"  # it has joined the pool
    RUNNING = "running"  # it runs, and joins no pool of ours
    DRAINING = "draining"  # takes no new job
    REMOVING = "removing"  # a removal was decided
    GONE = "gone"


#: States in which a resource is on its way: it counts for the capacity that it will bring.
ON_ITS_WAY = frozenset({State.INTENDED, State.SUBMITTED, State.PENDING, State.STARTING})
#: States that APF counts as pending pilots: the batch system has not started them.
WAITING_AT_BACKEND = frozenset({State.INTENDED, State.SUBMITTED, State.PENDING})


@dataclass(frozen=True, slots=True)
class Slot:
    """What the pool says about one resource: all its slots taken together.

    `free` is what a new job could still get; `jobs` counts claims (any claim is busy); `idle_since` is the time
    at which the last claim ended (or the resource joined), None while busy.
    """

    id: str
    free: Shape
    jobs: int = 0
    idle_since: float | None = None
    draining: bool = False
    machine: str = ""
    queue: str = ""
    backend: str = ""
    offering: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that a backend runs for us, from the intention to its end.

    `changed_at` is when `state` was entered. `slot` is the pool's last word about it. `outcome` is set when it is
    gone. `missing` counts the consecutive complete lists that did not show it.
    """

    id: str
    queue: str
    backend: str
    offering: str
    shape: Shape
    state: State
    created_at: float
    changed_at: float
    remote_id: str | None = None
    pool: str | None = None
    joined_at: float | None = None
    slot: Slot | None = None
    reason: str = ""
    outcome: str = ""
    missing: int = 0
    price_per_hour: float = 0.0

    @property
    def busy(self) -> bool:
        return self.slot is not None and self.slot.jobs > 0

    @property
    def idle_since(self) -> float | None:
        if self.state is not State.READY or self.slot is None or self.slot.jobs:
            return None
        return self.slot.idle_since


# ------------------------------------------------------------------------------------------------ the world


class Breaker(StrEnum):
    """State of a circuit breaker. Ordered from harmless to closed for business; `closed` lets everything pass."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"  # one canary may be created
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a backend (or one offering of it) may be asked for more, and why not."""

    breaker: Breaker = Breaker.CLOSED
    reason: str = ""
    until: float | None = None


@dataclass(frozen=True, slots=True)
class BackendView:
    """What the cycle knows about one backend.

    `listing` says only whether, and as of when, the backend's own list is known: its content is already in the
    resources. `recent_creates` counts create requests in the current rate window (see `Limits.per_minute`).
    """

    offerings: Observation[tuple[Offering, ...]]
    listing: Observation[None]
    health: Health = Health()
    offering_health: Mapping[str, Health] = field(default_factory=dict)
    recent_creates: int = 0


@dataclass(frozen=True, slots=True)
class QueueHistory:
    """What the ledger remembers of a queue.

    `submitted` counts resources created over the queue's life. `recent_ended` and `recent_short` count the
    resources that started within the throttle's interval, and those of them that ran less than its minimum.
    `last_created` and `last_retired` are the times of the last create and retire per (backend, offering).
    """

    submitted: int = 0
    recent_started: int = 0
    recent_short: int = 0
    last_created: Mapping[tuple[str, str], float] = field(default_factory=dict)
    last_retired: Mapping[tuple[str, str], float] = field(default_factory=dict)
    demand_changed_at: float | None = None


@dataclass(frozen=True, slots=True)
class World:
    """Everything that `decide` may look at. `resources` holds all that are not gone."""

    now: float
    demand: Mapping[str, Observation[Demand]]
    backends: Mapping[str, BackendView]
    pools: Mapping[str, Observation[None]]
    resources: Iterable[Resource]
    history: Mapping[str, QueueHistory] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class Create:
    """Ask `backend` for `count` resources of `offering` for `queue`."""

    queue: str
    backend: str
    offering: Offering
    count: int
    reason: str
    canary: bool = False


class Verb(StrEnum):
    """What is done to one resource. Ordered from gentlest to final."""

    UNDRAIN = "undrain"  # take it back from draining
    DRAIN = "drain"  # no new job; running ones finish
    CANCEL = "cancel"  # it has not started: remove it
    DELETE = "delete"  # drained, expired or never joined: remove it


@dataclass(frozen=True, slots=True)
class Retire:
    """One verb for one resource, by identity, and why."""

    verb: Verb
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step of the policy chain made of the number, and why."""

    name: str
    n: int
    reason: str


@dataclass(frozen=True, slots=True)
class Account:
    """Where the waiting jobs of one shape went: ``waiting = covered + granted + sum(withheld.values())``.

    `covered` is served by capacity that is there or on its way, ``wanted = waiting - covered`` is the deficit,
    `granted` will be served by what this plan creates. For a queue with a chain of APF's steps the unit is
    resources, `shape` is None, and `waiting` is the chain's result.
    """

    queue: str
    shape: Shape | None
    waiting: int
    covered: int
    granted: int
    withheld: Mapping[str, int] = field(default_factory=dict)

    @property
    def wanted(self) -> int:
        return self.waiting - self.covered


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for one queue. `hold` says why nothing may change, or is empty."""

    queue: str
    hold: str = ""
    steps: tuple[StepResult, ...] = ()
    accounts: tuple[Account, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What one cycle decided: actions, and a reason for every unit granted or withheld."""

    creates: tuple[Create, ...] = ()
    retirements: tuple[Retire, ...] = ()
    decisions: tuple[Decision, ...] = ()

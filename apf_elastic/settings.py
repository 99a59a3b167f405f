"""What the configuration decided, as frozen values: the second argument of `decide`.

`apf_elastic.config` makes them from the files; tests and the simulator make them directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from apf_elastic.model import Shape


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds, held against intentions; None is no limit.

    `total` counts every resource that is not gone, `pending` those on their way (not joined, not running),
    `per_cycle` what one cycle creates, `per_minute` what is created within any 60 s.
    """

    total: int | None = None
    pending: int | None = None
    per_cycle: int | None = None
    per_minute: int | None = None


class Allocation(StrEnum):
    FILL = "fill"  # fill the first backend, spill to the next
    WEIGHTED = "weighted"  # by the weight of each backend
    CHEAPEST = "cheapest"  # lowest price per useful core first


class Order(StrEnum):
    """Which idle resource leaves first."""

    NEWEST = "newest"
    OLDEST = "oldest"
    LEAST_LOST = "least lost"  # the one whose remaining paid or bought time is worth least


@dataclass(frozen=True, slots=True)
class BackendUse:
    """How one queue uses one backend. `burst_after_s`: only jobs that waited so long reach it."""

    backend: str
    weight: float = 1.0
    burst_after_s: float = 0.0
    idle_s: float | None = None
    offerings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retirement:
    """When and how resources are given back.

    `idle_s`: None takes the offering's expected start delay, at least 90 s, 300 s if it is unknown. `budget` is the
    share of a queue's joined resources that one cycle may start to drain (at least one). `hysteresis_s`: no retirement
    of an offering so soon after its last create, and no create so soon after its last retirement, unless demand
    changed.
    `drain_busy` lets a chain that asks for fewer drain busy resources too; their jobs still finish.
    """

    idle_s: float | None = None
    order: Order = Order.NEWEST
    budget: float = 0.5
    hysteresis_s: float = 60.0
    drain_busy: bool = False


@dataclass(frozen=True, slots=True)
class StepSettings:
    """One step of a queue's chain with its options, by APF's last word: ``{"offset": 4}``."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """One configured workflow. An empty `chain` is the default policy: fit jobs to offerings."""

    name: str
    source: str
    backends: tuple[BackendUse, ...]
    pool: str | None = None
    chain: tuple[StepSettings, ...] = ()
    allocation: Allocation = Allocation.FILL
    limits: Limits = Limits()
    priority: int = 0
    weight: float = 1.0
    retirement: Retirement = Retirement()
    default_shape: Shape = Shape(cores=1)


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """Limits and deadlines of one backend (seconds). A deadline of None never passes.

    `uncertain_s`: how long a create call without an answer may still show up in the backend's list.
    `join_s`: from running to joined, else it is removed and counted against the backend.
    `pending_s`: from accepted to running. `drain_s`: from the drain to the end.
    `gone_lists`: consecutive complete lists without it before a resource is gone.
    """

    name: str
    limits: Limits = Limits()
    uncertain_s: float = 60.0
    pending_s: float | None = None
    join_s: float = 900.0
    drain_s: float | None = None
    gone_lists: int = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `decide` needs. `max_age_s`: an observation older than this is unknown."""

    factory: str
    queues: Mapping[str, QueueSettings]
    backends: Mapping[str, BackendSettings]
    limits: Limits = Limits()
    max_age_s: float = 120.0

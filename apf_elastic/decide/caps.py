"""How much may be created, and what says no: limits, health and what is known, per scope.

A scope is the factory, a queue, a backend, or an offering at a backend. Limits are held against intentions:
everything that is not gone counts, also what no list shows yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apf_elastic.decide.fleet import Fleet, Kind
from apf_elastic.model import (
    BackendView,
    Breaker,
    Health,
    Observation,
    Offering,
    QueueHistory,
    Seen,
    Unknown,
    World,
)
from apf_elastic.settings import BackendUse, Limits, QueueSettings, Settings

Scope = tuple[str, ...]
FACTORY: Scope = ("factory",)

#: `Limits.per_minute` looks back so long.
MINUTE_S = 60.0


@dataclass(slots=True)
class Cap:
    """So many more, and why no more than that."""

    left: int
    reason: str


@dataclass(slots=True)
class Counts:
    """What counts against the limits of a scope."""

    total: int = 0
    on_its_way: int = 0

    def add(self, kind: Kind) -> None:
        self.total += kind.total
        self.on_its_way += kind.on_its_way


def why_unknown(observation: Observation[Any] | None, now: float, max_age_s: float) -> str:
    """Why an observation cannot be used; empty if it can."""
    if observation is None:
        return "not asked yet"
    if isinstance(observation, Unknown):
        return observation.reason or "no answer"
    if now - observation.asked_at > max_age_s:
        return f"the last answer is older than {max_age_s:g} s"
    return ""


class Caps:
    """The caps of every scope that has one, and what each backend offers or why it is not known."""

    def __init__(self, world: World, settings: Settings, fleets: Mapping[str, Fleet]) -> None:
        self.now = world.now
        self.caps: dict[Scope, Cap] = {}
        self.canaries: set[Scope] = set()
        self.unknown: dict[str, str] = {}
        self.offerings: dict[str, tuple[Offering, ...]] = {}
        self._count(fleets)
        recent = sum(view.recent_creates for view in world.backends.values())
        self._cap(FACTORY, _limits(settings.limits, self.counts[FACTORY], recent, "the factory"))
        for name in sorted(world.backends):
            self._backend(name, world.backends[name], settings)

    def _count(self, fleets: Mapping[str, Fleet]) -> None:
        self.counts: dict[Scope, Counts] = {FACTORY: Counts()}
        self.kinds: dict[str, list[Kind]] = {}
        for fleet in fleets.values():
            for kind in fleet.kinds:
                self.kinds.setdefault(kind.backend, []).append(kind)
                for scope in (FACTORY, ("backend", kind.backend), ("offering", kind.backend, kind.offering)):
                    self.counts.setdefault(scope, Counts()).add(kind)

    def _cap(self, scope: Scope, candidates: list[Cap]) -> None:
        if candidates:
            self.caps[scope] = min(candidates, key=lambda cap: cap.left)

    def _backend(self, name: str, view: BackendView, settings: Settings) -> None:
        unknown = why_unknown(view.listing, self.now, settings.max_age_s)
        unknown = unknown or why_unknown(view.offerings, self.now, settings.max_age_s)
        if unknown or not isinstance(view.offerings, Seen):
            self.unknown[name] = unknown
            return
        self.offerings[name] = view.offerings.value
        scope = ("backend", name)
        limits = settings.backends[name].limits if name in settings.backends else Limits()
        candidates = self._health(scope, view.health, self.kinds.get(name, []), name)
        self._cap(scope, candidates + _limits(limits, self.counts.get(scope, Counts()), view.recent_creates, name))
        for offering in view.offerings.value:
            self._offering(name, offering, view.offering_health.get(offering.name, Health()))

    def _offering(self, backend: str, offering: Offering, health: Health) -> None:
        scope = ("offering", backend, offering.name)
        who = f"{offering.name} at {backend}"
        kinds = [kind for kind in self.kinds.get(backend, []) if kind.offering == offering.name]
        candidates = self._health(scope, health, kinds, who)
        if offering.limit is not None:
            left = max(0, offering.limit - self.counts.get(scope, Counts()).total)
            candidates.append(Cap(left, f"{who} is at its limit of {offering.limit} resources"))
        self._cap(scope, candidates)

    def _health(self, scope: Scope, health: Health, kinds: list[Kind], who: str) -> list[Cap]:
        because = f": {health.reason}" if health.reason else ""
        if health.breaker is Breaker.OPEN:
            return [Cap(0, f"{who} is not asked for more{because}")]
        if health.breaker is Breaker.HALF_OPEN:
            self.canaries.add(scope)
            left = 0 if _canary_on_its_way(kinds, health.until) else 1
            return [Cap(left, f"{who} is tried with one canary first{because}")]
        return []

    def add_queue(self, queue: QueueSettings, fleet: Fleet) -> None:
        """The queue's own limits. Its rate is counted from its resources: what ended within a minute is not."""
        recent = 0
        if queue.limits.per_minute is not None:
            recent = sum(r.created_at > self.now - MINUTE_S for r in fleet.resources())
        counts = Counts(fleet.total, fleet.on_its_way)
        self._cap(("queue", queue.name), _limits(queue.limits, counts, recent, "the queue"))

    def bound(self, scope: Scope, most: int, reason: str) -> None:
        """Add a cap."""
        self.caps[scope] = Cap(max(0, most), reason)

    def offered(self, use: BackendUse) -> list[Offering]:
        """What a queue may take from a backend that is known."""
        offerings = self.offerings.get(use.backend, ())
        return [offering for offering in offerings if not use.offerings or offering.name in use.offerings]


def _limits(limits: Limits, counts: Counts, recent: int, who: str) -> list[Cap]:
    bounds = (
        (limits.total, counts.total, "is at its limit of {} resources"),
        (limits.pending, counts.on_its_way, "is at its limit of {} resources on their way"),
        (limits.per_cycle, 0, "makes at most {} in one cycle"),
        (limits.per_minute, recent, "makes at most {} in a minute"),
    )
    return [
        Cap(max(0, limit - count), f"{who} {words.format(limit)}")
        for limit, count, words in bounds
        if limit is not None
    ]


def _canary_on_its_way(kinds: list[Kind], since: float | None) -> bool:
    """Whether one was created since the breaker let one pass; if that time is unknown, whether any is on its way."""
    return any(
        since is None or resource.created_at >= since
        for kind in kinds
        for some in (kind.intended, kind.waiting, kind.starting)
        for resource in some
    )


def changed_since(history: QueueHistory, moment: float) -> bool:
    """Whether the demand has changed since: hysteresis does not hold against that."""
    return history.demand_changed_at is not None and history.demand_changed_at > moment


def too_soon(
    history: QueueHistory,
    moments: Mapping[tuple[str, str], float],
    key: tuple[str, str],
    hysteresis_s: float,
    now: float,
) -> bool:
    """Whether the last create (or retire) of an offering was so recent that the opposite must wait."""
    moment = moments.get(key)
    return moment is not None and now - moment < hysteresis_s and not changed_since(history, moment)

"""Retirement, by identity: what is cancelled, drained, and taken back from draining.

Pending resources leave first, then idle ones. Nothing is chosen on which a waiting job was packed, nothing that is
busy (unless an operator says so), nothing at a backend or in a pool that is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from apf_elastic.decide.caps import Caps, too_soon
from apf_elastic.decide.fleet import ENDLESS, Fleet, Kind, Lot, Stage, remaining_s
from apf_elastic.model import Offering, QueueHistory, Resource, Retire, Verb
from apf_elastic.settings import Order, QueueSettings

#: A boot time that nobody stated.
START_S = 300.0
#: However quick a start is: a pool of default settings matches jobs once a minute, and what sits idle between two
#: matches is not idle.
SHORTEST_IDLE_S = 90.0
#: What ends by itself so soon needs no drain.
ENDS_SOON_S = 60.0
HOUR_S = 3600.0

NOT_NEEDED = "no waiting job needs it"
CHAIN_ASKS = "the chain asks for fewer"


@dataclass(frozen=True, slots=True)
class Leaving:
    """One queue's side of retirement. `pools` are those that are known; `creating` the offerings that the plan
    creates: none of these is retired in the same plan."""

    queue: QueueSettings
    fleet: Fleet
    lots: Sequence[Lot]
    history: QueueHistory
    caps: Caps
    pools: Collection[str]
    creating: Collection[tuple[str, str]]

    @property
    def now(self) -> float:
        return self.caps.now

    @property
    def budget(self) -> int:
        """How many joined resources this cycle may disturb."""
        return max(1, int(self.queue.retirement.budget * self.fleet.joined + 1e-9))

    def may_leave(self, kind: Kind) -> bool:
        key = (kind.backend, kind.offering)
        if kind.backend not in self.caps.offerings or key in self.creating:
            return False
        return not too_soon(self.history, self.history.last_created, key, self.queue.retirement.hysteresis_s, self.now)

    def in_known_pool(self, resource: Resource) -> bool:
        return resource.pool is not None and resource.pool in self.pools

    # ------------------------------------------------------------------------------------------ who may leave

    def unneeded_pending(self) -> list[Resource]:
        """Pending ones on which nothing is packed, newest first. Those that start already are kept before them."""
        found: list[Resource] = []
        for lot in self.lots:
            if lot.stage is Stage.COMING and lot.untouched and self.may_leave(lot.kind):
                pending = {id(resource) for resource in lot.kind.waiting}
                found += newest([r for r in lot.members if id(r) in pending])[: lot.untouched]
        return newest(found)

    def unneeded_idle(self) -> list[Resource]:
        """Idle long enough, and nothing is packed on them; in the queue's order."""
        found: list[Resource] = []
        for lot in self.lots:
            if lot.stage is Stage.IDLE and lot.untouched and self.may_leave(lot.kind):
                horizon = self.now - self.idle_s(lot.kind)
                found += self.in_order(r for r in lot.members if self._idle_since(r, horizon))[: lot.untouched]
        return self.in_order(found)

    def any_pending(self) -> list[Resource]:
        return newest(r for kind in self.fleet.kinds if self.may_leave(kind) for r in kind.waiting)

    def any_idle(self) -> list[Resource]:
        kinds = [kind for kind in self.fleet.kinds if self.may_leave(kind)]
        found = self.in_order(r for kind in kinds for r in kind.idle if self._idle_since(r, self.now))
        if self.queue.retirement.drain_busy:
            found += self.in_order(r for kind in kinds for r in kind.busy if self.in_known_pool(r))
        return found

    def _idle_since(self, resource: Resource, horizon: float) -> bool:
        since = resource.idle_since
        return (
            since is not None
            and since <= horizon
            and self.in_known_pool(resource)
            and remaining_s(resource, self.now) > ENDS_SOON_S
        )

    def idle_s(self, kind: Kind) -> float:
        """How long one of this kind may be idle: as its use says, else the queue, else as long as a start takes."""
        for use in self.queue.backends:
            if use.backend == kind.backend and use.idle_s is not None:
                return use.idle_s
        if self.queue.retirement.idle_s is not None:
            return self.queue.retirement.idle_s
        offering = _find(self.caps.offerings.get(kind.backend, ()), kind.offering)
        start_s = offering.start_s if offering is not None and offering.start_s is not None else START_S
        return max(SHORTEST_IDLE_S, start_s)

    def in_order(self, resources: Iterable[Resource]) -> list[Resource]:
        match self.queue.retirement.order:
            case Order.NEWEST:
                return newest(resources)
            case Order.OLDEST:
                return sorted(resources, key=lambda r: (r.created_at, r.id))
            case Order.LEAST_LOST:
                return sorted(resources, key=lambda r: (*self._worth(r), -r.created_at, r.id))

    def _worth(self, resource: Resource) -> tuple[float, float]:
        """What is lost with a resource: the price of its remaining life, or of what is left of its hour, if it has
        no end; among equal prices that time itself."""
        left = remaining_s(resource, self.now)
        if left == ENDLESS:
            left = HOUR_S - (self.now - resource.created_at) % HOUR_S
        return resource.price_per_hour * left, left

    # ---------------------------------------------------------------------------------------------- who leaves

    def by_fit(self) -> list[Retire]:
        """Everything that no waiting job needs, within the budget."""
        return [
            *_retire(Verb.CANCEL, self.unneeded_pending(), NOT_NEEDED),
            *self._drains(self.unneeded_idle()[: self.budget]),
        ]

    def _drains(self, resources: Iterable[Resource]) -> list[Retire]:
        words = {
            (kind.backend, kind.offering): f"idle for more than {self.idle_s(kind):g} s, and {NOT_NEEDED}"
            for kind in self.fleet.kinds
        }
        return [Retire(Verb.DRAIN, r.id, words[r.backend, r.offering]) for r in resources]

    def by_chain(self, asks: Callable[[int, int], int], spare: int | None) -> list[Retire]:
        """What no waiting job needs, as far as the chain would not ask for it again.

        `asks` is the chain's number with so many pending and so many running fewer; `spare` how many exceed the
        number of waiting jobs (None: the chain fits jobs itself).
        """
        pending, idle = self.unneeded_pending(), self.unneeded_idle()[: self.budget]
        bound = len(pending) if spare is None else min(len(pending), spare)
        cancels = most(bound, lambda count: asks(count, 0) <= 0)
        bound = len(idle) if spare is None else min(len(idle), spare - cancels)
        drains = most(bound, lambda count: asks(cancels, count) <= 0)
        return [*_retire(Verb.CANCEL, pending[:cancels], NOT_NEEDED), *self._drains(idle[:drains])]

    def by_order(self, asks: Callable[[int, int], int], fewer: int, pending_only: bool) -> list[Retire]:
        """The chain asks for so many fewer: pending ones, then idle ones, as far as it would not ask for them again."""
        pending = self.any_pending()
        cancels = most(min(fewer, len(pending)), lambda count: asks(count, 0) <= 0)
        if pending_only:
            return _retire(Verb.CANCEL, pending[:cancels], CHAIN_ASKS)
        idle = self.any_idle()[: self.budget]
        drains = most(min(fewer - cancels, len(idle)), lambda count: asks(cancels, count) <= 0)
        return _retire(Verb.CANCEL, pending[:cancels], CHAIN_ASKS) + _retire(Verb.DRAIN, idle[:drains], CHAIN_ASKS)


def newest(resources: Iterable[Resource]) -> list[Resource]:
    """The newest first: at a backend it is the last in the line."""
    return sorted(resources, key=lambda r: (-r.created_at, r.id))


def most(bound: int, good: Callable[[int], bool]) -> int:
    """The largest number up to `bound` that is good; what is good is so for all smaller ones, and 0 always is."""
    low, high = 0, max(0, bound)
    while low < high:
        middle = (low + high + 1) // 2
        if good(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _retire(verb: Verb, resources: Iterable[Resource], reason: str) -> list[Retire]:
    return [Retire(verb, resource.id, reason) for resource in resources]


def _find(offerings: Iterable[Offering], name: str) -> Offering | None:
    return next((offering for offering in offerings if offering.name == name), None)


def take_back(lots: Iterable[Lot]) -> list[Retire]:
    """Undrain what had jobs packed on, those first that began to drain last."""
    found: list[Resource] = []
    for lot in lots:
        members = sorted(lot.members, key=lambda r: (-r.changed_at, r.id))
        found += members[: len(members) - lot.untouched]
    return undrain(found)


def undrain(resources: Iterable[Resource]) -> list[Retire]:
    return _retire(Verb.UNDRAIN, resources, "work waits for it again")


def orphans(queue: str, fleet: Fleet, caps: Caps, pools: Collection[str]) -> list[Retire]:
    """Resources of a queue that is no longer configured leave when they are pending or idle."""
    reason = f"queue {queue} is no longer configured" if queue else "its queue is not known"
    found: list[Retire] = []
    for kind in fleet.kinds:
        if kind.backend in caps.offerings:
            found += _retire(Verb.CANCEL, sorted(kind.waiting, key=lambda r: r.id), reason)
            idle = [r for r in kind.idle if r.idle_since is not None and r.pool is not None and r.pool in pools]
            found += _retire(Verb.DRAIN, sorted(idle, key=lambda r: r.id), reason)
    return found

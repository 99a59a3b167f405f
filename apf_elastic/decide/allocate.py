"""Allocation: map what is wanted onto the backends, within every cap, fairly among queues.

Each queue first says what it would take if it were alone (its bid). Where bids exceed a cap, the queues of one
priority share it by weight, and bid again for what the others have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from apf_elastic.decide.caps import FACTORY, Caps, Scope, too_soon
from apf_elastic.decide.fit import Bins, Need, bins_of_offering, fits, misfit, pack
from apf_elastic.decide.fleet import Fleet
from apf_elastic.model import Offering, QueueHistory
from apf_elastic.settings import Allocation, QueueSettings

_UNLIMITED = 1 << 60
Score = tuple[float, ...]


@dataclass(slots=True)
class Offer:
    """An offering as one queue sees it. `holds` is how many jobs of each need one resource takes; `scopes` are
    those with a cap; `blocked` says why it may not be taken now."""

    position: int
    backend: str
    offering: Offering
    burst_after_s: float
    scopes: tuple[Scope, ...]
    holds: list[int]
    blocked: str = ""


@dataclass(slots=True)
class Bid:
    """What a queue would create: resources and jobs served, per offer; and what would be left of each need."""

    creates: dict[int, int] = field(default_factory=dict)
    served: dict[int, int] = field(default_factory=dict)
    bins: list[Bins] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.creates.values())


@dataclass(slots=True)
class Want:
    """What one queue wants, and what it was given so far.

    `loads` is what it has at each backend, in cores (for a chain: resources): ``weighted`` evens that out.
    """

    queue: QueueSettings
    needs: list[Need]
    offers: list[Offer]
    fleet: Fleet
    history: QueueHistory
    unknown: list[str]
    offered: list[Offering]
    creates: dict[int, int] = field(default_factory=dict)
    served: dict[int, int] = field(default_factory=dict)
    alone: Bid | None = None

    def by_backend(self) -> list[list[Offer]]:
        found: dict[str, list[Offer]] = {}
        for offer in self.offers:
            found.setdefault(offer.backend, []).append(offer)
        return list(found.values())

    def load(self, backend: str, in_cores: bool) -> int:
        return sum(
            len(some) * (some[0].shape.cores if in_cores else 1)
            for kind in self.fleet.kinds
            if kind.backend == backend
            for some in (
                kind.intended,
                kind.waiting,
                kind.starting,
                kind.idle,
                kind.busy,
                kind.unseen,
                kind.running,
            )
            if some
        )

    def stock(self, scope: Scope) -> int:
        """What it has already in a scope."""
        return sum(kind.total for kind in self.fleet.kinds if _within(scope, kind.backend, kind.offering))

    def last_created(self, scope: Scope) -> float:
        moments = (at for key, at in self.history.last_created.items() if _within(scope, *key))
        return max(moments, default=float("-inf"))


def _within(scope: Scope, backend: str, offering: str) -> bool:
    return scope == FACTORY or scope[1:] == (backend,) or scope[1:] == (backend, offering)


def want(
    queue: QueueSettings,
    needs: list[Need],
    fleet: Fleet,
    history: QueueHistory,
    caps: Caps,
    most: int | None = None,
) -> Want:
    """What a queue wants of its backends; `most` bounds the resources that a chain lets pass."""
    made = Want(queue, needs, [], fleet, history, [], [])
    own: list[Scope] = [("queue", queue.name)]
    if most is not None:
        own.append(("chain", queue.name))
        caps.bound(("chain", queue.name), most, f"the chain asks for {most}")
    hysteresis_s = queue.retirement.hysteresis_s
    for use in queue.backends:
        offered = caps.offered(use)
        made.offered += offered
        if use.backend not in caps.offerings:
            made.unknown.append(f"{use.backend} is unknown: {caps.unknown.get(use.backend, 'not asked yet')}")
        elif not offered:
            made.unknown.append(f"{use.backend} offers nothing that the queue may use")
        for offering in offered:
            key = (use.backend, offering.name)
            scopes = (*own, FACTORY, ("backend", use.backend), ("offering", *key))
            offer = Offer(
                len(made.offers),
                use.backend,
                offering,
                use.burst_after_s,
                tuple(scope for scope in scopes if scope in caps.caps),
                _holds(offering, needs),
            )
            if too_soon(history, history.last_retired, key, hysteresis_s, caps.now):
                offer.blocked = f"{offering.name} at {use.backend} was retired less than {hysteresis_s:g} s ago"
            made.offers.append(offer)
    return made


def _holds(offering: Offering, needs: Sequence[Need]) -> list[int]:
    fresh = bins_of_offering(offering)
    return [int(fits(offering, need)) if need.alone else fresh.holds(need) for need in needs]


# ------------------------------------------------------------------------------------------------------------- bids


class Room:
    """What the caps leave while one bid is made, and what the shares of a round allow."""

    def __init__(self, caps: Caps, allowed: Mapping[Scope, int] | None = None) -> None:
        self._caps = caps.caps
        self._allowed = allowed or {}
        self._left: dict[Scope, int] = {}

    def of(self, offer: Offer) -> int:
        if offer.blocked:
            return 0
        left = _UNLIMITED
        for scope in offer.scopes:
            here = self._left.get(scope)
            if here is None:
                here = self._left[scope] = min(self._caps[scope].left, self._allowed.get(scope, _UNLIMITED))
            if here < left:
                left = here
        return left

    def take(self, offer: Offer, count: int) -> None:
        for scope in offer.scopes:
            self._left[scope] -= count


class Endless(Room):
    """As if there were no caps: what a queue would take if nothing but shapes mattered."""

    def of(self, offer: Offer) -> int:
        return _UNLIMITED

    def take(self, offer: Offer, count: int) -> None:
        pass


def bid(one: Want, room: Room) -> Bid:
    """What `one` would take within `room`. Leaves `one` as it was."""
    made = Bid()
    before = [need.left for need in one.needs]
    if any(before):
        if one.queue.allocation is Allocation.CHEAPEST:
            _fill(one, one.offers, room, made)
        else:
            if one.queue.allocation is Allocation.WEIGHTED:
                _by_weight(one, room, made)
            for offers in one.by_backend():
                _fill(one, offers, room, made)
        if made.bins and any(need.left for need in one.needs):
            pack([need for need in one.needs if not need.alone], made.bins)
    made.left = [need.left for need in one.needs]
    for need, left in zip(one.needs, before, strict=True):
        need.left = left
    return made


@dataclass(slots=True)
class _Pattern:
    """One way to fill a new resource: how many jobs of which needs, and how many such resources could be filled."""

    score: Score
    offer: Offer
    jobs: list[tuple[int, int]]
    times: int


def _fill(one: Want, offers: Sequence[Offer], room: Room, made: Bid, quota: list[int] | None = None) -> None:
    """Choose, for the hardest need first, the offering that its jobs and smaller ones fill at the lowest price."""
    for place, need in enumerate(one.needs):
        while need.left and (quota is None or quota[place]):
            best: _Pattern | None = None
            for offer in offers:
                if offer.holds[place] and room.of(offer) > 0:
                    pattern = _pattern(one.needs, place, offer, quota)
                    if pattern is not None and (best is None or pattern.score < best.score):
                        best = pattern
            if best is None:
                break
            _take(one, best, room, made, quota)


def _available(need: Need, place: int, offer: Offer, quota: list[int] | None) -> int:
    some = need.since(offer.burst_after_s) if offer.burst_after_s else need.left
    return some if quota is None else min(some, quota[place])


def _pattern(needs: Sequence[Need], place: int, offer: Offer, quota: list[int] | None) -> _Pattern | None:
    need = needs[place]
    there = _available(need, place, offer, quota)
    if there <= 0:
        return None
    count = min(offer.holds[place], there)
    jobs = [(place, count)]
    times = there // count
    used = need.cores * count
    gpus = need.gpus * count
    if not need.alone and used < offer.offering.shape.cores:
        rest = bins_of_offering(offer.offering).filled(need, count, 1)
        for other in range(place + 1, len(needs)):
            if offer.holds[other] and not needs[other].alone:
                count = min(rest.holds(needs[other]), _available(needs[other], other, offer, quota))
                if count > 0:
                    jobs.append((other, count))
                    times = min(times, _available(needs[other], other, offer, quota) // count)
                    used += needs[other].cores * count
                    gpus += needs[other].gpus * count
                    rest = rest.filled(needs[other], count, 1)
                    if rest.cores <= 0:
                        break
    return _Pattern(_score(need, offer, used, gpus), offer, jobs, times)


def _score(need: Need, offer: Offer, used: int, gpus: int) -> Score:
    """Lower is better: price per useful core, GPUs and cores wasted; of equals the smallest, then the first."""
    price, shape = offer.offering.price_per_hour, offer.offering.shape
    if need.shape is None:
        return (price / max(1, shape.cores), offer.position)
    used = max(1, used)
    return (price / used, shape.gpus - gpus, shape.cores / used, shape.cores, shape.memory_mb, offer.position)


def _take(one: Want, best: _Pattern, room: Room, made: Bid, quota: list[int] | None) -> None:
    count = min(best.times, room.of(best.offer))
    room.take(best.offer, count)
    rest = bins_of_offering(best.offer.offering, count)
    for place, jobs in best.jobs:
        need = one.needs[place]
        need.left -= jobs * count
        if quota is not None:
            quota[place] -= jobs * count
        rest = rest.filled(need, jobs, count)
    at = best.offer.position
    made.creates[at] = made.creates.get(at, 0) + count
    made.served[at] = made.served.get(at, 0) + count * sum(jobs for _, jobs in best.jobs)
    if rest.cores > 0 and not one.needs[best.jobs[0][0]].alone and not best.offer.burst_after_s:
        made.bins.append(rest)


def _by_weight(one: Want, room: Room, made: Bid) -> None:
    """Split each need over the backends so that what they have then is in proportion to their weights."""
    weights = {use.backend: max(use.weight, 1e-9) for use in one.queue.backends}
    groups = one.by_backend()
    names = [offers[0].backend for offers in groups]
    in_cores = not any(need.alone for need in one.needs)
    loads = {name: float(one.load(name, in_cores)) for name in names}
    quotas = [[0] * len(one.needs) for _ in groups]
    for place, need in enumerate(one.needs):
        open_ = [at for at, offers in enumerate(groups) if any(o.holds[place] and room.of(o) > 0 for o in offers)]
        size = need.cores if in_cores else 1
        parts = level(need.left * size, [loads[names[at]] for at in open_], [weights[names[at]] for at in open_])
        counts = whole([part / size for part in parts], need.left if open_ else 0)
        for at, count in zip(open_, counts, strict=True):
            quotas[at][place] = count
            loads[names[at]] += count * size
    for offers, quota in zip(groups, quotas, strict=True):
        _fill(one, offers, room, made, quota)


def level(amount: float, loads: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Pour `amount` onto `loads` so that (load + part) / weight is equal wherever something is poured."""
    order = sorted(range(len(loads)), key=lambda at: loads[at] / weights[at])
    parts = [0.0] * len(loads)
    for some in range(len(order), 0, -1):
        wet = order[:some]
        height = (amount + sum(loads[at] for at in wet)) / sum(weights[at] for at in wet)
        if some == 1 or height * weights[wet[-1]] >= loads[wet[-1]]:
            for at in wet:
                parts[at] = max(0.0, height * weights[at] - loads[at])
            break
    return parts


def whole(parts: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, by the largest remainder."""
    counts = [int(part + 1e-9) for part in parts]
    order = sorted(range(len(parts)), key=lambda at: (counts[at] - parts[at], at))
    missing = total - sum(counts)
    for turn in range(missing):
        counts[order[turn % len(order)]] += 1
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return counts


# ----------------------------------------------------------------------------------------------------------- sharing


def allocate(wants: Iterable[Want], caps: Caps) -> None:
    """Give every queue what it may create: the higher priority first, equal ones by weight."""
    levels: dict[int, list[Want]] = {}
    for one in wants:
        levels.setdefault(one.queue.priority, []).append(one)
    for priority in sorted(levels, reverse=True):
        _share_out(sorted(levels[priority], key=lambda one: one.queue.name), caps)


def _share_out(wants: list[Want], caps: Caps) -> None:
    while wants:
        bids = [_first_bid(one, caps) for one in wants]
        asking = [(one, made) for one, made in zip(wants, bids, strict=True) if made.creates]
        allowed = _allowances(asking, caps)
        progress = False
        wants = []
        for one, made in asking:
            mine = allowed.get(one.queue.name)
            if mine is not None:
                made = bid(one, Room(caps, mine))
                wants.append(one)
            progress = progress or made.total > 0
            _commit(one, made, caps)
        if wants and not progress:
            _one_by_one(wants, caps)
            return


def _first_bid(one: Want, caps: Caps) -> Bid:
    """The bid it made when it was alone, if that still passes every cap."""
    made, one.alone = one.alone, None
    if made is not None:
        asked = _by_scope(one, made)
        if all(count <= caps.caps[scope].left for scope, count in asked.items()):
            return made
    return bid(one, Room(caps))


def _one_by_one(wants: list[Want], caps: Caps) -> None:
    """When shares of several scopes exclude each other: one resource each in turn, who has least first."""
    turns = sorted(wants, key=lambda one: (*_claim(one, FACTORY), one.queue.name))
    while turns:
        again = []
        for one in turns:
            made = bid(one, Room(caps, {scope: 1 for offer in one.offers for scope in offer.scopes}))
            if made.total:
                _commit(one, made, caps)
                again.append(one)
        turns = again


def _commit(one: Want, made: Bid, caps: Caps) -> None:
    for scope, count in _by_scope(one, made).items():
        caps.caps[scope].left -= count
    for at, count in made.creates.items():
        one.creates[at] = one.creates.get(at, 0) + count
    for at, count in made.served.items():
        one.served[at] = one.served.get(at, 0) + count
    for need, left in zip(one.needs, made.left, strict=True):
        need.granted += need.left - left
        need.left = left


def _by_scope(one: Want, made: Bid) -> dict[Scope, int]:
    counts: dict[Scope, int] = {}
    for at, count in made.creates.items():
        for scope in one.offers[at].scopes:
            counts[scope] = counts.get(scope, 0) + count
    return counts


def _allowances(asking: Sequence[tuple[Want, Bid]], caps: Caps) -> dict[str, dict[Scope, int]]:
    """For each queue whose bid must be cut: what it may take in this round, per scope.

    In a scope that it did not ask for it takes nothing yet: what the others leave there shows in the next round.
    """
    claims: dict[Scope, list[tuple[Want, int]]] = {}
    asked = {one.queue.name: _by_scope(one, made) for one, made in asking}
    for one, _ in asking:
        for scope, count in asked[one.queue.name].items():
            claims.setdefault(scope, []).append((one, count))
    cut: set[str] = set()
    shares: dict[Scope, dict[str, int]] = {}
    for scope, claimants in claims.items():
        left = caps.caps[scope].left
        if sum(count for _, count in claimants) > left:
            shares[scope] = _shares(scope, left, claimants)
            cut |= {one.queue.name for one, count in claimants if shares[scope][one.queue.name] < count}
    return {
        one.queue.name: dict.fromkeys((scope for offer in one.offers for scope in offer.scopes), 0)
        | {
            scope: shares[scope][one.queue.name] if scope in shares else count
            for scope, count in asked[one.queue.name].items()
        }
        for one, _ in asking
        if one.queue.name in cut
    }


def _claim(one: Want, scope: Scope) -> tuple[float, float]:
    """Who comes first for an odd unit: who has least for its weight, then who waited longest for one."""
    return one.stock(scope) / max(one.queue.weight, 1e-9), one.last_created(scope)


def _shares(scope: Scope, left: int, claimants: Sequence[tuple[Want, int]]) -> dict[str, int]:
    """`left` divided by weight among queues that ask for more; none gets more than it asked for.

    Odd units go to those who have least for their weight already, so that over repeated cycles nobody starves; then
    by the largest remainder.
    """
    given = {one.queue.name: 0 for one, _ in claimants}
    open_ = list(claimants)
    while open_ and left > 0:
        weights = {one.queue.name: Fraction(max(one.queue.weight, 1e-9)) for one, _ in open_}
        unit = left / sum(weights.values())
        modest = [(one, count) for one, count in open_ if count <= unit * weights[one.queue.name]]
        if not modest:
            quotas = {name: unit * weight for name, weight in weights.items()}
            given.update({name: int(quota) for name, quota in quotas.items()})
            odd = left - sum(int(quota) for quota in quotas.values())
            turns = sorted(
                open_,
                key=lambda item: (
                    *_claim(item[0], scope),
                    int(quotas[item[0].queue.name]) - quotas[item[0].queue.name],
                    item[0].queue.name,
                ),
            )
            for one, _ in turns[:odd]:
                given[one.queue.name] += 1
            break
        for one, count in modest:
            given[one.queue.name] = count
            left -= count
        served = {one.queue.name for one, _ in modest}
        open_ = [(one, count) for one, count in open_ if one.queue.name not in served]
    return given


# --------------------------------------------------------------------------------------------------- why not granted


def why_not(one: Want, place: int, caps: Caps) -> str:
    """Why jobs of a need were given nothing (more): the first obstacle of each offering that would fit."""
    need = one.needs[place]
    if not one.queue.backends:
        return "the queue has no backend"
    fitting = [offer for offer in one.offers if offer.holds[place]]
    if not fitting:
        return "; ".join([*([misfit(need, one.offered)] if one.offered else []), *one.unknown])
    obstacles = [_obstacle(offer, caps) for offer in fitting]
    for text, scope in obstacles:
        if scope in (("queue", one.queue.name), FACTORY):
            return text
    return "; ".join(dict.fromkeys([*(text for text, _ in obstacles), *_too_small(one, place), *one.unknown]))


def _too_small(one: Want, place: int) -> list[str]:
    """The backends of which no offering fits, while one of another backend does."""
    fitting = {offer.backend for offer in one.offers if offer.holds[place]}
    others = dict.fromkeys(offer.backend for offer in one.offers if offer.backend not in fitting)
    return [
        f"for {backend} it {misfit(one.needs[place], [o.offering for o in one.offers if o.backend == backend])}"
        for backend in others
    ]


def _obstacle(offer: Offer, caps: Caps) -> tuple[str, Scope]:
    if offer.blocked:
        return offer.blocked, ()
    for scope in offer.scopes:
        if caps.caps[scope].left <= 0:
            return caps.caps[scope].reason, scope
    if offer.burst_after_s:
        return f"{offer.backend} takes only jobs that have waited {offer.burst_after_s:g} s", ()
    return f"{offer.backend} could not be shared out further in this cycle", ()

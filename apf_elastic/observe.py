"""Observe: poll every source, pool and backend on its own schedule and keep what they last said.

An answer is believed or not here (`confirm`); nothing is decided.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apf_elastic.confirm import DemandGuard, ListGuard
from apf_elastic.contracts import Listed, Status
from apf_elastic.model import Demand, JobGroup, Observation, Offering, Seen, Slot, Unknown
from apf_elastic.workers import Answer, Inbox, Lane, Schedule

log = logging.getLogger(__name__)

NOT_YET = "not asked yet"


@dataclass(slots=True)
class Endpoint:
    """One source, pool or backend: the plugin, its two lanes (watching and acting), and how it answers."""

    kind: str
    name: str
    plugin: Any
    watch: Lane
    act: Lane
    schedule: Schedule
    timeout_s: float
    error: str = NOT_YET
    answered_at: float | None = None
    took_s: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    def close(self) -> None:
        """Take no more calls. A plugin that cannot let go keeps nobody from going on."""
        self.watch.close()
        self.act.close()
        try:
            self.plugin.close()
        except Exception:
            log.debug("closing %s", self.key, exc_info=True)


@dataclass(slots=True)
class Observed:
    """What is known now. `changed` is set when an answer said something new, `fresh` names new backend lists."""

    demand: dict[str, Observation[Demand]] = field(default_factory=dict)
    listings: dict[str, Observation[Mapping[str, Listed]]] = field(default_factory=dict)
    offerings: dict[str, Observation[tuple[Offering, ...]]] = field(default_factory=dict)
    slots: dict[str, Observation[Mapping[str, Slot]]] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    changed: bool = True
    demand_changed_at: dict[str, float] = field(default_factory=dict)


def essence(value: Any) -> Any:
    """What makes an answer new: of a demand, everything but the waits, which grow with every reading."""
    if isinstance(value, Demand):
        return value.status, value.notes, tuple((g.shape, g.waiting, g.running, g.held, g.waited) for g in value.groups)
    return value


def _expect(values: Any, kind: type) -> Any:
    """`values`, if all of them are of this kind; raises TypeError otherwise."""
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r:.80} where a {kind.__name__} belongs")
    return values


class Observer:
    """Asks the endpoints when they are due and files their answers."""

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        queues_of: Mapping[str, tuple[str, ...]],
        inbox: Inbox,
        clock: Callable[[], float],
        leaving: Callable[[str], frozenset[str]],
    ) -> None:
        self.endpoints = {endpoint.key: endpoint for endpoint in endpoints}
        self.queues_of = queues_of
        self.inbox = inbox
        self.clock = clock
        self.leaving = leaving
        self.known = Observed()
        self._demand_guards: dict[str, DemandGuard] = {}
        self._list_guards: dict[str, ListGuard] = {}
        now = clock()
        for endpoint in self.endpoints.values():
            self._mark_unknown(endpoint, NOT_YET, now)

    # ------------------------------------------------------------------------------------------- asking

    def ask(self) -> None:
        """Ask every endpoint that is due; give up calls past their deadline."""
        now = self.clock()
        for endpoint in self.endpoints.values():
            endpoint.watch.expire()
            endpoint.act.expire()
            if endpoint.schedule.due <= now and endpoint.watch.idle:
                self._ask(endpoint, now)

    def ask_all(self) -> None:
        """Ask every endpoint now, whatever its schedule says."""
        now = self.clock()
        for endpoint in self.endpoints.values():
            self._ask(endpoint, now)

    def _ask(self, endpoint: Endpoint, now: float) -> None:
        plugin = endpoint.plugin
        endpoint.schedule.asked(now)
        question = {
            "source": lambda: plugin.demand(),
            "pool": lambda: plugin.slots(),
            "backend": lambda: (plugin.list(), plugin.offerings()),
        }[endpoint.kind]
        if not endpoint.watch.call("watch", question, endpoint.timeout_s):
            self._failed(endpoint, "every worker thread hangs in an earlier call", now, 0.0)

    def next_due(self) -> float:
        return min((endpoint.schedule.due for endpoint in self.endpoints.values()), default=float("inf"))

    def soon(self, kind: str, name: str) -> None:
        """Something was done there: look again soon."""
        endpoint = self.endpoints.get(f"{kind} {name}")
        if endpoint is not None:
            endpoint.schedule.soon(self.clock())

    # ------------------------------------------------------------------------------------------ answers

    def answered(self, answer: Answer, stretch: float = 1.0) -> None:
        """File the answer of a poll. A late one is old news and is dropped: the next poll says more."""
        endpoint = self.endpoints[answer.endpoint]
        if answer.late:
            return
        now = self.clock()
        if answer.error:
            self._failed(endpoint, answer.error, now, answer.took_s)
            return
        try:
            doubt = {"source": self._demand, "pool": self._slots, "backend": self._listing}[endpoint.kind](
                endpoint, answer
            )
        except Exception as error:  # a plugin's answer of the wrong form
            self._failed(endpoint, f"answered something of the wrong form: {error}", now, answer.took_s)
            return
        endpoint.schedule.answered(now, answer.took_s, failed=False, stretch=1.0 if doubt else stretch)
        endpoint.took_s = answer.took_s
        endpoint.answered_at = answer.asked_at
        if endpoint.error and endpoint.error != NOT_YET and not doubt:
            log.info("%s answers again", endpoint.key)
        if doubt and doubt != endpoint.error:
            log.warning("%s: %s", endpoint.key, doubt)
        endpoint.error = doubt

    def _failed(self, endpoint: Endpoint, error: str, now: float, took_s: float) -> None:
        endpoint.schedule.answered(now, took_s, failed=True)
        endpoint.took_s = took_s
        if error != endpoint.error:
            log.warning("%s: %s", endpoint.key, error)
        endpoint.error = error
        self._mark_unknown(endpoint, error, now)

    def _mark_unknown(self, endpoint: Endpoint, reason: str, now: float) -> None:
        if endpoint.kind == "source":
            for queue in self.queues_of.get(endpoint.name, ()):
                self._put(self.known.demand, queue, Unknown(reason, now))
        elif endpoint.kind == "pool":
            self._put(self.known.slots, endpoint.name, Unknown(reason, now))
        else:
            self._put(self.known.listings, endpoint.name, Unknown(reason, now))
            if not isinstance(self.known.offerings.get(endpoint.name), Seen):
                self._put(self.known.offerings, endpoint.name, Unknown(reason, now))

    def _put(self, where: dict[str, Any], key: str, new: Observation[Any]) -> bool:
        """Store an observation; True when it says something new."""
        old = where.get(key)
        if isinstance(new, Unknown) and isinstance(old, Unknown):
            new = Unknown(new.reason, old.since)
        different = (
            old.value != new.value if isinstance(old, Seen) and isinstance(new, Seen) else type(old) is not type(new)
        )
        if not different and isinstance(old, Seen) and isinstance(new, Seen):
            new = Seen(old.value, new.asked_at)  # one object for what stays the same
        where[key] = new
        self.known.changed |= different
        return different

    def _demand(self, endpoint: Endpoint, answer: Answer) -> str:
        demands: Mapping[str, Demand] = answer.value
        doubts = []
        for queue in self.queues_of.get(endpoint.name, ()):
            demand = demands[queue]
            _expect([demand], Demand)
            _expect(demand.groups, JobGroup)
            guard = self._demand_guards.setdefault(queue, DemandGuard())
            doubt = guard.admit(demand, answer.asked_at)
            if doubt:
                doubts.append(f"queue {queue}: {doubt}")
                self._put(self.known.demand, queue, Unknown(doubt, answer.asked_at))
                continue
            old = self.known.demand.get(queue)
            if self._put(self.known.demand, queue, Seen(demand, answer.asked_at)) and isinstance(old, Seen):
                self.known.demand_changed_at[queue] = self.clock()
        return "; ".join(doubts)

    def _slots(self, endpoint: Endpoint, answer: Answer) -> str:
        slots = {slot.id: slot for slot in _expect(answer.value, Slot)}
        doubt = self._doubt(endpoint, frozenset(slots), answer.asked_at)
        new: Observation[Any] = Unknown(doubt, answer.asked_at) if doubt else Seen(slots, answer.asked_at)
        self._put(self.known.slots, endpoint.name, new)
        return doubt

    def _listing(self, endpoint: Endpoint, answer: Answer) -> str:
        entries, offerings = answer.value
        _expect(entries, Listed)
        _expect(offerings, Offering)
        listing = {entry.id: entry for entry in entries}
        alive = frozenset(entry.id for entry in entries if entry.status is not Status.ENDED)
        ended = frozenset(listing) - alive
        doubt = self._doubt(endpoint, alive, answer.asked_at, ended)
        new: Observation[Any] = Unknown(doubt, answer.asked_at) if doubt else Seen(listing, answer.asked_at)
        self._put(self.known.listings, endpoint.name, new)
        if not doubt:
            self.known.fresh.add(endpoint.name)
        self._put(self.known.offerings, endpoint.name, Seen(tuple(offerings), answer.asked_at))
        return doubt

    def _doubt(
        self, endpoint: Endpoint, present: frozenset[str], asked_at: float, ended: frozenset[str] = frozenset()
    ) -> str:
        guard = self._list_guards.setdefault(endpoint.key, ListGuard())
        return guard.admit(present, self.leaving(endpoint.key) | ended, asked_at)

    # ----------------------------------------------------------------------------------------- lifetime

    def take_over(self, endpoints: Mapping[str, Endpoint], queues_of: Mapping[str, tuple[str, ...]]) -> None:
        """Watch these from now on. What the ones that stay said is kept; the new ones are unknown."""
        now = self.clock()
        new = [endpoint for key, endpoint in endpoints.items() if self.endpoints.get(key) is not endpoint]
        names = {kind: {e.name for e in endpoints.values() if e.kind == kind} for kind in ("pool", "backend")}
        queues = {queue for group in queues_of.values() for queue in group}
        self.endpoints, self.queues_of = dict(endpoints), queues_of
        known = self.known
        known.demand = {k: v for k, v in known.demand.items() if k in queues}
        known.slots = {k: v for k, v in known.slots.items() if k in names["pool"]}
        known.listings = {k: v for k, v in known.listings.items() if k in names["backend"]}
        known.offerings = {k: v for k, v in known.offerings.items() if k in names["backend"]}
        for endpoint in new:
            if endpoint.kind == "backend":
                known.offerings.pop(endpoint.name, None)
            self._mark_unknown(endpoint, NOT_YET, now)
        for queue in queues - known.demand.keys():
            known.demand[queue] = Unknown(NOT_YET, now)
        known.changed = True

    def close(self) -> None:
        for endpoint in self.endpoints.values():
            endpoint.close()

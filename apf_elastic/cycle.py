"""The cycle: observe, reconcile, decide, act, report. The only place that knows the order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from apf_elastic.act import Actor
from apf_elastic.decide import decide
from apf_elastic.health import Healths
from apf_elastic.ledger import Ledger, LedgerError
from apf_elastic.model import (
    ON_ITS_WAY,
    BackendView,
    Observation,
    Plan,
    QueueHistory,
    Resource,
    Seen,
    State,
    Unknown,
    Verb,
    World,
)
from apf_elastic.observe import Observer
from apf_elastic.reconcile import Reconciled, Sight, reconcile
from apf_elastic.report import decision_record, snapshot
from apf_elastic.settings import Settings
from apf_elastic.workers import Answer

log = logging.getLogger(__name__)

#: Leases are renewed so often, or six times in a lease if that is more; a failed renewal is tried again after.
LEASE_S = 60.0
LEASE_RETRY_S = 10.0
#: Asking pools and backends this much less often is enough where nothing is on its way or leaving.
QUIET_STRETCH = 4.0
#: The status snapshot is written when it says something new, else so often.
SNAPSHOT_S = 15.0
SNAPSHOT_AT_MOST_S = 0.5
#: What is gone is remembered for a week; old records are removed so often.
REMEMBER_S = 7 * 86400.0
PRUNE_S = 3600.0
#: States in which something is about to happen at the backend or in the pool.
MOVING = ON_ITS_WAY | {State.DRAINING, State.REMOVING}


class Cycle:
    """One factory's loop body, without the loop: `tick` does whatever is due and says when it wants to be called."""

    def __init__(
        self,
        ledger: Ledger,
        observer: Observer,
        actor: Actor,
        healths: Healths,
        settings: Settings,
        clock: Callable[[], float],
        every_s: float = 5.0,
    ) -> None:
        self.ledger = ledger
        self.observer = observer
        self.actor = actor
        self.healths = healths
        self.settings = settings
        self.clock = clock
        self.every_s = every_s
        self.plan = Plan()
        self.trouble = ""  # why nothing may be created or retired now, for the whole factory
        self.retired_at: dict[str, dict[tuple[str, str], float]] = {}
        self.created_at: dict[str, dict[tuple[str, str], float]] = {}
        self.cycles = 0
        self.renewed_at: dict[str, float] = {}
        self.lease_error: dict[str, str] = {}
        self.pruned_at = clock()
        self._due = 0.0
        self._snapshot: tuple[float, Any] = (0.0, None)
        self._moving: set[str] = set()
        self._settle()

    def _settle(self) -> None:
        """After a start: an intention without an answer may have been carried out a moment ago. Count from now."""
        now = self.clock()
        open_intentions = [
            replace(r, changed_at=now, reason="the service ended before the answer came")
            for r in self.ledger.resources().values()
            if r.state is State.INTENDED
        ]
        if open_intentions:
            log.info("%d create calls were unanswered at the last stop", len(open_intentions))
            self.ledger.record(open_intentions)

    # ---------------------------------------------------------------------------------------------- the order

    def tick(self) -> float:
        """Do what is due; returns the seconds until something is due again."""
        self.observer.ask()
        self.renew_leases()
        answers = self.observer.inbox.take()
        acted = self.file(answers)
        now = self.clock()
        if acted or self.observer.known.changed or now >= self._due:
            self.run()
        now = self.clock()
        return max(0.02, min(self._due, self.observer.next_due(), now + 1.0) - now)

    def run(self) -> Plan:
        """One cycle on what is known now."""
        now = self.clock()
        self._due = now + self.every_s
        known = self.observer.known
        known.changed = False
        self.cycles += 1
        try:
            self._reconcile(now)
            self.plan = decide(self.world(now), self.settings)
            self._act(now)
            self.report()
            if self.trouble:
                log.warning("cycles are complete again")
            self.trouble = ""
        except LedgerError as error:
            self._in_trouble(str(error))
        except Exception as error:  # a defect of ours or of a plugin must not end the service, nor pass unseen
            self._in_trouble(f"the cycle failed: {type(error).__name__}: {error}", error)
        return self.plan

    def _in_trouble(self, trouble: str, defect: Exception | None = None) -> None:
        """Nothing is created or retired until a cycle is complete again; told when it is news."""
        if trouble != self.trouble:
            log.error("nothing is created or retired: %s", trouble, exc_info=defect)
        self.trouble = trouble

    def consider(self) -> Plan:
        """What a cycle would do on what is known now, without doing it."""
        now = self.clock()
        self._reconcile(now, act=False)
        self.plan = decide(self.world(now), self.settings)
        return self.plan

    # ------------------------------------------------------------------------------------------------- observe

    def file(self, answers: list[Answer]) -> bool:
        """File answers; True when a call of ours was answered."""
        acted = False
        for answer in answers:
            if answer.endpoint not in self.observer.endpoints:  # it was removed from the configuration
                self.actor.forget(answer)
                continue
            if answer.tag == "watch":
                self.observer.answered(answer, self._stretch(answer.endpoint))
            elif answer.tag == "lease":
                self._leased(answer)
            else:
                acted = True
                try:
                    self.actor.answered(answer)
                except LedgerError as error:
                    self.trouble = str(error)
        return acted

    def _leased(self, answer: Answer) -> None:
        """A renewal that failed is tried again soon, and told once."""
        if answer.error:
            again = min(LEASE_RETRY_S, self._lease_period(answer.endpoint))
            self.renewed_at[answer.endpoint] = self.clock() + again - self._lease_period(answer.endpoint)
        if answer.error != self.lease_error.get(answer.endpoint, ""):
            self.lease_error[answer.endpoint] = answer.error
            if answer.error:
                log.warning("%s: the lease was not renewed: %s", answer.endpoint, answer.error)
            else:
                log.info("%s: the lease is renewed again", answer.endpoint)

    def _lease_period(self, key: str) -> float:
        lease_s: float = self.observer.endpoints[key].plugin.lease_s
        return min(LEASE_S, lease_s / 6)

    def _stretch(self, key: str) -> float:
        if key.startswith("source "):
            return 1.0
        return 1.0 if key in self._moving else QUIET_STRETCH

    def renew_leases(self) -> None:
        """Tell every pool, where that is due, that we live."""
        now = self.clock()
        for key, endpoint in self.observer.endpoints.items():
            if endpoint.kind != "pool":
                continue
            if now - self.renewed_at.get(key, 0.0) >= self._lease_period(key):
                self.renewed_at[key] = now
                endpoint.act.call("lease", endpoint.plugin.renew_lease, endpoint.timeout_s)

    # ----------------------------------------------------------------------------------------------- reconcile

    def _reconcile(self, now: float, act: bool = True) -> None:
        known = self.observer.known
        sight = Sight(
            resources=self.ledger.resources(),
            listings=known.listings,
            slots=known.slots,
            now=now,
            fresh=frozenset(known.fresh),
            in_flight=self.actor.in_flight.keys(),
        )
        found = reconcile(sight, self.settings)
        changed = [self._shaped(self._remembered(r)) for r in found.changed]
        self.ledger.record(changed)
        known.fresh.clear()
        self._judge(found, now)
        if act:
            self.actor.retire(found.again)

    def _remembered(self, resource: Resource) -> Resource:
        """An adopted resource that the ledger did know once keeps its history."""
        if resource.reason != "adopted" or resource.id in self.ledger.resources():
            return resource
        old = self.ledger.find(resource.id)
        if old is None:
            return resource
        return replace(
            old, state=resource.state, changed_at=resource.changed_at, remote_id=resource.remote_id, outcome=""
        )

    def _shaped(self, resource: Resource) -> Resource:
        """An adopted resource takes the shape of its offering."""
        if resource.reason != "adopted":
            return resource
        offerings = self.observer.known.offerings.get(resource.backend)
        if isinstance(offerings, Seen):
            for offering in offerings.value:
                if offering.name == resource.offering:
                    return replace(resource, shape=offering.shape, price_per_hour=offering.price_per_hour)
        return resource

    def _judge(self, found: Reconciled, now: float) -> None:
        for success in found.successes:
            self.healths.succeeded(success.backend, success.offering, success.stage)
        for fault in found.faults:
            log.warning("backend %s, offering %s: %s", fault.backend, fault.offering, fault.reason)
            self.healths.failed(fault.backend, fault.offering, fault.stage, fault.reason, now)
        for note in found.notes:
            log.info("%s", note)

    # -------------------------------------------------------------------------------------------------- decide

    def world(self, now: float) -> World:
        """What `decide` may look at."""
        known = self.observer.known
        return World(
            now=now,
            demand=dict(known.demand),
            backends={name: self._backend_view(name, now) for name in self.settings.backends},
            pools={name: _without_value(slots) for name, slots in known.slots.items()},
            resources=self.ledger.resources().values(),
            history={name: self._history(name) for name in self.settings.queues},
        )

    def _backend_view(self, name: str, now: float) -> BackendView:
        known = self.observer.known
        unknown = Unknown("not asked yet", now)
        return BackendView(
            offerings=known.offerings.get(name, unknown),
            listing=_without_value(known.listings.get(name, unknown)),
            health=self.healths.of_backend(name, now),
            offering_health=self.healths.of_offerings(name, now),
            recent_creates=self.actor.recent_creates(name),
        )

    def _history(self, queue: str) -> QueueHistory:
        return replace(
            self.ledger.history(queue),
            last_created=self.created_at.get(queue, {}),
            last_retired=self.retired_at.get(queue, {}),
            demand_changed_at=self.observer.known.demand_changed_at.get(queue),
        )

    # ----------------------------------------------------------------------------------------------------- act

    def _act(self, now: float) -> None:
        resources = self.ledger.resources()
        for retire in self.plan.retirements:
            resource = resources[retire.id]
            if retire.verb is Verb.UNDRAIN:
                continue  # gives capacity back: creating more right after it is no flapping
            self.retired_at.setdefault(resource.queue, {})[resource.backend, resource.offering] = now
        for create in self.plan.creates:
            self.created_at.setdefault(create.queue, {})[create.backend, create.offering.name] = now
            log.info(
                "%s: %d x %s at %s: %s", create.queue, create.count, create.offering.name, create.backend, create.reason
            )
        for word, count in Counter((r.verb.value, r.reason) for r in self.plan.retirements).items():
            log.info("%s %d: %s", word[0], count, word[1])
        self.actor.carry_out(self.plan)

    # -------------------------------------------------------------------------------------------------- report

    def report(self) -> None:
        """Write the decision records and the status snapshot, as far as they say something new."""
        now = self.clock()
        self._moving = self._find_moving()
        actions = actions_by_queue(self.plan, self.ledger.resources())
        for decision in self.plan.decisions:
            self.ledger.decided(decision.queue, now, decision_record(decision, actions.get(decision.queue, [])))
        if now - self.pruned_at >= PRUNE_S:
            self.pruned_at = now
            self.ledger.prune(now - REMEMBER_S)
        at, last = self._snapshot
        if now - at < SNAPSHOT_AT_MOST_S:
            return
        picture = snapshot(self.observer, self.ledger.resources().values(), self.healths, self.settings, now)
        if picture.essence != last or now - at >= SNAPSHOT_S:
            self.ledger.snapshot(picture.values, now)
            self.ledger.meta_set("breakers", self.healths.dump())
            self._snapshot = (now, picture.essence)

    def _find_moving(self) -> set[str]:
        moving = set()
        for resource in self.ledger.resources().values():
            if resource.state in MOVING:
                moving.add(f"backend {resource.backend}")
                if resource.pool:
                    moving.add(f"pool {resource.pool}")
        return moving


def _without_value(observation: Observation[Any]) -> Observation[None]:
    return Seen(None, observation.asked_at) if isinstance(observation, Seen) else observation


def actions_by_queue(plan: Plan, resources: Mapping[str, Resource]) -> dict[str, list[str]]:
    """What the plan does for each queue, in sentences."""
    actions: dict[str, list[str]] = {}
    for create in plan.creates:
        actions.setdefault(create.queue, []).append(
            f"create {create.count} x {create.offering.name} at {create.backend}: {create.reason}"
        )
    retired = Counter(
        (resources[r.id].queue, r.verb.value, resources[r.id].backend, r.reason)
        for r in plan.retirements
        if r.id in resources
    )
    for (queue, verb, backend, reason), count in retired.items():
        actions.setdefault(queue, []).append(f"{verb} {count} at {backend}: {reason}")
    return actions

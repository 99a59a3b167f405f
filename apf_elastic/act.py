"""Act: carry out a plan. The intention is in the ledger before a call is made, the outcome after it.

Calls are made in the lanes of the endpoint they concern; their answers come back through the inbox, also long
after a deadline, and are written to the ledger here.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apf_elastic.contracts import Answer as Reply
from apf_elastic.contracts import Created, Deleted, Handle, NotDeleted, Payload, Refused, Request, Uncertain
from apf_elastic.health import Healths, Stage
from apf_elastic.ledger import Ledger
from apf_elastic.model import Create, Plan, Resource, Retire, State, Verb
from apf_elastic.observe import Endpoint, Observer
from apf_elastic.settings import Settings
from apf_elastic.workers import Answer

log = logging.getLogger(__name__)

#: Resources per create call: small enough that the first of a burst are soon there.
BATCH = 50
#: A drain or undrain that failed is not asked for again before.
RETRY_S = 30.0
RATE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Action:
    """A call under way: the verb and the resources it is for."""

    verb: str
    ids: tuple[str, ...]


def new_id(factory: str, queue: str) -> str:
    """An id that nobody else makes: factory, queue and 48 random bits; safe in file names and submit files."""
    return f"{factory[:30]}.{queue[:40]}.{secrets.token_hex(6)}"


class Actor:
    """Carries out plans and files what came of them."""

    def __init__(
        self,
        ledger: Ledger,
        observer: Observer,
        healths: Healths,
        settings: Settings,
        clock: Callable[[], float],
        make_id: Callable[[str, str], str] = new_id,
    ) -> None:
        self.ledger = ledger
        self.observer = observer
        self.healths = healths
        self.settings = settings
        self.clock = clock
        self.make_id = make_id
        self.in_flight: dict[str, str] = {}
        self.not_before: dict[str, float] = {}
        self.created_at: dict[str, deque[float]] = {}
        for resource in ledger.resources().values():
            self.created_at.setdefault(resource.backend, deque()).append(resource.created_at)

    # -------------------------------------------------------------------------------------------- plans

    def carry_out(self, plan: Plan) -> None:
        """Start everything that a plan asks for. Raises LedgerError before any call if it cannot be recorded."""
        self.retire(plan.retirements)
        for create in plan.creates:
            self._create(create)

    def recent_creates(self, backend: str) -> int:
        """How many were asked for within the last minute."""
        times = self.created_at.get(backend)
        if not times:
            return 0
        horizon = self.clock() - RATE_WINDOW_S
        while times and times[0] <= horizon:
            times.popleft()
        return len(times)

    def _create(self, create: Create) -> None:
        endpoint = self.observer.endpoints[f"backend {create.backend}"]
        queue = self.settings.queues[create.queue]
        now = self.clock()
        resources = [
            Resource(
                id=self.make_id(self.settings.factory, create.queue),
                queue=create.queue,
                backend=create.backend,
                offering=create.offering.name,
                shape=create.offering.shape,
                state=State.INTENDED,
                created_at=now,
                changed_at=now,
                pool=queue.pool,
                price_per_hour=create.offering.price_per_hour,
            )
            for _ in range(create.count)
        ]
        self.ledger.intend(resources)
        self.created_at.setdefault(create.backend, deque()).extend(r.created_at for r in resources)
        for start in range(0, len(resources), BATCH):
            batch = resources[start : start + BATCH]
            self._send(endpoint, Action("create", tuple(r.id for r in batch)), self._creation(endpoint, create, batch))

    def _creation(self, endpoint: Endpoint, create: Create, batch: Sequence[Resource]) -> Callable[[], Any]:
        pool_name = self.settings.queues[create.queue].pool
        pool = self.observer.endpoints[f"pool {pool_name}"].plugin if pool_name else None

        def call() -> Any:
            try:
                payloads: Sequence[Payload] = pool.payloads(batch) if pool is not None else ()
            except Exception as error:
                return [Refused(r.id, f"pool {pool_name} gave no credential: {error}") for r in batch]
            return endpoint.plugin.create(
                [
                    Request(resource.id, create.queue, create.offering, payload)
                    for resource, payload in zip(batch, payloads, strict=True)
                ]
            )

        return call

    def retire(self, retirements: Iterable[Retire]) -> None:
        """Start draining, taking back, cancelling and removing, in one call per endpoint and verb."""
        now = self.clock()
        calls: dict[tuple[str, Verb], list[Resource]] = {}
        intentions = []
        for retire in retirements:
            resource = self.ledger.resources().get(retire.id)
            if resource is None or resource.id in self.in_flight or self.not_before.get(resource.id, 0.0) > now:
                continue
            intended = self._intended(resource, retire, now)
            intentions.append(intended)
            where = (
                f"pool {resource.pool}" if retire.verb in (Verb.DRAIN, Verb.UNDRAIN) else f"backend {resource.backend}"
            )
            calls.setdefault((where, retire.verb), []).append(intended)
        self.ledger.record(intentions)
        for (where, verb), resources in calls.items():
            self._retire(where, verb, resources)

    @staticmethod
    def _intended(resource: Resource, retire: Retire, now: float) -> Resource:
        state = {
            Verb.DRAIN: State.DRAINING,
            Verb.UNDRAIN: State.DRAINING,
            Verb.CANCEL: State.REMOVING,
            Verb.DELETE: State.REMOVING,
        }[retire.verb]
        return replace(resource, state=state, changed_at=now, reason=retire.reason)

    def _retire(self, where: str, verb: Verb, resources: list[Resource]) -> None:
        endpoint = self.observer.endpoints.get(where)
        if endpoint is None:
            log.warning("%s is not configured: %d resources cannot be retired", where, len(resources))
            return
        plugin = endpoint.plugin
        ids = tuple(resource.id for resource in resources)
        if verb is Verb.DRAIN:
            self._send(endpoint, Action("drain", ids), lambda: plugin.drain(ids))
        elif verb is Verb.UNDRAIN:
            self._send(endpoint, Action("undrain", ids), lambda: plugin.undrain(ids))
        else:
            handles = [Handle(r.id, r.remote_id, pending_only=verb is Verb.CANCEL) for r in resources]
            self._send(endpoint, Action("delete", ids), lambda: plugin.delete(handles))

    def _send(self, endpoint: Endpoint, action: Action, function: Callable[[], Any]) -> None:
        for id in action.ids:
            self.in_flight[id] = action.verb
        if not endpoint.act.call(action, function, endpoint.timeout_s):
            self._not_sent(endpoint, action)

    def _not_sent(self, endpoint: Endpoint, action: Action) -> None:
        reason = "every worker thread hangs in an earlier call"
        if action.verb == "create":
            self._file_create(endpoint, action, [Refused(id, reason) for id in action.ids])
        else:
            self._file_failure(action, reason)

    # ------------------------------------------------------------------------------------------ answers

    def answered(self, answer: Answer) -> None:
        """File what came of a call. Raises LedgerError when it cannot be recorded; the backend's list tells later."""
        action: Action = answer.tag
        endpoint = self.observer.endpoints[answer.endpoint]
        if not answer.late:
            for id in action.ids:
                self.in_flight.pop(id, None)
        try:
            self._file(endpoint, action, answer)
        except (AttributeError, TypeError, ValueError, KeyError) as error:  # a plugin's answer of the wrong form
            self._file(
                endpoint, action, replace(answer, value=None, error=f"answered something of the wrong form: {error}")
            )
        if action.verb in ("drain", "undrain"):
            self.observer.soon("pool", endpoint.name)
        else:
            self.observer.soon("backend", endpoint.name)

    def _file(self, endpoint: Endpoint, action: Action, answer: Answer) -> None:
        if action.verb == "create":
            self._file_create(endpoint, action, self._replies(answer, action))
        elif answer.error:
            self._file_failure(action, answer.error)
        elif action.verb == "delete":
            self._file_delete(answer.value)
        else:
            self._file_drain(action, answer.value)

    def forget(self, answer: Answer) -> None:
        """Of a call to an endpoint that is no longer configured only this stays: that it is no longer under way."""
        if isinstance(answer.tag, Action):
            for id in answer.tag.ids:
                self.in_flight.pop(id, None)

    @staticmethod
    def _replies(answer: Answer, action: Action) -> Sequence[Reply]:
        """One reply per id: what raised, hung or forgot some of them leaves those uncertain."""
        if answer.error:
            return [Uncertain(id, answer.error) for id in action.ids]
        replies = {reply.id: reply for reply in answer.value}
        return [replies.get(id, Uncertain(id, "the backend did not answer for it")) for id in action.ids]

    def _file_create(self, endpoint: Endpoint, action: Action, replies: Sequence[Reply]) -> None:
        now = self.clock()
        for id in action.ids:
            self.in_flight.pop(id, None)
        resources = self.ledger.resources()
        changed = []
        words: dict[str, Reply] = {}
        for reply in replies:
            resource = resources.get(reply.id)
            if resource is not None and (new := _after_create(resource, reply, now)) is not resource:
                changed.append(new)
            if resource is not None:
                words[resource.offering] = _worse(words.get(resource.offering), reply)
        for offering, reply in words.items():
            self._judge(endpoint.name, offering, reply, now)
        self.ledger.record(changed)

    def _judge(self, backend: str, offering: str, reply: Reply, now: float) -> None:
        match reply:
            case Created():
                self.healths.succeeded(backend, offering, Stage.CREATE)
            case Refused(retry_after_s=float() | int() as retry_after_s):
                self.healths.refused(backend, offering, reply.reason, retry_after_s, now)
            case Refused() | Uncertain():
                log.warning("backend %s: create of %s failed: %s", backend, offering, reply.reason)
                self.healths.failed(backend, offering, Stage.CREATE, reply.reason, now)

    def _file_delete(self, replies: Iterable[Deleted | NotDeleted]) -> None:
        now = self.clock()
        resources = self.ledger.resources()
        changed = []
        for reply in replies:
            resource = resources.get(reply.id)
            if resource is None or resource.state is not State.REMOVING:
                continue
            if isinstance(reply, NotDeleted) and reply.reason == "has started":
                state = State.STARTING if resource.pool else State.RUNNING
                changed.append(replace(resource, state=state, changed_at=now, reason="started before it was cancelled"))
            elif isinstance(reply, NotDeleted):
                log.info("%s is not removed yet: %s", reply.id, reply.reason)
        self.ledger.record(changed)

    def _file_drain(self, action: Action, failed: Mapping[str, str]) -> None:
        now = self.clock()
        resources = self.ledger.resources()
        changed = []
        for id in action.ids:
            resource = resources.get(id)
            if resource is None or resource.state is not State.DRAINING:
                continue
            if id in failed:
                self.not_before[id] = now + RETRY_S
                log.warning("%s of %s failed: %s", action.verb, id, failed[id])
            if (action.verb == "undrain") != (id in failed):
                reason = "taken back" if action.verb == "undrain" else f"drain failed: {failed[id]}"
                changed.append(replace(resource, state=State.READY, changed_at=now, reason=reason))
        self.ledger.record(changed)

    def _file_failure(self, action: Action, error: str) -> None:
        """The whole call failed: whatever it did shows in the pool or the backend's list."""
        now = self.clock()
        log.warning("%s of %d resources failed: %s", action.verb, len(action.ids), error)
        for id in action.ids:
            self.in_flight.pop(id, None)
        if action.verb in ("drain", "undrain"):
            self._file_drain(action, dict.fromkeys(action.ids, error))
        else:
            self.not_before |= dict.fromkeys(action.ids, now + RETRY_S)


def _worse(one: Reply | None, other: Reply) -> Reply:
    """The reply that says more about a backend's health: anything created is a success of the call."""
    if isinstance(one, Created) or one is None:
        return one or other
    return other if isinstance(other, Created) else one


def _after_create(resource: Resource, reply: Reply, now: float) -> Resource:
    match reply:
        case Created() if resource.state is State.INTENDED:
            return replace(resource, state=State.SUBMITTED, changed_at=now, remote_id=reply.remote_id, reason="")
        case Created() if resource.remote_id is None:
            return replace(resource, remote_id=reply.remote_id)
        case Refused() if resource.state is State.INTENDED:
            return replace(resource, state=State.GONE, changed_at=now, outcome=f"refused: {reply.reason}")
        case Uncertain() if resource.state is State.INTENDED:
            return replace(resource, changed_at=now, reason=f"uncertain: {reply.reason}")
    return resource

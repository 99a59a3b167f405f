"""Report: what a cycle saw and decided, as plain values for `status`, `explain` and the live view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apf_elastic.health import Healths
from apf_elastic.model import Breaker, Decision, Demand, Health, Resource, Seen, State, Unknown
from apf_elastic.observe import Endpoint, Observer
from apf_elastic.settings import Settings


@dataclass(frozen=True, slots=True)
class Picture:
    """The status snapshot, and the part of it that makes it new (everything but the times)."""

    values: dict[str, Any]
    essence: Any


def decision_record(decision: Decision, actions: list[str]) -> dict[str, Any]:
    """A decision as `explain` reads it."""
    return {
        "hold": decision.hold,
        "steps": [{"name": s.name, "n": s.n, "reason": s.reason} for s in decision.steps],
        "accounts": [
            {
                "shape": str(account.shape) if account.shape else None,
                "waiting": account.waiting,
                "covered": account.covered,
                "wanted": account.wanted,
                "granted": account.granted,
                "withheld": dict(account.withheld),
            }
            for account in decision.accounts
        ],
        "notes": list(decision.notes),
        "actions": actions,
    }


def snapshot(
    observer: Observer, resources: Iterable[Resource], healths: Healths, settings: Settings, now: float
) -> Picture:
    """The state of the factory: queues with their demand and resources, endpoints with their last answer."""
    counts = _counts(resources)
    queues = {name: _queue(observer, name, counts.get(("queue", name), {})) for name in settings.queues}
    for kind, name in counts:
        if kind == "queue" and name not in queues:
            queues[name] = {"demand": None, "unknown": "no longer configured", "resources": counts[kind, name]}
    endpoints = [_endpoint(e, counts.get((e.kind, e.name), {}), healths, now) for e in observer.endpoints.values()]
    values = {"factory": settings.factory, "queues": queues, "endpoints": endpoints}
    essence = (
        repr([(n, {k: v for k, v in q.items() if k not in ("asked_at", "oldest_wait_s")}) for n, q in queues.items()]),
        repr([{k: v for k, v in e.items() if k not in ("asked_at", "took_s")} for e in endpoints]),
    )
    return Picture(values, essence)


def _counts(resources: Iterable[Resource]) -> dict[tuple[str, str], dict[str, int]]:
    """Resources by state for each queue, backend and pool: ``("queue", "analysis") -> {"busy": 3}``."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    alike = Counter((r.queue, r.backend, r.pool or "", r.state, r.busy) for r in resources)
    for (queue, backend, pool, state, busy), n in alike.items():
        word = state.value if state is not State.READY else "busy" if busy else "idle"
        for key in (("queue", queue), ("backend", backend), ("pool", pool)):
            states = counts.setdefault(key, {})
            states[word] = states.get(word, 0) + n
    return counts


def _queue(observer: Observer, name: str, states: dict[str, int]) -> dict[str, Any]:
    seen = observer.known.demand.get(name)
    row: dict[str, Any] = {"resources": states}
    if isinstance(seen, Seen):
        demand: Demand = seen.value
        row["demand"] = {
            "waiting": demand.waiting,
            "running": demand.running,
            "held": demand.held,
            "status": demand.status,
            "shapes": {str(g.shape): g.waiting for g in demand.groups if g.waiting},
            "notes": list(demand.notes),
        }
        row["oldest_wait_s"] = demand.oldest_wait_s
        row["asked_at"] = seen.asked_at
    else:
        row["demand"] = None
        row["unknown"] = seen.reason if isinstance(seen, Unknown) else "not asked yet"
    return row


def _endpoint(endpoint: Endpoint, states: dict[str, int], healths: Healths, now: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": endpoint.kind,
        "name": endpoint.name,
        "error": endpoint.error,
        "asked_at": endpoint.answered_at,
        "took_s": round(endpoint.took_s, 3),
        "resources": states,
    }
    if endpoint.kind == "backend":
        row["breakers"] = _breakers(endpoint.name, healths, now)
    return row


def _breakers(backend: str, healths: Healths, now: float) -> dict[str, str]:
    health = {"": healths.of_backend(backend, now), **healths.of_offerings(backend, now)}
    return {name: _breaker(h) for name, h in health.items() if h.breaker is not Breaker.CLOSED}


def _breaker(health: Health) -> str:
    return f"{health.breaker.value}: {health.reason}"

"""Circuit breakers: a broken backend, or one broken offering of it, costs little and recovers by itself.

::

    closed --(failures in a row)--> open --(back-off passed)--> half-open --(canary succeeds)--> closed
                                      ^------(canary fails, back-off doubled)------'

A canary that was only *accepted* does not close a breaker that opened because resources never joined: a success
counts for failures of its own stage and of earlier ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from apf_elastic.model import Breaker, Health

FAILURES_TO_OPEN = 3
FIRST_BACKOFF_S = 30.0
LONGEST_BACKOFF_S = 3600.0


class Stage(IntEnum):
    """How far a resource got. Ordered."""

    CREATE = 1  # the create call was answered
    START = 2  # the backend started it
    JOIN = 3  # it joined its pool


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    openings: int = 0
    open_until: float | None = None
    stage: Stage = Stage.CREATE
    reason: str = ""

    def health(self, now: float) -> Health:
        if self.open_until is None:
            return Health()
        if now < self.open_until:
            return Health(Breaker.OPEN, self.reason, self.open_until)
        return Health(Breaker.HALF_OPEN, self.reason, self.open_until)


class Healths:
    """The breakers of all backends and of their offerings. Times are seconds since the epoch."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._circuits: dict[tuple[str, str], _Circuit] = {}
        self._jitter = jitter

    def failed(self, backend: str, offering: str, stage: Stage, reason: str, now: float) -> None:
        """Count one failure; `offering` empty means the backend as a whole."""
        circuit = self._circuits.setdefault((backend, offering), _Circuit())
        waiting = circuit.open_until is not None and now < circuit.open_until
        circuit.reason = reason
        circuit.stage = max(circuit.stage, stage) if circuit.failures else stage
        circuit.failures += 1
        if waiting:
            return  # answers of calls made before it opened: one opening is enough
        if circuit.open_until is not None or circuit.failures >= FAILURES_TO_OPEN:
            self._open(circuit, now)

    def refused(self, backend: str, offering: str, reason: str, retry_after_s: float, now: float) -> None:
        """The backend named the time after which it may be asked again (quota, rate limit): not a fault."""
        circuit = self._circuits.setdefault((backend, offering), _Circuit())
        circuit.reason = reason
        circuit.stage = Stage.CREATE
        circuit.open_until = max(circuit.open_until or 0.0, now + max(0.0, retry_after_s))

    def succeeded(self, backend: str, offering: str, stage: Stage) -> None:
        """A resource got as far as `stage`: closes what failed at that stage or before."""
        for key in ((backend, offering), (backend, "")):
            circuit = self._circuits.get(key)
            if circuit is not None and stage >= circuit.stage:
                del self._circuits[key]

    def of_backend(self, backend: str, now: float) -> Health:
        circuit = self._circuits.get((backend, ""))
        return circuit.health(now) if circuit else Health()

    def of_offerings(self, backend: str, now: float) -> Mapping[str, Health]:
        return {
            offering: health
            for (name, offering), circuit in self._circuits.items()
            if name == backend and offering and (health := circuit.health(now)).breaker is not Breaker.CLOSED
        }

    def _open(self, circuit: _Circuit, now: float) -> None:
        backoff = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0**circuit.openings)
        circuit.openings += 1
        circuit.open_until = now + backoff * (0.8 + 0.4 * self._jitter())

    # ------------------------------------------------------------------------------- across a restart

    def dump(self) -> list[list[object]]:
        """Everything that is not closed, as plain values for the ledger."""
        return [
            [backend, offering, c.failures, c.openings, c.open_until, int(c.stage), c.reason]
            for (backend, offering), c in sorted(self._circuits.items())
        ]

    def load(self, rows: Iterable[Iterable[object]]) -> None:
        """Take back what `dump` gave; rows that do not fit are ignored (an older or newer format)."""
        for row in rows:
            match list(row):
                case [
                    str() as backend,
                    str() as offering,
                    int() as failures,
                    int() as openings,
                    until,
                    int() as stage,
                    str() as reason,
                ] if (until is None or isinstance(until, int | float)) and stage in set(Stage):
                    self._circuits[backend, offering] = _Circuit(
                        failures, openings, None if until is None else float(until), Stage(stage), reason
                    )

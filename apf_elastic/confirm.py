"""Suspicious readings are quarantined until they are confirmed.

An empty answer is what a broken server says most often. A reading that drops to nothing, or loses a large part
of what the last one had, is *unknown* until `readings` in a row agree.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from apf_elastic.model import Demand

#: Readings in a row that must agree before a sudden drop is believed.
READINGS = 3
#: Losing more than this share of what was listed, and more than `FEW` entries, is suspicious
#: (the halt that cluster autoscalers use).
LARGE_SHARE = 0.45
FEW = 3


@dataclass(slots=True)
class DemandGuard:
    """Watches one queue's demand for a sudden zero."""

    readings: int = READINGS
    last: Demand | None = None
    asked_at: float = 0.0
    seen: int = 0

    def admit(self, demand: Demand, asked_at: float) -> str:
        """Return "" when `demand` may be believed, else the reason why not yet. One reading counts once."""
        if self.last is None or not self._sudden_zero(demand, self.last):
            self.last, self.seen, self.asked_at = demand, 0, asked_at
            return ""
        if asked_at > self.asked_at:
            self.asked_at = asked_at
            self.seen += 1
        if self.seen >= self.readings:
            self.last, self.seen = demand, 0
            return ""
        return (
            f"waiting jobs fell from {self.last.waiting} to 0 in one reading;"
            f" not believed until {self.readings} readings agree ({self.seen} so far)"
        )

    @staticmethod
    def _sudden_zero(new: Demand, old: Demand) -> bool:
        if new.waiting or not old.waiting:
            return False
        started = new.running - old.running
        return started < old.waiting / 2


@dataclass(slots=True)
class ListGuard:
    """Watches a backend's list or a pool's slots for a sudden loss of entries that nobody retired."""

    readings: int = READINGS
    last: frozenset[str] = field(default_factory=frozenset)
    asked_at: float = 0.0
    seen: int = 0

    def admit(self, present: Set[str], leaving: Set[str], asked_at: float) -> str:
        """Return "" when the list may be believed; `leaving` are the entries whose absence is expected."""
        expected = self.last - leaving
        lost = len(expected - present)
        if not self._sudden_loss(lost, len(expected), bool(present)):
            self.last, self.seen, self.asked_at = frozenset(present), 0, asked_at
            return ""
        if asked_at > self.asked_at:
            self.asked_at = asked_at
            self.seen += 1
        if self.seen >= self.readings:
            self.last, self.seen = frozenset(present), 0
            return ""
        return (
            f"{lost} of {len(expected)} entries vanished in one reading;"
            f" not believed until {self.readings} readings agree ({self.seen} so far)"
        )

    @staticmethod
    def _sudden_loss(lost: int, expected: int, any_present: bool) -> bool:
        if not lost:
            return False
        return (not any_present and expected > 1) or (lost > FEW and lost > LARGE_SHARE * expected)

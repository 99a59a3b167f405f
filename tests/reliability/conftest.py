"""Prints the matrix at the end of a run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

COUNTS = ("struck", "made", "leaked", "doubled", "evicted")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line per fault and side: the three phases and both lengths taken together."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, row in getattr(report, "user_properties", ()):
                if name == "matrix":
                    rows[row["fault"], row["side"]].append(row)
    if not rows:
        return
    terminalreporter.section("faults and what came of them")
    line = "{:<20}{:<10}{:>6}{:>8}{:>6}{:>8}{:>9}{:>9}".format
    terminalreporter.write_line(line("answer", "of", "runs", "faults", "made", "leaked", "doubled", "evicted"))
    for (fault, side), found in rows.items():
        terminalreporter.write_line(line(fault, side, len(found), *(sum(r[c] for r in found) for c in COUNTS)))
    every = [row for found in rows.values() for row in found]
    terminalreporter.write_line(line("all", "", len(every), *(sum(r[c] for r in every) for c in COUNTS)))

"""`watch`: the live view of a running service. The shows of `make run` use the same picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from apf_elastic.commands.options import ConfigFile, configuration
from apf_elastic.commands.status import STOPPED_S, reading
from apf_elastic.commands.words import STATES, age, clean, console, fail, sentences
from apf_elastic.ledger import Reader

STYLE = {
    "intended": "grey50",
    "submitted": "grey62",
    "pending": "yellow",
    "starting": "dark_orange",
    "idle": "cyan",
    "busy": "green",
    "running": "green",
    "draining": "magenta",
    "removing": "red",
}
BAR = 40  # characters


def watch(
    config: ConfigFile = None,
    every: Annotated[float, typer.Option(help="seconds between two looks", min=0.1)] = 0.5,
) -> None:
    """Watch a running service: demand, resources by state, the latest decisions. Ctrl-C ends the view only."""
    loaded = configuration(config)
    out = console()
    with suppress(KeyboardInterrupt), reading(loaded) as ledger:
        look(ledger)
        if not out.is_terminal or out.is_dumb_terminal:
            raise fail("watch needs a terminal that can move its cursor; elsewhere use: apf-elastic status")
        with Live(console=out, auto_refresh=False) as live:
            while True:
                live.update(look(ledger), refresh=True)
                time.sleep(every)


def look(ledger: Reader, above: RenderableType | None = None) -> RenderableType:
    """The picture of what the service last wrote."""
    found = ledger.last_snapshot()
    if found is None:
        return Text("the service has not finished its first cycle yet", style="dim")
    at, values = found
    latest = {name: ledger.last_decisions(name, 1) for name in values["queues"]}
    records = {name: (d[0].at, d[0].record) for name, d in latest.items() if d}
    return picture(values, at, time.time(), records, above)


def picture(
    values: Mapping[str, Any],
    at: float,
    now: float,
    decisions: Mapping[str, tuple[float, Mapping[str, Any]]],
    above: RenderableType | None = None,
) -> RenderableType:
    """Demand, resources by state, and the latest decision of each queue in words."""
    parts: list[RenderableType] = [above, Text()] if above is not None else []
    parts += [_queues(values), Text(), _backends(values), _legend(values), Text(), *_decisions(decisions, now)]
    stale = now - at > STOPPED_S
    title = f"apf-elastic, factory {values['factory']}" + (f" (no news for {age(now - at)})" if stale else "")
    return Panel(Group(*parts), title=title, title_align="left", border_style="yellow" if stale else "blue")


def _grid(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
    for column in columns:
        made.add_column(column, header_style="dim", overflow="fold")
    return made


def _queues(values: Mapping[str, Any]) -> Table:
    rows = _grid("queue", "waiting", "running", "waiting by shape")
    for name, queue in values["queues"].items():
        demand = queue["demand"]
        if demand is None:
            rows.add_row(clean(name), "?", "?", Text(clean(str(queue.get("unknown", ""))), style="red"))
            continue
        shapes = ", ".join(f"{n} x ({shape})" for shape, n in sorted(demand["shapes"].items()))
        rows.add_row(clean(name), str(demand["waiting"]), str(demand["running"]), clean(shapes) or "-")
    return rows


def _backends(values: Mapping[str, Any]) -> Table:
    backends = [e for e in values["endpoints"] if e["kind"] == "backend"]
    most = max((sum(e["resources"].values()) for e in backends), default=0)
    rows = _grid("backend", "resources", "", "")
    for e in backends:
        troubles = [clean(e["error"])] if e["error"] else []
        troubles += [clean(f"{offering} breaker {word}".strip()) for offering, word in e.get("breakers", {}).items()]
        total = sum(e["resources"].values())
        rows.add_row(clean(e["name"]), str(total), _bar(e["resources"], most), Text("; ".join(troubles), style="red"))
    return rows


def _bar(counts: Mapping[str, int], most: int) -> Text:
    """One character per resource, or a share of the bar when there are more."""
    scale = min(1.0, BAR / most) if most else 1.0
    text = Text()
    for state in STATES:
        width = round(counts.get(state, 0) * scale)
        text.append("█" * (max(1, width) if counts.get(state) else 0), style=STYLE[state])
    return text + Text("·" * max(0, BAR - len(text)), style="grey30")


def _legend(values: Mapping[str, Any]) -> Text:
    totals: dict[str, int] = {}
    for e in values["endpoints"]:
        if e["kind"] == "backend":
            for state, n in e["resources"].items():
                totals[state] = totals.get(state, 0) + n
    text = Text()
    for state in STATES:
        if totals.get(state):
            text.append("█ ", style=STYLE[state])
            text.append(f"{totals[state]} {state}   ")
    return text if text.plain else Text("no resources", style="dim")


def _decisions(decisions: Mapping[str, tuple[float, Mapping[str, Any]]], now: float) -> Sequence[RenderableType]:
    lines: list[RenderableType] = []
    for queue, (at, record) in decisions.items():
        lines.append(Text(f"{clean(queue)}, decided {age(now - at)} ago:", style="bold"))
        lines += [Text("  " + clean(sentence)) for sentence in sentences(record)[:6]]
    return lines


def progress(done: int, total: int, words: str) -> RenderableType:
    """A progress bar with its count."""
    row = Table.grid(padding=(0, 2))
    row.add_row(ProgressBar(total=max(total, 1), completed=done, width=BAR), f"{done} of {total} {words}")
    return row

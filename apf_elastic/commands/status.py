"""`status` and `explain`: what the service last saw and decided, read from its ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.text import Text

from apf_elastic.commands.options import ConfigFile, Json, configuration
from apf_elastic.commands.words import age, clean, console, fail, print_json, sentences, states, table
from apf_elastic.config import Config
from apf_elastic.ledger import Ledger, LedgerError, Reader

#: A snapshot older than this means that no service writes it any more.
STOPPED_S = 40.0


@contextmanager
def reading(config: Config) -> Iterator[Reader]:
    """The ledger of a factory, for reading. One that cannot be read, now or later, ends the command in words."""
    try:
        with Ledger.read(Path(config.factory.ledger)) as ledger:
            yield ledger
    except LedgerError as error:
        raise fail(str(error)) from None


def status(config: ConfigFile = None, json: Json = False) -> None:
    """Queues, backends, pools: demand, resources by state, last observation and its age."""
    loaded = configuration(config)
    with reading(loaded) as ledger:
        found = ledger.last_snapshot()
    if found is None:
        raise fail(f"{loaded.factory.ledger}: no service has written a status yet; start one with: apf-elastic run")
    at, values = found
    now = time.time()
    if json:
        print_json({**values, "at": at, "age_s": round(now - at, 1)})
        return
    console().print(status_view(values, at, now))


def status_view(values: dict[str, Any], at: float, now: float) -> Group:
    """The whole status, as tables."""
    head = Text(f"factory {values['factory']}, as of {age(now - at)} ago", style="bold")
    parts: list[Any] = [head]
    if now - at > STOPPED_S:
        parts.append(Text("No service seems to be running: this is what the last one saw.", style="yellow"))
    parts += [Text(), queues_table(values, now), Text(), endpoints_table(values, now)]
    return Group(*parts)


def queues_table(values: dict[str, Any], now: float) -> Any:
    rows = table("Queues", ("queue", "waiting", "running", "held", "oldest", "seen", "resources"))
    for name, queue in values["queues"].items():
        demand = queue["demand"]
        resources = states(queue["resources"])
        if demand is None:
            rows.add_row(
                escape(name), "?", "?", "?", "?", Text(clean(str(queue.get("unknown", ""))), style="red"), resources
            )
            continue
        rows.add_row(
            escape(name),
            str(demand["waiting"]),
            str(demand["running"]),
            str(demand["held"]),
            age(queue.get("oldest_wait_s")) if queue.get("oldest_wait_s") is not None else "-",
            f"{age(now - queue['asked_at'])} ago",
            resources + ("" if demand["status"] == "online" else f" (site {demand['status']})"),
        )
    return rows


def endpoints_table(values: dict[str, Any], now: float) -> Any:
    rows = table("Sources, pools and backends", ("", "name", "last answer", "took", "state", "resources"))
    for e in values["endpoints"]:
        words = [Text(clean(e["error"]), style="red")] if e["error"] else [Text("ok", style="green")]
        for offering, breaker in e.get("breakers", {}).items():
            where = f"offering {offering}: " if offering else ""
            words.append(Text(clean(f"{where}breaker {breaker}"), style="yellow"))
        rows.add_row(
            e["kind"],
            escape(e["name"]),
            f"{age(now - e['asked_at'])} ago" if e["asked_at"] else "never",
            f"{e['took_s']:.2f} s",
            Text("; ").join(words),
            states(e["resources"]) if e["kind"] == "backend" else "",
        )
    return rows


def explain(
    queue: Annotated[str, typer.Argument(help="the queue to explain")],
    config: ConfigFile = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="how many decisions")] = 3,
    json: Json = False,
) -> None:
    """The account of the last decisions: wanted, granted, withheld and for what reason."""
    loaded = configuration(config)
    with reading(loaded) as ledger:
        decisions = ledger.last_decisions(queue, last)
    if not decisions:
        known = ", ".join(loaded.settings.queues) or "none"
        hint = "no decision is recorded yet" if queue in loaded.settings.queues else f"known queues: {known}"
        raise fail(f"queue {queue}: {hint}")
    if json:
        print_json([{"at": d.at, "seen_at": d.seen_at, **d.record} for d in decisions])
        return
    out = console()
    now = time.time()
    for decision in decisions:
        since = f"decided {age(now - decision.at)} ago"
        if decision.seen_at - decision.at > 1:
            since += f", the same until {age(now - decision.seen_at)} ago"
        out.print(Text(f"{queue}: {since}", style="bold"))
        for line in sentences(decision.record):
            out.print(Text("  " + clean(line)))

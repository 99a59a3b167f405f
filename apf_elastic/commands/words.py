"""Small things every command says the same way: ages, tables, sentences about decisions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: Order in which resource states are shown.
STATES = ("intended", "submitted", "pending", "starting", "idle", "busy", "running", "draining", "removing")


def console() -> Console:
    """Where people read; no colour when it is not a terminal."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=None, sort_keys=False, default=str) + "\n")


def fail(message: str, code: int = 1) -> typer.Exit:
    """Print an error to stderr and return what to raise."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(clean(message))}")
    return typer.Exit(code)


def clean(text: str) -> str:
    """Text from elsewhere without control characters: a terminal must not obey a host name or a hold reason."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def age(seconds: float | None) -> str:
    """How long ago, in the largest unit that reads well."""
    if seconds is None:
        return "never"
    if seconds < 0:
        return "0 s"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def states(counts: Mapping[str, int]) -> str:
    """Resources by state: ``3 pending, 2 busy``."""
    known = [f"{counts[s]} {s}" for s in STATES if counts.get(s)]
    other = [f"{n} {s}" for s, n in counts.items() if s not in STATES and n]
    return ", ".join([*known, *other]) or "none"


def table(title: str, columns: Iterable[str]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, header_style="dim", overflow="fold")
    return made


def sentences(record: Mapping[str, Any]) -> list[str]:
    """The account of a decision in sentences, as `explain` prints it."""
    if record.get("hold"):
        return [f"Holds, nothing is created or retired: {record['hold']}."]
    lines = [f"{step['name']}: {step['n']} ({step['reason']})" for step in record.get("steps", ())]
    for account in record.get("accounts", ()):
        lines.append(_account(account))
    lines += [_capital(action) + "." for action in record.get("actions", ())]
    lines += [_capital(note) + "." for note in record.get("notes", ())]
    return lines or ["No work is waiting, nothing to do."]


def _account(account: Mapping[str, Any]) -> str:
    what = f"jobs of {account['shape']}" if account["shape"] else "resources"
    if not account["waiting"]:
        return f"No {what} wanted." if not account["shape"] else f"No {what} wait."
    parts = []
    if account["covered"]:
        parts.append(f"{account['covered']} covered by what is there or on its way")
    if account["granted"]:
        parts.append(f"{account['granted']} granted now")
    parts += [f"{n} withheld: {reason}" for reason, n in account["withheld"].items()]
    verb = "wait" if account["shape"] else "wanted"
    return f"{account['waiting']} {what} {verb}: {'; '.join(parts) or 'nothing done'}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

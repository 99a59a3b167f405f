"""`check`: the configuration, and whether every source, pool and backend answers. All findings at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from apf_elastic.commands.options import ConfigFile, Json
from apf_elastic.commands.words import clean, console, print_json
from apf_elastic.config import Config, ConfigError, PluginSpec, load
from apf_elastic.service import make_plugin, specs


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `kind`: configuration, warning, state, source, pool or backend."""

    kind: str
    name: str
    ok: bool
    message: str
    seconds: float = 0.0


def check(config: ConfigFile = None, json: Json = False) -> None:
    """Whether the configuration is right and everything in it answers. Exit code 0: all well, 1: problems.

    Run it as the service's user: plugins use the state directory as they do in the service.
    """
    findings = look(config)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        console().print(picture(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def look(file: Path | None) -> list[Finding]:
    """Everything there is to say, the configuration first. A wrong one is all there is."""
    started = time.monotonic()
    try:
        config = load(file)
    except ConfigError as error:
        return [_wrong(problem.place, problem.key, problem.message, problem.cure) for problem in error.problems]
    files = ", ".join(str(path) for path in config.files)
    fine = Finding("configuration", files, True, _contents(config), round(time.monotonic() - started, 3))
    doubts = [
        Finding("warning", f"{it.place} {it.key}".strip(), True, f"{it.message}; {it.cure}".rstrip("; "))
        for it in config.warnings
    ]
    return [fine, *doubts, _state_dir(config), *ask_all(specs(config), lambda spec: make_plugin(spec, config))]


def _wrong(place: str, key: str, message: str, cure: str) -> Finding:
    return Finding("configuration", f"{place} {key}".strip(), False, f"{message}; {cure}" if cure else message)


def _contents(config: Config) -> str:
    parts: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("source", config.sources),
        ("pool", config.pools),
        ("backend", config.backends),
        ("queue", config.settings.queues),
    )
    return ", ".join(count(len(group), word) for word, group in parts)


def count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _state_dir(config: Config) -> Finding:
    """Whether the ledger's directory can be written, or made."""
    wanted = config.factory.ledger.parent
    try:
        there = next(path for path in (wanted, *wanted.parents) if path.exists())
        ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except OSError as error:
        return Finding("state", str(wanted), False, f"cannot be looked at: {error.strerror}")
    if not ok:
        return Finding("state", str(wanted), False, f"{there} may not be written by this user, or is no directory")
    return Finding("state", str(wanted), True, "can be written" if there == wanted else "can be made")


# ----------------------------------------------------------------------------------------------------- asking


def ask_all(plugins: Iterable[PluginSpec], make: Callable[[PluginSpec], Any]) -> list[Finding]:
    """Ask every plugin at the same time, each in a thread of its own, and wait for each at most its timeout."""
    asked = [_Question(spec, make) for spec in plugins]
    for question in asked:
        question.start()
    return [question.answer() for question in asked]


class _Question:
    """One plugin being asked. A thread that never returns is left behind; it ends with the process."""

    def __init__(self, spec: PluginSpec, make: Callable[[PluginSpec], Any]) -> None:
        self.spec = spec
        self.make = make
        self._finding: Finding | None = None
        self._thread = threading.Thread(target=self._ask, name=f"check {spec.kind} {spec.name}", daemon=True)

    def start(self) -> None:
        self.started = time.monotonic()
        self._thread.start()

    def answer(self) -> Finding:
        self._thread.join(max(0.0, self.started + self.spec.timeout_s - time.monotonic()))
        if self._finding is not None:
            return self._finding
        what = "no answer within" if self._thread.is_alive() else "gave up without an answer, not even after"
        return self._found(False, f"{what} {self.spec.timeout_s:g} s")

    def _ask(self) -> None:
        try:
            plugin = self.make(self.spec)
            try:
                sentence = say(self.spec.kind, plugin)
            finally:
                plugin.close()
        except Exception as error:  # whatever a plugin raises is a finding
            self._finding = self._found(False, str(error) or type(error).__name__)
        else:
            self._finding = self._found(True, sentence)

    def _found(self, ok: bool, message: str) -> Finding:
        took_s = round(time.monotonic() - self.started, 3)
        return Finding(self.spec.kind, self.spec.name, ok, message, took_s)


def say(kind: str, plugin: Any) -> str:
    """What a plugin says of itself; without `ping`, what its first answer amounts to."""
    if hasattr(plugin, "ping"):
        return str(plugin.ping())
    if kind == "source":
        demand = plugin.demand()
        waiting = sum(it.waiting for it in demand.values())
        return f"{count(waiting, 'job')} waiting for {count(len(demand), 'queue')}"
    if kind == "pool":
        return f"{count(len(plugin.slots()), 'resource')} joined"
    return f"{count(len(plugin.list()), 'resource')}, {count(len(plugin.offerings()), 'offering')}"


# ---------------------------------------------------------------------------------------------------- showing


def picture(findings: Iterable[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "what", "name", "finding", "took"):
        table.add_column(column, header_style="dim", overflow="fold")
    for it in findings:
        mark = Text("wrong", style="bold red") if not it.ok else Text("ok", style="green")
        if it.kind == "warning":
            mark = Text("note", style="yellow")
        took = f"{it.seconds:.1f} s" if it.seconds >= 0.05 else ""
        table.add_row(mark, it.kind, Text(clean(it.name)), Text(clean(it.message)), took)
    return table

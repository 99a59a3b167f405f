"""`check`: the configuration, and whether every source, pool and backend answers. All findings at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from apf_elastic.commands.options import ConfigFile, Json
from apf_elastic.commands.words import clean, console, print_json
from apf_elastic.config import Config, ConfigError, PluginSpec, Problem, load
from apf_elastic.service import make_plugin, specs

#: Columns of a table that nobody reads on a terminal: one finding, one line.
UNFOLDED = 1000


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
    try:
        findings = look(config)
    except ConfigError as error:
        if json:
            print_json([asdict(_wrong(problem)) for problem in error.problems])
        else:
            console().print(Text(str(error)))
        raise typer.Exit(1) from None
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        out = console()
        out.width = out.width if out.is_terminal else UNFOLDED
        out.print(picture(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def look(file: Path | None) -> list[Finding]:
    """Everything there is to say, the configuration first. Raises ConfigError when that is wrong."""
    started = time.monotonic()
    config = load(file)
    files = ", ".join(str(path) for path in config.files)
    fine = Finding("configuration", files, True, _contents(config), round(time.monotonic() - started, 3))
    doubts = [
        Finding("warning", f"{it.place} {it.key}".strip(), True, f"{it.message}; {it.cure}".rstrip("; "))
        for it in config.warnings
    ]
    with TemporaryDirectory(prefix="apf-elastic-check-", ignore_cleanup_errors=True) as scratch:
        answers = ask_all(specs(config), lambda spec: make_plugin(spec, without_traces(config, spec, Path(scratch))))
    return [fine, *doubts, _state_dir(config), *answers]


def _wrong(it: Problem) -> Finding:
    message = f"{it.message}; {it.cure}" if it.cure else it.message
    return Finding("configuration", f"{it.place} {it.key}".strip(), False, message)


def without_traces(config: Config, spec: PluginSpec, scratch: Path) -> Config:
    """A plugin that has no directory yet gets one elsewhere: what a check by root leaves behind, the service's own
    user could not use."""
    if (config.factory.state_dir / f"{spec.kind}.{spec.name}").exists():
        return config
    return replace(config, factory=replace(config.factory, state_dir=scratch))


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

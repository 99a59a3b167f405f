"""`run`, `once` and `plan`: the service, one cycle, and what a cycle would do."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.text import Text

from apf_elastic.commands.options import ConfigFile, Json, configuration
from apf_elastic.commands.words import clean, console, fail, print_json, sentences
from apf_elastic.config import Config, load
from apf_elastic.cycle import Cycle, actions_by_queue
from apf_elastic.ledger import Ledger, LedgerError
from apf_elastic.report import decision_record
from apf_elastic.service import Service, StartError, look, make_cycle, run_once, signals

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="log every call that failed, with its traceback")]


class _OneLine(logging.Formatter):
    """A record is one line: what a server says cannot forge another, nor speak to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record)).replace("\n", "\n    ")


def start_log(config: Config, verbose: bool) -> None:
    """Log to stderr; systemd or the caller says where that goes."""
    level = logging.DEBUG if verbose else logging.getLevelNamesMapping()[config.factory.log.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)


def hold_ledger(config: Config) -> Ledger:
    """Open the ledger for the service; only one may hold it."""
    try:
        return Ledger.open(Path(config.factory.ledger), config.factory.name)
    except LedgerError as error:
        raise fail(str(error)) from None


def run(config: ConfigFile = None, verbose: Verbose = False) -> None:
    """The service. SIGTERM finishes the cycle and leaves resources running; SIGHUP reloads the configuration."""
    loaded = configuration(config)
    start_log(loaded, verbose)
    ledger = hold_ledger(loaded)
    try:
        service = Service(loaded, ledger, lambda: load(config))
        with signals(service):
            service.run()
    except StartError as error:
        raise fail(str(error), 2) from None
    except LedgerError as error:
        raise fail(str(error)) from None
    finally:
        ledger.close()


def once(config: ConfigFile = None, json: Json = False, verbose: Verbose = False) -> None:
    """One cycle: observe, decide, act, and say what was done."""
    loaded = configuration(config)
    start_log(loaded, verbose)
    ledger = hold_ledger(loaded)
    try:
        cycle = make_cycle(loaded, ledger)
        run_once(cycle)
        show(cycle, json, "done")
        cycle.observer.close()
        if cycle.trouble:
            raise fail(cycle.trouble)
    except StartError as error:
        raise fail(str(error), 2) from None
    except LedgerError as error:
        raise fail(str(error)) from None
    finally:
        ledger.close()


def plan(config: ConfigFile = None, json: Json = False) -> None:
    """What a cycle would do now and why. Nothing is changed."""
    loaded = configuration(config)
    with TemporaryDirectory(prefix="apf-elastic-plan-") as scratch, dry_ledger(loaded, Path(scratch)) as ledger:
        try:
            cycle = make_cycle(loaded, ledger)
        except StartError as error:
            raise fail(str(error), 2) from None
        look(cycle, 120.0)
        cycle.consider()
        show(cycle, json, "would be done")
        cycle.observer.close()


def dry_ledger(config: Config, scratch: Path) -> Ledger:
    """A copy of the ledger, so that a plan sees what the service knows and changes nothing."""
    path = scratch / "ledger.sqlite"
    try:
        if config.factory.ledger.exists():
            with Ledger.read(config.factory.ledger) as current:
                current.copy(path, since=time.time() - 3600.0)
        return Ledger.open(path, config.factory.name)
    except LedgerError as error:
        raise fail(str(error)) from None


def show(cycle: Cycle, json: bool, done: str) -> None:
    """Print a plan: for each queue what was decided, and the actions."""
    actions = actions_by_queue(cycle.plan, cycle.ledger.resources())
    records = {d.queue: decision_record(d, actions.pop(d.queue, [])) for d in cycle.plan.decisions}
    if json:
        print_json({"queues": records, "other": actions, "unknown": unknowns(cycle)})
        return
    out = console()
    for queue, record in records.items():
        out.print(Text(f"{queue}:", style="bold"))
        for line in sentences(record):
            out.print(Text("  " + clean(line)))
    for queue, lines in actions.items():
        out.print(Text(f"{queue} (not configured):", style="bold"))
        for line in lines:
            out.print(Text("  " + clean(line)))
    for name, error in unknowns(cycle).items():
        out.print(Text(f"{name}: {clean(error)}", style="red"))
    count = sum(c.count for c in cycle.plan.creates)
    out.print(Text(f"{count} created and {len(cycle.plan.retirements)} retired {done}.", style="dim"))


def unknowns(cycle: Cycle) -> dict[str, Any]:
    """The endpoints without a usable answer."""
    return {e.key: e.error for e in cycle.observer.endpoints.values() if e.error}

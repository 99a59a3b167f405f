"""`make run`: the main job, seen from nothing.

By default on an embedded work queue, with processes of this machine as resources; with ``--htcondor`` on a real
private HTCondor pool, with real jobs and glideins. Either way the service is the real one, in a process of its own,
and what is shown is read from its ledger.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apf_elastic.commands.watch import look, progress
from apf_elastic.ledger import Ledger, LedgerError, Reader
from apf_elastic.model import Resource
from apf_elastic.testing.leftovers import end_local_resources

#: The show is over after so long, whatever happens (seconds).
PATIENCE_S = 240.0
LOOK_S = 0.25
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is. `waits_s` are the waits of the tasks that have started."""

    total: int
    done: int
    failed: int = 0
    core_seconds: float = 0.0
    waits_s: Sequence[float] = ()


class Show(Protocol):
    """A place with work to do."""

    what: str
    config: Path
    ledger: Path
    log: Path

    def open(self, console: Console) -> None:
        """Bring up what is needed, write the configuration, queue the work."""
        ...

    def progress(self) -> Progress: ...

    def environment(self) -> dict[str, str]: ...

    def close(self) -> None: ...


def main(
    htcondor: Annotated[bool, typer.Option("--htcondor", help="on a real private HTCondor pool")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave the service running at the end")] = False,
    tasks: Annotated[int, typer.Option("--tasks", min=1, max=5000, help="how many tasks to queue")] = 36,
) -> None:
    """See the loop work: work is queued, capacity grows to it, everything is given back."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    base = Path(tempfile.mkdtemp(prefix="apf-elastic-"))
    base.chmod(0o755)
    show = _show(htcondor, base, tasks)
    started = time.monotonic()
    try:
        show.open(console)
        with run_service(show) as service:
            finished = _watch(show, service, console)
            _summary(show, console, time.monotonic() - started)
            if not finished:
                _blame(show, console)
                raise typer.Exit(1)
            if keep:
                _keep(show, service, console, base)
    finally:
        show.close()
        shutil.rmtree(base, ignore_errors=True)


def _show(htcondor: bool, base: Path, tasks: int) -> Show:
    if htcondor:
        from apf_elastic.demo_htcondor import HTCondorShow

        return HTCondorShow(base, tasks)
    from apf_elastic.demo_embedded import EmbeddedShow

    return EmbeddedShow(base, tasks)


# ------------------------------------------------------------------------------------------------ the service


@contextmanager
def run_service(show: Show) -> Iterator[subprocess.Popen[bytes]]:
    """The service, in a process of its own; stopped by its pid, never by name."""
    with show.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "apf_elastic.cli", "run", "--config", str(show.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **show.environment()},
            start_new_session=True,
            preexec_fn=_end_with_us,
        )
    try:
        yield process
    finally:
        _stop(process)
        end_local_resources(show.config.parent / "state" / "backend.here", "demo")


def _end_with_us() -> None:
    """In the child, before it becomes the service: the kernel sends it SIGTERM when the show is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------------------- the picture


def _watch(show: Show, service: subprocess.Popen[bytes], console: Console) -> bool:
    """Show the live view until all work is done and every resource given back; False when that did not happen."""
    end = time.monotonic() + PATIENCE_S
    painter = _Live(console) if console.is_terminal and not console.is_dumb_terminal else _Lines(console)
    with painter:
        while time.monotonic() < end and service.poll() is None:
            ledger = _ledger(show)
            if ledger is not None:
                painter.paint(show, ledger)
                if _finished(show, ledger):
                    return True
            time.sleep(LOOK_S)
    return False


def _ledger(show: Show) -> Reader | None:
    try:
        return Ledger.read(show.ledger)
    except LedgerError:
        return None  # the service is still starting


def _finished(show: Show, ledger: Reader) -> bool:
    state = show.progress()
    return state.done >= state.total and not ledger.resources()


class _Live:
    """The live view of a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> _Live:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def paint(self, show: Show, ledger: Reader) -> None:
        self._live.update(look(ledger, _bar(show)), refresh=True)


class _Lines:
    """Where nobody looks: a line when the numbers change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def paint(self, show: Show, ledger: Reader) -> None:
        state = show.progress()
        live = len(ledger.resources())
        line = f"{state.done} of {state.total} done, {live} resources"
        if line != self._last:
            self._console.print(line)
            self._last = line


def _bar(show: Show) -> RenderableType:
    state = show.progress()
    return progress(state.done, state.total, f"{show.what} done")


# ------------------------------------------------------------------------------------------------- the summary


def _summary(show: Show, console: Console, took_s: float) -> None:
    state = show.progress()
    ledger = _ledger(show)
    resources = ledger.everything() if ledger is not None else []
    paid = sum(_paid_core_seconds(r) for r in resources)
    rows = Table(title="Summary", title_justify="left", title_style="bold", box=None, show_header=False)
    rows.add_column(style="dim")
    rows.add_column()
    rows.add_row(
        f"{show.what} done", f"{state.done} of {state.total}" + (f", {state.failed} failed" if state.failed else "")
    )
    rows.add_row("wait", _waits(state.waits_s))
    rows.add_row("resources created", f"{len(resources)} ({_by_backend(resources)})")
    rows.add_row("left over", str(len(ledger.resources()) if ledger is not None else "unknown"))
    rows.add_row("core-seconds used", f"{state.core_seconds:.0f}")
    ratio = f" (paid / used {paid / state.core_seconds:.2f})" if state.core_seconds else ""
    rows.add_row("core-seconds paid", f"{paid:.0f}{ratio}")
    rows.add_row("took", f"{took_s:.0f} s")
    console.print(rows)


def _paid_core_seconds(resource: Resource) -> float:
    end = resource.changed_at if resource.state.value == "gone" else time.time()
    return resource.shape.cores * max(0.0, end - resource.created_at)


def _waits(waits: Sequence[float]) -> str:
    if not waits:
        return "none started"
    ordered = sorted(waits)
    median = ordered[len(ordered) // 2]
    return f"median {median:.1f} s, longest {ordered[-1]:.1f} s"


def _by_backend(resources: Sequence[Resource]) -> str:
    counts: dict[str, int] = {}
    for resource in resources:
        where = f"{resource.offering} at {resource.backend}"
        counts[where] = counts.get(where, 0) + 1
    return ", ".join(f"{n} x {where}" for where, n in sorted(counts.items())) or "none"


def _blame(show: Show, console: Console) -> None:
    """Why it did not finish: the end of the service's log."""
    console.print(Text("The work was not finished. The end of the service's log:", style="bold red"))
    lines = show.log.read_text(errors="replace").splitlines()[-15:] if show.log.exists() else []
    for line in lines or ["(it is empty)"]:
        console.print(Text("  " + line))


def _keep(show: Show, service: subprocess.Popen[bytes], console: Console, base: Path) -> None:
    command = f"{sys.executable} -m apf_elastic.cli"
    console.print(
        Text.assemble(
            ("\nThe service goes on", "bold"),
            f" (pid {service.pid}, log {show.log}). In another terminal:\n\n"
            f"  {command} watch --config {show.config}\n"
            f"  {command} status --config {show.config}\n"
            f"  {command} explain demo --config {show.config}\n\n"
            f"Ctrl-C here ends it and removes {base}.",
        )
    )
    try:
        service.wait()
    except KeyboardInterrupt:
        console.print("stopping")


if __name__ == "__main__":
    typer.run(main)

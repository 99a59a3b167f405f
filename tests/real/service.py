"""A service in a process of its own, as operators run it, and what its ledger says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from apf_elastic.ledger import Ledger, LedgerError
from apf_elastic.model import Resource
from apf_elastic.testing.leftovers import end_local_resources


class ServiceProcess:
    """``apf-elastic run`` on a configuration."""

    def __init__(self, config: Path, environment: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.ledger_path = config.parent / "state" / "ledger.sqlite"
        self.log_path = config.parent / "service.log"
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServiceProcess:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command("run"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "apf_elastic.cli", *arguments, "--config", str(self.config)]

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command on the same configuration."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, env=self._environment, timeout=120
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Whatever happened: leave no service behind."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def remove_local(self, backend: str) -> None:
        """Leave no process of a local backend behind, whatever became of the service."""
        end_local_resources(self.config.parent / "state" / f"backend.{backend}", self.factory, backend)

    @property
    def factory(self) -> str:
        found: str = tomllib.loads(self.config.read_text())["factory"]["name"]
        return found

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def live(self) -> dict[str, Resource]:
        """The resources that are not gone; none before the ledger is there. Fails when the service has ended."""
        if self._process is not None and self._process.poll() not in (None, 0, -9):
            raise AssertionError(f"the service ended by itself, status {self._process.poll()}:\n{self.log}")
        try:
            with Ledger.read(self.ledger_path) as ledger:
                return dict(ledger.resources())
        except LedgerError:
            return {}

    def ever(self) -> list[Resource]:
        with Ledger.read(self.ledger_path) as ledger:
            return ledger.everything()


def wait_until(condition: Callable[[], bool], seconds: float, what: str, tell: Callable[[], str] = str) -> None:
    """Poll until `condition` holds; fail with the story when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{tell()}")
        time.sleep(0.2)

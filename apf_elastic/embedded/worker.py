"""A worker of the embedded pool: joins, runs tasks, leaves by itself. ``python -m apf_elastic.embedded.worker``

Its settings are environment variables:

======================================== ============================================================================
ELASTIC_DIRECTORY                        where the work queue lies
ELASTIC_ID, _QUEUE, _BACKEND, _OFFERING  who it is
ELASTIC_CORES, ELASTIC_MEMORY_MB         what it has; so much in tasks runs at once
ELASTIC_IDLE_S                           leaves after so long without a task (30)
ELASTIC_LEASE_S                          leaves when its factory has not renewed the lease for so long (60)
======================================== ============================================================================

Its secret is in the file ``token`` of its working directory, which it reads and removes. It leaves when it was idle
for long enough, when it drains and runs nothing, and when the lease has run out or the work queue could not be
reached for as long; running tasks finish first. SIGTERM drains it for good. A worker that others took for dead (it
was stopped for longer than `store.DEAD_S`) ends its tasks, which run elsewhere by then, and goes.

Exits with 0, or with 1 when it could not join.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from apf_elastic.embedded.store import Claim, Orders, Refusal, Store, StoreError, Worker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

TOKEN = "token"
BEAT_S = 1.0
LOOK_S = 0.25
#: A command that does not heed SIGTERM when its task was lost is killed after so long.
KILL_S = 2.0


class Settings(NamedTuple):
    directory: str
    worker: Worker
    idle_s: float = 30.0
    lease_s: float = 60.0


class Run:
    """A task under way: a command's process, or a time at which the sleep ends."""

    def __init__(self, claim: Claim, now: float) -> None:
        self.claim = claim
        self.until = now + claim.seconds
        self.code = 0
        self.process: subprocess.Popen[bytes] | None = None
        if claim.command:
            self._start(claim.command)

    def _start(self, command: tuple[str, ...]) -> None:
        import subprocess  # only here: tasks that sleep do not need it

        environment = {name: value for name, value in os.environ.items() if not name.startswith("ELASTIC_")}
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        except (OSError, ValueError) as error:
            print(f"task {self.claim.id}: {error}", file=sys.stderr, flush=True)
            self.code, self.until = 127, 0.0

    def ended(self, now: float) -> bool:
        if self.process is None:
            return now >= self.until
        code = self.process.poll()
        self.code = code or 0
        return code is not None

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(KILL_S)
            except Exception:
                self.process.kill()
                self.process.wait()


class Loop:
    """What a joined worker does until it leaves. `now` is CLOCK_MONOTONIC throughout; `stopped` has something in it
    once the worker was told to drain for good."""

    def __init__(self, store: Store, settings: Settings, stopped: list[int]) -> None:
        self.store = store
        self.settings = settings
        self.id = settings.worker.id
        self.stopped = stopped
        self._runs: list[Run] = []
        self._ended: list[tuple[Claim, int]] = []  # not yet written
        now = time.monotonic()
        self._beat_due = now
        self._idle_from = now
        self._lease, self._lease_at = -1, now
        self._reached_at = now
        self._version = -1
        self._orders = Orders(joined=True, draining=False, lease=0)

    def run(self) -> None:
        while True:
            now = time.monotonic()
            try:
                if self._step(now):
                    return
                self._reached_at = now
            except StoreError as error:
                if not self._runs and now - self._reached_at > self.settings.lease_s:
                    print(f"leaving: {error}", file=sys.stderr, flush=True)
                    return
            time.sleep(self._pause(time.monotonic()))

    def _step(self, now: float) -> bool:
        """One look; True when it has left."""
        self._collect(now)
        if now >= self._beat_due:
            self._beat_due = now + BEAT_S
            self._version = -1  # what this worker itself gave back to the queue does not show in the version
            self._take_orders(self.store.beat(self.id), now)
        if not self._orders.joined:
            for run in self._runs:
                run.kill()
            return True
        if not self._leaving(now):
            self._claim(now)
        return not self._runs and self._leave(now)

    def _collect(self, now: float) -> None:
        """File what has ended; what could not be filed is filed later."""
        ended = [run for run in self._runs if run.ended(now)]
        self._runs = [run for run in self._runs if run not in ended]
        self._ended += [(run.claim, run.code) for run in ended]
        if self._ended:
            self.store.finish(self.id, self._ended)
            self._ended = []
            self._idle_from = now
            self._version = -1

    def _take_orders(self, orders: Orders, now: float) -> None:
        if orders.lease != self._lease:
            self._lease, self._lease_at = orders.lease, now
        if orders.draining != self._orders.draining:
            self._idle_from = now
        self._orders = orders

    def _abandoned(self, now: float) -> bool:
        return now - self._lease_at > self.settings.lease_s

    def _leaving(self, now: float) -> bool:
        return bool(self.stopped) or self._orders.draining or self._abandoned(now)

    def _claim(self, now: float) -> None:
        """Claim what fits, unless nothing was written since the last look."""
        version = self.store.version()
        if version == self._version:
            return
        worker = self.settings.worker
        cores = worker.cores - sum(run.claim.cores for run in self._runs)
        memory_mb = worker.memory_mb - sum(run.claim.memory_mb for run in self._runs)
        if cores > 0:
            self._runs += [Run(claim, now) for claim in self.store.claim(self.id, cores, memory_mb)]
        self._version = version

    def _leave(self, now: float) -> bool:
        if self.stopped or self._abandoned(now) or now - self._idle_from > self.settings.idle_s:
            return self.store.leave(self.id)
        return self._orders.draining and self.store.leave(self.id, only_if_draining=True)

    def _pause(self, now: float) -> float:
        sleeps = [run.until - now for run in self._runs if run.process is None]
        return max(0.01, min([LOOK_S, self._beat_due - now, *sleeps]))


def settings_from(environment: Mapping[str, str]) -> Settings:
    """The settings in an environment. Raises KeyError or ValueError, naming the variable."""

    def number(name: str, default: str) -> float:
        try:
            return float(environment.get(name, default))
        except ValueError:
            raise ValueError(f"{name}={environment[name]}: a number is expected") from None

    worker = Worker(
        id=environment["ELASTIC_ID"],
        queue=environment.get("ELASTIC_QUEUE", ""),
        backend=environment.get("ELASTIC_BACKEND", ""),
        offering=environment.get("ELASTIC_OFFERING", ""),
        cores=int(number("ELASTIC_CORES", "1")),
        memory_mb=int(number("ELASTIC_MEMORY_MB", "0")),
        machine=os.uname().nodename,
    )
    return Settings(
        environment["ELASTIC_DIRECTORY"], worker, number("ELASTIC_IDLE_S", "30"), number("ELASTIC_LEASE_S", "60")
    )


def take_token(path: str = TOKEN) -> bytes:
    """Read the secret and remove its file."""
    with open(path, "rb") as file:
        secret = file.read()
    os.unlink(path)
    return secret


def main() -> int:
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        settings = settings_from(os.environ)
        secret = take_token()
        store = Store(settings.directory)
        store.join(settings.worker, secret)
    except KeyError as error:
        print(f"cannot join: {error} is not set in the environment", file=sys.stderr)
        return 1
    except (OSError, ValueError, StoreError, Refusal) as error:
        print(f"cannot join: {error}", file=sys.stderr)
        return 1
    Loop(store, settings, stopped).run()
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

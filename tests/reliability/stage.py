"""A site whose source, pool and backends go wrong by script, and lanes in which calls hang without threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apf_elastic.observe import Endpoint
from apf_elastic.testing.faults import Faulty, Script
from apf_elastic.workers import HANGING, Answer, Inbox, Schedule
from tests.site import Site

TIMEOUT_S = 30.0


class Hung(BaseException):
    """Out of a call that hangs: nobody on its way up may take it for an answer."""


def hang() -> None:
    raise Hung


class ClockLane:
    """As ThreadLane, in the caller's thread and on the injected clock: a call that hangs keeps those behind it
    waiting, is given up at its deadline, and is carried out when it is released, its answer marked late."""

    def __init__(self, endpoint: str, inbox: Inbox, clock: Callable[[], float]) -> None:
        self._endpoint, self._inbox, self._clock = endpoint, inbox, clock
        self._waiting: deque[tuple[Any, Callable[[], Any], float]] = deque()
        self._stuck: tuple[Any, Callable[[], Any], float, float] | None = None
        self._given_up: list[tuple[Any, Callable[[], Any], float]] = []

    @property
    def idle(self) -> bool:
        return self._stuck is None and not self._waiting

    def call(self, tag: Any, function: Callable[[], Any], timeout_s: float) -> bool:
        if len(self._given_up) >= HANGING:
            return False
        self._waiting.append((tag, function, timeout_s))
        self._work()
        return True

    def expire(self) -> None:
        if self._stuck is None:
            return
        tag, function, timeout_s, asked_at = self._stuck
        if self._clock() - asked_at < timeout_s:
            return
        self._stuck = None
        self._given_up.append((tag, function, asked_at))
        error = f"no answer within {timeout_s:g} s"
        self._inbox.put(Answer(self._endpoint, tag, asked_at, self._clock() - asked_at, error=error, timed_out=True))
        self._work()

    def release(self) -> None:
        """What hangs goes on."""
        late, self._given_up = self._given_up, []
        for tag, function, asked_at in late:
            self._make(tag, function, asked_at, late=True)
        if self._stuck is not None:
            tag, function, _, asked_at = self._stuck
            self._stuck = None
            self._make(tag, function, asked_at, late=False)
        self._work()

    def close(self) -> None:
        pass

    def _work(self) -> None:
        while self._waiting and self._stuck is None and len(self._given_up) < HANGING:
            tag, function, timeout_s = self._waiting.popleft()
            now = self._clock()
            try:
                self._make(tag, function, now, late=False)
            except Hung:
                self._stuck = (tag, function, timeout_s, now)

    def _make(self, tag: Any, function: Callable[[], Any], asked_at: float, late: bool) -> None:
        value, error = None, ""
        try:
            value = function()
        except Exception as fault:
            error = str(fault) or type(fault).__name__
        took_s = self._clock() - asked_at
        self._inbox.put(Answer(self._endpoint, tag, asked_at, took_s, value, error, late=late))


class Stage(Site):
    """A site under faults: `scripts` has one script per plugin, by its key ("source jobs", "pool home")."""

    def __init__(self, directory: Path, **more: Any) -> None:
        self.scripts: dict[str, Script] = {}
        self.lanes: list[ClockLane] = []
        super().__init__(directory, **more)

    def start(self) -> None:
        self.lanes = []
        super().start()

    def _endpoint(self, kind: str, plugin: Any) -> Endpoint:
        key = f"{kind} {plugin.name}"
        script = self.scripts.setdefault(key, Script())
        script.hold = hang  # type: ignore[method-assign]
        watch, act = (ClockLane(key, self.inbox, self.clock) for _ in range(2))
        self.lanes += [watch, act]
        return Endpoint(kind, plugin.name, Faulty(plugin, script), watch, act, Schedule(1.0), TIMEOUT_S)

    def tick(self) -> None:
        """As in the site, and an endpoint whose last question is unanswered is not asked again."""
        for endpoint in self.cycle.observer.endpoints.values():
            if endpoint.watch.idle:
                endpoint.schedule.due = 0.0
        self.cycle.tick()
        self.cycle.file(self.inbox.take())

    def clear(self) -> None:
        """All faults go away."""
        for script in self.scripts.values():
            script.clear()
        for lane in self.lanes:
            lane.release()

    def settle(self, cycles: int = 1500) -> None:
        """Let time pass until nothing is left to do, a breaker's longest back-off and a bit at most."""
        for _ in range(cycles // 20):
            self.step(20)
            if not self.jobs and not self.leaked and not self.live:
                break

    def lose_ledger(self) -> None:
        self.stop()
        for file in self.directory.glob("ledger.sqlite*"):
            file.unlink()
        self.start()

    def _machines_come_and_go(self) -> None:
        super()._machines_come_and_go()
        for job in self.jobs:
            if job.on is not None and job.on not in self.pool.joined:
                job.on = None  # evicted, and counted: it waits again

    def remove_jobs(self, count: int) -> None:
        """Their owner removes the oldest jobs, waiting or running."""
        for job in self.jobs[:count]:
            if job.on is None:
                self.jobs.remove(job)
            else:
                job.ends_at = self.clock()

    # ------------------------------------------------------------------------------------------ what came of it

    @property
    def created(self) -> int:
        return sum(cloud.made for cloud in self.clouds.values())

    @property
    def machines(self) -> set[str]:
        return {id for cloud in self.clouds.values() for id in cloud.machines}

    @property
    def doubled(self) -> int:
        """Machines made for an id that had one already."""
        asked = {id for c in self.clouds.values() for verb, ids in c.calls if verb == "create" for id in ids}
        return max(0, self.created - len(asked))

    @property
    def leaked(self) -> int:
        """Machines nobody will remove, and records of machines that are not there."""
        return len(self.machines ^ {resource.id for resource in self.live})

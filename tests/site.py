"""A small site for tests of the cycle: jobs, fake backends whose machines join a fake pool, and an injected clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from apf_elastic.act import Actor
from apf_elastic.contracts import Context, Status
from apf_elastic.cycle import Cycle
from apf_elastic.health import Healths
from apf_elastic.ledger import Ledger
from apf_elastic.model import Demand, JobGroup, Offering, Resource, Shape, State
from apf_elastic.observe import Endpoint, Observer
from apf_elastic.settings import BackendSettings, BackendUse, QueueSettings, Retirement, Settings
from apf_elastic.testing.fakes import FakeBackend, FakeClock, FakeCloud, FakePool, FakeSource
from apf_elastic.workers import Inbox, InlineLane, Schedule

FACTORY = "f"
ONE, TWO = Shape(1, 1000), Shape(2, 2000)


@dataclass(slots=True)
class Job:
    shape: Shape
    run_s: float
    on: str | None = None
    ends_at: float = 0.0


def queue_settings(*backends: str, **more: object) -> QueueSettings:
    made = QueueSettings(
        "q",
        "jobs",
        tuple(BackendUse(name) for name in backends or ("cloud",)),
        pool="home",
        retirement=Retirement(idle_s=30, hysteresis_s=10),
    )
    return replace(made, **more)  # type: ignore[arg-type]


@dataclass
class Site:
    """One factory with everything around it. `step` lets time pass, in cycles of 5 s."""

    directory: Path
    queue: QueueSettings = field(default_factory=queue_settings)
    backends: Mapping[str, BackendSettings] = field(default_factory=lambda: {"cloud": BackendSettings("cloud")})
    offerings: tuple[Offering, ...] = (Offering("one", ONE),)
    joins: bool = True
    jobs: list[Job] = field(default_factory=list)
    done: int = 0
    evicted: int = 0

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.context = Context(FACTORY, self.directory)
        self.clouds = {name: FakeCloud(self.clock, start_s=10) for name in self.backends}
        self.pool = FakePool("home", context=self.context, clock=self.clock)
        self.source = FakeSource("jobs")
        self.path = self.directory / "ledger.sqlite"
        self.start()

    @property
    def cloud(self) -> FakeCloud:
        return next(iter(self.clouds.values()))

    # ------------------------------------------------------------------------------------------ the factory

    def start(self) -> None:
        """Start the factory on what the ledger knows."""
        self.ledger = Ledger.open(self.path, FACTORY, clock=self.clock)
        self.inbox = Inbox()
        settings = Settings(FACTORY, {"q": self.queue}, dict(self.backends))
        plugins = [("source", self.source), ("pool", self.pool)]
        plugins += [
            ("backend", FakeBackend(name, context=self.context, cloud=cloud, offerings=self.offerings))
            for name, cloud in self.clouds.items()
        ]
        endpoints = [self._endpoint(kind, plugin) for kind, plugin in plugins]
        observer = Observer(endpoints, {"jobs": ("q",)}, self.inbox, self.clock, self._leaving)
        healths = Healths(jitter=lambda: 0.5)
        self.healths = healths
        actor = Actor(self.ledger, observer, healths, settings, self.clock)
        self.cycle = Cycle(self.ledger, observer, actor, healths, settings, self.clock)

    def _endpoint(self, kind: str, plugin: object) -> Endpoint:
        key = f"{kind} {plugin.name}"  # type: ignore[attr-defined]
        watch, act = InlineLane(key, self.inbox, self.clock), InlineLane(key, self.inbox, self.clock)
        return Endpoint(kind, plugin.name, plugin, watch, act, Schedule(1.0), 30.0)  # type: ignore[attr-defined]

    def _leaving(self, key: str) -> frozenset[str]:
        return frozenset(r.id for r in self.live if r.state in (State.DRAINING, State.REMOVING))

    def stop(self) -> None:
        self.ledger.close()

    def restart(self) -> None:
        """As after a kill: only the ledger and the world outside remain."""
        self.stop()
        self.start()

    @property
    def live(self) -> list[Resource]:
        return list(self.ledger.resources().values())

    def states(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for resource in self.live:
            counts[resource.state.value] = counts.get(resource.state.value, 0) + 1
        return counts

    # ---------------------------------------------------------------------------------------- the world outside

    def submit(self, count: int, shape: Shape = ONE, run_s: float = 60.0) -> None:
        self.jobs += [Job(shape, run_s) for _ in range(count)]

    def step(self, cycles: int = 1, seconds: float = 5.0) -> None:
        """Let time pass: machines join, jobs start and end, the factory runs."""
        for _ in range(cycles):
            self.clock.advance(seconds)
            self.outside()
            self.tick()

    def tick(self) -> None:
        """Let the factory look at everything, decide, and hear what came of it."""
        self.cycle.observer.ask_all()
        self.cycle.tick()
        self.cycle.file(self.inbox.take())

    def outside(self) -> None:
        self._machines_come_and_go()
        self._jobs_end()
        self._jobs_start()
        self._tell_the_source()

    def _machines_come_and_go(self) -> None:
        running = {
            id: machine
            for cloud in self.clouds.values()
            for id, machine in cloud.machines.items()
            if cloud.status(machine) is Status.RUNNING
        }
        for id, machine in running.items():
            if self.joins and id not in self.pool.joined:
                offering = machine.request.offering
                self.pool.join(id, offering.shape, queue="q", offering=offering.name)
        for id in list(self.pool.joined):
            slot = self.pool.joined[id]
            if id in running and slot.draining and not slot.jobs:
                next(c for c in self.clouds.values() if id in c.machines).lose(id)
                running.pop(id)
            if id not in running:
                self.pool.leave(id)
                self.evicted += sum(job.on == id for job in self.jobs)

    def _jobs_end(self) -> None:
        ended = [job for job in self.jobs if job.on and job.ends_at <= self.clock()]
        for job in ended:
            assert job.on is not None
            slot = self.pool.joined[job.on]
            free = replace(
                slot.free, cores=slot.free.cores + job.shape.cores, memory_mb=slot.free.memory_mb + job.shape.memory_mb
            )
            self.pool.joined[job.on] = replace(slot, free=free)
            self.pool.work(job.on, slot.jobs - 1)
            self.jobs.remove(job)
        self.done += len(ended)

    def _jobs_start(self) -> None:
        for job in (job for job in self.jobs if job.on is None):
            for id, slot in self.pool.joined.items():
                fits = slot.free.cores >= job.shape.cores and slot.free.memory_mb >= job.shape.memory_mb
                if fits and not slot.draining:
                    free = replace(
                        slot.free,
                        cores=slot.free.cores - job.shape.cores,
                        memory_mb=slot.free.memory_mb - job.shape.memory_mb,
                    )
                    self.pool.joined[id] = replace(slot, free=free)
                    self.pool.work(id, slot.jobs + 1)
                    job.on, job.ends_at = id, self.clock() + job.run_s
                    break

    def _tell_the_source(self) -> None:
        shapes: dict[Shape, list[int]] = {}
        for job in self.jobs:
            counts = shapes.setdefault(job.shape, [0, 0])
            counts[1 if job.on else 0] += 1
        self.source.demands["q"] = Demand(tuple(JobGroup(s, w, r) for s, (w, r) in sorted(shapes.items())))

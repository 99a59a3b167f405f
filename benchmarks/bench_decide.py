"""decide: CPU seconds at 1,000 queues with up to 100,000 resources and 1,000,000 waiting jobs; bytes per resource."""

from __future__ import annotations

import time
import tracemalloc

from rich.console import Console
from rich.table import Table

from apf_elastic.decide import decide
from apf_elastic.model import (
    BackendView,
    Demand,
    JobGroup,
    Offering,
    Resource,
    Seen,
    Shape,
    Slot,
    State,
    World,
)
from apf_elastic.settings import BackendSettings, BackendUse, QueueSettings, Retirement, Settings

NOW = 1_700_000_000.0
QUEUES = 1_000
JOBS = 1_000_000
SHAPES = [
    Shape(cores, cores * memory, walltime_s=hours * 3600)
    for cores in (1, 2, 4, 8)
    for memory in range(500, 3000, 100)
    for hours in (2, 6, 12, 24, 48)
]
OFFERINGS = (
    Offering("small", Shape(1, 3_000, walltime_s=172_800)),
    Offering("medium", Shape(4, 12_000, walltime_s=172_800)),
    Offering("large", Shape(8, 24_000, walltime_s=172_800)),
)
GROUPS = 8
#: Of ten resources so many are in each state.
STATES = (State.PENDING, State.STARTING, *[State.READY] * 7, State.DRAINING)


def settings() -> Settings:
    """Queues of two backends each."""
    backends = {f"b{at}": BackendSettings(f"b{at}") for at in range(20)}
    queues = {
        f"q{at}": QueueSettings(
            f"q{at}",
            "jobs",
            (BackendUse(f"b{at % 20}"), BackendUse(f"b{(at + 7) % 20}")),
            pool="home",
            retirement=Retirement(idle_s=300),
        )
        for at in range(QUEUES)
    }
    return Settings("bench", queues, backends)


def resource(number: int) -> Resource:
    """One of many: every tenth pending, most busy, some idle, all with their own remaining life."""
    queue, turn = number % QUEUES, number // QUEUES
    offering = OFFERINGS[turn % 3]
    state = STATES[turn % 10]
    joined = NOW - 600 - number % 90_000 if state in (State.READY, State.DRAINING) else None
    slot = None
    if joined is not None:
        idle = turn % 10 == 8
        cores = offering.shape.cores if idle else turn % 2 and offering.shape.cores // 2
        free = Shape(cores, cores * 3_000, walltime_s=172_800 - int(NOW - joined))
        slot = Slot(f"r{number}", free, 0 if idle else 1, NOW - number % 600 if idle else None)
    return Resource(
        id=f"r{number}",
        queue=f"q{queue}",
        backend=f"b{queue % 20}",
        offering=offering.name,
        shape=offering.shape,
        state=state,
        created_at=NOW - 1000 - number,
        changed_at=NOW - 600,
        remote_id=str(number),
        pool="home",
        joined_at=joined,
        slot=slot,
    )


def world(resources: list[Resource]) -> World:
    """1,000,000 waiting jobs in 500 shapes over all queues."""
    per_group = JOBS // (QUEUES * GROUPS)
    demand = {
        f"q{at}": Seen(
            Demand(
                tuple(
                    JobGroup(SHAPES[(at * 7 + turn * 61) % len(SHAPES)], per_group, running=10)
                    for turn in range(GROUPS)
                )
            ),
            NOW,
        )
        for at in range(QUEUES)
    }
    views = {f"b{at}": BackendView(Seen(OFFERINGS, NOW), Seen(None, NOW)) for at in range(20)}
    return World(NOW, demand, views, {"home": Seen(None, NOW)}, resources)


def measure(count: int) -> tuple[float, int, int]:
    """CPU seconds of the best of three, and how many creates and retirements came of it."""
    it, configured = world([resource(number) for number in range(count)]), settings()
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        plan = decide(it, configured)
        best = min(best, time.process_time() - start)
    return best, sum(create.count for create in plan.creates), len(plan.retirements)


def bytes_per_resource(count: int = 10_000) -> float:
    """What one Resource with its slot keeps in memory."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [resource(number) for number in range(count)]
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / len(kept)


def main() -> None:
    """Print the table."""
    table = Table(title=f"decide: {QUEUES} queues, {JOBS} waiting jobs in {len(SHAPES)} shapes")
    for name in ("resources", "CPU s", "share of linear growth", "creates", "retirements"):
        table.add_column(name, justify="right")
    first = 0.0
    for count in (10_000, 30_000, 100_000):
        seconds, creates, retirements = measure(count)
        each = seconds / count
        first = first or each
        table.add_row(f"{count}", f"{seconds:.3f}", f"{each / first:.2f}", f"{creates}", f"{retirements}")
    console = Console()
    console.print(table)
    console.print(f"{bytes_per_resource():.0f} bytes are kept per Resource with its slot (tracemalloc)")


if __name__ == "__main__":
    main()

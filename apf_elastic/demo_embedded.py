"""The show without any server: the embedded work queue, and processes of this machine as the resources."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from apf_elastic.demo import Progress
from apf_elastic.embedded.store import Record, Store, Task

CONFIG = """\
[factory]
name = "demo"
state_dir = "{base}/state"
cycle = "1 s"

[sources.work]
type = "embedded"
directory = "{base}/work"
every = "0.5 s"

[pools.work]
type = "embedded"
directory = "{base}/work"
every = "0.5 s"
idle = "20 s"

[backends.here]
type = "local"
every = "0.5 s"
[backends.here.offerings.small]
cores = 1
memory = "500 MB"
limit = 6
[backends.here.offerings.large]
cores = 2
memory = "1 GB"
limit = 3

[queues.demo]
source = "work"
pool = "work"
backends = ["here"]
[queues.demo.retirement]
idle = "1 s"
hysteresis = "2 s"
"""
#: The tasks sleep, so a machine of two cores may offer twelve.
SECONDS = (1.0, 1.5, 2.0, 2.5)


def core_seconds(task: Record) -> float:
    """What a task has used: cores times seconds; nothing while it runs."""
    if task.started_at is None or task.ended_at is None:
        return 0.0
    return task.cores * (task.ended_at - task.started_at)


class EmbeddedShow:
    """Tasks of two shapes in an embedded queue."""

    what = "tasks"

    def __init__(self, base: Path, tasks: int) -> None:
        self._work = base / "work"
        self._tasks = tasks
        self._base = base
        self.config = base / "apf-elastic.toml"
        self.ledger = base / "state" / "ledger.sqlite"
        self.log = base / "service.log"

    def open(self, console: Console) -> None:
        self.config.write_text(CONFIG.format(base=self._base))
        self._work.mkdir()
        with Store(self._work, create=True) as store:
            store.submit(
                Task("demo", cores=2 if i % 3 == 2 else 1, memory_mb=200, seconds=SECONDS[i % len(SECONDS)])
                for i in range(self._tasks)
            )
        console.print(f"{self._tasks} tasks of two shapes wait in an embedded queue", style="dim")

    def progress(self) -> Progress:
        with Store(self._work) as store:
            tasks = store.tasks()
        return Progress(
            total=len(tasks),
            done=sum(t.state == "done" for t in tasks),
            failed=sum(t.state == "failed" for t in tasks),
            core_seconds=sum(core_seconds(t) for t in tasks),
            waits_s=[t.started_at - t.submitted_at for t in tasks if t.started_at is not None],
        )

    def environment(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass

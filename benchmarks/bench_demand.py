"""What one look at a long HTCondor queue costs: grouped by the schedd, as the source asks, or every job
fetched: with the attributes that are needed, and whole.

A private pool gets 20,000 idle jobs of 24 shapes. Each way runs in a process of its own, three times, and reports
its best time and its peak memory (resident, bindings included)::

    python benchmarks/bench_demand.py [JOBS]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

JOBS = 20_000
LOOKS = 3
SHAPES = [(cores, memory) for cores in (1, 2, 4, 8) for memory in (512, 1024, 2048, 4096, 8192, 16384)]
ATTRIBUTES = ["RequestCpus", "RequestMemory", "RequestDisk", "RequestGPUs", "JobStatus", "Owner"]


def main() -> None:
    """Start the pool, fill it, measure all ways, print the table."""
    jobs = next((int(word) for word in sys.argv[1:] if word.isdigit()), JOBS)
    console = Console()
    with queue_of(jobs) as where:
        rows = {name: _measured(name, where) for name in WAYS}
    least = next(iter(rows.values()))
    table = Table(
        "way", "time", "ratio", "memory", "ratio", "answer", title=f"{jobs} idle jobs of {len(SHAPES)} shapes"
    )
    for name, row in rows.items():
        ratios = [f"{row[what] / least[what]:.1f} x" for what in ("seconds", "mb")]
        answer = f"{row['rows']} rows, {row['jobs']} jobs"
        table.add_row(name, f"{row['seconds']:.3f} s", ratios[0], f"{row['mb']:.0f} MB", ratios[1], answer)
    console.print(table)
    assert {row["jobs"] for row in rows.values()} == {jobs}, "the ways disagree"


@contextmanager
def queue_of(jobs: int) -> Iterator[dict[str, str]]:
    """A schedd with so many jobs that nobody runs; how to reach it."""
    from apf_elastic.testing.htcondor_pool import SERVICE_DAEMONS, PrivatePool

    limits = "MAX_JOBS_PER_SUBMISSION = 1000000\nMAX_JOBS_PER_OWNER = 2000000\nMAX_JOBS_SUBMITTED = 2000000\n"
    with tempfile.TemporaryDirectory(prefix="apf-bench-") as base:
        os.chmod(base, 0o755)
        pool = PrivatePool("bench", directory=Path(base) / "pool", daemons=SERVICE_DAEMONS, extra=limits)
        with pool as started:
            lines = "executable = /bin/sleep\ntransfer_executable = false\nrequest_disk = 1GB\n"
            share, rest = divmod(jobs, len(SHAPES))
            for number, (cores, memory) in enumerate(SHAPES):
                count = share + (number < rest)
                lines += f"request_cpus = {cores}\nrequest_memory = {memory}\nqueue {count}\n"
            started.tool("condor_submit", "-", identity="user", text_input=lines, timeout_s=600)
            yield {
                "collector": started.collector,
                "schedd": started.schedd_name,
                "config": str(started.client_config),
                "token_dir": str(started.token_dir("apf")),
            }


def _measured(way: str, where: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, json.dumps(where)]
    environment = {**os.environ, "CONDOR_CONFIG": where["config"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _grouped(where: dict[str, str]) -> Callable[[], tuple[int, int]]:
    from apf_elastic.contracts import Context, Selection
    from apf_elastic.sources.htcondor import HTCondorSource, HTCondorSourceOptions

    options = HTCondorSourceOptions(
        collector=where["collector"],
        schedds=(where["schedd"],),
        config=Path(where["config"]),
        token_dir=Path(where["token_dir"]),
        timeout_s=300,
    )
    source = HTCondorSource("bench", options, Context("bench", Path("/nonexistent")), {"all": Selection()})

    def look() -> tuple[int, int]:
        demand = source.demand()["all"]
        return len(demand.groups), demand.waiting

    return look


def _six_attributes(where: dict[str, str]) -> Callable[[], tuple[int, int]]:
    return _every_job(where, ATTRIBUTES)


def _whole_ads(where: dict[str, str]) -> Callable[[], tuple[int, int]]:
    return _every_job(where, [])


def _every_job(where: dict[str, str], projection: list[str]) -> Callable[[], tuple[int, int]]:
    os.environ["_CONDOR_SEC_TOKEN_DIRECTORY"] = where["token_dir"]
    os.environ["_CONDOR_SEC_TOKEN_SYSTEM_DIRECTORY"] = where["token_dir"]
    import htcondor2

    htcondor2.param["Q_QUERY_TIMEOUT"] = "300"

    def look() -> tuple[int, int]:
        found = htcondor2.Collector(where["collector"]).locate(htcondor2.DaemonType.Schedd, where["schedd"])
        jobs = htcondor2.Schedd(found).query("JobStatus == 1", projection)
        shapes = Counter(tuple(str(job.eval(name)) for name in ATTRIBUTES if name in job) for job in jobs)
        return len(jobs), sum(shapes.values())

    return look


WAYS = {
    "grouped, as the source asks": _grouped,
    "every job, six attributes": _six_attributes,
    "every job, whole": _whole_ads,
}


def run_way(way: str, where: dict[str, str]) -> None:
    """In the child process: measure one way and print it as JSON."""
    look = WAYS[way](where)
    times = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        rows, jobs = look()
        times.append(time.perf_counter() - began)
    print(json.dumps({"seconds": min(times), "rows": rows, "jobs": jobs, "mb": _peak_mb()}))


def _peak_mb() -> float:
    """Peak of this process and of its helper, which still runs, together; getrusage would count our parent's too."""
    own = str(os.getpid())
    pids = [own, *Path(f"/proc/self/task/{own}/children").read_text().split()]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        run_way(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()

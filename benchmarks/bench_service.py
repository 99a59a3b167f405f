"""The service as it is delivered, at default settings, on a real HTCondor pool: how soon a new job is answered, and
what a thousand resources in steady state cost.

Latency: a job is submitted to a queue that was empty; measured from the return of condor_submit to the intention in
the ledger, and to the answer of the create call (a submitted pilot).

Steady state: a thousand pilots in a schedd, all joined and busy in the collector (2,000 slot ads, advertised anew
every two minutes as glideins do it), a thousand jobs waiting that no limit lets through. CPU is user and system time
of the service and of all its children, from /proc::

    python benchmarks/bench_service.py [latency] [steady] [RESOURCES]
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apf_elastic.ledger import Ledger, LedgerError, Reader
from apf_elastic.model import Resource, State
from apf_elastic.testing.htcondor_pool import SERVICE_DAEMONS, PrivatePool

TRIALS = 5
RESOURCES = 1_000
WALLTIME_S = 172_800
SETTLE_S = 30.0
MEASURE_S = 120.0
ADVERTISE_S = 120.0

#: From the issue: "TARDIS 0.9 needs 90 s and more, APF six minutes", and TARDIS' 0.83 CPU seconds per minute.
LATENCY_OF_OTHERS_S = {"TARDIS 0.9 (quoted)": 90.0, "AutoPyFactory (quoted)": 360.0}
TARDIS_CPU_S_PER_MINUTE = 0.83

CONFIG = """\
[factory]
name = "bench"
state_dir = "{base}/state"

[sources.jobs]
type = "htcondor"
collector = "{collector}"
schedds = ["{schedd}"]
config = "{config}"
token_dir = "{token_dir}"

[pools.home]
type = "htcondor"
collector = "{collector}"
config = "{config}"
token_dir = "{token_dir}"
bin_dir = "{bin}"
domain = "apf.test"
identity = "glidein"

[backends.batch]
type = "htcondor"
collector = "{collector}"
schedd = "{schedd}"
config = "{config}"
token_dir = "{token_dir}"
reader = "{reader}"
spool_dir = "{base}/spool"
[backends.batch.offerings.mcore]
cores = 8
memory = "16 GB"
walltime = "2 d"
limit = {limit}
"""
QUEUE = """
[queues.q{at}]
source = "jobs"
select = "ApfBench == {at}"
pool = "home"
backends = ["batch"]
"""
SUBMIT = """\
executable = /bin/sleep
arguments = 600
transfer_executable = false
request_cpus = 8
request_memory = 1024
request_disk = 1024
+ApfBench = {at}
queue {count}
"""


def main() -> None:
    """Print what was asked for, by default both tables."""
    words = sys.argv[1:]
    resources = next((int(word) for word in words if word.isdigit()), RESOURCES)
    chosen = [word for word in words if word in ("latency", "steady")] or ["latency", "steady"]
    console = Console()
    if "latency" in chosen:
        console.print(latency_table(measure_latency()))
    if "steady" in chosen:
        console.print(steady_table(resources, *measure_steady(resources)))


# ------------------------------------------------------------------------------------------------- the service


class Bench:
    """A private pool without a startd, and the service on it."""

    def __init__(self, base: Path, pool: PrivatePool, queues: int, limit: int) -> None:
        self.base, self.pool = base, pool
        self.ledger = base / "state" / "ledger.sqlite"
        self.log = base / "service.log"
        self._config = base / "apf-elastic.toml"
        (base / "spool").mkdir(mode=0o755)
        text = CONFIG.format(
            base=base,
            limit=limit,
            collector=pool.collector,
            schedd=pool.schedd_name,
            config=pool.client_config,
            token_dir=pool.token_dir("apf"),
            bin=pool.installation.bin,
            reader="" if os.geteuid() else "nobody",
        )
        self._config.write_text(text + "".join(QUEUE.format(at=at) for at in range(queues)))

    @contextmanager
    def service(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "apf_elastic.cli", "run", "--config", str(self._config)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def submit(self, at: int, count: int) -> float:
        """Jobs for a queue; returns when condor_submit did."""
        self.pool.tool("condor_submit", "-", identity="user", text_input=SUBMIT.format(at=at, count=count))
        return time.time()

    def wait(self, condition: Callable[[Reader], bool], seconds: float, what: str, pause_s: float = 0.01) -> float:
        """Returns the time at which the ledger first showed it."""
        deadline = time.monotonic() + seconds
        reader: Reader | None = None
        try:
            while time.monotonic() < deadline:
                reader = reader or self._reader()
                if reader is not None and condition(reader):
                    return time.time()
                time.sleep(pause_s)
        finally:
            if reader is not None:
                reader.close()
        raise SystemExit(f"not within {seconds:.0f} s: {what}\n{self.log.read_text()[-4000:]}")

    def _reader(self) -> Reader | None:
        try:
            return Ledger.read(self.ledger)
        except LedgerError:
            return None  # the service is still starting


@contextmanager
def bench(queues: int, limit: int, daemons: Sequence[str] = SERVICE_DAEMONS) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="apf-bench-") as base:
        os.chmod(base, 0o755)
        with PrivatePool("bench", directory=Path(base) / "pool", daemons=daemons) as pool:
            yield Bench(Path(base), pool, queues, limit)


def knows_all(reader: Reader, queues: int) -> bool:
    """Whether the service has seen every endpoint and every queue."""
    found = reader.last_snapshot()
    if found is None:
        return False
    seen = [queue["demand"] is not None for queue in found[1]["queues"].values()]
    return len(seen) == queues and all(seen) and not any(e["error"] for e in found[1]["endpoints"])


# ------------------------------------------------------------------------------------------------------ latency


def measure_latency() -> list[tuple[float, float]]:
    """Seconds to the intention and to the answer of its create call, per trial."""
    with bench(queues=TRIALS, limit=RESOURCES) as site, site.service():
        site.wait(lambda reader: knows_all(reader, TRIALS), 60, "the service knows everything")
        return [_trial(site, at) for at in range(TRIALS)]


def _trial(site: Bench, at: int) -> tuple[float, float]:
    time.sleep(random.uniform(5.0, 10.0))  # so that trials meet the service's polls at any moment
    submitted = site.submit(at, 1)
    intended = site.wait(lambda reader: bool(_of(reader, at)), 120, "an intention")
    answered = site.wait(
        lambda reader: any(r.state is not State.INTENDED for r in _of(reader, at)), 120, "an answered create"
    )
    return intended - submitted, answered - submitted


def _of(reader: Reader, at: int) -> list[Resource]:
    return [r for r in reader.resources().values() if r.queue == f"q{at}"]


def latency_table(trials: Sequence[tuple[float, float]]) -> Table:
    table = Table(
        "from condor_submit to", "min", "median", "max", title=f"A new job, {len(trials)} trials, default settings"
    )
    for name, times in zip(("the intention", "the pilot is submitted"), zip(*trials, strict=True), strict=True):
        table.add_row(name, *(f"{f(times):.2f} s" for f in (min, statistics.median, max)))
    for name, seconds in LATENCY_OF_OTHERS_S.items():
        table.add_row(name, "", f"{seconds:.0f} s", "")
    return table


# ------------------------------------------------------------------------------------------------------- steady


def measure_steady(resources: int) -> tuple[float, Mapping[str, float]]:
    """CPU seconds per minute of the service and its children, and each process' part in it."""
    # Without a negotiator nobody tries to match the jobs with the machines that are only advertised.
    daemons = [daemon for daemon in SERVICE_DAEMONS if daemon != "NEGOTIATOR"]
    with bench(queues=1, limit=resources, daemons=daemons) as site:
        site.submit(0, 2 * resources)
        with site.service() as service:
            site.wait(lambda r: _count(r, State.PENDING) == resources, 600, f"{resources} pilots in the schedd", 1.0)
            with Ledger.read(site.ledger) as reader:
                ids = sorted(reader.resources())
            advertise(site.pool, ids)
            site.wait(lambda r: _count(r, State.READY) == resources, 120, "all have joined", 1.0)
            return _measured(site, ids, service)


def _count(reader: Reader, state: State) -> int:
    return sum(resource.state is state for resource in reader.resources().values())


def _measured(site: Bench, ids: Sequence[str], service: subprocess.Popen[bytes]) -> tuple[float, dict[str, float]]:
    time.sleep(SETTLE_S)
    before, began = cpu_s(service.pid), time.monotonic()
    advertised = 0.0
    while (passed := time.monotonic() - began) < MEASURE_S:
        if passed - advertised >= ADVERTISE_S / 2:
            advertised = passed
            advertise(site.pool, ids)
        time.sleep(1.0)
    after, minutes = cpu_s(service.pid), (time.monotonic() - began) / 60
    with Ledger.read(site.ledger) as reader:
        assert _count(reader, State.READY) == len(ids), "it was not a steady state"
        found = reader.last_snapshot()
        assert found is not None
        assert not any(e["error"] for e in found[1]["endpoints"]), found
    parts = {name: (seconds - before.get(name, 0.0)) / minutes for name, seconds in after.items()}
    return sum(parts.values()), parts


def cpu_s(pid: int) -> dict[str, float]:
    """User and system seconds of a process and of everything below it, those that have ended included."""
    tick = os.sysconf("SC_CLK_TCK")
    parts, todo = {}, [(pid, "the service")]
    while todo:
        one, name = todo.pop()
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        parts[name] = sum(int(fields[at]) for at in (11, 12, 13, 14)) / tick
        children = Path(f"/proc/{one}/task").glob("*/children")
        todo += [(int(child), f"helper, pid {child}") for file in children for child in file.read_text().split()]
    return parts


def advertise(pool: PrivatePool, ids: Sequence[str]) -> None:
    """A glidein for each id: its partitionable slot, all claimed, and the dynamic slot that its job has."""
    now = int(time.time())
    ads = "\n".join(ad for id in ids for ad in _slot_ads(id, now))
    pool.tool("condor_advertise", "-multiple", "UPDATE_STARTD_AD", "-", identity="glidein", text_input=ads)


def _slot_ads(id: str, now: int) -> tuple[str, str]:
    common = {
        "MyType": "Machine",
        "Machine": f"{id}.apf.test",
        "MyAddress": "<127.0.0.1:9>",
        "MyCurrentTime": now,
        "DaemonStartTime": now - 3600,
        "ClassAdLifetime": 900,
        "Draining": False,
        "ApfElasticId": id,
        "ApfElasticFactory": "bench",
        "ApfElasticQueue": "q0",
        "ApfElasticBackend": "batch",
        "ApfElasticOffering": "mcore",
        "ApfElasticEnds": now // 10 * 10 + WALLTIME_S,
        "EnteredCurrentState": now - 3600,
    }
    root = {
        "Name": f"slot1@{id}",
        "SlotType": "Partitionable",
        "State": "Unclaimed",
        "Activity": "Idle",
        "Cpus": 0,
        "Memory": 15_000,
        "Disk": 1_000_000,
        "NumDynamicSlots": 1,
        "NumDynamicSlotsTime": now - 3500,
    }
    child = {
        "Name": f"slot1_1@{id}",
        "SlotType": "Dynamic",
        "State": "Claimed",
        "Activity": "Busy",
        "Cpus": 8,
        "Memory": 1_024,
        "Disk": 1_024,
    }
    return _text(common | root, f'ChildName = {{ "slot1_1@{id}" }}\n'), _text(common | child)


def _text(ad: Mapping[str, object], more: str = "") -> str:
    def value(it: object) -> str:
        return str(it).lower() if isinstance(it, bool) else str(it) if isinstance(it, int) else f'"{it}"'

    return "".join(f"{name} = {value(it)}\n" for name, it in ad.items()) + more


def steady_table(resources: int, cpu_s_per_minute: float, parts: Mapping[str, float]) -> Table:
    title = f"{resources} busy resources, {resources} waiting jobs"
    caption = f"default settings, {MEASURE_S:.0f} s; one helper each for source, pool and backend"
    table = Table("CPU", "seconds per minute", "of a core", title=title, caption=caption)
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        table.add_row(f"  {name}", f"{seconds:.2f}", f"{seconds / 0.6:.2f} %")
    table.add_row("apf-elastic, all together", f"{cpu_s_per_minute:.2f}", f"{cpu_s_per_minute / 0.6:.2f} %")
    table.add_row("TARDIS (quoted)", f"{TARDIS_CPU_S_PER_MINUTE:.2f}", f"{TARDIS_CPU_S_PER_MINUTE / 0.6:.2f} %")
    return table


if __name__ == "__main__":
    main()

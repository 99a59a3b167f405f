"""The main job on real HTCondor pools: idle jobs become glideins on two backends, and everything is given back."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from apf_elastic.testing.htcondor_install import Installation
from apf_elastic.testing.htcondor_pool import SERVICE_DAEMONS, PrivatePool
from tests.real.service import ServiceProcess, wait_until

pytestmark = pytest.mark.real

CONFIG = """
[factory]
name = "burst"
state_dir = "{base}/state"
cycle = "2 s"

[sources.queue]
type = "htcondor"
collector = "{collector}"
schedds = ["{schedd}"]
config = "{config}"
token_dir = "{token_dir}"
every = "1 s"

[pools.home]
type = "htcondor"
collector = "{collector}"
config = "{config}"
token_dir = "{token_dir}"
bin_dir = "{bin}"
domain = "apf.test"
node_condor = "{prefix}"
network = "127.0.0.1"
overcommit = true
idle = "60 s"
lease = "10 min"
update = "5 s"
every = "2 s"

[backends.here]
type = "local"
every = "2 s"
[backends.here.offerings.two]
cores = 2
memory = "1 GB"
limit = 3

[backends.ce]
type = "htcondor"
collector = "{collector}"
schedd = "{schedd}"
config = "{config}"
token_dir = "{token_dir}"
grid_resource = "condor {ce_schedd} {ce_collector}"
reader = "{reader}"
spool_dir = "{base}/spool"
every = "2 s"
[backends.ce.offerings.four]
cores = 4
memory = "2 GB"
disk = "100 MB"
limit = 3

[queues.analysis]
source = "queue"
pool = "home"
backends = ["here", "ce"]
[queues.analysis.retirement]
idle = "5 s"
hysteresis = "5 s"
"""

SUBMIT = """
universe = vanilla
executable = /bin/sleep
transfer_executable = false
arguments = {seconds}
request_memory = 100
request_disk = 1024
log = {work}/jobs.log
request_cpus = 1
queue {ones}
request_cpus = 2
queue {twos}
"""


@pytest.fixture
def home(condor: Installation) -> Iterator[PrivatePool]:
    with PrivatePool("home", installation=condor, daemons=SERVICE_DAEMONS) as started:
        yield started


@pytest.fixture
def ce(condor: Installation, home: PrivatePool) -> Iterator[PrivatePool]:
    """A second pool that plays the CE; it offers more cores than the machine has, the jobs only sleep."""
    with PrivatePool("ce", installation=condor, cores=12, memory_mb=8192) as started:
        home.trust(started)
        yield started


@pytest.fixture
def service(home: PrivatePool, ce: PrivatePool, pool_base: Path, condor: Installation) -> Iterator[ServiceProcess]:
    base = pool_base / f"service-{home.collector.rpartition(':')[2]}"
    base.mkdir()
    (base / "spool").mkdir(mode=0o755)
    base.chmod(0o755)
    config = base / "apf-elastic.toml"
    config.write_text(
        CONFIG.format(
            base=base,
            collector=home.collector,
            schedd=home.schedd_name,
            config=home.client_config,
            token_dir=home.token_dir("apf"),
            bin=condor.bin,
            prefix=condor.bin.parent,
            ce_schedd=ce.schedd_name,
            ce_collector=ce.collector,
            reader=reader(),
        )
    )
    made = ServiceProcess(config)
    yield made
    made.end()
    made.remove_local("here")


def reader() -> str:
    """The user as whom a private pool runs jobs: nobody when the tests run as root, else the same user."""
    import os

    return "nobody" if os.geteuid() == 0 else ""


def submit(pool: PrivatePool, ones: int, twos: int, seconds: int) -> None:
    text = SUBMIT.format(work=pool.work_dir, ones=ones, twos=twos, seconds=seconds)
    pool.tool("condor_submit", "-", identity="user", text_input=text)


def queued(pool: PrivatePool) -> list[dict[str, object]]:
    said = pool.tool("condor_q", "-allusers", "-json", "-attributes", "ClusterId,ProcId,JobStatus,ApfElasticId").stdout
    return json.loads(said or "[]")  # type: ignore[no-any-return]


def history(pool: PrivatePool, attributes: str) -> list[dict[str, object]]:
    said = pool.tool("condor_history", "-json", "-attributes", attributes, identity="user").stdout
    return json.loads(said or "[]")  # type: ignore[no-any-return]


def tasks_left(pool: PrivatePool) -> int:
    return sum("ApfElasticId" not in job for job in queued(pool))


def test_two_hundred_jobs_of_two_shapes_are_served_by_both_backends_and_nothing_is_left(
    home: PrivatePool, ce: PrivatePool, service: ServiceProcess
) -> None:
    submit(home, ones=140, twos=60, seconds=5)
    service.start()
    wait_until(lambda: tasks_left(home) == 0, 240, "all jobs leave the queue", lambda: service.log)
    wait_until(lambda: service.live() == {}, 120, "every resource is given back", lambda: str(service.live()))
    wait_until(lambda: not queued(home) and not queued(ce), 120, "both schedds are empty", lambda: str(queued(home)))
    assert service.stop() == 0
    jobs = [
        job
        for job in history(home, "ExitCode,NumJobStarts,ApfElasticId")
        if "ApfElasticId" not in job and "ExitCode" in job
    ]
    assert len(jobs) == 200
    assert {job["ExitCode"] for job in jobs} == {0}
    assert {job["NumJobStarts"] for job in jobs} == {1}
    served = Counter(resource.backend for resource in service.ever() if resource.joined_at)
    assert set(served) == {"here", "ce"}
    assert home.tool("condor_status", "-af", "Name").stdout.split() == []


def test_a_kill_at_any_moment_of_a_burst_loses_and_doubles_nothing(
    home: PrivatePool, ce: PrivatePool, service: ServiceProcess
) -> None:
    submit(home, ones=40, twos=20, seconds=5)
    for delay in (0.3, 0.8, 1.5, 3.0, 6.0):
        service.start()
        wait_until(lambda: "factory burst" in service.log, 30, "the service starts")
        pause(delay)
        service.kill()
    service.start()
    wait_until(lambda: tasks_left(home) == 0, 240, "all jobs leave the queue", lambda: service.log)
    wait_until(lambda: service.live() == {}, 120, "every resource is given back", lambda: str(service.live()))
    wait_until(lambda: not queued(home) and not queued(ce), 120, "both schedds are empty", lambda: str(queued(home)))
    assert service.stop() == 0
    ids = [str(job["ApfElasticId"]) for job in history(home, "ApfElasticId") if "ApfElasticId" in job]
    assert len(ids) == len(set(ids)), "a resource was submitted twice"
    assert set(ids) <= {resource.id for resource in service.ever()}, "a pilot that the ledger does not know"
    starts = [
        job
        for job in history(home, "ExitCode,NumJobStarts,ApfElasticId")
        if "ApfElasticId" not in job and "ExitCode" in job
    ]
    assert (len(starts), {job["NumJobStarts"] for job in starts}) == (60, {1})


def pause(seconds: float) -> None:
    """The moment of the kill is the subject of the test, so time itself must pass."""
    import time

    time.sleep(seconds)


def test_the_commands_tell_what_the_service_does(home: PrivatePool, ce: PrivatePool, service: ServiceProcess) -> None:
    submit(home, ones=4, twos=2, seconds=20)
    checked = service.ask("check", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    planned = json.loads(service.ask("plan", "--json").stdout)
    assert planned["queues"]["analysis"]["actions"]
    assert not service.ledger_path.exists() or service.live() == {}
    service.start()
    wait_until(lambda: any(r.busy for r in slots(service)), 60, "a job runs", lambda: service.log)
    status = json.loads(service.ask("status", "--json").stdout)
    assert status["queues"]["analysis"]["demand"]["running"] >= 1
    told = service.ask("explain", "analysis").stdout
    assert re.search(r"\d+ jobs of .* wait: ", told), told
    assert service.stop() == 0


def slots(service: ServiceProcess) -> list[object]:
    status = service.ask("status", "--json")
    if status.returncode:
        return []
    backends = [e for e in json.loads(status.stdout)["endpoints"] if e["kind"] == "backend"]
    return [type("R", (), {"busy": True}) for e in backends if e["resources"].get("busy")]

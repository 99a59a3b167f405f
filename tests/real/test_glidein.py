"""Glideins in a real pool: they join with the least token, run jobs, drain, come back from draining, and leave."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from apf_elastic.glidein import BROKEN_NODE, DONE, LEASE_NAME, NOT_JOINED, START_SCRIPT, STOPPED
from apf_elastic.testing.htcondor_install import Installation
from apf_elastic.testing.htcondor_pool import DOMAIN, GLIDEIN_AUTHZ, PrivatePool

pytestmark = pytest.mark.real


def eventually(condition: Callable[[], object], within_s: float, what: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s\n{what()}"
        time.sleep(0.1)


class Glidein:
    """One run of start.sh, and what the pool says of it."""

    def __init__(self, pool: PrivatePool, base: Path, name: str) -> None:
        self.pool = pool
        self.id = name
        self.base = base
        self.work = base / "work"
        self.work.mkdir()
        self.work.chmod(0o755)
        self.token = base / "token"
        self.write_token(pool.token(f"glidein-{name}", authz=GLIDEIN_AUTHZ, lifetime_s=3600))
        self.user: int | None = None
        self.process: subprocess.Popen[str]
        self.settings = {
            "PATH": os.defpath,
            "GLIDEIN_ID": name,
            "GLIDEIN_FACTORY": f"factory-{name}",
            "GLIDEIN_QUEUE": "queue",
            "GLIDEIN_BACKEND": "local",
            "GLIDEIN_OFFERING": "small",
            "GLIDEIN_COLLECTOR": pool.collector,
            "GLIDEIN_TOKEN": str(self.token),
            "GLIDEIN_CORES": "2",
            "GLIDEIN_MEMORY_MB": "600",
            "GLIDEIN_DISK_MB": "100",
            "GLIDEIN_OVERCOMMIT": "1",
            "GLIDEIN_CONDOR": str(pool.installation.prefix),
            "GLIDEIN_WORK": str(self.work),
            "GLIDEIN_NETWORK": "127.0.0.1",
            "GLIDEIN_DOMAIN": DOMAIN,
            "GLIDEIN_UPDATE_S": "5",
            "GLIDEIN_IDLE_S": "600",
            "GLIDEIN_HOLD_S": "0",
        }

    def write_token(self, text: str) -> None:
        self.token.write_text(text + "\n")
        self.token.chmod(0o600)

    def belongs_to(self, user: str) -> None:
        """Let this ordinary user run it; only for root."""
        self.user = pwd.getpwnam(user).pw_uid
        for path in (self.base, self.work, self.token):
            os.chown(path, self.user, -1)

    def start(self, **settings: str) -> Glidein:
        with (self.base / "log").open("w") as output:
            self.process = subprocess.Popen(
                ["bash", str(START_SCRIPT)],
                env=self.settings | settings,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
                user=self.user,
                extra_groups=[] if self.user else None,
            )
        return self

    def joined(self, **settings: str) -> Glidein:
        self.start(**settings)
        eventually(lambda: self.ads() or self.process.poll() is not None, 30, self.log)
        assert self.process.poll() is None, self.log()
        return self

    def wait(self, within_s: float) -> int:
        eventually(lambda: self.process.poll() is not None, within_s, self.log)
        return self.process.returncode

    def log(self) -> str:
        return (self.base / "log").read_text()

    def ads(self, *attributes: str, only: str = "true", kind: Sequence[str] = ()) -> list[str]:
        """One line per slot of it: the attributes, Name by default."""
        constraint = f'ApfElasticId == "{self.id}" && ({only})'
        done = self.pool.tool("condor_status", *kind, "-constraint", constraint, "-af", *(attributes or ("Name",)))
        return done.stdout.splitlines()

    def slot(self) -> str:
        (name,) = self.ads(only="PartitionableSlot")
        return name

    def submit(self, seconds: float, count: int = 1, executable: str = "/bin/sleep") -> str:
        """Submit jobs for this glidein alone; their cluster."""
        text = (
            f"executable = {executable}\narguments = {seconds}\ntransfer_executable = false\n"
            f'requirements = TARGET.ApfElasticId == "{self.id}"\nrequest_cpus = 1\nrequest_memory = 100\n'
            f"request_disk = 1000\nshould_transfer_files = yes\nqueue {count}\n"
        )
        done = self.pool.tool("condor_submit", "-terse", identity="user", text_input=text)
        return done.stdout.split(".")[0]

    def running(self, cluster: str) -> int:
        done = self.pool.tool("condor_q", "-allusers", cluster, "-af", "JobStatus", "NumJobStarts")
        return sum(line.startswith("2 ") for line in done.stdout.splitlines())

    def starts(self, cluster: str) -> Callable[[], bool]:
        """Whether its starters are up: a job whose claim is a moment old may still go back to idle."""
        return lambda: self.running(cluster) > 0 and bool(self.ads(only='Activity == "Busy"'))

    def completed(self, cluster: str) -> list[str]:
        """ExitCode and NumJobStarts of its jobs that are complete."""
        found = self.pool.tool(
            "condor_history", cluster, "-constraint", "JobStatus == 4", "-af", "ExitCode", "NumJobStarts"
        )
        return found.stdout.splitlines()

    def drain(self) -> None:
        self.pool.tool("condor_drain", "-graceful", "-exit-on-completion", self.slot())

    def renew_lease(self, serial: int) -> None:
        factory = self.settings["GLIDEIN_FACTORY"]
        ad = (
            f'MyType = "Generic"\nName = "{LEASE_NAME.format(factory=factory)}"\n'
            f'ApfElasticLease = "{factory}"\nApfElasticLeaseSerial = {serial}\n'
        )
        self.pool.tool("condor_advertise", "UPDATE_AD_GENERIC", "-", text_input=ad)

    def condor_processes(self) -> list[int]:
        """Daemons and jobs of it, by the work directory in their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"{self.work}/apf-glidein.".encode() in path.read_bytes():
                    found.append(int(path.parts[2]))
        return found

    def end(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()
        eventually(lambda: not any(self.work.iterdir()), 20, self.log)


@pytest.fixture
def glidein(pool: PrivatePool, request: pytest.FixtureRequest) -> Iterator[Glidein]:
    base = Path(tempfile.mkdtemp(prefix="apf-glidein-"))
    base.chmod(0o755)
    made = Glidein(pool, base, f"g{os.getpid()}-{time.monotonic_ns()}")
    yield made
    pool.tool("condor_rm", "-constraint", f'regexp("{made.id}", unparse(Requirements))', check=False)
    made.end()
    shutil.rmtree(base, ignore_errors=True)


# ------------------------------------------------------------------------------------------- join and leave


def test_a_glidein_joins_with_a_token_that_can_only_join_and_publishes_who_it_is(glidein: Glidein) -> None:
    glidein.joined(GLIDEIN_WALLTIME_S="5000")
    who = ["ApfElasticId", "ApfElasticFactory", "ApfElasticQueue", "ApfElasticBackend", "ApfElasticOffering"]
    words = [glidein.id, f"factory-{glidein.id}", "queue", "local", "small"]
    for kind in ((), ("-master",)):
        eventually(functools.partial(glidein.ads, kind=kind), 20, glidein.log)
        assert glidein.ads(*who, kind=kind)[0].split() == words
        (ends,) = glidein.ads("ApfElasticEnds", kind=kind)
        assert 4900 < int(ends) - time.time() <= 5000
    assert glidein.ads("Cpus", "Memory", "Disk", "TotalSlots", "PartitionableSlot") == ["2 600 102400 1 true"]
    assert "CCBID" in glidein.ads("MyAddress")[0], "reachable through the collector"
    eventually(lambda: f"joined the pool as {glidein.slot()}" in glidein.log(), 10, glidein.log)


def test_a_glidein_runs_jobs_side_by_side_and_leaves_when_idle(glidein: Glidein) -> None:
    glidein.joined(GLIDEIN_IDLE_S="5")
    cluster = glidein.submit(1, count=4)
    eventually(lambda: glidein.completed(cluster) == ["0 1"] * 4, 40, glidein.log)
    assert glidein.wait(30) == DONE
    assert "left: no job for 5 s; jobs run: 4, failed: 0; exit code 0" in glidein.log()
    assert list(glidein.work.iterdir()) == []
    assert glidein.condor_processes() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="is what all the other tests do")
def test_an_ordinary_user_can_run_it(glidein: Glidein) -> None:
    glidein.belongs_to("nobody")
    glidein.start(GLIDEIN_IDLE_S="5")
    cluster = glidein.submit(1)
    eventually(lambda: glidein.completed(cluster) == ["0 1"], 40, glidein.log)
    assert glidein.wait(30) == DONE


def test_a_token_of_another_pool_ends_in_could_not_join(glidein: Glidein) -> None:
    header, payload, signature = glidein.token.read_text().strip().split(".")
    glidein.write_token(f"{header}.{payload}.{signature[::-1]}")
    assert glidein.start(GLIDEIN_JOIN_S="6").wait(40) == NOT_JOINED
    assert "| StartLog: " in glidein.log()
    assert payload not in glidein.log()


def test_a_token_that_may_not_advertise_ends_in_could_not_join(glidein: Glidein) -> None:
    glidein.write_token(glidein.pool.token(f"glidein-{glidein.id}", authz=["READ"], lifetime_s=600))
    assert glidein.start(GLIDEIN_JOIN_S="6").wait(40) == NOT_JOINED


def test_jobs_of_others_are_kept_out_by_the_start_expression(glidein: Glidein) -> None:
    glidein.joined(GLIDEIN_START='TARGET.Owner == "nobody-in-particular"')
    cluster = glidein.submit(0)
    matched = "LastRejMatchTime =!= undefined || LastMatchTime =!= undefined"
    eventually(
        lambda: glidein.pool.tool("condor_q", "-allusers", cluster, "-const", matched, "-af", "ProcId").stdout, 30
    )
    assert glidein.running(cluster) == 0
    assert glidein.completed(cluster) == []


def test_without_the_bought_gpus_it_does_not_join(glidein: Glidein) -> None:
    assert glidein.start(GLIDEIN_GPUS="1").wait(20) == BROKEN_NODE
    assert "0 GPUs are usable, 1 were bought" in glidein.log()


# ---------------------------------------------------------------------------------------------------- drain


def test_a_drained_glidein_refuses_new_jobs_and_takes_them_again_when_the_drain_is_cancelled(
    glidein: Glidein,
) -> None:
    glidein.joined()
    first = glidein.submit(25)
    eventually(glidein.starts(first), 30, glidein.log)
    glidein.drain()
    eventually(lambda: glidein.ads("Draining", only="PartitionableSlot") == ["true"], 5, glidein.ads)
    second = glidein.submit(3)
    matched = "LastRejMatchTime =!= undefined || LastMatchTime =!= undefined"
    eventually(
        lambda: glidein.pool.tool("condor_q", "-allusers", second, "-const", matched, "-af", "ProcId").stdout, 30
    )
    assert glidein.running(second) == 0

    glidein.pool.tool("condor_drain", "-cancel", glidein.slot())
    eventually(lambda: glidein.completed(second) == ["0 1"], 30, glidein.log)
    assert glidein.running(first) == 1

    glidein.drain()
    assert glidein.wait(60) == DONE
    assert glidein.completed(first) == ["0 1"]
    assert "left: drained by an administrator of the pool; jobs run: 2, failed: 0" in glidein.log()


def test_draining_an_idle_glidein_ends_it_within_seconds(glidein: Glidein) -> None:
    glidein.joined().drain()
    assert glidein.wait(15) == DONE
    assert glidein.ads() == []


def test_condor_off_sends_a_glidein_away_after_its_job(glidein: Glidein) -> None:
    glidein.joined()
    cluster = glidein.submit(6)
    eventually(glidein.starts(cluster), 30, glidein.log)
    eventually(lambda: glidein.ads(kind=["-master"]), 20, glidein.log)
    glidein.pool.tool("condor_off", "-graceful", "-master", "-name", glidein.ads(kind=["-master"])[0])
    assert glidein.wait(30) == DONE
    assert glidein.completed(cluster) == ["0 1"]
    assert "left: sent away by an administrator of the pool; jobs run: 1" in glidein.log()


def test_who_may_only_submit_may_not_drain(glidein: Glidein) -> None:
    glidein.joined()
    done = glidein.pool.tool("condor_drain", "-graceful", glidein.slot(), identity="user", check=False)
    assert done.returncode != 0
    assert glidein.ads("State") == ["Unclaimed"]


# -------------------------------------------------------------------------------------- signals, lease, time


def test_sigterm_lets_the_running_job_finish_and_takes_no_other(glidein: Glidein) -> None:
    glidein.joined()
    first = glidein.submit(6)
    eventually(glidein.starts(first), 30, glidein.log)
    glidein.process.terminate()
    second = glidein.submit(0)
    assert glidein.wait(30) == DONE
    assert glidein.completed(first) == ["0 1"]
    assert glidein.completed(second) == []


def test_sigint_ends_jobs_and_all_at_once(glidein: Glidein) -> None:
    glidein.joined()
    eventually(glidein.starts(glidein.submit(600)), 30, glidein.log)
    glidein.process.send_signal(signal.SIGINT)
    assert glidein.wait(15) == STOPPED
    assert glidein.condor_processes() == []
    assert list(glidein.work.iterdir()) == []


def test_kill_9_leaves_neither_processes_nor_files(glidein: Glidein) -> None:
    glidein.joined()
    eventually(glidein.starts(glidein.submit(600)), 30, glidein.log)
    os.killpg(glidein.process.pid, signal.SIGKILL)
    eventually(lambda: glidein.condor_processes() == [], 20, glidein.condor_processes)
    eventually(lambda: list(glidein.work.iterdir()) == [], 5)


def test_a_glidein_stays_while_the_lease_is_renewed_and_finishes_its_job_when_it_is_not(glidein: Glidein) -> None:
    glidein.renew_lease(1)
    glidein.joined(GLIDEIN_LEASE_S="6", GLIDEIN_LEASE_CHECK_S="1")
    start = time.monotonic()
    for serial in range(2, 100):
        glidein.renew_lease(serial)
        assert glidein.process.poll() is None, glidein.log()
        if time.monotonic() - start > 9:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            glidein.process.wait(1)
    cluster = glidein.submit(12)
    eventually(glidein.starts(cluster), 5, glidein.log)
    eventually(lambda: "the factory has not renewed its lease" in glidein.log(), 15, glidein.log)
    assert glidein.running(cluster) == 1
    assert glidein.wait(30) == DONE
    assert glidein.completed(cluster) == ["0 1"]


def test_the_bought_time_ends_a_job_that_takes_longer(glidein: Glidein) -> None:
    glidein.joined(GLIDEIN_WALLTIME_S="20", GLIDEIN_JOB_LIMIT_S="5")
    cluster = glidein.submit(600)
    eventually(glidein.starts(cluster), 15, glidein.log)
    assert glidein.wait(30) == DONE
    assert glidein.completed(cluster) == []
    assert glidein.condor_processes() == []


# ------------------------------------------------------------------------------------------------ bad nodes


@pytest.mark.parametrize("executable", ["/bin/false", "/no/such/program"])
def test_a_black_hole_eats_few_jobs(glidein: Glidein, executable: str) -> None:
    glidein.joined(GLIDEIN_MAX_QUICK_FAILURES="3")
    cluster = glidein.submit(0, count=60, executable=executable)
    assert glidein.wait(60) == BROKEN_NODE
    assert "black hole: " in glidein.log()
    idle = glidein.pool.tool("condor_q", "-allusers", cluster, "-const", "JobStatus == 1", "-af", "ProcId").stdout
    assert len(idle.splitlines()) >= 20, glidein.log()


def test_a_glidein_inside_a_job_of_htcondor_is_not_confused_by_it(
    glidein: Glidein, ce_pool: PrivatePool, condor: Installation
) -> None:
    inner = {k: v for k, v in glidein.settings.items() if k not in ("PATH", "GLIDEIN_WORK", "GLIDEIN_TOKEN")}
    settings = " ".join(f"{name}={value}" for name, value in (inner | {"GLIDEIN_IDLE_S": "5"}).items())
    text = (
        f"executable = {START_SCRIPT}\nshould_transfer_files = yes\nwhen_to_transfer_output = on_exit\n"
        f'transfer_input_files = {glidein.token}\nenvironment = "{settings}"\n'
        f"output = {glidein.base}/log\nrequest_cpus = 2\nqueue\n"
    )
    if os.geteuid() == 0:
        glidein.belongs_to("nobody")
    outer = ce_pool.tool("condor_submit", "-terse", identity="user", text_input=text).stdout.split(".")[0]
    cluster = glidein.submit(1)
    eventually(
        lambda: glidein.completed(cluster) == ["0 1"], 60, lambda: ce_pool.tool("condor_q", "-better", outer).stdout
    )
    ended = ("condor_history", outer, "-af", "JobStatus", "ExitCode")
    eventually(lambda: ce_pool.tool(*ended).stdout.split() == ["4", "0"], 40, glidein.log)
    assert "left: no job for 5 s; jobs run: 1" in glidein.log()

"""The private pool, against a real HTCondor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apf_elastic.testing import htcondor_install, htcondor_pool
from apf_elastic.testing.htcondor_install import Installation, InstallError
from apf_elastic.testing.htcondor_pool import GLIDEIN_AUTHZ, SERVICE_DAEMONS, Daemon, PoolError, PrivatePool

pytestmark = pytest.mark.real

SLEEP = "executable = /bin/sleep\narguments = 1\nlog = $(Cluster).log\n"


def eventually(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)


def submit(pool: PrivatePool, description: str, identity: str = "user") -> str:
    """Submit and return the cluster's number."""
    done = pool.tool("condor_submit", "-terse", identity=identity, text_input=description)
    return done.stdout.split(".")[0]


def ended(pool: PrivatePool, cluster: str) -> list[str]:
    """Owner, status and exit code of the jobs of `cluster` that left the queue."""
    return pool.tool("condor_history", cluster, "-af", "Owner", "JobStatus", "ExitCode").stdout.splitlines()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def victim(condor: Installation) -> Iterator[PrivatePool]:
    """A pool of this module's own, to be disturbed; every test leaves it whole."""
    with PrivatePool("victim", installation=condor, cores=2) as started:
        yield started


# -------------------------------------------------------------------------------------------------- identities


def test_jobs_of_user_complete(ce_pool: PrivatePool) -> None:
    cluster = submit(ce_pool, SLEEP + "queue 3\n")
    eventually(lambda: len(ended(ce_pool, cluster)) == 3, 30, "three jobs complete")
    assert ended(ce_pool, cluster) == ["user 4 0"] * 3


def test_a_condor_c_job_runs_in_the_pool_that_trusts(pool: PrivatePool, ce_pool: PrivatePool) -> None:
    grid = f"universe = grid\ngrid_resource = condor {ce_pool.schedd_name} {ce_pool.collector}\n"
    cluster = submit(pool, grid + '+remote_ApfMark = "from poolA"\n' + SLEEP + "queue\n")
    eventually(lambda: ended(pool, cluster) == ["user 4 0"], 90, "the job comes back")
    remote = ("condor_history", "-constraint", 'ApfMark == "from poolA"', "-af", "Owner", "ExitCode")
    eventually(lambda: ce_pool.tool(*remote).stdout.splitlines() == ["user 0"], 30, "the CE lets it go")


def test_a_glidein_token_advertises_a_slot_but_submits_nothing(victim: PrivatePool) -> None:
    victim.add_client("limited", victim.token("glidein-7", authz=GLIDEIN_AUTHZ, lifetime_s=600))
    advertise(victim, "UPDATE_STARTD_AD", slot_ad("slot1@glidein-7"), identity="limited")
    found = victim.tool("condor_status", "slot1@glidein-7", "-af", "AuthenticatedIdentity", identity="limited")
    assert found.stdout.split() == ["glidein-7@apf.test"]
    with pytest.raises(PoolError, match="condor_submit"):
        submit(victim, SLEEP + "queue\n", identity="limited")
    assert not victim.tool("condor_q", "-allusers", "-constraint", 'Owner == "glidein-7"', "-af", "ClusterId").stdout


def test_a_glidein_token_cannot_pose_as_a_schedd(victim: PrivatePool) -> None:
    victim.add_client("limited", victim.token("glidein-8", authz=GLIDEIN_AUTHZ, lifetime_s=600))
    ad = 'MyType = "Scheduler"\nName = "false"\nMyAddress = "<127.0.0.1:9>"\nScheddIpAddr = "<127.0.0.1:9>"\n'
    with pytest.raises(PoolError, match="condor_advertise"):
        advertise(victim, "UPDATE_SCHEDD_AD", ad, identity="limited")
    assert "false" not in victim.tool("condor_status", "-schedd", "-af", "Name").stdout


def test_an_expired_token_opens_nothing(pool: PrivatePool) -> None:
    pool.add_client("late", pool.token("apf", lifetime_s=1))
    eventually(
        lambda: pool.tool("condor_status", "-schedd", identity="late", check=False).returncode != 0,
        20,
        "the token expires",
    )


def test_the_service_keeps_lease_ads_in_the_collector(victim: PrivatePool) -> None:
    advertise(victim, "UPDATE_AD_GENERIC", 'MyType = "ApfLease"\nName = "factory"\nApfLeaseUntil = 4102444800\n')
    found = victim.tool("condor_status", "-any", "-constraint", 'MyType == "ApfLease"', "-af", "ApfLeaseUntil")
    assert found.stdout.split() == ["4102444800"]


def test_user_advertises_no_lease(victim: PrivatePool) -> None:
    with pytest.raises(PoolError, match="condor_advertise"):
        advertise(victim, "UPDATE_AD_GENERIC", 'MyType = "ApfLease"\nName = "mine"\n', identity="user")


def test_the_service_drains_and_user_does_not(victim: PrivatePool) -> None:
    slot = victim.tool("condor_status", "-af", "Name").stdout.split()[0]
    with pytest.raises(PoolError):
        victim.tool("condor_drain", "-graceful", slot, identity="user")
    victim.tool("condor_drain", "-graceful", slot)
    victim.tool("condor_drain", "-cancel", slot)


def test_the_service_holds_jobs_of_user(victim: PrivatePool) -> None:
    cluster = submit(victim, SLEEP + "requirements = False\nqueue\n")
    victim.tool("condor_hold", cluster)
    held = victim.tool("condor_q", cluster, "-af", "Owner", "JobStatus").stdout.split()
    assert held == ["user", "5"]
    victim.tool("condor_rm", cluster)


def test_the_caller_makes_tokens_with_the_pools_key(pool: PrivatePool) -> None:
    command = ["condor_token_create", "-identity", "glidein-9@apf.test", "-key", "POOL", "-lifetime", "60"]
    done = subprocess.run(
        [*command, "-authz", "READ"], env=pool.env(), capture_output=True, text=True, check=True, timeout=30
    )
    pool.add_client("own", done.stdout.strip())
    assert pool.tool("condor_status", "-schedd", "-af", "Name", identity="own").stdout.split() == ["poolA@apf.test"]


def test_a_queue_takes_more_jobs_than_htcondors_usual_limit(victim: PrivatePool) -> None:
    cluster = submit(victim, SLEEP + "requirements = False\nqueue 20001\n")
    groups = victim.tool("condor_q", "-allusers", "-totals", cluster, timeout_s=60).stdout
    assert "20001 jobs" in groups
    victim.tool("condor_rm", cluster, timeout_s=120)


def slot_ad(name: str) -> str:
    return (
        f'MyType = "Machine"\nName = "{name}"\nMachine = "glidein-7"\nMyAddress = "<127.0.0.1:9>"\n'
        'StartdIpAddr = "<127.0.0.1:9>"\nState = "Owner"\nActivity = "Idle"\nCpus = 1\nSlotID = 1\n'
    )


def advertise(pool: PrivatePool, command: str, ad: str, identity: str = "apf") -> None:
    """Only to a pool of our own: the ad stays in the collector."""
    file = pool.token_dir() / "ad"
    file.write_text(ad)
    try:
        pool.tool("condor_advertise", command, str(file), identity=identity)
    finally:
        file.unlink()


# ------------------------------------------------------------------------------------------------ life and end


def test_stop_leaves_neither_process_nor_directory(condor: Installation) -> None:
    pool = PrivatePool("short", installation=condor, cores=1)
    with pool:
        directory, cluster = pool.directory, submit(pool, SLEEP.replace("= 1\n", "= 300\n") + "queue\n")
        status = ("condor_q", cluster, "-af", "JobStatus", "NumJobStarts")
        eventually(lambda: pool.tool(*status).stdout.split()[:1] == ["2"], 30, "the job runs")
        family = pool.processes()
    assert not [pid for pid in family if alive(pid)]
    assert not directory.exists()
    assert pool.processes() == []
    pool.stop()  # again: no effect


def test_a_pool_is_started_again_after_its_stop(condor: Installation) -> None:
    pool = PrivatePool("again", installation=condor, daemons=SERVICE_DAEMONS)
    for _ in range(2):
        with pool:
            assert "again@apf.test" in pool.tool("condor_status", "-schedd", "-af", "Name").stdout


START_AND_WAIT = """
import json, sys, time
from apf_elastic.testing.htcondor_pool import PrivatePool, SERVICE_DAEMONS
pool = PrivatePool("orphan", daemons=SERVICE_DAEMONS).start()
print(json.dumps([pool.processes(), str(pool.directory)]), flush=True)
time.sleep(300)
"""


def test_a_killed_parent_leaves_no_pool_behind(condor: Installation) -> None:
    command = [sys.executable, "-c", START_AND_WAIT]
    with subprocess.Popen(command, env=with_sources(condor.env()), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        family, directory = json.loads(parent.stdout.readline())
        assert len(family) > len(SERVICE_DAEMONS)
        parent.kill()
    eventually(lambda: not any(alive(pid) for pid in family), 30, f"{family} end")
    eventually(lambda: not Path(directory).exists(), 5, f"{directory} is removed")


def test_a_killed_keeper_leaves_no_pool_behind(condor: Installation) -> None:
    pool = PrivatePool("unkept", installation=condor, daemons=SERVICE_DAEMONS).start()
    family, directory = pool.processes(), pool.directory
    keeper = next(pid for pid in family if b"_keep()" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in family), 30, f"{family} end")
    pool.stop()
    assert not directory.exists()


def test_a_port_taken_by_another_program_is_exchanged(condor: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    free = htcondor_pool._reserved_port
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        offered = [taken]

        @contextmanager
        def first_taken() -> Iterator[int]:
            with free() as port:
                yield offered.pop() if offered else port

        monkeypatch.setattr(htcondor_pool, "_reserved_port", first_taken)
        with PrivatePool("moved", installation=condor, daemons=SERVICE_DAEMONS) as pool:
            assert pool.collector != f"127.0.0.1:{taken}"
            assert pool.schedd_name in pool.tool("condor_status", "-schedd", "-af", "Name").stdout


def test_a_long_directory_serves_too(condor: Installation, pool_base: Path) -> None:
    long = pool_base / ("x" * 60) / ("y" * 60)
    long.parent.mkdir()
    long.parent.chmod(0o755)
    with PrivatePool("long", installation=condor, directory=long, daemons=SERVICE_DAEMONS) as pool:
        assert pool.schedd_name in pool.tool("condor_status", "-schedd", "-af", "Name").stdout
    assert (long / "log" / "SchedLog").exists(), "a directory that was given is kept"


def test_a_broken_configuration_is_told(condor: Installation) -> None:
    pool = PrivatePool("broken", installation=condor, daemons=SERVICE_DAEMONS, extra="SCHEDD = /bin/false")
    with pytest.raises(PoolError, match="Scheduler"):
        pool.start(timeout_s=5)
    assert pool.processes() == []


def test_a_used_directory_is_refused(condor: Installation, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(PoolError, match="not empty"):
        PrivatePool("used", installation=condor, directory=tmp_path).start()
    assert (tmp_path / "log").exists()


def test_pools_of_one_trust_domain_cannot_trust_each_other(pool: PrivatePool) -> None:
    with pytest.raises(ValueError, match=r"poolA\.apf\.test"):
        pool.trust(PrivatePool("poolA"))


def with_sources(env: dict[str, str]) -> dict[str, str]:
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


# --------------------------------------------------------------------------------------------------- disturbing


@pytest.mark.parametrize("daemon", ["COLLECTOR", "NEGOTIATOR", "SCHEDD"])
def test_a_stopped_daemon_stays_away_until_it_is_started(victim: PrivatePool, daemon: Daemon) -> None:
    before = victim.daemon_pid(daemon)
    victim.stop_daemon(daemon)
    assert victim.daemon_pid(daemon) is None
    victim.start_daemon(daemon)
    assert victim.daemon_pid(daemon) not in (None, before)


def test_a_hung_collector_answers_again_after_its_start(victim: PrivatePool) -> None:
    victim.stop_daemon("COLLECTOR", hang=True)
    with pytest.raises(PoolError, match="did not end within"):
        victim.tool("condor_status", "-schedd", timeout_s=1)
    victim.start_daemon("COLLECTOR")
    assert victim.schedd_name in victim.tool("condor_status", "-schedd", "-af", "Name").stdout


def test_a_killed_schedd_is_started_by_the_master(victim: PrivatePool) -> None:
    before = victim.daemon_pid("SCHEDD")
    victim.kill_daemon("SCHEDD")
    eventually(lambda: victim.daemon_pid("SCHEDD") not in (None, before), 30, "the master starts it")
    eventually(lambda: victim.tool("condor_q", check=False).returncode == 0, 30, "it answers")


def test_a_pool_with_a_hung_daemon_stops(condor: Installation) -> None:
    with PrivatePool("hung", installation=condor, daemons=SERVICE_DAEMONS) as pool:
        pool.stop_daemon("SCHEDD", hang=True)
        family = pool.processes()
        started = time.monotonic()
    assert time.monotonic() - started < 15
    assert not [pid for pid in family if alive(pid)]


def test_a_reconfiguration_reaches_the_daemons(victim: PrivatePool) -> None:
    victim.reconfig("APF_TEST_MARK = 17")
    asked = ("condor_config_val", "-schedd", "APF_TEST_MARK")
    eventually(lambda: victim.tool(*asked, check=False).stdout.split() == ["17"], 10, "the schedd knows")


# --------------------------------------------------------------------------------------------- the installation


def test_a_second_installation_takes_no_time(condor: Installation) -> None:
    started = time.monotonic()
    assert htcondor_install.ensure() == condor
    assert time.monotonic() - started < 2


def test_without_apt_the_error_says_what_to_do(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    with pytest.raises(InstallError, match=r"without apt-get .* install HTCondor with"):
        htcondor_install.ensure()


def test_without_a_mirror_the_error_says_what_to_do(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APF_ELASTIC_DEBIAN_MIRROR", "http://user:secret@127.0.0.1:9/debian")
    with pytest.raises(InstallError, match=r"check the network .* APF_ELASTIC_DEBIAN_MIRROR") as caught:
        htcondor_install.ensure()
    assert "secret" not in str(caught.value)


def test_a_full_disk_is_told_before_anything_is_written(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(htcondor_install, "_SPACE_NEEDED_MB", 10**9)
    with pytest.raises(InstallError, match=r"MB free, HTCondor needs .* APF_ELASTIC_CACHE"):
        htcondor_install.ensure()


def test_an_empty_home_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APF_ELASTIC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    assert os.access(htcondor_install.cache_directory(), os.W_OK)


@pytest.fixture
def bare(pool_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no HTCondor on PATH."""
    cache = Path(tempfile.mkdtemp(dir=pool_base)) / "cache"
    cache.parent.chmod(0o755)
    monkeypatch.setenv("APF_ELASTIC_CACHE", str(cache))
    monkeypatch.setattr(htcondor_install, "_on_path", lambda say: None)
    return cache

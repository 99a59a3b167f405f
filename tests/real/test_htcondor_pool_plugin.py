"""The HTCondor pool plugin against a real collector, with real glideins started from its payloads."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apf_elastic.contracts import CallError, Context
from apf_elastic.model import Resource, Shape, Slot, State
from apf_elastic.pools.htcondor import HTCondorPool, HTCondorPoolOptions
from apf_elastic.testing.htcondor_pool import DOMAIN, PoolError, PrivatePool

pytestmark = pytest.mark.real

_numbers = itertools.count()


class Site:
    """Starts glideins as processes, from payloads; ends them all."""

    def __init__(self, pool: PrivatePool, base: Path) -> None:
        self.pool = pool
        self._base = base
        self._running: list[subprocess.Popen[bytes]] = []
        self.factory = f"f{next(_numbers)}"

    def plugin(self, **changes: object) -> HTCondorPool:
        given = {
            "collector": self.pool.collector,
            "config": self.pool.client_config,
            "token_dir": self.pool.token_dir("apf"),
            "bin_dir": self.pool.installation.bin,
            "domain": DOMAIN,
            "node_condor": str(self.pool.installation.prefix),
            "network": "127.0.0.1",
            "overcommit": True,
            "update_s": 2,
            "idle_s": 120,
        }
        return HTCondorPool(
            "home", HTCondorPoolOptions.model_validate(given | changes), Context(self.factory, self._base)
        )

    def start(self, plugin: HTCondorPool, resource: Resource) -> subprocess.Popen[bytes]:
        payload = plugin.payload(resource)
        place = self._base / f"{self.factory}-{resource.id}"
        place.mkdir()
        place.chmod(0o755)
        for name, secret in payload.secrets.items():
            (place / name).write_bytes(secret)
        with (place / "out").open("wb") as out:
            process = subprocess.Popen(
                [payload.script], cwd=place, env={"PATH": os.defpath, **payload.environment}, stdout=out, stderr=out
            )
        self._running.append(process)
        return process

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT)
        for process in self._running:
            process.wait(60)

    def submit(self, seconds: int, resource_id: str) -> None:
        text = (
            f"executable = /bin/sleep\narguments = {seconds}\ntransfer_executable = false\nrequest_memory = 16\n"
            f'request_disk = 1024\nrequirements = TARGET.ApfElasticId == "{resource_id}"\nqueue\n'
        )
        self.pool.tool("condor_submit", "-terse", "-", identity="user", text_input=text)


def resource(id_: str, walltime_s: int | None = None) -> Resource:
    return Resource(
        id=id_,
        queue="analysis",
        backend="here",
        offering="small",
        shape=Shape(2, 512, 100, walltime_s=walltime_s),
        state=State.INTENDED,
        created_at=0.0,
        changed_at=0.0,
    )


def wait_for(predicate: Callable[[], bool], deadline_s: float = 30) -> None:
    deadline = time.monotonic() + deadline_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {deadline_s} s"
        time.sleep(0.1)


def slot(plugin: HTCondorPool, id_: str) -> Slot | None:
    return next((found for found in plugin.slots() if found.id == id_), None)


@pytest.fixture
def site(pool: PrivatePool, pool_base: Path) -> Iterator[Site]:
    site = Site(pool, pool_base)
    yield site
    site.end()


@pytest.fixture
def plugin(site: Site) -> Iterator[HTCondorPool]:
    plugin = site.plugin()
    yield plugin
    plugin.close()


def test_a_glidein_joins_works_and_is_idle_since_its_job_ended(site: Site, plugin: HTCondorPool) -> None:
    began = time.time()
    site.start(plugin, resource("one", walltime_s=7200))
    wait_for(lambda: slot(plugin, "one") is not None)
    joined = slot(plugin, "one")
    assert joined is not None
    assert (joined.jobs, joined.draining, joined.free.cores) == (0, False, 2)
    assert (joined.queue, joined.backend, joined.offering) == ("analysis", "here", "small")
    assert 7000 < (joined.free.walltime_s or 0) <= 7200
    assert joined.idle_since is not None
    assert began - 2 <= joined.idle_since <= time.time()

    site.submit(3, "one")
    wait_for(lambda: (found := slot(plugin, "one")) is not None and found.jobs == 1)
    busy = slot(plugin, "one")
    assert busy is not None
    assert busy.idle_since is None
    assert busy.free.cores == 1
    assert busy.free.memory_mb < 512

    wait_for(lambda: (found := slot(plugin, "one")) is not None and found.jobs == 0)
    idle = slot(plugin, "one")
    assert idle is not None
    assert idle.idle_since is not None
    assert time.time() - 5 < idle.idle_since <= time.time()


def test_a_drained_busy_glidein_can_be_taken_back_and_drained_again(site: Site, plugin: HTCondorPool) -> None:
    process = site.start(plugin, resource("two"))
    wait_for(lambda: slot(plugin, "two") is not None)
    site.submit(8, "two")
    wait_for(lambda: (found := slot(plugin, "two")) is not None and found.jobs == 1)

    assert plugin.drain(["two"]) == {}
    wait_for(lambda: (found := slot(plugin, "two")) is not None and found.draining)
    assert plugin.undrain(["two"]) == {}
    wait_for(lambda: (found := slot(plugin, "two")) is not None and not found.draining)
    assert plugin.drain(["two"]) == {}
    wait_for(lambda: slot(plugin, "two") is None, 60)
    assert process.wait(30) == 0
    history = site.pool.tool("condor_history", "-limit", "1", "-af", "JobStatus", "ExitCode", "NumJobStarts").stdout
    assert history.split() == ["4", "0", "1"]


def test_an_idle_glidein_that_is_drained_ends(site: Site, plugin: HTCondorPool) -> None:
    process = site.start(plugin, resource("three"))
    wait_for(lambda: slot(plugin, "three") is not None)
    assert plugin.drain(["three", "never-was"]) == {"never-was": "is not in the pool"}
    assert process.wait(30) == 0
    wait_for(lambda: slot(plugin, "three") is None)


def test_a_second_drain_of_the_same_glidein_is_no_failure(site: Site, plugin: HTCondorPool) -> None:
    site.start(plugin, resource("four"))
    wait_for(lambda: slot(plugin, "four") is not None)
    site.submit(6, "four")
    wait_for(lambda: (found := slot(plugin, "four")) is not None and found.jobs == 1)
    assert plugin.drain(["four"]) == {}
    assert plugin.drain(["four"]) == {}
    assert plugin.undrain(["four"]) == {}
    assert plugin.undrain(["four"]) == {}


def test_a_token_lets_its_resource_join_and_nothing_else(site: Site, plugin: HTCondorPool) -> None:
    token = plugin.payload(resource("five")).secrets["token"].decode()
    site.pool.add_client("five", token)
    assert "poolA" in site.pool.tool("condor_status", "-schedd", identity="five").stdout
    text = "executable = /bin/sleep\nqueue\n"
    with pytest.raises(PoolError):
        site.pool.tool("condor_submit", "-", identity="five", text_input=text)
    with pytest.raises(PoolError):
        site.pool.tool("condor_reconfig", "-collector", identity="five")


def test_a_glidein_cannot_speak_for_another(site: Site, plugin: HTCondorPool, caplog: pytest.LogCaptureFixture) -> None:
    site.pool.add_client("thief", plugin.payload(resource("thief")).secrets["token"].decode())
    ad = site.pool.work_dir / "ad"
    ad.write_text(
        'MyType = "Machine"\nName = "slot1@x"\nMyAddress = "<127.0.0.1:1>"\nState = "Unclaimed"\n'
        f'SlotType = "Partitionable"\nApfElasticId = "victim"\nApfElasticFactory = "{site.factory}"\n'
    )
    site.pool.tool("condor_advertise", "UPDATE_STARTD_AD", str(ad), identity="thief")
    trusting = site.plugin(verify_identity=False)
    wait_for(lambda: slot(trusting, "victim") is not None)
    with caplog.at_level(logging.WARNING):
        assert plugin.slots() == []
    assert "glidein-thief@apf.test advertises resource victim" in caplog.text
    site.pool.tool("condor_advertise", "INVALIDATE_STARTD_ADS", str(_query(ad, "slot1@x")), identity="apf", check=False)
    trusting.close()


def _query(beside: Path, name: str) -> Path:
    query = beside.with_name("query")
    query.write_text(f'MyType = "Query"\nTargetType = "Machine"\nName = "{name}"\nRequirements = Name == "{name}"\n')
    return query


def test_the_lease_is_in_the_collector_and_grows(site: Site, plugin: HTCondorPool) -> None:
    def serial() -> int:
        asked = ("-generic", "-constraint", f'ApfElasticLease == "{site.factory}"', "-af", "ApfElasticLeaseSerial")
        return int(site.pool.tool("condor_status", *asked).stdout or -1)

    before = int(time.time())
    plugin.renew_lease()
    first = serial()
    assert before <= first <= time.time()
    wait_for(lambda: time.time() >= first + 1)
    plugin.renew_lease()
    assert serial() > first


def test_a_lease_that_the_pool_refuses_is_explained(site: Site) -> None:
    stranger = site.plugin(token_dir=site.pool.token_dir("user"))
    with pytest.raises(CallError, match="may not do this"):
        stranger.renew_lease()
    stranger.close()


def test_many_tokens_are_made_at_a_time(plugin: HTCondorPool) -> None:
    began = time.monotonic()
    payloads = plugin.payloads([resource(f"r{n}") for n in range(40)])
    assert time.monotonic() - began < 10
    assert len({payload.secrets["token"] for payload in payloads}) == 40
    assert all("token" not in str(payload.environment).replace("./token", "") for payload in payloads)


def test_a_key_that_is_not_there_is_an_error_that_names_the_tool(site: Site, tmp_path: Path) -> None:
    keyless = site.plugin(password_dir=tmp_path, signing_key="NONE")
    with pytest.raises(CallError, match="condor_token_create: status"):
        keyless.payload(resource("six"))
    keyless.close()


def test_ping_says_who_answers(site: Site, plugin: HTCondorPool) -> None:
    assert plugin.ping().startswith(f"collector {site.pool.collector}, {site.pool.installation.version_text}, ")

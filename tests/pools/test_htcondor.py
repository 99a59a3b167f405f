"""What a pool's ads say, taken together. The real collector is in tests/real/test_htcondor_pool_plugin.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from apf_elastic.condor.link import CondorLink
from apf_elastic.contracts import CallError, Context
from apf_elastic.model import Resource, Shape, State
from apf_elastic.pools.htcondor import HTCondorPool, HTCondorPoolOptions, count_claims, read_glidein

NODE_NOW = 5_000.0  # the node's clock is a long way off
HEARD = 1_000_000.0


def parent(**changes: Any) -> dict[str, Any]:
    ad = {
        "Name": "slot1@g@host",
        "Machine": "host",
        "SlotType": "Partitionable",
        "State": "Unclaimed",
        "Activity": "Idle",
        "Cpus": 4,
        "Memory": 2048,
        "Disk": 3 * 1024 * 1024,
        "ChildName": [],
        "NumDynamicSlots": 0,
        "NumDynamicSlotsTime": int(NODE_NOW) - 30,
        "DaemonStartTime": int(NODE_NOW) - 500,
        "MyCurrentTime": int(NODE_NOW),
        "LastHeardFrom": int(HEARD),
        "ApfElasticId": "g",
    }
    return ad | changes


def child(number: int = 1, **changes: Any) -> dict[str, Any]:
    name = f"slot1_{number}@g@host"
    return parent(Name=name, SlotType="Dynamic", State="Claimed", Activity="Busy", Cpus=1, **changes)


def with_children(*numbers: int, **changes: Any) -> dict[str, Any]:
    names = [f"slot1_{number}@g@host" for number in numbers]
    return parent(ChildName=names, NumDynamicSlots=len(names), Cpus=4 - len(names), **changes)


def test_an_idle_glidein_offers_all_and_is_idle_since_its_last_claim() -> None:
    glidein = read_glidein([parent()], HEARD + 10)
    assert glidein.idle_s == 40  # 30 s on the node's clock, 10 s since on the collector's
    slot = glidein.slot(123.0, stale_s=60)
    assert (slot.free, slot.jobs, slot.idle_since) == (Shape(4, 2048, 3072), 0, 123.0)


def test_any_claim_is_busy_and_only_what_is_left_is_free() -> None:
    glidein = read_glidein([with_children(1, 2), child(1), child(2)], HEARD)
    assert (glidein.claims, glidein.idle_s) == (2, None)
    assert glidein.slot(None, 60).free.cores == 2


@pytest.mark.parametrize("state", ["Claimed", "Preempting", "Matched", "Unclaimed", "Delete", "Invented"])
def test_a_dynamic_slot_is_busy_in_every_state(state: str) -> None:
    assert count_claims([with_children(1), child(1) | {"State": state}]) == 1


@pytest.mark.parametrize(
    ("state", "claims"),
    [("Unclaimed", 0), ("Owner", 0), ("Claimed", 1), ("Preempting", 1), ("Matched", 1), ("Invented", 1)],
)
def test_a_static_slot_is_busy_unless_it_says_otherwise(state: str, claims: int) -> None:
    assert count_claims([parent(SlotType="Static", State=state, ChildName=None)]) == claims


def test_a_child_that_its_younger_parent_does_not_name_has_ended() -> None:
    assert count_claims([parent(), child(1) | {"MyCurrentTime": int(NODE_NOW) - 60}]) == 0


def test_a_child_that_is_younger_than_its_parent_counts() -> None:
    assert count_claims([parent(), child(1) | {"MyCurrentTime": int(NODE_NOW) + 1}]) == 1


def test_a_child_that_has_no_ad_yet_counts() -> None:
    assert count_claims([with_children(1, 2), child(1)]) == 2


def test_a_parent_that_names_no_children_is_believed_about_their_number() -> None:
    ad = with_children(1, 2)
    del ad["ChildName"]
    assert count_claims([ad]) == 2


@pytest.mark.parametrize(
    "leaving", [{"Draining": True}, {"State": "Drained"}, {"Activity": "Retiring"}, {"Activity": "Vacating"}]
)
def test_every_sign_of_leaving_is_draining(leaving: Mapping[str, Any]) -> None:
    assert read_glidein([parent(**leaving)], HEARD).draining


def test_a_glidein_not_heard_of_for_long_is_not_counted_on_and_not_idle() -> None:
    slot = read_glidein([parent()], HEARD + 100).slot(5.0, stale_s=60)
    assert (slot.free.cores, slot.idle_since, slot.jobs) == (0, None, 0)


def test_the_time_left_comes_from_the_nodes_own_clock() -> None:
    glidein = read_glidein([parent(ApfElasticEnds=int(NODE_NOW) + 600)], HEARD + 10)
    assert glidein.slot(None, 60).free.walltime_s == 540


def test_several_static_slots_are_one_resource() -> None:
    ads = [
        parent(SlotType="Static", ChildName=None, Name=f"slot{n}@g", EnteredCurrentState=int(NODE_NOW) - 10 * n)
        for n in (1, 2, 3)
    ]
    ads[0]["State"] = "Claimed"
    glidein = read_glidein(ads, HEARD)
    assert (glidein.claims, glidein.slot(None, 60).free.cores) == (1, 8)
    ads[0]["State"] = "Unclaimed"
    assert read_glidein(ads, HEARD).idle_s == 10


def test_ads_with_nonsense_in_them_are_read() -> None:
    odd = parent(Cpus="four", Memory=None, Disk=-5, ChildName=[1, None], LastHeardFrom="now", MyCurrentTime=None)
    glidein = read_glidein([odd], HEARD)
    assert glidein.slot(None, 60).free == Shape(cores=0)


# ---------------------------------------------------------------------------------------------- the plugin


def options(**changes: Any) -> HTCondorPoolOptions:
    given = {"collector": "cm.example.org:9618", "domain": "example.org"}
    return HTCondorPoolOptions.model_validate(given | changes)


class FakeCollector:
    """Answers for the link: startd ads and how old the collector is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.startds: Sequence[Mapping[str, Any]] = []
        self.age_s = 10_000.0
        monkeypatch.setattr(CondorLink, "call", self._call)
        self.now = HEARD
        monkeypatch.setattr("time.time", lambda: self.now)

    def _call(self, op: str, arguments: Mapping[str, Any], *_: object) -> Any:
        return self.startds if arguments["kind"] == "Startd" else [{"StatsLifetime": self.age_s}]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> FakeCollector:
    return FakeCollector(monkeypatch)


@pytest.fixture
def pool(tmp_path: Path) -> HTCondorPool:
    return HTCondorPool("home", options(update_s=100), Context("f", tmp_path))


def test_idle_since_does_not_move_with_the_rounding_of_seconds(collector: FakeCollector, pool: HTCondorPool) -> None:
    collector.startds = [parent()]
    first = pool.slots()[0].idle_since
    collector.now += 10.6
    collector.startds = [parent(MyCurrentTime=int(NODE_NOW) + 10, LastHeardFrom=int(HEARD) + 9)]
    assert pool.slots()[0].idle_since == first == HEARD - 30


def test_a_collector_that_has_just_started_is_not_believed_about_who_is_missing(
    collector: FakeCollector, pool: HTCondorPool
) -> None:
    collector.startds = [parent()]
    pool.slots()
    collector.startds, collector.age_s = [], 20.0
    with pytest.raises(CallError, match="started 20 s ago and lacks 1 glideins"):
        pool.slots()
    collector.age_s = 300.0
    assert pool.slots() == []


def test_the_dead_are_forgotten_in_the_end(collector: FakeCollector, pool: HTCondorPool) -> None:
    collector.startds = [parent()]
    collector.now = HEARD + 900
    assert [slot.id for slot in pool.slots()] == ["g"]
    collector.now = HEARD + 1100
    assert pool.slots() == []


def test_an_ad_sent_with_anothers_token_is_ignored_and_reported_once(
    collector: FakeCollector, pool: HTCondorPool, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = "glidein-g@example.org", "glidein-evil@example.org"
    collector.startds = [parent(AuthenticatedIdentity=good), child(1) | {"AuthenticatedIdentity": bad}]
    with caplog.at_level(logging.WARNING):
        assert [slot.jobs for slot in pool.slots()] == [0]
        pool.slots()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["-all", "a b", "x\n-y", "$(id)", "", "slot1@" + "x" * 300])
def test_a_startd_with_an_odd_name_is_not_given_to_a_tool(
    collector: FakeCollector, pool: HTCondorPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apf_elastic.condor.tools.Tools.find", lambda self, tool: "/bin/false")
    collector.startds = [parent(Name=name)]
    assert "no name of a startd" in pool.drain(["g"])["g"]


def test_without_the_tools_a_drain_says_what_to_install(collector: FakeCollector, tmp_path: Path) -> None:
    pool = HTCondorPool("home", options(bin_dir=tmp_path), Context("f", tmp_path))
    with pytest.raises(CallError, match=r"condor_drain is not in .*set bin_dir"):
        pool.drain(["g"])


def fake_tool(directory: Path, name: str, text: str) -> Path:
    tool = directory / name
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    return directory


def resource(**changes: Any) -> Resource:
    shape = Shape(8, 16000, 50000, 1, 3600)
    given = {"id": "f.q.1", "queue": "q", "backend": "b", "offering": "o", "shape": shape}
    return Resource(**{**given, "state": State.INTENDED, "created_at": 0.0, "changed_at": 0.0, **changes})


def test_a_payload_tells_the_glidein_all_and_hides_the_token(tmp_path: Path) -> None:
    tools = fake_tool(tmp_path, "condor_token_create", 'echo "$*" > "$0.arguments"; echo aaa.bbb.ccc')
    pool = HTCondorPool("home", options(bin_dir=tools, start='TARGET.Owner == "me"'), Context("f", tmp_path))
    payload = pool.payload(resource())
    assert payload.secrets == {"token": b"aaa.bbb.ccc\n"}
    assert "aaa" not in repr(payload)
    environment = payload.environment
    assert environment["GLIDEIN_ID"] == "f.q.1"
    assert environment["GLIDEIN_FACTORY"] == "f"
    assert (environment["GLIDEIN_CORES"], environment["GLIDEIN_GPUS"]) == ("8", "1")
    assert environment["GLIDEIN_WALLTIME_S"] == "3600"
    assert environment["GLIDEIN_START"] == 'TARGET.Owner == "me"'
    assert payload.script.name == "start.sh"
    arguments = (tmp_path / "condor_token_create.arguments").read_text()
    assert arguments == (
        "-identity glidein-f.q.1@example.org -key POOL -authz READ -authz ADVERTISE_STARTD"
        f" -authz ADVERTISE_MASTER -lifetime {2 * 86400 + 3600}\n"
    )


def test_files_of_the_operator_go_along(tmp_path: Path) -> None:
    tools = fake_tool(tmp_path, "condor_token_create", "echo aaa.bbb.ccc")
    pool = HTCondorPool("home", options(bin_dir=tools, checks=tools / "condor_token_create"), Context("f", tmp_path))
    payload = pool.payload(resource())
    assert payload.files == {"checks": tools / "condor_token_create"}
    assert payload.environment["GLIDEIN_CHECKS"] == "./checks"


@pytest.mark.parametrize("text", ["echo no token", "true", "echo a.b.c d", "echo broken >&2; exit 1"])
def test_what_is_no_token_is_not_sent(tmp_path: Path, text: str) -> None:
    pool = HTCondorPool(
        "home", options(bin_dir=fake_tool(tmp_path, "condor_token_create", text)), Context("f", tmp_path)
    )
    with pytest.raises(CallError, match="condor_token_create"):
        pool.payload(resource())


@pytest.mark.parametrize("queue", ['q"', "a b", "", "q\n", "$(x)", "x" * 201])
def test_words_that_a_glidein_cannot_publish_are_refused(tmp_path: Path, queue: str) -> None:
    tools = fake_tool(tmp_path, "condor_token_create", "echo aaa.bbb.ccc")
    pool = HTCondorPool("home", options(bin_dir=tools), Context("f", tmp_path))
    with pytest.raises(CallError, match="can be published"):
        pool.payload(resource(queue=queue))


@pytest.mark.parametrize(
    "changes",
    [
        *({"collector": ""}, {"domain": "a b"}, {"start": "TARGET.x >"}, {"start": "$(x)"}, {"checks": "/nonexistent"}),
        *({"identity": "x@y"}, {"identity": "{other}"}, {"lease_s": 1}, {"no_such_option": 1}),
    ],
)
def test_options_that_cannot_work_are_refused(changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**changes)

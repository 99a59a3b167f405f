"""try_policy: the documented chains, unknown information, and wrong input."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apf_elastic.decide import PolicyError, try_document, try_policy


def numbers(chain: str, config: dict[str, Any], **state: Any) -> list[int]:
    result = try_policy(chain.replace(" ", "").split(","), config, state)
    assert result.result == result.steps[-1][1]
    return [n for _, n, _ in result.steps]


def test_the_documented_chain_a() -> None:
    config = {
        "sched.ready.offset": 4,
        "sched.scale.factor": 0.5,
        "sched.maxpercycle.maximum": 100,
        "sched.minpercycle.minimum": 0,
        "sched.maxpending.maximum": 25,
    }
    chain = "Ready, Scale, StatusTest, MaxPerCycle, MinPerCycle, MaxPending, StatusOffline"
    assert numbers(chain, config, ready=100, pending=10, running=8, status="online") == [86, 43, 43, 43, 43, 15, 15]


def test_the_documented_chain_b() -> None:
    config = {
        "sched.scale.factor": 0.5,
        "sched.maxpercycle.maximum": 100,
        "sched.minpercycle.minimum": 1,
        "sched.maxpending.maximum": 10,
    }
    chain = "Ready, Scale, MaxPerCycle, MinPerCycle, StatusTest, StatusOffline, MaxPending"
    assert numbers(chain, config, ready=1234, pending=5, running=50) == [1229, 615, 100, 100, 100, 100, 5]


def test_the_documented_chain_c() -> None:
    config = {
        "sched.scale.factor": "0.25",
        "sched.maxpercycle.maximum": "100",
        "sched.minpercycle.minimum": "0",
        "sched.maxpending.maximum": "10",
        "sched.maxpending.allow_negative": "false",
    }
    chain = "Ready, Scale, MaxPerCycle, MinPerCycle, StatusTest, StatusOffline, MaxPending"
    assert numbers(chain, config, ready=83, pending=10, running=17) == [73, 19, 19, 19, 19, 19, 0]


def test_activated_expanded_into_a_chain() -> None:
    config = {"sched.maxtorun.maximum": 3000, "sched.maxpercycle.maximum": 100}
    chain = "Fillactivated, MaxToRun, MinPending, MaxPerCycle, MinPerCycle, MaxPending"
    assert numbers(chain, config, ready=87, pending=20, running=107)[-1] == 67


def test_max_per_factory_counts_the_others() -> None:
    assert numbers(
        "Fixed, MaxPerFactory", {"sched.fixed.pilotspercycle": 5, "maxperfactory.maximum": 12}, other=10
    ) == [
        5,
        2,
    ]


@pytest.mark.parametrize("source", ["wms", "batch"])
def test_an_unknown_source_or_backend_holds_the_chain(source: str) -> None:
    result = try_policy(["Fixed", "MinPerCycle"], {"sched.fixed.pilotspercycle": 5}, {source: "none", "ready": 9})
    assert result.result == 0
    assert [(name, n) for name, n, _ in result.steps] == [("Fixed", 0), ("MinPerCycle", 0)]
    assert all(reason.startswith("holds: ") for _, _, reason in result.steps)


def test_missing_counts_are_zero_and_a_missing_status_is_online() -> None:
    assert numbers("Ready, StatusOffline, StatusTest", {}) == [0, 0, 0]


def test_the_life_and_the_throttle_of_a_queue_can_be_given() -> None:
    assert numbers(
        "Fixed,MaxToSubmit", {"sched.fixed.pilotspercycle": 9, "sched.maxtosubmit.maximum": 5}, submitted=3
    ) == [
        9,
        2,
    ]
    assert numbers("Fixed,Throttle", {"sched.fixed.pilotspercycle": 9}, recent_started=4, recent_short=4) == [9, 1]


def test_a_key_of_a_step_outside_the_chain_is_accepted() -> None:
    assert numbers("Ready", {"sched.maxpending.maximum": 5, "sched.statustest.allowed": True}, ready=9) == [9]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"chain": ["Redy"]}', "there is no step 'Redy'; did you mean Ready"),
        ('{"chain": []}', "chain: it is empty; name at least one step"),
        ('{"chain": "Ready"}', "chain: write the steps as a list of names"),
        ('{"chain": [4]}', "chain, step 1: 4 is not a name"),
        (
            '{"config": {"sched.ready.offst": 4}}',
            "step Ready, option offst: there is no such option; did you mean offset?",
        ),
        (
            '{"config": {"sched.Ready.offset": 4}}',
            "config: no step has a key 'sched.Ready.offset'; did you mean sched.ready",
        ),
        ('{"config": {"sched.maxperfactory.maximum": 4}}', "did you mean"),
        ('{"config": {"offset": 4}}', "config: no step has a key 'offset'"),
        ('{"config": {"sched.ready.offset": true}}', "step Ready, option offset: true is not a whole number"),
        ('{"config": {"sched.ready.offset": null}}', "step Ready, option offset: nothing is not a whole number"),
        ('{"config": {"sched.ready.offset": [4]}}', "step Ready, option offset: [4] is not a whole number"),
        ('{"config": {"sched.scale.factor": NaN}}', "step Scale, option factor: nan is not a number that can be used"),
        (
            '{"config": {"sched.scale.factor": 1e999}}',
            "step Scale, option factor: inf is not a number that can be used",
        ),
        ('{"config": []}', "config: write an object of keys and values"),
        ('{"state": []}', "state: write an object of counts"),
        ('{"state": {"redy": 4}}', "state: there is no 'redy'; did you mean ready?"),
        ('{"state": {"ready": -1}}', "state, ready: -1 is not a count; write a whole number from 0"),
        ('{"state": {"ready": "4"}}', "state, ready: '4' is not a count; write a whole number such as 10"),
        ('{"state": {"ready": true}}', "state, ready: true is not a count"),
        ('{"state": {"ready": null}}', "state, ready: nothing is not a count"),
        ('{"state": {"ready": 1.5}}', "state, ready: 1.5 is not a count"),
        ('{"state": {"ready": NaN}}', "state, ready: nan is not a count"),
        ('{"state": {"ready": 1e999}}', "state, ready: inf is not a count"),
        ('{"state": {"status": 4}}', "state, status: 4 is not a status"),
        ('{"state": {"wms": 4}}', 'state, wms: 4 means nothing; write "none" or leave it out'),
        ('{"state": {"recent_short": 4}}', "state, recent_short: more than recent_started"),
    ],
)
def test_wrong_input_is_told_with_the_cure(text: str, words: str) -> None:
    given = {"chain": ["Ready"], "config": {}, "state": {}} | json.loads(text)
    with pytest.raises(PolicyError) as caught:
        try_policy(given["chain"], given["config"], given["state"])
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_whole_floats_are_counts() -> None:
    assert numbers("Ready", {}, ready=5.0) == [5]


@pytest.mark.parametrize("place", ["beside", "in"])
def test_a_whole_document_may_say_what_is_unknown_beside_the_state_or_in_it(place: str) -> None:
    document: dict[str, Any] = {"chain": ["Ready"], "config": {}, "state": {"ready": 9}}
    assert try_document(document).result == 9
    (document if place == "beside" else document["state"])["wms"] = "none"
    assert try_document(document).steps == (("Ready", 0, "holds: the demand is unknown"),)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "write an object such as"),
        ({}, "chain: it is empty"),
        ({"chian": ["Ready"]}, "there is no key 'chian'; did you mean chain"),
        ({"chain": ["Ready"], "state": 4}, "state: write an object of counts"),
        ({"chain": ["Ready"], "batch": True}, "state, batch: true means nothing"),
    ],
)
def test_a_wrong_document_is_told_with_the_cure(document: Any, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        try_document(document)
    assert words in str(caught.value)

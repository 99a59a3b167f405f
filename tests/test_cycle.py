"""The whole loop, on fakes and an injected clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from apf_elastic.ledger import LedgerError
from apf_elastic.model import Offering
from apf_elastic.settings import Allocation, BackendSettings, BackendUse, Limits
from apf_elastic.testing.fakes import Behaviour
from tests.site import ONE, TWO, Site, queue_settings

BOTH = (Offering("one", ONE), Offering("two", TWO))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def site(**more: object) -> Site:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Site(directory, **more))  # type: ignore[arg-type]
        return made[-1]

    yield site
    for one in made:
        one.stop()


def created(site: Site) -> int:
    return sum(cloud.made for cloud in site.clouds.values())


def test_work_is_served_and_everything_is_given_back(make: Callable[..., Site]) -> None:
    site = make(offerings=BOTH)
    site.submit(20, ONE)
    site.submit(5, TWO)
    site.step(100)
    assert (site.done, site.jobs, site.live, site.evicted) == (25, [], [], 0)
    assert not site.cloud.machines
    assert not site.pool.joined


def test_no_more_capacity_is_made_than_the_jobs_need(make: Callable[..., Site]) -> None:
    site = make(offerings=BOTH)
    site.submit(20, ONE)
    site.submit(5, TWO)
    site.step(20)
    cores = sum(m.request.offering.shape.cores for m in site.cloud.machines.values())
    assert cores <= 30


def test_without_work_nothing_is_made(make: Callable[..., Site]) -> None:
    site = make()
    site.step(200)
    assert created(site) == 0


def test_an_unknown_source_makes_and_retires_nothing(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(4, run_s=10_000)
    site.step(6)
    before = site.states()
    site.source.faults.raise_on("demand")
    site.submit(50)
    site.step(100)
    assert site.states() == before
    assert created(site) == 4


def test_when_the_source_is_back_work_goes_on(make: Callable[..., Site]) -> None:
    site = make()
    site.source.faults.raise_on("demand")
    site.submit(10)
    site.step(20)
    assert created(site) == 0
    site.source.faults.clear()
    site.step(60)
    assert site.done == 10


def test_an_unknown_pool_retires_nothing(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(4, run_s=30)
    site.step(8)
    site.pool.faults.raise_on("slots")
    site.step(100)
    assert not [call for call in site.pool.calls if call[0] == "drain"]
    site.pool.faults.clear()
    site.step(60)
    assert site.live == []


def test_a_pool_that_suddenly_shows_nothing_loses_nothing(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(10, run_s=10_000)
    site.step(8)
    with patch.object(site.pool, "slots", lambda: ()):
        site.step(2)
    site.step(20)
    assert (created(site), site.evicted, len(site.live)) == (10, 0, 10)


def test_a_backend_list_that_suddenly_is_empty_loses_and_doubles_nothing(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(10, run_s=10_000)
    site.step(8)
    with patch("apf_elastic.testing.fakes.FakeBackend.list", lambda self: []):
        site.step(2)
    site.step(20)
    assert (created(site), len(site.live)) == (10, 10)


def test_demand_that_falls_to_zero_in_one_reading_cancels_nothing(make: Callable[..., Site]) -> None:
    site = make()
    site.cloud.start_s = 10_000
    site.submit(10)
    site.step(5)
    waiting = site.jobs
    site.jobs = []
    site.step(1)
    assert len(site.cloud.machines) == 10
    site.jobs = waiting
    site.step(5)
    assert (len(site.cloud.machines), created(site)) == (10, 10)


def test_pending_resources_are_cancelled_once_demand_is_really_gone(make: Callable[..., Site]) -> None:
    site = make()
    site.cloud.start_s = 10_000
    site.submit(100)
    site.step(5)
    site.jobs = []
    site.step(12)
    assert (site.cloud.machines, site.live) == ({}, [])


def test_a_backend_that_raises_does_not_stop_the_other(make: Callable[..., Site]) -> None:
    site = make(
        queue=queue_settings("bad", "good"),
        backends={"bad": BackendSettings("bad"), "good": BackendSettings("good")},
    )
    site.clouds["bad"].faults.raise_on("list")
    site.submit(10)
    site.step(60)
    assert site.done == 10
    assert site.clouds["bad"].made == 0


def test_a_backend_that_refuses_is_left_alone_and_the_other_takes_the_load(make: Callable[..., Site]) -> None:
    site = make(
        queue=queue_settings("bad", "good"),
        backends={"bad": BackendSettings("bad"), "good": BackendSettings("good")},
    )
    site.clouds["bad"].answers.extend([Behaviour.REFUSE] * 1000)
    site.submit(10)
    site.step(60)
    assert site.done == 10
    refused = sum(len(ids) for verb, ids in site.clouds["bad"].calls if verb == "create")
    assert refused <= 40


def test_a_refusing_backend_recovers_by_itself(make: Callable[..., Site]) -> None:
    site = make()
    site.cloud.answers.extend([Behaviour.REFUSE] * 30)
    site.submit(10)
    site.step(400)
    assert (site.done, site.live) == (10, [])


def test_answers_that_were_lost_are_found_in_the_list_and_nothing_is_doubled(make: Callable[..., Site]) -> None:
    site = make()
    site.cloud.answers.extend([Behaviour.UNCERTAIN] * 10)
    site.submit(10, run_s=10_000)
    site.step(60)
    assert (created(site), site.states()) == (10, {"ready": 10})


def test_a_create_that_came_to_nothing_is_made_anew_after_a_while(make: Callable[..., Site]) -> None:
    site = make()
    site.cloud.answers.extend([Behaviour.UNCERTAIN_NOT_MADE] * 3)
    site.submit(3, run_s=10_000)
    site.step(5)
    assert created(site) == 0
    site.step(60)
    assert created(site) == 3


def test_a_list_that_lags_doubles_nothing(make: Callable[..., Site]) -> None:
    site = make()
    site.cloud.lag_s = 40
    site.submit(10, run_s=10_000)
    site.step(60)
    assert (created(site), site.states()) == (10, {"ready": 10})


def test_a_restart_at_any_cycle_loses_and_doubles_nothing(make: Callable[..., Site]) -> None:
    for moment in range(1, 30):
        site = make()
        site.submit(10, run_s=40)
        site.step(moment)
        site.restart()
        site.step(60)
        assert (site.done, site.live, site.evicted) == (10, [], 0), moment
        assert created(site) <= 10, moment
        assert not site.cloud.machines, moment


def test_a_lost_ledger_is_rebuilt_from_what_carries_our_mark(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(10, run_s=400)
    site.step(10)
    site.stop()
    for file in site.directory.glob("ledger.sqlite*"):
        file.unlink()
    site.start()
    site.step(3)
    assert (site.states(), created(site)) == ({"ready": 10}, 10)
    site.step(200)
    assert (site.done, site.live, site.evicted) == (10, [], 0)


def test_a_ledger_that_cannot_be_written_stops_creation_and_recovers_by_itself(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(10)
    with patch.object(site.ledger, "intend", side_effect=LedgerError("the disk is full")):
        site.step(5)
        assert (created(site), site.cycle.trouble) == (0, "the disk is full")
    site.step(60)
    assert (site.done, site.cycle.trouble) == (10, "")


def test_a_defect_in_one_cycle_does_not_end_the_service_nor_pass_unseen(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(10)
    with patch("apf_elastic.cycle.decide", side_effect=ZeroDivisionError("in a step")):
        site.step(5)
        assert (created(site), site.cycle.trouble) == (0, "the cycle failed: ZeroDivisionError: in a step")
    site.step(60)
    assert (site.done, site.cycle.trouble) == (10, "")


@pytest.mark.parametrize("garbage", [None, 7, "yes", [None], [Site], {"a": 1}])
def test_an_answer_of_the_wrong_form_is_an_uncertain_one(make: Callable[..., Site], garbage: object) -> None:
    site = make()
    site.submit(3)
    with patch("apf_elastic.testing.fakes.FakeBackend.create", lambda self, requests: garbage):
        site.step(2)
        assert set(site.states()) == {"intended"}
    site.step(60)
    assert (site.done, site.live) == (3, [])


def test_what_never_joins_is_removed_and_stays_few(make: Callable[..., Site]) -> None:
    site = make(joins=False, backends={"cloud": BackendSettings("cloud", join_s=60)})
    site.submit(10)
    site.step(400)
    assert created(site) <= 25
    assert len(site.cloud.machines) <= 1


def test_a_job_that_lands_between_decision_and_drain_is_finished(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(3, run_s=10)
    site.step(6)
    drain = site.pool.drain

    def a_job_lands_first(ids: list[str]) -> object:
        for id in ids:
            site.pool.work(id, 1)
        return drain(ids)

    with patch.object(site.pool, "drain", a_job_lands_first):
        site.step(30)
    assert len(site.pool.joined) == 3
    for id in list(site.pool.joined):
        site.pool.work(id, 0)
    site.step(10)
    assert (site.live, site.evicted) == ([], 0)


def test_what_is_draining_is_taken_back_when_demand_returns(make: Callable[..., Site]) -> None:
    site = make(queue=queue_settings(retirement=queue_settings().retirement))
    site.submit(4, run_s=10)
    site.step(7)
    with patch.object(site, "_machines_come_and_go", lambda: None):
        while not [r for r in site.live if r.state.value == "draining"]:
            site.step(1)
        site.submit(4, run_s=10)
        site.step(3)
    assert any(verb == "undrain" for verb, _ in site.pool.calls)
    assert created(site) == 4


def test_factory_limits_hold_whatever_waits(make: Callable[..., Site]) -> None:
    site = make(backends={"cloud": BackendSettings("cloud", limits=Limits(total=5, per_cycle=2))})
    site.submit(50)
    most = 0
    for _ in range(60):
        before = created(site)
        site.step(1)
        assert created(site) - before <= 2
        most = max(most, len(site.cloud.machines))
    assert most == 5


def test_two_backends_share_by_weight(make: Callable[..., Site]) -> None:
    uses = (BackendUse("a", weight=3), BackendUse("b", weight=1))
    site = make(
        queue=queue_settings(backends=uses, allocation=Allocation.WEIGHTED),
        backends={"a": BackendSettings("a"), "b": BackendSettings("b")},
    )
    site.submit(40, run_s=10_000)
    site.step(10)
    assert (site.clouds["a"].made, site.clouds["b"].made) == (30, 10)


def test_the_lease_is_renewed_while_the_service_runs(make: Callable[..., Site]) -> None:
    site = make()
    site.step(30)
    assert site.pool.renewed_at is not None
    assert site.clock() - site.pool.renewed_at <= 100


def test_a_quiet_factory_writes_no_decision_twice(make: Callable[..., Site]) -> None:
    site = make()
    site.submit(4, run_s=100_000)
    site.step(20)
    before = len(site.ledger.last_decisions("q", 1000))
    site.step(100)
    assert len(site.ledger.last_decisions("q", 1000)) - before <= 1

"""Retirement by identity: who is cancelled, drained, taken back, and who never is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apf_elastic.decide.fleet import DRAINED_BY_OTHERS
from apf_elastic.model import Offering, Plan, Resource, Shape, State, Verb, World
from apf_elastic.settings import BackendUse, Order, QueueSettings, Retirement
from tests.decide.worlds import (
    LARGE,
    NOW,
    SMALL,
    UNKNOWN,
    backend,
    created,
    decision,
    history,
    jobs,
    plan,
    queue,
    resource,
    retired,
    some,
    total,
    world,
)


def keen(**more: Any) -> QueueSettings:
    """A queue that gives back at once all that is idle."""
    return queue(retirement=Retirement(**({"idle_s": 0, "budget": 1.0} | more)))


def drained(it: World, of: QueueSettings | None = None) -> list[str]:
    return retired(plan(it, of or keen()), Verb.DRAIN)


def cancelled(it: World, of: QueueSettings | None = None) -> list[str]:
    return retired(plan(it, of or keen()), Verb.CANCEL)


# ------------------------------------------------------------------------------------------------------------ cancel


def test_pending_ones_are_cancelled_when_demand_falls_newest_first() -> None:
    made = plan(world([jobs(3)], some(5)))
    assert retired(made, Verb.CANCEL) == ["r4", "r3"]
    assert {retire.reason for retire in made.retirements} == {"no waiting job needs it"}


def test_all_pending_ones_are_cancelled_when_demand_is_gone() -> None:
    assert len(cancelled(world([], some(100)))) == 100


@pytest.mark.parametrize("state", [State.INTENDED, State.STARTING, State.RUNNING, State.REMOVING])
def test_what_is_not_pending_is_never_cancelled(state: State) -> None:
    assert plan(world([], some(3, state)), keen()).retirements == ()


def test_starting_ones_get_the_jobs_and_pending_ones_leave() -> None:
    there = [*some(2, State.PENDING), *some(2, State.STARTING, first=5)]
    assert sorted(cancelled(world([jobs(2)], there))) == ["r0", "r1"]


def test_idle_ones_get_the_jobs_and_pending_ones_leave() -> None:
    there = [*some(2, State.PENDING), *some(2, State.READY, first=5)]
    made = plan(world([jobs(2)], there), keen())
    assert sorted(retired(made, Verb.CANCEL)) == ["r0", "r1"]
    assert retired(made, Verb.DRAIN) == []


# ------------------------------------------------------------------------------------------------------------- drain


def test_idle_ones_are_drained_after_their_time() -> None:
    there = [resource(1, State.READY, idle_s=100), resource(2, State.READY, idle_s=99)]
    made = plan(world([], there))
    assert retired(made, Verb.DRAIN) == ["r1"]
    assert made.retirements[0].reason == "idle for more than 100 s, and no waiting job needs it"


@pytest.mark.parametrize(
    ("use_s", "queue_s", "start_s", "idle_s"),
    [
        (50, 70, 200, 50),
        (None, 70, 200, 70),
        (None, None, 200, 200),
        (None, None, 5, 90),
        (None, None, None, 300),
        (0, 70, 200, 0),
    ],
)
def test_the_idle_time_is_that_of_the_use_the_queue_or_the_start(
    use_s: float | None, queue_s: float | None, start_s: float | None, idle_s: float
) -> None:
    it = queue(BackendUse("cloud", idle_s=use_s), retirement=Retirement(idle_s=queue_s))
    views = {"cloud": backend(replace(SMALL, start_s=start_s))}
    there = [resource(1, State.READY, idle_s=idle_s), resource(2, State.READY, idle_s=idle_s - 1)]
    assert drained(world([], there, backends=views), it) == ["r1"]


def test_a_busy_one_is_never_drained() -> None:
    assert drained(world([], some(3, State.READY, LARGE, busy=1))) == []


def test_no_more_than_the_budget_are_disturbed_but_one() -> None:
    there = [*some(8, State.READY), *some(2, State.READY, busy=1, first=20)]
    assert len(drained(world([], there), keen(budget=0.5))) == 5
    assert len(drained(world([], there), keen(budget=0.01))) == 1
    assert len(drained(world([], there), keen(budget=0))) == 1


def test_cancelling_is_no_disruption() -> None:
    made = plan(world([], [*some(8), *some(2, State.READY, first=20)]), keen(budget=0.1))
    assert (len(retired(made, Verb.CANCEL)), len(retired(made, Verb.DRAIN))) == (8, 1)


def test_order_newest_and_oldest() -> None:
    there = some(3, State.READY)
    assert drained(world([jobs(2)], there), keen(order=Order.NEWEST)) == ["r2"]
    assert drained(world([jobs(2)], there), keen(order=Order.OLDEST)) == ["r0"]


def test_least_lost_is_what_costs_least_to_lose() -> None:
    hourly = [
        resource(1, State.READY, created_at=NOW - 600, price_per_hour=1.0),
        resource(2, State.READY, created_at=NOW - 3500, price_per_hour=1.0),
        resource(3, State.READY, created_at=NOW - 600, price_per_hour=0.5),
    ]
    assert drained(world([jobs(2)], hourly), keen(order=Order.LEAST_LOST)) == ["r2"]
    free = [
        resource(at, State.READY, Offering("day", Shape(1, 2000, walltime_s=86400)), joined_at=NOW - at * 9000)
        for at in (1, 3, 2)
    ]
    assert drained(
        world([jobs(2)], free, backends={"cloud": backend(SMALL, Offering("day", Shape(1)))}),
        keen(order=Order.LEAST_LOST),
    ) == ["r3"]


def test_what_ends_soon_by_itself_is_left_alone() -> None:
    short = Offering("day", Shape(1, 2000, walltime_s=86400))
    there = [resource(1, State.READY, short, joined_at=NOW - 86350)]
    assert drained(world([], there)) == []


def test_an_idle_resource_that_waiting_jobs_do_not_fit_is_drained_while_others_are_made() -> None:
    views = {"cloud": backend(SMALL, LARGE)}
    made = plan(world([jobs(1, 8, 8000)], some(2, State.READY), backends=views), keen())
    assert created(made) == {("cloud", "large"): 1}
    assert len(retired(made, Verb.DRAIN)) == 2


def test_nothing_is_retired_of_an_offering_that_is_created() -> None:
    short = Offering("day", Shape(1, 2000, walltime_s=86400))
    old = resource(1, State.READY, short, joined_at=NOW - 80000)
    made = plan(world([jobs(1, walltime_s=7200)], [old], backends={"cloud": backend(short)}), keen())
    assert (total(made), made.retirements) == (1, ())


# -------------------------------------------------------------------------------------------------------- hysteresis


def test_nothing_is_retired_so_soon_after_a_create_unless_demand_changed() -> None:
    key = ("cloud", "small")
    there = [*some(2), *some(2, State.READY, first=5)]
    young = history(last_created={key: NOW - 59})
    assert plan(world([], there, history={"q": young}), keen()).retirements == ()
    changed = replace(young, demand_changed_at=NOW - 58)
    assert len(plan(world([], there, history={"q": changed}), keen()).retirements) == 4
    long_ago = history(last_created={key: NOW - 60}, demand_changed_at=NOW - 70)
    assert len(plan(world([], there, history={"q": long_ago}), keen()).retirements) == 4


def test_nothing_is_created_so_soon_after_a_retirement_unless_demand_changed() -> None:
    young = history(last_retired={("cloud", "small"): NOW - 59})
    made = plan(world([jobs(2)], history={"q": young}))
    assert made.creates == ()
    assert decision(made).accounts[0].withheld == {"small at cloud was retired less than 60 s ago": 2}
    changed = replace(young, demand_changed_at=NOW - 58)
    assert total(plan(world([jobs(2)], history={"q": changed}))) == 2


# ----------------------------------------------------------------------------------------------------------- undrain


def test_what_drains_is_taken_back_before_new_ones_are_made() -> None:
    made = plan(world([jobs(3)], some(2, State.DRAINING)))
    assert sorted(retired(made, Verb.UNDRAIN)) == ["r0", "r1"]
    (one,) = decision(made).accounts
    assert (total(made), one.covered, one.granted) == (1, 2, 1)


def test_no_more_is_taken_back_than_jobs_need() -> None:
    assert len(retired(plan(world([jobs(1)], some(5, State.DRAINING))), Verb.UNDRAIN)) == 1
    assert len(retired(plan(world([jobs(8)], some(5, State.DRAINING, LARGE))), Verb.UNDRAIN)) == 1
    assert plan(world([], some(5, State.DRAINING))).retirements == ()


def test_what_others_drained_is_not_taken_back() -> None:
    there = some(2, State.DRAINING, reason=DRAINED_BY_OTHERS)
    made = plan(world([jobs(2)], there))
    assert (retired(made, Verb.UNDRAIN), total(made)) == ([], 2)


def test_what_drains_and_does_not_fit_is_not_taken_back() -> None:
    made = plan(world([jobs(1, 4, 4000)], some(2, State.DRAINING), backends={"cloud": backend(SMALL, LARGE)}))
    assert retired(made, Verb.UNDRAIN) == []


# -------------------------------------------------------------------------------------------------- unknown, orphans


def test_an_unknown_pool_holds_its_queue() -> None:
    made = plan(world([jobs(9)], some(3, State.READY), pools={"home": UNKNOWN}), keen())
    assert (made.creates, made.retirements) == ((), ())
    assert decision(made).hold == "pool home is unknown: timeout"


def test_nothing_is_retired_at_an_unknown_backend() -> None:
    views = {"cloud": replace(backend(), listing=UNKNOWN), "b": backend()}
    there = [*some(2), *some(2, State.READY, first=5), *some(2, first=10, backend="b")]
    assert sorted(cancelled(world([], there, backends=views), queue("cloud", "b"))) == ["r10", "r11"]


def test_what_joined_an_unknown_pool_stays() -> None:
    assert drained(world([], some(2, State.READY, pool="old"))) == []


def test_resources_of_a_queue_that_is_gone_leave_when_pending_or_idle() -> None:
    there = [
        resource(1, State.PENDING),
        resource(2, State.READY),
        resource(3, State.READY, busy=1),
        resource(4, State.STARTING),
        resource(5, State.INTENDED),
        resource(6, State.RUNNING),
        resource(7, State.PENDING, backend="elsewhere"),
        resource(8, State.READY, pool="old"),
    ]
    made = plan(world({"p": []}, [replace(one, queue="was") for one in there]), queue(name="p"))
    assert [(retire.verb, retire.id) for retire in made.retirements] == [(Verb.CANCEL, "r1"), (Verb.DRAIN, "r2")]
    assert {retire.reason for retire in made.retirements} == {"queue was is no longer configured"}


# ------------------------------------------------------------------------------------------------------------ chains


def chained(chain: str, it: World, retirement: Retirement | None = None, **options: dict[str, object]) -> Plan:
    made = queue(chain=chain, options=options, retirement=retirement or Retirement(idle_s=0, budget=1.0))
    return plan(it, made)


def verbs(made: Plan) -> tuple[int, int]:
    return len(retired(made, Verb.CANCEL)), len(retired(made, Verb.DRAIN))


def mixed(pending: int, idle: int, busy: int = 0) -> list[Resource]:
    return [
        *some(pending),
        *some(idle, State.READY, first=100),
        *some(busy, State.READY, first=200, busy=1),
    ]


def test_a_chain_gives_back_what_it_would_not_ask_for_again() -> None:
    assert verbs(chained("Ready", world([jobs(5)], mixed(20, 0)))) == (15, 0)
    assert verbs(chained("Ready", world([], mixed(20, 3, 2)))) == (20, 3)


def test_it_never_goes_below_the_number_of_waiting_jobs() -> None:
    assert verbs(chained("Ready", world([jobs(3)], mixed(5, 4)))) == (2, 1)
    made = chained("Null", world([jobs(9)], mixed(5, 2)))
    assert verbs(made) == (0, 0)


def test_fixed_and_min_pending_never_flap() -> None:
    assert verbs(chained("Fixed", world([], mixed(5, 2)), Fixed={"pilotspercycle": 1})) == (0, 0)
    assert verbs(chained("Ready,MinPending", world([], mixed(5, 2)), MinPending={"minimum": 3})) == (2, 2)


def test_keeping_n_running_keeps_them_without_work() -> None:
    keep: dict[str, object] = {"keep_running": 4}
    assert verbs(chained("KeepNRunning", world([], mixed(1, 3)), KeepNRunning=keep)) == (0, 0)
    assert total(chained("KeepNRunning", world([], mixed(1, 2)), KeepNRunning=keep)) == 1


def test_a_negative_number_retires_pending_then_idle_without_waiting() -> None:
    it = world([], mixed(2, 3, 2))
    slow = Retirement(idle_s=9999, budget=1.0)
    assert verbs(chained("KeepNRunning", it, slow, KeepNRunning={"keep_running": 6})) == (1, 0)
    assert verbs(chained("KeepNRunning", it, slow, KeepNRunning={"keep_running": 4})) == (2, 1)
    assert verbs(chained("KeepNRunning", it, slow, KeepNRunning={"keep_running": 0})) == (2, 3)


def test_busy_ones_are_drained_only_if_an_operator_says_so() -> None:
    brave = Retirement(idle_s=9999, budget=1.0, drain_busy=True)
    made = chained("KeepNRunning", world([], mixed(2, 3, 2)), brave, KeepNRunning={"keep_running": 1})
    assert verbs(made) == (2, 4)
    assert retired(made, Verb.DRAIN)[-1] == "r201"


def test_a_negative_number_of_max_pending_cancels_pending_ones_only() -> None:
    made = chained(
        "Ready,MaxPending", world([jobs(50)], mixed(5, 3)), MaxPending={"maximum": 2, "allow_negative": True}
    )
    assert verbs(made) == (3, 0)


def test_a_long_pending_queue_cancels_nothing_by_default() -> None:
    made = chained("Ready,MaxPending", world([jobs(50)], mixed(5, 3)), MaxPending={"maximum": 2})
    assert verbs(made) == (0, 0)


def test_at_most_so_many_per_cycle_leave() -> None:
    options: dict[str, Any] = {"KeepNRunning": {"keep_running": 0}, "MinPerCycle": {"minimum": -2}}
    assert verbs(chained("KeepNRunning,MinPerCycle", world([], mixed(1, 5)), **options)) == (1, 1)


def test_a_chain_takes_back_what_drains_before_it_makes_new_ones() -> None:
    made = chained("Ready,Scale", world([jobs(5)], some(2, State.DRAINING)))
    assert len(retired(made, Verb.UNDRAIN)) == 2
    assert total(made) == 3


def test_pilots_that_join_no_pool_are_only_cancelled_while_pending() -> None:
    it = queue(chain="Ready", pool=None)
    there = [*some(3, pool=None), *some(3, State.RUNNING, first=5, pool=None)]
    made = plan(world([], there, pools={}), it)
    assert sorted(retire.id for retire in made.retirements) == ["r0", "r1", "r2"]
    assert {retire.verb for retire in made.retirements} == {Verb.CANCEL}


def test_a_chain_that_fits_retires_what_no_job_needs() -> None:
    made = chained("Fit,MaxPerCycle", world([jobs(8)], some(3, State.PENDING, LARGE)), MaxPerCycle={"maximum": 9})
    assert verbs(made) == (2, 0)


def test_what_drains_in_a_pool_that_is_not_known_is_not_taken_back() -> None:
    made = plan(world([jobs(2)], some(2, State.DRAINING, pool="old")))
    assert (retired(made, Verb.UNDRAIN), total(made)) == ([], 2)

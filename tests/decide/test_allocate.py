"""Which backend gets how much: order, weight, price, burst, limits, health, and sharing among queues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apf_elastic.decide.allocate import level, whole
from apf_elastic.model import BackendView, Breaker, Health, Offering, Seen, Shape, State, World
from apf_elastic.settings import Allocation, BackendUse, Limits, QueueSettings
from tests.decide.worlds import (
    LARGE,
    NOW,
    SMALL,
    UNKNOWN,
    account,
    backend,
    created,
    decision,
    history,
    jobs,
    plan,
    queue,
    resource,
    some,
    total,
    world,
)

TWO = {"a": backend(), "b": backend()}


# --------------------------------------------------------------------------------------------------- allocation modes


def test_fill_takes_the_first_and_spills_to_the_next() -> None:
    made = plan(world([jobs(10)], backends=TWO), queue("a", "b"), a=Limits(total=4))
    assert created(made) == {("a", "small"): 4, ("b", "small"): 6}


def test_weights_divide() -> None:
    it = queue(BackendUse("a", 3), BackendUse("b", 1), allocation=Allocation.WEIGHTED)
    assert created(plan(world([jobs(8)], backends=TWO), it)) == {("a", "small"): 6, ("b", "small"): 2}


def test_weights_count_what_is_there_already() -> None:
    it = queue(BackendUse("a"), BackendUse("b"), allocation=Allocation.WEIGHTED)
    there = some(4, State.READY, backend="a", busy=1)
    assert created(plan(world([jobs(6)], there, backends=TWO), it)) == {("a", "small"): 1, ("b", "small"): 5}


def test_what_a_full_backend_cannot_take_of_its_weight_goes_to_the_other() -> None:
    it = queue(BackendUse("a", 3), BackendUse("b", 1), allocation=Allocation.WEIGHTED)
    made = plan(world([jobs(8)], backends=TWO), it, a=Limits(pending=2))
    assert created(made) == {("a", "small"): 2, ("b", "small"): 6}


def test_single_jobs_do_not_all_go_to_the_heaviest() -> None:
    it = queue(BackendUse("a", 3), BackendUse("b", 1), allocation=Allocation.WEIGHTED)
    there = some(4, State.READY, backend="a", busy=1)
    assert created(plan(world([jobs(1)], there, backends=TWO), it)) == {("b", "small"): 1}


def test_cheapest_takes_the_lowest_price_wherever_it_is() -> None:
    backends = {
        "a": backend(Offering("a1", Shape(1), price_per_hour=3), Offering("a2", Shape(1), price_per_hour=1, limit=2)),
        "b": backend(Offering("b1", Shape(1), price_per_hour=2)),
    }
    it = queue("a", "b", allocation=Allocation.CHEAPEST)
    assert created(plan(world([jobs(5)], backends=backends), it)) == {("a", "a2"): 2, ("b", "b1"): 3}


def test_cheapest_is_per_core_that_is_used() -> None:
    eight = {"a": backend(Offering("eight", Shape(8), price_per_hour=4)), "b": backend(Offering("one", Shape(1), 1))}
    it = queue("a", "b", allocation=Allocation.CHEAPEST)
    assert created(plan(world([jobs(8, 1, 0)], backends=eight), it)) == {("a", "eight"): 1}
    assert created(plan(world([jobs(3, 1, 0)], backends=eight), it)) == {("b", "one"): 3}


def test_a_queue_may_use_only_some_offerings() -> None:
    it = queue(BackendUse("cloud", offerings=("large",)))
    backends = {"cloud": backend(SMALL, LARGE)}
    assert created(plan(world([jobs(1)], backends=backends), it)) == {("cloud", "large"): 1}
    made = plan(world([jobs(1)], backends=backends), queue(BackendUse("cloud", offerings=("huge",))))
    assert account(made).withheld == {"cloud offers nothing that the queue may use": 1}


# ------------------------------------------------------------------------------------------------------------- burst


BURST = (BackendUse("a"), BackendUse("b", burst_after_s=600))


def test_only_jobs_that_waited_long_enough_burst() -> None:
    made = plan(world([jobs(10, waited={600: 4})], backends=TWO), queue(*BURST), a=Limits(total=0))
    assert created(made) == {("b", "small"): 4}
    assert account(made).withheld == {
        "a is at its limit of 0 resources; b takes only jobs that have waited 600 s": 6,
    }


def test_what_has_a_place_already_does_not_burst_again() -> None:
    there = some(3, backend="b")
    made = plan(world([jobs(10, waited={600: 4})], there, backends=TWO), queue(*BURST), a=Limits(total=0))
    assert created(made) == {("b", "small"): 1}


def test_a_source_that_did_not_count_waits_bursts_nothing() -> None:
    made = plan(world([jobs(10)], backends=TWO), queue(*BURST), a=Limits(total=0))
    assert made.creates == ()


def test_young_jobs_do_not_fill_up_what_burst() -> None:
    backends = {"a": backend(), "b": backend(LARGE)}
    made = plan(world([jobs(10, waited={600: 4})], backends=backends), queue(*BURST), a=Limits(total=0))
    assert (total(made), account(made).granted) == (1, 4)


# ------------------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("limits", "granted", "words"),
    [
        (Limits(total=7), 3, "{} is at its limit of 7 resources"),
        (Limits(pending=5), 3, "{} is at its limit of 5 resources on their way"),
        (Limits(per_cycle=3), 3, "{} makes at most 3 in one cycle"),
        (Limits(total=0), 0, "{} is at its limit of 0 resources"),
        (Limits(total=7, per_cycle=1), 1, "{} makes at most 1 in one cycle"),
    ],
)
def test_limits_hold_for_backend_queue_and_factory(limits: Limits, granted: int, words: str) -> None:
    there = [*some(2), resource(8, State.READY, busy=1), resource(9, State.REMOVING)]
    it = world([jobs(12)], there)
    for made, who in (
        (plan(it, cloud=limits), "cloud"),
        (plan(it, queue(limits=limits)), "the queue"),
        (plan(it, limits=limits), "the factory"),
    ):
        assert total(made) == granted
        assert account(made).withheld == {words.format(who): 10 - granted}


def test_a_rate_counts_what_was_asked_for_in_the_last_minute() -> None:
    it = world([jobs(10)], backends={"cloud": backend(recent_creates=4)})
    made = plan(it, cloud=Limits(per_minute=6))
    assert account(made).withheld == {"cloud makes at most 6 in a minute": 8}
    assert total(plan(it, limits=Limits(per_minute=6))) == 2
    young = some(4, created_at=NOW - 30)
    assert total(plan(world([jobs(10)], young), queue(limits=Limits(per_minute=6)))) == 2


def test_an_offering_has_a_limit() -> None:
    it = world([jobs(10)], some(3), backends={"cloud": backend(replace(SMALL, limit=5))})
    made = plan(it)
    assert total(made) == 2
    assert account(made).withheld == {"small at cloud is at its limit of 5 resources": 5}


def test_when_one_offering_is_full_the_next_is_taken() -> None:
    it = world([jobs(10)], backends={"cloud": backend(replace(SMALL, limit=2), LARGE)})
    assert created(plan(it)) == {("cloud", "small"): 2, ("cloud", "large"): 1}


# ------------------------------------------------------------------------------------------------------------ health


def ailing(breaker: Breaker, **more: Any) -> BackendView:
    return backend(SMALL, health=Health(breaker, "quota exceeded", NOW - 50), **more)


def test_an_open_breaker_offers_nothing_and_says_why() -> None:
    made = plan(world([jobs(5)], backends={"cloud": ailing(Breaker.OPEN)}))
    assert account(made).withheld == {"cloud is not asked for more: quota exceeded": 5}


def test_a_closed_door_sends_work_to_the_next() -> None:
    made = plan(world([jobs(5)], backends={"a": ailing(Breaker.OPEN), "b": backend()}), queue("a", "b"))
    assert created(made) == {("b", "small"): 5}


def test_a_half_open_breaker_lets_one_canary_pass_for_all_queues() -> None:
    it = world({"p": [jobs(5)], "q": [jobs(5)]}, backends={"cloud": ailing(Breaker.HALF_OPEN)})
    made = plan(it, queue(name="p"), queue(name="q"))
    (create,) = made.creates
    assert (create.count, create.canary) == (1, True)
    assert create.reason == "one canary: 1 waiting job has no place yet"
    other = "p" if create.queue == "q" else "q"
    assert account(made, other).withheld == {"cloud is tried with one canary first: quota exceeded": 5}


def test_no_second_canary_while_one_is_on_its_way() -> None:
    canary = resource(1, State.STARTING, created_at=NOW - 20)
    made = plan(world([jobs(5)], [canary], backends={"cloud": ailing(Breaker.HALF_OPEN)}))
    assert made.creates == ()


def test_what_was_pending_before_the_breaker_opened_is_no_canary() -> None:
    old = resource(1, State.PENDING, created_at=NOW - 5000)
    assert total(plan(world([jobs(5)], [old], backends={"cloud": ailing(Breaker.HALF_OPEN)}))) == 1


def test_one_sick_offering_leaves_the_others_alone() -> None:
    for breaker, small in ((Breaker.OPEN, 0), (Breaker.HALF_OPEN, 1)):
        sick = backend(SMALL, LARGE, offering_health={"small": Health(breaker, "bad image", NOW - 50)})
        made = plan(world([jobs(9)], backends={"cloud": sick}))
        assert created(made).get(("cloud", "small"), 0) == small
        assert account(made).granted == 9


# ----------------------------------------------------------------------------------------------------------- unknown


@pytest.mark.parametrize("part", ["listing", "offerings"])
def test_an_unknown_backend_holds_alone(part: str) -> None:
    unknown: dict[str, Any] = {part: UNKNOWN}
    views = {"a": replace(backend(), **unknown), "b": backend()}
    made = plan(world([jobs(5)], backends=views), queue("a", "b"))
    assert created(made) == {("b", "small"): 5}
    assert decision(made).notes == ("nothing is created or retired at a, which is unknown: timeout",)


def test_a_stale_listing_is_unknown() -> None:
    stale = replace(backend(), listing=Seen(None, NOW - 121))
    made = plan(world([jobs(5)], backends={"cloud": stale}))
    assert decision(made).hold == "cloud is unknown: the last answer is older than 120 s"
    assert account(made).withheld == {decision(made).hold: 5}


# ----------------------------------------------------------------------------------------------------------- sharing


def contest(*queues: QueueSettings, left: int, resources: Any = (), **more: Any) -> dict[str, int]:
    """How many each of these queues gets, each with 100 waiting jobs, where the backend takes `left` more."""
    it: World = world({one.name: [jobs(100)] for one in queues}, resources, **more)
    made = plan(it, *queues, cloud=Limits(per_cycle=left))
    return {one.name: total(made, queue=one.name) for one in queues}


def test_a_higher_priority_is_served_first() -> None:
    assert contest(queue(name="p"), queue(name="q", priority=1), left=120) == {"p": 20, "q": 100}


def test_equal_queues_share_equally() -> None:
    assert contest(queue(name="p"), queue(name="q"), left=10) == {"p": 5, "q": 5}


def test_weights_share_in_proportion() -> None:
    assert contest(queue(name="p", weight=3), queue(name="q"), left=8) == {"p": 6, "q": 2}


def test_odd_units_go_by_the_largest_remainder() -> None:
    assert contest(queue(name="p", weight=3), queue(name="q"), left=5) == {"p": 4, "q": 1}


def test_odd_units_go_to_who_has_least() -> None:
    there = [resource(1, queue="p")]
    assert contest(queue(name="p"), queue(name="q"), left=1, resources=there) == {"p": 0, "q": 1}


def test_odd_units_go_to_who_waited_longest() -> None:
    past = {"p": history(last_created={("cloud", "small"): NOW - 5}, demand_changed_at=NOW)}
    assert contest(queue(name="p"), queue(name="q"), left=1, history=past) == {"p": 0, "q": 1}


def test_what_one_queue_does_not_need_goes_to_the_other() -> None:
    it = world({"p": [jobs(2)], "q": [jobs(100)]})
    made = plan(it, queue(name="p"), queue(name="q"), cloud=Limits(per_cycle=10))
    assert (total(made, queue="p"), total(made, queue="q")) == (2, 8)


def test_a_queue_cut_at_one_backend_takes_another() -> None:
    it = world({"p": [jobs(10)], "q": [jobs(10)]}, backends=TWO)
    made = plan(it, queue("a", "b", name="p"), queue("a", name="q"), a=Limits(total=10))
    assert created(made, queue="p") == {("a", "small"): 5, ("b", "small"): 5}
    assert created(made, queue="q") == {("a", "small"): 5}


def test_spilling_queues_together_keep_the_limit_of_the_next() -> None:
    it = world({"p": [jobs(10)], "q": [jobs(10)]}, backends=TWO)
    made = plan(it, queue("a", "b", name="p"), queue("a", "b", name="q"), a=Limits(total=2), b=Limits(total=7))
    assert (total(made, backend="a"), total(made, backend="b")) == (2, 7)


def test_shares_that_exclude_each_other_still_serve_somebody() -> None:
    it = world({"p": [jobs(5)], "q": [jobs(5)]}, backends=TWO)
    made = plan(it, queue("a", name="p", weight=9), queue("b", name="q"), limits=Limits(per_cycle=1))
    assert total(made) == 1


def test_nobody_starves_over_repeated_cycles() -> None:
    queues = [queue(name=f"q{at}", weight=weight) for at, weight in enumerate((10.0, 1.0, 1.0))]
    created_at: dict[str, float] = {}
    got = dict.fromkeys([one.name for one in queues], 0)
    for cycle in range(12):
        past = {
            name: history(last_created={("cloud", "small"): at}, demand_changed_at=NOW + 1)
            for name, at in created_at.items()
        }
        for name, count in contest(*queues, left=1, history=past).items():
            got[name] += count
            if count:
                created_at[name] = NOW - 1000 + cycle
    assert all(count >= 4 for count in got.values())


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_level_pours_onto_the_lowest() -> None:
    assert level(6, [4, 0], [1, 1]) == [1, 5]
    assert level(1, [4, 0], [3, 1]) == [0, 1]
    assert level(8, [0, 0], [3, 1]) == [6, 2]


def test_whole_numbers_add_up() -> None:
    assert whole([3.75, 1.25], 5) == [4, 1]
    assert whole([1 / 3, 1 / 3, 1 / 3], 1) == [1, 0, 0]

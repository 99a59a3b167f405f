"""Fitting jobs to resources: what is covered, what is missing, and which new resources it takes."""

from __future__ import annotations

from typing import Any

import pytest

from apf_elastic.model import JobGroup, Offering, Resource, Shape, State
from tests.decide.worlds import (
    LARGE,
    MEDIUM,
    NOW,
    SMALL,
    account,
    backend,
    created,
    decision,
    jobs,
    plan,
    resource,
    some,
    total,
    world,
)

GPU = Offering("gpu", Shape(8, 16000, gpus=1))


def offers(*offerings: Offering) -> dict[str, Any]:
    return {"backends": {"cloud": backend(*offerings)}}


def test_each_job_without_a_place_gets_a_resource() -> None:
    made = plan(world([jobs(5)]))
    assert created(made) == {("cloud", "small"): 5}
    assert (account(made).covered, account(made).granted, account(made).withheld) == (0, 5, {})


def test_no_work_needs_nothing() -> None:
    assert plan(world([])).creates == ()


@pytest.mark.parametrize("state", [State.INTENDED, State.SUBMITTED, State.PENDING, State.STARTING])
def test_what_is_on_its_way_counts(state: State) -> None:
    made = plan(world([jobs(5)], some(3, state)))
    assert (total(made), account(made).covered) == (2, 3)


def test_what_is_idle_counts() -> None:
    assert total(plan(world([jobs(5)], some(3, State.READY)))) == 2


def test_what_is_left_of_a_busy_resource_counts() -> None:
    busy = resource(1, State.READY, LARGE, busy=5)
    assert total(plan(world([jobs(5)], [busy]))) == 2


@pytest.mark.parametrize("state", [State.DRAINING, State.REMOVING, State.RUNNING])
def test_what_takes_no_job_does_not_count(state: State) -> None:
    made = plan(world([jobs(1)], [resource(1, state, slot=None)]))
    assert total(made) == 1


def test_a_resource_that_its_pool_does_not_show_does_not_count_and_is_noted() -> None:
    made = plan(world([jobs(1)], [resource(1, State.READY, slot=None)]))
    assert total(made) == 1
    assert decision(made).notes == ("1 joined resource: the pool shows no slot there that takes jobs",)


# ---------------------------------------------------------------- idle capacity that no waiting job can use (DEF-1)


def test_idle_resources_too_small_for_the_jobs_suppress_nothing() -> None:
    made = plan(world([jobs(4, 8, 8000)], some(20, State.READY), **offers(SMALL, LARGE)))
    assert created(made) == {("cloud", "large"): 4}


def test_idle_resources_with_too_little_memory_suppress_nothing() -> None:
    made = plan(world([jobs(4, 1, 8000)], some(20, State.READY), **offers(SMALL, MEDIUM)))
    assert created(made) == {("cloud", "medium"): 4}


def test_cores_that_retire_are_not_counted() -> None:
    leaving = some(20, State.READY, slot_draining=True)
    assert total(plan(world([jobs(4)], leaving))) == 4


def test_cores_left_without_a_gpu_suppress_no_gpu_job() -> None:
    taken = resource(1, State.READY, GPU, free=Shape(6, 12000), busy=1)
    assert total(plan(world([jobs(2, gpus=1)], [taken], **offers(GPU)))) == 2


def test_a_resource_with_too_little_time_left_suppresses_nothing() -> None:
    short = Offering("day", Shape(1, 2000, walltime_s=86400))
    old = resource(1, State.READY, short, joined_at=NOW - 80000)
    assert total(plan(world([jobs(1, walltime_s=7200)], [old], **offers(short)))) == 1
    assert total(plan(world([jobs(1, walltime_s=6000)], [old], **offers(short)))) == 0
    assert total(plan(world([jobs(1)], [old], **offers(short)))) == 0


def test_the_time_that_the_pool_says_is_left_counts() -> None:
    old = resource(1, State.READY, free=Shape(1, 2000, walltime_s=5000))
    assert total(plan(world([jobs(1, walltime_s=6000)], [old]))) == 1
    assert total(plan(world([jobs(1, walltime_s=4000)], [old]))) == 0


def test_a_resource_past_its_end_takes_no_job() -> None:
    short = Offering("day", Shape(1, 2000, walltime_s=86400))
    old = resource(1, State.READY, short, joined_at=NOW - 90000)
    assert total(plan(world([jobs(1)], [old], **offers(short)))) == 1


# ----------------------------------------------------------------------------------------------- sharing resources


def test_small_jobs_share_a_large_resource() -> None:
    assert created(plan(world([jobs(16)], **offers(LARGE)))) == {("cloud", "large"): 2}


def test_big_jobs_are_placed_first_and_small_ones_fill_the_rest() -> None:
    made = plan(world([jobs(4, 1), jobs(2, 6, 6000)], **offers(LARGE)))
    assert created(made) == {("cloud", "large"): 2}


def test_memory_bounds_how_many_share() -> None:
    assert total(plan(world([jobs(4, 1, 8000)], **offers(LARGE)))) == 2


def test_disk_and_gpus_bound_how_many_share() -> None:
    disk = Offering("disk", Shape(8, 16000, disk_mb=100))
    assert total(plan(world([jobs(4, disk_mb=50)], **offers(disk)))) == 2
    assert total(plan(world([jobs(4, gpus=1)], **offers(Offering("two", Shape(8, 16000, gpus=2)))))) == 2


def test_memory_and_disk_that_an_offering_does_not_state_suit_every_job() -> None:
    made = plan(world([jobs(4, 1, 10**6, disk_mb=10**6)], **offers(Offering("bare", Shape(4)))))
    assert created(made) == {("cloud", "bare"): 1}


def test_gpus_that_an_offering_does_not_state_are_not_there() -> None:
    made = plan(world([jobs(1, gpus=1)]))
    assert account(made).withheld == {"asks for 1 GPU; none here has any": 1}


def test_equal_price_takes_the_offering_that_wastes_least() -> None:
    assert created(plan(world([jobs(9)], **offers(LARGE, SMALL)))) == {("cloud", "small"): 9}
    assert created(plan(world([jobs(1, 3, 3000)], **offers(LARGE, MEDIUM)))) == {("cloud", "medium"): 1}


def test_a_price_decides_which_offering() -> None:
    dear = Offering("small", Shape(1, 2000), price_per_hour=0.05)
    bulk = Offering("large", Shape(8, 16000), price_per_hour=0.30)
    assert created(plan(world([jobs(8)], **offers(dear, bulk)))) == {("cloud", "large"): 1}
    assert created(plan(world([jobs(5)], **offers(dear, bulk)))) == {("cloud", "small"): 5}
    assert created(plan(world([jobs(13)], **offers(dear, bulk)))) == {("cloud", "large"): 1, ("cloud", "small"): 5}


def test_gpus_are_not_wasted_on_jobs_without() -> None:
    assert created(plan(world([jobs(8)], **offers(GPU, LARGE)))) == {("cloud", "large"): 1}


def test_small_jobs_keep_idle_resources_free_when_busy_ones_have_room() -> None:
    busy, idle = resource(1, State.READY, LARGE, busy=4), resource(2, State.READY, LARGE, idle_s=9999)
    made = plan(world([jobs(4)], [busy, idle], **offers(LARGE)))
    assert [retire.id for retire in made.retirements] == ["r2"]


def test_the_architecture_must_suit() -> None:
    arm = Offering("arm", Shape(1, 2000, arch="aarch64"))
    assert total(plan(world([jobs(2, arch="aarch64")], **offers(arm)))) == 2
    assert total(plan(world([jobs(2)], **offers(arm)))) == 2
    assert total(plan(world([jobs(2, arch="x86_64")], some(2, State.READY, arm), **offers(SMALL)))) == 2


def test_groups_of_one_shape_are_one_account() -> None:
    made = plan(world([jobs(2), jobs(3)]))
    assert account(made).waiting == 5


# ------------------------------------------------------------------------------------------- what can never be served


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (jobs(3, 16), "asks for 16 cores; the largest offering here is 8 cores"),
        (jobs(3, 1, 64000), "asks for 64000 MB of memory; the largest offering here has 16000 MB"),
        (jobs(3, disk_mb=999), "asks for 999 MB of disk; the largest offering here has 500 MB"),
        (jobs(3, gpus=2), "asks for 2 GPUs; the largest offering here has 1"),
        (jobs(3, walltime_s=90000), "asks for 90000 s; the longest offering here lives 86400 s"),
        (jobs(3, arch="riscv64"), "asks for riscv64; the offerings here are aarch64, x86_64"),
        (jobs(3, 8, 1000, gpus=1), "asks for 8 cores, 1000 MB, 1 GPU; no single offering here has all of that"),
    ],
)
def test_a_job_that_fits_nowhere_is_told_which_dimension_binds(group: JobGroup, words: str) -> None:
    wide = Offering("wide", Shape(8, 16000, 500, 0, 86400, "x86_64"))
    gpu = Offering("gpu", Shape(4, 8000, 100, 1, 3600, "aarch64"))
    made = plan(world([group], **offers(wide, gpu)))
    assert made.creates == ()
    assert account(made).withheld == {words: 3}


def test_jobs_that_fit_nowhere_do_not_keep_others_from_being_served() -> None:
    made = plan(world([jobs(3, 16), jobs(2)]))
    assert total(made) == 2
    assert [one.granted for one in decision(made).accounts] == [0, 2]


# -------------------------------------------------------------------------------------------------- broken negotiator


def idle_and_waiting(wait_s: float | None, idle_s: float = 450) -> tuple[list[JobGroup], list[Resource]]:
    return [jobs(3, oldest_wait_s=wait_s)], some(3, State.READY, idle_s=idle_s)


def test_idle_resources_that_get_no_job_are_counted_and_noted() -> None:
    groups, there = idle_and_waiting(1000)
    made = plan(world(groups, there))
    assert (made.creates, made.retirements) == ((), ())
    assert decision(made).notes == (
        "3 idle resources fit these jobs but no job has started on them for 400 s: check the jobs' requirements",
    )


@pytest.mark.parametrize(("wait_s", "idle_s"), [(100, 450), (1000, 200)])
def test_jobs_and_resources_that_met_just_now_are_not_noted(wait_s: float, idle_s: float) -> None:
    groups, there = idle_and_waiting(wait_s, idle_s)
    assert decision(plan(world(groups, there))).notes == ()


def test_the_default_policy_says_what_it_found() -> None:
    made = plan(world([jobs(5), jobs(1, 16)], some(2)))
    (step,) = decision(made).steps
    assert (step.name, step.n) == ("Fit", 3)
    assert step.reason == "6 waiting: 2 have a place, 3 get one on 3 new resources, 1 withheld"

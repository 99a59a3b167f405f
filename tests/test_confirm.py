"""Suspicious readings."""

from apf_elastic.confirm import READINGS, DemandGuard, ListGuard
from apf_elastic.model import Demand, JobGroup, Shape


def demand(waiting: int, running: int = 0) -> Demand:
    return Demand((JobGroup(Shape(), waiting, running),))


def names(count: int) -> frozenset[str]:
    return frozenset(f"r{i}" for i in range(count))


NOBODY: frozenset[str] = frozenset()


def test_the_first_reading_is_believed_even_if_empty() -> None:
    assert DemandGuard().admit(demand(0), 1.0) == ""


def test_a_sudden_zero_is_not_believed_until_enough_readings_agree() -> None:
    guard = DemandGuard()
    guard.admit(demand(40), 1.0)
    doubts = [guard.admit(demand(0), 2.0 + i) for i in range(READINGS)]
    assert all(doubts[:-1])
    assert "from 40 to 0" in doubts[0]
    assert doubts[-1] == ""


def test_one_reading_told_twice_counts_once() -> None:
    guard = DemandGuard()
    guard.admit(demand(40), 1.0)
    assert all(guard.admit(demand(0), 2.0) for _ in range(2 * READINGS))


def test_work_that_started_running_is_no_surprise() -> None:
    guard = DemandGuard()
    guard.admit(demand(40), 1.0)
    assert guard.admit(demand(0, running=40), 2.0) == ""


def test_demand_that_comes_back_ends_the_doubt() -> None:
    guard = DemandGuard()
    guard.admit(demand(40), 1.0)
    assert guard.admit(demand(0), 2.0)
    assert guard.admit(demand(39), 3.0) == ""
    assert guard.admit(demand(0), 4.0)


def test_a_falling_demand_is_believed_at_once() -> None:
    guard = DemandGuard()
    guard.admit(demand(40), 1.0)
    assert guard.admit(demand(1), 2.0) == ""


def test_an_empty_list_after_a_full_one_is_not_believed() -> None:
    guard = ListGuard()
    guard.admit(names(50), NOBODY, 1.0)
    doubts = [guard.admit(NOBODY, NOBODY, 2.0 + i) for i in range(READINGS)]
    assert all(doubts[:-1])
    assert "50 of 50" in doubts[0]
    assert doubts[-1] == ""


def test_losing_half_of_a_list_is_not_believed() -> None:
    guard = ListGuard()
    guard.admit(names(50), NOBODY, 1.0)
    assert guard.admit(names(25), NOBODY, 2.0)


def test_losing_a_few_is_believed() -> None:
    guard = ListGuard()
    guard.admit(names(50), NOBODY, 1.0)
    assert guard.admit(names(45), NOBODY, 2.0) == ""


def test_what_was_retired_may_leave_all_at_once() -> None:
    guard = ListGuard()
    guard.admit(names(50), NOBODY, 1.0)
    assert guard.admit(NOBODY, names(50), 2.0) == ""


def test_the_only_entry_may_leave() -> None:
    guard = ListGuard()
    guard.admit(names(1), NOBODY, 1.0)
    assert guard.admit(NOBODY, NOBODY, 2.0) == ""

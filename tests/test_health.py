"""Circuit breakers."""

from apf_elastic.health import FAILURES_TO_OPEN, FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Healths, Stage
from apf_elastic.model import Breaker


def healths() -> Healths:
    return Healths(jitter=lambda: 0.5)


def broken(times: int = FAILURES_TO_OPEN, stage: Stage = Stage.CREATE, now: float = 0.0) -> Healths:
    made = healths()
    for _ in range(times):
        made.failed("ce", "small", stage, "no such queue", now)
    return made


def state(made: Healths, now: float) -> Breaker:
    found = made.of_offerings("ce", now).get("small")
    return found.breaker if found else Breaker.CLOSED


def test_a_backend_nobody_used_is_healthy() -> None:
    assert healths().of_backend("ce", 0.0).breaker is Breaker.CLOSED


def test_too_few_failures_leave_it_closed() -> None:
    assert state(broken(FAILURES_TO_OPEN - 1), 0.0) is Breaker.CLOSED


def test_failures_in_a_row_open_it_and_say_why() -> None:
    made = broken()
    assert state(made, 1.0) is Breaker.OPEN
    assert made.of_offerings("ce", 1.0)["small"].reason == "no such queue"


def test_the_rest_of_the_backend_stays_closed() -> None:
    assert broken().of_backend("ce", 1.0).breaker is Breaker.CLOSED


def test_after_the_back_off_one_canary_may_go() -> None:
    assert state(broken(), FIRST_BACKOFF_S + 1) is Breaker.HALF_OPEN


def test_a_success_closes_it() -> None:
    made = broken()
    made.succeeded("ce", "small", Stage.CREATE)
    assert state(made, 1.0) is Breaker.CLOSED


def test_an_accepted_canary_does_not_excuse_resources_that_never_join() -> None:
    made = broken(stage=Stage.JOIN)
    made.succeeded("ce", "small", Stage.CREATE)
    made.succeeded("ce", "small", Stage.START)
    assert state(made, 1.0) is Breaker.OPEN
    made.succeeded("ce", "small", Stage.JOIN)
    assert state(made, 1.0) is Breaker.CLOSED


def test_a_failed_canary_doubles_the_back_off() -> None:
    made = broken()
    made.failed("ce", "small", Stage.CREATE, "still", FIRST_BACKOFF_S + 1)
    assert state(made, 2 * FIRST_BACKOFF_S) is Breaker.OPEN
    assert state(made, 3 * FIRST_BACKOFF_S + 2) is Breaker.HALF_OPEN


def test_late_answers_of_earlier_calls_open_it_once_only() -> None:
    made = broken(times=50)
    assert state(made, FIRST_BACKOFF_S + 1) is Breaker.HALF_OPEN


def test_the_back_off_never_passes_an_hour() -> None:
    made = healths()
    now = 0.0
    for _ in range(60):
        made.failed("ce", "small", Stage.CREATE, "x", now)
        now += 2 * LONGEST_BACKOFF_S
    made.failed("ce", "small", Stage.CREATE, "x", now)
    assert state(made, now + LONGEST_BACKOFF_S + 1) is Breaker.HALF_OPEN


def test_a_refusal_with_a_time_is_kept_for_that_time() -> None:
    made = healths()
    made.refused("ce", "small", "quota", 120.0, 0.0)
    assert state(made, 119.0) is Breaker.OPEN
    assert state(made, 121.0) is Breaker.HALF_OPEN


def test_breakers_survive_a_restart() -> None:
    made = healths()
    made.load(broken().dump())
    assert state(made, 1.0) is Breaker.OPEN


def test_rows_of_another_format_are_ignored() -> None:
    made = healths()
    made.load([["ce"], [1, 2, 3], ["ce", "small", 3, 1, "soon", 1, "x"], ["ce", "small", 3, 1, 5.0, 77, "x"]])
    assert state(made, 1.0) is Breaker.CLOSED

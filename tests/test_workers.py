"""Workers: deadlines, hanging calls, schedules."""

import threading
import time

from apf_elastic.workers import DUTY, HANGING, LONGEST_PAUSE_S, Answer, Inbox, InlineLane, Schedule, ThreadLane


def answers(inbox: Inbox, count: int, lane: ThreadLane | None = None, patience_s: float = 10.0) -> list[Answer]:
    """Collect `count` answers, giving up late calls on the way."""
    found: list[Answer] = []
    end = time.monotonic() + patience_s
    while len(found) < count and time.monotonic() < end:
        if lane is not None:
            lane.expire()
        inbox.wait(0.01)
        found += inbox.take()
    assert len(found) == count
    return found


class Gate:
    """A call that hangs until the gate opens."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def hang(self) -> str:
        self.event.wait(30)
        return "at last"


def boom() -> None:
    raise ValueError("no route to host")


def test_a_call_answers_with_its_value_and_when_it_was_asked() -> None:
    inbox = Inbox()
    lane = ThreadLane("backend b", inbox, clock=lambda: 42.0)
    lane.call("tag", lambda: 7, 5.0)
    (answer,) = answers(inbox, 1)
    assert (answer.endpoint, answer.tag, answer.value, answer.asked_at, answer.error) == (
        "backend b",
        "tag",
        7,
        42.0,
        "",
    )


def test_a_call_that_throws_is_an_answer_too() -> None:
    inbox = Inbox()
    lane = ThreadLane("backend b", inbox)
    lane.call("tag", boom, 5.0)
    lane.call("tag", lambda: 7, 5.0)
    first, second = answers(inbox, 2)
    assert (first.error, second.value) == ("no route to host", 7)


def test_an_exception_without_words_is_told_by_its_name() -> None:
    def silent() -> None:
        raise TimeoutError

    inbox = Inbox()
    ThreadLane("b", inbox).call("tag", silent, 5.0)
    assert answers(inbox, 1)[0].error == "TimeoutError"


def test_a_call_that_hangs_is_given_up_and_the_next_one_goes_on() -> None:
    inbox, gate = Inbox(), Gate()
    lane = ThreadLane("b", inbox)
    lane.call("slow", gate.hang, 0.05)
    lane.call("quick", lambda: 7, 5.0)
    first, second = answers(inbox, 2, lane)
    gate.event.set()
    assert (first.tag, first.timed_out, first.error) == ("slow", True, "no answer within 0.05 s")
    assert second.value == 7


def test_a_late_answer_still_comes_and_says_so() -> None:
    inbox, gate = Inbox(), Gate()
    lane = ThreadLane("b", inbox)
    lane.call("slow", gate.hang, 0.05)
    answers(inbox, 1, lane)
    gate.event.set()
    (late,) = answers(inbox, 1)
    assert (late.late, late.value) == (True, "at last")


def test_after_too_many_hanging_calls_the_lane_takes_no_more_until_one_returns() -> None:
    inbox, gate = Inbox(), Gate()
    lane = ThreadLane("b", inbox)
    for _ in range(HANGING):
        assert lane.call("slow", gate.hang, 0.02)
    answers(inbox, HANGING, lane)
    assert not lane.call("more", lambda: 7, 5.0)
    gate.event.set()
    answers(inbox, HANGING)
    assert lane.call("more", lambda: 7, 5.0)
    assert answers(inbox, 1)[0].value == 7


def test_a_lane_is_idle_only_when_nothing_waits() -> None:
    inbox, gate = Inbox(), Gate()
    lane = ThreadLane("b", inbox)
    assert lane.idle
    lane.call("slow", gate.hang, 30.0)
    assert not lane.idle
    gate.event.set()
    answers(inbox, 1)
    assert lane.idle


def test_an_inline_lane_answers_at_once() -> None:
    inbox = Inbox()
    InlineLane("b", inbox, lambda: 1.0).call("tag", boom, 1.0)
    assert inbox.take()[0].error == "no route to host"


def schedule(every_s: float = 3.0) -> Schedule:
    made = Schedule(every_s)
    made.asked(100.0)
    return made


def near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 0.06 * wanted


def test_an_endpoint_being_asked_is_not_due() -> None:
    assert schedule().due == float("inf")


def test_a_quick_server_is_asked_at_its_period() -> None:
    made = schedule()
    made.answered(100.1, 0.1, failed=False)
    assert near(made.due - 100.0, 3.0)


def test_a_slow_server_is_asked_less_often() -> None:
    made = schedule()
    made.answered(106.0, 6.0, failed=False)
    assert near(made.due - 100.0, 6.0 / DUTY)


def test_a_failing_server_is_asked_less_and_less() -> None:
    made = Schedule(3.0)
    pauses = []
    for _ in range(10):
        made.asked(100.0)
        made.answered(100.0, 0.0, failed=True)
        pauses.append(made.due - 100.0)
    assert pauses[-1] > 5 * pauses[0]
    assert max(pauses) <= 1.1 * LONGEST_PAUSE_S


def test_soon_means_within_a_second_unless_it_fails() -> None:
    made = schedule(15.0)
    made.answered(100.1, 0.1, failed=False)
    made.soon(105.0)
    assert made.due == 105.0
    made.asked(105.0)
    made.answered(105.0, 0.0, failed=True)
    due = made.due
    made.soon(105.5)
    assert made.due == due

"""Workers: every source, pool and backend answers in threads of its own, with deadlines.

Nothing here decides anything. A call that hangs is given up at its deadline and its thread is left behind (a few
at most); a call that throws is an answer like any other. The cycle never waits for a worker: answers come to
its `Inbox`.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tenacity import RetryCallState, Retrying, wait_exponential_jitter

log = logging.getLogger(__name__)

#: So many threads may hang in one lane before it takes no more calls.
HANGING = 3
#: A poll may take at most this share of an endpoint's time, so that a slow server is asked less often.
DUTY = 0.1
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: a value or an error, when it was asked, how long it took."""

    endpoint: str
    tag: Any
    asked_at: float
    took_s: float
    value: Any = None
    error: str = ""
    timed_out: bool = False
    late: bool = False


class Inbox:
    """Where answers arrive; the cycle sleeps on it."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._event = threading.Event()

    def put(self, answer: Answer) -> None:
        self._answers.put(answer)
        self._event.set()

    def wake(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float) -> None:
        self._event.wait(timeout_s)

    def take(self) -> list[Answer]:
        self._event.clear()
        answers = []
        while True:
            try:
                answers.append(self._answers.get_nowait())
            except queue.Empty:
                return answers


class Lane(Protocol):
    """Where calls of one kind to one endpoint are made, one after another."""

    def call(self, tag: Any, function: Callable[[], Any], timeout_s: float) -> bool:
        """Queue a call; its answer comes to the inbox. False: the lane is stuck, nothing was queued."""
        ...

    def expire(self) -> None:
        """Give up calls past their deadline."""
        ...

    @property
    def idle(self) -> bool: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Call:
    tag: Any
    function: Callable[[], Any]
    timeout_s: float
    asked_at: float = 0.0
    started: float | None = None
    given_up: bool = False


class ThreadLane:
    """A lane with one thread at work; a thread that hangs is replaced."""

    def __init__(self, endpoint: str, inbox: Inbox, clock: Callable[[], float] = time.time, name: str = "") -> None:
        self._endpoint = endpoint
        self._inbox = inbox
        self._clock = clock
        self._name = name or endpoint
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._waiting = 0
        self._current: _Call | None = None
        self._hanging = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, tag: Any, function: Callable[[], Any], timeout_s: float) -> bool:
        with self._lock:
            if self._closed or self._hanging >= HANGING:
                return False
            self._waiting += 1
            if self._thread is None:
                self._start()
        self._calls.put(_Call(tag, function, timeout_s))
        return True

    @property
    def idle(self) -> bool:
        with self._lock:
            return self._waiting == 0

    @property
    def hanging(self) -> int:
        return self._hanging

    def expire(self) -> None:
        with self._lock:
            call = self._current
            if call is None or call.started is None or call.given_up:
                return
            took_s = time.monotonic() - call.started
            if took_s < call.timeout_s:
                return
            call.given_up = True
            self._waiting -= 1
            self._hanging += 1
            self._current = None
            if self._hanging < HANGING and not self._closed:
                self._start()
            else:
                self._thread = None
        self._inbox.put(
            Answer(
                self._endpoint,
                call.tag,
                call.asked_at,
                took_s,
                error=f"no answer within {call.timeout_s:g} s",
                timed_out=True,
            )
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._calls.put(None)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            with self._lock:
                call.asked_at, call.started = self._clock(), time.monotonic()
                self._current = call
            value, error = _outcome(call.function)
            took_s = time.monotonic() - call.started
            with self._lock:
                late = call.given_up
                if late:
                    self._hanging -= 1
                    revive = self._thread is None and not self._closed
                    if revive:
                        self._start()
                else:
                    self._current = None
                    self._waiting -= 1
            self._inbox.put(Answer(self._endpoint, call.tag, call.asked_at, took_s, value, error, late=late))
            if late:
                return


class InlineLane:
    """Makes each call at once, in the caller's thread: for tests, `once` and `plan`."""

    def __init__(self, endpoint: str, inbox: Inbox, clock: Callable[[], float] = time.time) -> None:
        self._endpoint, self._inbox, self._clock = endpoint, inbox, clock

    def call(self, tag: Any, function: Callable[[], Any], timeout_s: float) -> bool:
        asked_at, started = self._clock(), time.monotonic()
        value, error = _outcome(function)
        self._inbox.put(Answer(self._endpoint, tag, asked_at, time.monotonic() - started, value, error))
        return True

    def expire(self) -> None:
        pass

    @property
    def idle(self) -> bool:
        return True

    def close(self) -> None:
        pass


def _outcome(function: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return function(), ""
    except Exception as error:
        log.debug("call failed", exc_info=True)
        return None, f"{error}" if str(error) else type(error).__name__


@dataclass(slots=True)
class Schedule:
    """When an endpoint is asked next: its period, stretched for a slow server and backed off for a failing one."""

    every_s: float
    failures: int = 0
    due: float = 0.0
    asked_at: float = 0.0
    _backoff: wait_exponential_jitter = field(
        default_factory=lambda: wait_exponential_jitter(initial=1, max=LONGEST_PAUSE_S, jitter=1)
    )

    def asked(self, now: float) -> None:
        self.asked_at = now
        self.due = float("inf")

    def answered(self, now: float, took_s: float, failed: bool, stretch: float = 1.0) -> None:
        self.failures = self.failures + 1 if failed else 0
        pause = max(self.every_s * stretch, took_s / DUTY)
        if failed:
            pause = max(pause, self._pause_after_failures())
        self.due = max(now, self.asked_at + pause * random.uniform(0.95, 1.05))

    def soon(self, now: float) -> None:
        """Something happened there: ask at the next tick, unless it is failing or being asked."""
        if not self.failures and self.due != float("inf"):
            self.due = min(self.due, max(now, self.asked_at + min(1.0, self.every_s)))

    def _pause_after_failures(self) -> float:
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = self.failures
        return self._backoff(state)

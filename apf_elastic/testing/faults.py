"""A layer of faults around any backend, source or pool, real or fake: for authors who want theirs to survive.

The layer has every verb of the plugin that it is put around, and passes on the rest. It is honest until its script
says otherwise::

    script = Script()
    backend = Faulty(MyBackend("mine", options, context), script)
    script.on("list", Empty())                                    # from now on, every call
    script.on("create", [DoneButFailed(), None, Refuse(60.0)])    # the first and the third call from now on
    script.on("delete", lambda number: Raise() if number % 2 else None)
    script.on("list", drawn(random.Random(7).choice, menu("list")))
    script.clear()                                                # honest again; what hangs goes on

With hypothesis the choice is ``lambda faults: data.draw(st.sampled_from(faults))``, and what it finds shrinks.
Every fault is a value with a readable repr, so a story of faults can be printed. ``script.struck`` lists what was
done to which call.

Faults are of three kinds: no usable answer (`Raise`, `Hang`, `Delay`, `Garbage`), a wrong answer (`Empty`,
`Truncate`, `Stale`, `Others`, `Twice`, `SlowToShow`), and a call that did something else than it says
(`DoneButFailed`, `Repeat`, `Refuse`, `Lose`). An author writes more by deriving from `Fault`.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from apf_elastic.contracts import CallError, Created, Listed, NotDeleted, Refused, Status, Uncertain
from apf_elastic.model import Demand, JobGroup, Shape, Slot

#: What can be asked of each kind of plugin.
VERBS: Mapping[str, tuple[str, ...]] = {
    "source": ("demand",),
    "pool": ("slots", "drain", "undrain", "payloads", "renew_lease"),
    "backend": ("list", "offerings", "create", "delete"),
}
#: Earlier answers that a verb remembers, for `Stale`.
REMEMBERED = 50


@dataclass(slots=True)
class Memory:
    """What a verb answered truly in earlier calls (the last is last), and in which call each id came up first."""

    answers: deque[Any] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    first_seen: dict[str, int] = field(default_factory=dict)
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call under a fault. `carry_out` makes it at the plugin, as often as it is called, and returns its answer;
    `arguments` are the caller's; `hold` blocks until the script is cleared."""

    verb: str
    arguments: tuple[Any, ...]
    carry_out: Callable[[], Any]
    memory: Memory
    hold: Callable[[], None]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that a create, delete, drain or undrain is about."""
        items: Iterable[Any] = self.arguments[0] if self.arguments else ()
        return tuple(item if isinstance(item, str) else item.id for item in items)


# ------------------------------------------------------------------------------------------------------ the faults


class Fault(ABC):
    """One way in which a call goes wrong."""

    @abstractmethod
    def strike(self, call: Call) -> Any:
        """Answer the call, wrongly; or raise."""


@dataclass(frozen=True, slots=True)
class Raise(Fault):
    """The call fails, and nothing was done."""

    message: str = "scripted failure"

    def strike(self, call: Call) -> Any:
        raise CallError(f"{call.verb}: {self.message}")


@dataclass(frozen=True, slots=True)
class Delay(Fault):
    """The call takes longer. A test with a clock of its own gives `sleep`."""

    seconds: float
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def strike(self, call: Call) -> Any:
        self.sleep(self.seconds)
        return call.carry_out()


@dataclass(frozen=True, slots=True)
class Hang(Fault):
    """The call blocks until the script is cleared, and is carried out only then."""

    def strike(self, call: Call) -> Any:
        call.hold()
        return call.carry_out()


@dataclass(frozen=True, slots=True)
class Garbage(Fault):
    """The answer is of the wrong type: `value`."""

    value: Any = None

    def strike(self, call: Call) -> Any:
        return self.value


@dataclass(frozen=True, slots=True)
class Empty(Fault):
    """The answer has the right form and says nothing: an empty list, a demand of zero."""

    def strike(self, call: Call) -> Any:
        return _part(call.carry_out(), 0.0)


@dataclass(frozen=True, slots=True)
class Truncate(Fault):
    """The answer lacks a share of its entries; a demand, that share of its jobs (seen with too few rights)."""

    share: float = 0.5

    def strike(self, call: Call) -> Any:
        return _part(call.carry_out(), 1.0 - self.share)


@dataclass(frozen=True, slots=True)
class Stale(Fault):
    """The answer of an earlier call, again: the last true one, or the one `back` calls before it."""

    back: int = 0

    def strike(self, call: Call) -> Any:
        known = call.memory.answers
        return known[max(0, len(known) - 1 - self.back)] if known else call.carry_out()


@dataclass(frozen=True, slots=True)
class Others(Fault):
    """Records that are not ours are mixed into the answer: `records`, or ones made up to look like the real ones."""

    records: tuple[Any, ...] = ()

    def strike(self, call: Call) -> Any:
        answer = call.carry_out()
        if isinstance(answer, Mapping):
            return {"a queue of others": Demand((JobGroup(Shape(), 1000),)), **answer}
        return [*answer, *(self.records or _others(call.verb))]


@dataclass(frozen=True, slots=True)
class Twice(Fault):
    """Every entry of the answer comes twice."""

    def strike(self, call: Call) -> Any:
        answer = call.carry_out()
        return [*answer, *answer] if isinstance(answer, Sequence) else answer


@dataclass(frozen=True, slots=True)
class SlowToShow(Fault):
    """What came up in the true answer less than `calls` calls ago is not in this one yet."""

    calls: int = 3

    def strike(self, call: Call) -> Any:
        answer, memory = call.carry_out(), call.memory
        return [entry for entry in answer if memory.calls - memory.first_seen.get(entry.id, 0) >= self.calls]


@dataclass(frozen=True, slots=True)
class DoneButFailed(Fault):
    """The call is carried out and then raises; with `told`, it answers instead that it failed, entry by entry."""

    told: bool = False

    def strike(self, call: Call) -> Any:
        call.carry_out()
        reason = "scripted: done, but reported as failed"
        if not self.told:
            raise CallError(f"{call.verb}: {reason}")
        match call.verb:
            case "create":
                return [Uncertain(id, reason) for id in call.ids]
            case "delete":
                return [NotDeleted(id, reason) for id in call.ids]
            case "drain" | "undrain":
                return dict.fromkeys(call.ids, reason)
        raise CallError(f"{call.verb}: {reason}")


@dataclass(frozen=True, slots=True)
class Repeat(Fault):
    """The call reaches the plugin twice, as after a retry below it; the second answer is given."""

    def strike(self, call: Call) -> Any:
        call.carry_out()
        return call.carry_out()


@dataclass(frozen=True, slots=True)
class Refuse(Fault):
    """A quota: nothing is created, and the time is named after which to ask again. Other verbs raise."""

    retry_after_s: float | None = 60.0

    def strike(self, call: Call) -> Any:
        if call.verb != "create":
            raise CallError(f"{call.verb}: scripted: too many requests")
        return [Refused(id, "scripted: over quota", self.retry_after_s) for id in call.ids]


@dataclass(frozen=True, slots=True)
class Lose(Fault):
    """Everything is answered as created (deleted, drained), and nothing was done: it is never seen again."""

    def strike(self, call: Call) -> Any:
        if call.verb == "create":
            return [Created(id, f"lost-{id}") for id in call.ids]
        return {} if call.verb in ("drain", "undrain") else []


def _part(value: Any, share: float) -> Any:
    """What is left of an answer."""
    if isinstance(value, Demand):
        groups = [
            replace(group, waiting=int(group.waiting * share), running=int(group.running * share))
            for group in value.groups
        ]
        return replace(value, groups=tuple(g for g in groups if g.waiting or g.running))
    if isinstance(value, Mapping):
        if all(isinstance(part, Demand) for part in value.values()):
            return {key: _part(part, share) for key, part in value.items()}
        return dict(list(value.items())[: int(len(value) * share)])
    if isinstance(value, Sequence):
        return value[: int(len(value) * share)]
    return value


def _others(verb: str) -> list[Any]:
    ids = [f"another-factory.q.{number}" for number in range(3)]
    if verb == "list":
        return [Listed(id, f"remote-{id}", Status.RUNNING, queue="q", offering="one") for id in ids]
    if verb == "slots":
        return [Slot(id, Shape(8, 16_000), idle_since=0.0, queue="q", offering="one") for id in ids]
    return []


_SILENT: tuple[Fault, ...] = (Raise(), Hang(), Garbage())
_WRONG: tuple[Fault, ...] = (Empty(), Truncate(0.3), Truncate(0.7), Stale(), Others(), Twice())
_UNTRUE: tuple[Fault, ...] = (DoneButFailed(), DoneButFailed(told=True), Repeat(), Lose())


def menu(verb: str) -> tuple[Fault, ...]:
    """The faults that make sense for a verb, from simple to nasty: to draw from."""
    match verb:
        case "demand":
            return _SILENT + _WRONG[:-1]
        case "list" | "slots":
            return (*_SILENT, *_WRONG, SlowToShow())
        case "create":
            return (*_SILENT, Refuse(), *_UNTRUE, Empty(), Truncate(), Twice())
        case "delete" | "drain" | "undrain":
            return (*_SILENT, *_UNTRUE)
        case _:
            return _SILENT


# ------------------------------------------------------------------------------------------------------ the script

#: What becomes of the calls of a verb: always one fault, one entry per call and honest after the last, or what a
#: function says of the call's number (from 0, counted from when it was scripted).
Course = Fault | Sequence[Fault | None] | Callable[[int], Fault | None]


def drawn(
    choose: Callable[[Sequence[Fault | None]], Fault | None], faults: Sequence[Fault | None]
) -> Callable[[int], Fault | None]:
    """A course at random. Put None among the faults as often as a call shall be honest."""
    return lambda number: choose(faults)


class Script:
    """What goes wrong, verb by verb. May be changed while the plugin is in use, from any thread."""

    def __init__(self, courses: Mapping[str, Course] | None = None) -> None:
        self._lock = threading.Lock()
        self._courses: dict[str, Course] = dict(courses or {})
        self._numbers: dict[str, int] = {}
        self._released = threading.Event()
        self.struck: list[tuple[str, Fault]] = []

    def on(self, verb: str, course: Course) -> None:
        """From the next call of the verb on. Calls are counted from 0 again."""
        with self._lock:
            self._courses[verb] = course
            self._numbers[verb] = 0

    def clear(self) -> None:
        """Everything is honest again; what hangs goes on."""
        with self._lock:
            self._courses.clear()
            self._numbers.clear()
            self._released.set()
            self._released = threading.Event()

    @property
    def quiet(self) -> bool:
        """Nothing is scripted."""
        return not self._courses

    def hold(self) -> None:
        """Block until the script is cleared. A test without threads puts something else in its place."""
        self._released.wait()

    def next(self, verb: str) -> Fault | None:
        """What becomes of the next call."""
        with self._lock:
            course = self._courses.get(verb)
            number = self._numbers.get(verb, 0)
            self._numbers[verb] = number + 1
            if course is None or isinstance(course, Fault):
                fault = course
            elif isinstance(course, Sequence):
                fault = course[number] if number < len(course) else None
            else:
                fault = course(number)
            if fault is not None:
                self.struck.append((verb, fault))
            return fault


class Faulty:
    """A plugin whose verbs go wrong as a script says. Everything else is the plugin's own."""

    def __init__(self, plugin: Any, script: Script | None = None) -> None:
        self.plugin = plugin
        self.script = script if script is not None else Script()
        self._lock = threading.Lock()
        self._memories: dict[str, Memory] = {}
        for verbs in VERBS.values():
            for verb in verbs:
                if callable(getattr(plugin, verb, None)):
                    setattr(self, verb, partial(self._call, verb))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plugin, name)

    def __repr__(self) -> str:
        return f"Faulty({self.plugin!r})"

    def _call(self, verb: str, *arguments: Any) -> Any:
        with self._lock:
            memory = self._memories.setdefault(verb, Memory())
            memory.calls += 1
        carry_out = partial(self._carry_out, verb, arguments, memory)
        fault = self.script.next(verb)
        if fault is None:
            return carry_out()
        return fault.strike(Call(verb, arguments, carry_out, memory, self.script.hold))

    def _carry_out(self, verb: str, arguments: tuple[Any, ...], memory: Memory) -> Any:
        answer = getattr(self.plugin, verb)(*arguments)
        with self._lock:
            memory.answers.append(answer)
            if verb in ("list", "slots"):
                for entry in answer:
                    memory.first_seen.setdefault(entry.id, memory.calls)
        return answer

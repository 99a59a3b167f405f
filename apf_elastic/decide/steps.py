"""The steps of a policy chain: APF's, with their names and documented formulas, and our own `Fit`.

A step is a plain function ``(n, view, options) -> (n, reason)``: `n` counts resources (negative: retire so many),
`reason` is a sentence for the operator. Steps know nothing of unknown information: the chain holds before them.

A package adds one through the entry point group ``apf_elastic.steps``: a function of that form, with the pydantic
model of its options as attribute ``Options``. A name of ours is not replaced.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

#: Larger numbers than this are mistakes.
HUGE = 10**12

Number = tuple[int, str]
Function = Callable[[int, "View", Any], Number]


class PolicyError(ValueError):
    """A chain, an option or a state that cannot be used: says what, where, and what to do."""


@dataclass(frozen=True, slots=True)
class View:
    """What a step may look at, in resources of its queue.

    `ready` is A of APF's formulas (waiting jobs), `pending` P (not started at the backend), `running` R (started,
    and not draining), `retiring` those that drain. `other` is P + R of everything else in the factory, with what
    queues before this one were promised in the same cycle. `submitted` counts over the queue's life;
    `recent_started` and `recent_short` feed Throttle. `deficit` is how many new resources the waiting jobs need
    (`Fit`).
    """

    ready: int = 0
    pending: int = 0
    running: int = 0
    retiring: int = 0
    status: str = "online"
    other: int = 0
    submitted: int = 0
    recent_started: int = 0
    recent_short: int = 0
    deficit: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its name, what it computes, and the model of its options."""

    name: str
    function: Function
    options: type[BaseModel]


# ------------------------------------------------------------------------------------------------------- options


def _native(value: Any) -> Any:
    """APF's files hold text only: ``None``, ``true`` and ``25`` mean what they say."""
    if not isinstance(value, str):
        return value
    words: Mapping[str, Any] = {"none": None, "true": True, "false": False}
    text = value.strip()
    return words.get(text.lower(), text)


def _whole(value: Any) -> Any:
    value = _native(value)
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise ValueError("is not a whole number") from None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a whole number")
    if abs(value) > HUGE:
        raise ValueError("is too large to be meant")
    return value


def _whole_or_unset(value: Any) -> Any:
    return None if _native(value) is None else _whole(value)


def _real(value: Any) -> Any:
    value = _native(value)
    if isinstance(value, bool) or value is None:
        raise ValueError("is not a number")
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if not math.isfinite(value) or abs(value) > HUGE:
        raise ValueError("is not a number that can be used")
    if value < 0:
        raise ValueError("is negative")
    return value


def _truth(value: Any) -> Any:
    value = _native(value)
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Unset = Annotated[int | None, BeforeValidator(_whole_or_unset)]
Real = Annotated[float, BeforeValidator(_real)]
Truth = Annotated[bool, BeforeValidator(_truth)]
Ignored = Annotated[Any, Field(None, description="found in many files of APF, never used")]


class Options(BaseModel):
    """Options of a step, by the last word of APF's key: ``sched.ready.offset`` is Ready's `offset`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Options):
    pass


class ReadyOptions(Options):
    offset: Whole = Field(0, description="so many waiting jobs are left alone")


class ScaleOptions(Options):
    factor: Real = Field(1.0, description="resources per job")


class Maximum(Options):
    maximum: Unset = Field(None, description="absent or None: no limit")


class Minimum(Options):
    minimum: Unset = Field(None, description="absent or None: no limit")


class MaxPendingOptions(Maximum):
    allow_negative: Truth = Field(False, description="cancel pending resources above the maximum")


class Pilots(Options):
    pilots: Whole = Field(0, description="the number while the status holds")
    allowed: Ignored


class KeepNRunningOptions(Options):
    keep_running: Unset = Field(None, description="absent or None: the number from the step before")


class KeepNQueueLifeOptions(Options):
    njobs: Unset = Field(None, description="absent or None: the number from the step before")


class FixedOptions(Options):
    pilotspercycle: Unset = Field(None, description="created every cycle; absent: none")


class ThrottleOptions(Options):
    interval: Real = Field(3600.0, description="resources that started within so many seconds are looked at")
    maxtime: Real = Field(10.0, description="one that ran less than so many seconds was short")
    ratio: Real = Field(0.5, description="a larger share of short ones throttles")
    submit: Whole = Field(1, description="the number while throttled")


class WeightedActivatedOptions(Options):
    activated: Real = Field(1.0, description="weight of a waiting job")
    pending: Real = Field(1.0, description="weight of a pending resource")


class FillactivatedOptions(Options):
    default: Ignored


# --------------------------------------------------------------------------------------------------------- steps

_BUILT_IN: dict[str, Step] = {}


def _built_in(options: type[BaseModel] = NoOptions) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        _BUILT_IN[function.__name__] = Step(function.__name__, function, options)
        return function

    return register


def _capped(n: int, limit: int, words: str) -> Number:
    return (limit, f"{n} capped to {limit}: {words}") if n > limit else (n, f"{n} passes: {words}")


def _raised(n: int, floor: int, words: str) -> Number:
    return (floor, f"{n} raised to {floor}: {words}") if n < floor else (n, f"{n} passes: {words}")


@_built_in(ReadyOptions)
def Ready(n: int, view: View, options: ReadyOptions) -> Number:
    """``max(0, (A - offset) - P)``, ignoring n."""
    result = max(0, view.ready - options.offset - view.pending)
    return result, f"{view.ready} activated, {view.pending} pending, offset {options.offset}: {result}"


@_built_in(ScaleOptions)
def Scale(n: int, view: View, options: ScaleOptions) -> Number:
    """``ceil(n * factor)``: at least 1 for a positive n, and a negative n rounds towards zero."""
    result = math.ceil(n * options.factor)
    return result, f"{n} times {options.factor:g}, rounded up: {result}"


@_built_in(Maximum)
def MaxPerCycle(n: int, view: View, options: Maximum) -> Number:
    """``min(n, maximum)``."""
    if options.maximum is None:
        return n, "no maximum per cycle is set"
    return _capped(n, options.maximum, f"at most {options.maximum} per cycle")


@_built_in(Minimum)
def MinPerCycle(n: int, view: View, options: Minimum) -> Number:
    """``max(n, minimum)``; -2 retires at most 2 per cycle."""
    if options.minimum is None:
        return n, "no minimum per cycle is set"
    return _raised(n, options.minimum, f"at least {options.minimum} per cycle")


@_built_in(MaxPendingOptions)
def MaxPending(n: int, view: View, options: MaxPendingOptions) -> Number:
    """``min(n, maximum - P)``, also when P is 0; the limit is at least 0 unless `allow_negative`.

    A negative n from an earlier step passes. A negative limit may only cancel pending resources.
    """
    if options.maximum is None:
        return n, "no maximum of pending is set"
    limit = options.maximum - view.pending
    if not options.allow_negative:
        limit = max(0, limit)
    return _capped(n, limit, f"at most {options.maximum} pending, {view.pending} are")


@_built_in(Minimum)
def MinPending(n: int, view: View, options: Minimum) -> Number:
    """``max(n, minimum - P)``."""
    if options.minimum is None:
        return n, "no minimum of pending is set"
    return _raised(n, options.minimum - view.pending, f"at least {options.minimum} pending, {view.pending} are")


@_built_in(Maximum)
def MaxToRun(n: int, view: View, options: Maximum) -> Number:
    """``min(n, maximum - (P + R))``; may be negative."""
    if options.maximum is None:
        return n, "no maximum to run is set"
    there = view.pending + view.running
    return _capped(n, options.maximum - there, f"at most {options.maximum} pending or running, {there} are")


@_built_in(Maximum)
def MaxPerFactory(n: int, view: View, options: Maximum) -> Number:
    """T = P + R of the whole factory. T > maximum: 0; n + T > maximum: ``maximum - T``; else n."""
    if options.maximum is None:
        return n, "no maximum per factory is set"
    total = view.pending + view.running + view.other
    if total > options.maximum:
        return 0, f"{total} in the factory, more than {options.maximum}: 0"
    return _capped(n, options.maximum - total, f"at most {options.maximum} in the factory, {total} are")


@_built_in(Pilots)
def StatusTest(n: int, view: View, options: Pilots) -> Number:
    """`pilots` if the status is ``test``, else n."""
    return _on_status("test", n, view, options)


@_built_in(Pilots)
def StatusOffline(n: int, view: View, options: Pilots) -> Number:
    """`pilots` if the status is ``offline``, else n. Only that word counts: ``brokeroff`` passes."""
    return _on_status("offline", n, view, options)


def _on_status(status: str, n: int, view: View, options: Pilots) -> Number:
    if view.status == status:
        return options.pilots, f"status is {status}: {options.pilots}"
    return n, f"status is {view.status}, not {status}: {n}"


@_built_in(KeepNRunningOptions)
def KeepNRunning(n: int, view: View, options: KeepNRunningOptions) -> Number:
    """``keep_running - (R + P)``; without `keep_running`, n is the target. Retiring ones are not counted."""
    target = n if options.keep_running is None else options.keep_running
    there = view.pending + view.running
    return target - there, f"{target} to keep, {there} pending or running: {target - there}"


@_built_in(KeepNQueueLifeOptions)
def KeepNQueueLife(n: int, view: View, options: KeepNQueueLifeOptions) -> Number:
    """``njobs - jobs now in the queue``: those pending, running and retiring."""
    target = n if options.njobs is None else options.njobs
    there = view.pending + view.running + view.retiring
    return target - there, f"{target} to keep in the queue, {there} are: {target - there}"


@_built_in(FixedOptions)
def Fixed(n: int, view: View, options: FixedOptions) -> Number:
    """`pilotspercycle`, ignoring n."""
    result = options.pilotspercycle or 0
    return result, f"{result} in every cycle"


@_built_in()
def Null(n: int, view: View, options: NoOptions) -> Number:
    """0."""
    return 0, "none, ever"


@_built_in(ThrottleOptions)
def Throttle(n: int, view: View, options: ThrottleOptions) -> Number:
    """The black-hole guard: `submit` while short / recently started > `ratio`, else n."""
    if view.recent_started <= 0 or view.recent_short / view.recent_started <= options.ratio:
        return n, f"{view.recent_short} of {view.recent_started} recently started ended early: {n}"
    words = f"{view.recent_short} of {view.recent_started} recently started ended early"
    return options.submit, f"{words}, more than {options.ratio:g} of them: {options.submit}"


@_built_in(WeightedActivatedOptions)
def WeightedActivated(n: int, view: View, options: WeightedActivatedOptions) -> Number:
    """``max(0, int(A * activated) - int(P * pending))``."""
    result = max(0, int(view.ready * options.activated) - int(view.pending * options.pending))
    words = f"{view.ready} activated times {options.activated:g}, {view.pending} pending times {options.pending:g}"
    return result, f"{words}: {result}"


@_built_in(FillactivatedOptions)
def Fillactivated(n: int, view: View, options: FillactivatedOptions) -> Number:
    """``max(0, A - P)``."""
    result = max(0, view.ready - view.pending)
    return result, f"{view.ready} activated, {view.pending} pending: {result}"


@_built_in(Maximum)
def MaxToSubmit(n: int, view: View, options: Maximum) -> Number:
    """``min(n, max(0, maximum - submitted))`` over the life of the queue; asks for no retirement."""
    if options.maximum is None:
        return n, "no maximum over the queue's life is set"
    limit = max(0, options.maximum - view.submitted)
    return _capped(n, limit, f"at most {options.maximum} over the queue's life, {view.submitted} were submitted")


@_built_in(Minimum)
def MinToSubmit(n: int, view: View, options: Minimum) -> Number:
    """``max(n, minimum - submitted)`` over the life of the queue, n once that is reached."""
    if options.minimum is None:
        return n, "no minimum over the queue's life is set"
    missing = options.minimum - view.submitted
    if missing <= 0:
        return n, f"{view.submitted} were submitted, at least {options.minimum} over the queue's life: {n}"
    return _raised(n, missing, f"at least {options.minimum} over the queue's life, {view.submitted} were submitted")


@_built_in()
def Fit(n: int, view: View, options: NoOptions) -> Number:
    """How many new resources the waiting jobs need by cores, memory, disk, GPUs and time, ignoring n."""
    return view.deficit, f"{view.ready} jobs wait and need {view.deficit} more resources"


# ------------------------------------------------------------------------------------------------------- look-up


class _AnyOptions(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


@cache
def _others() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="apf_elastic.steps")}


def step_names() -> list[str]:
    """Every step that a chain may name."""
    return sorted({*_BUILT_IN, *_others()})


def step(name: str) -> Step:
    """The step of that name. Raises PolicyError that names near matches."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name in _others():
        return _load(name)
    raise PolicyError(f"there is no step {shown(name)}; {near(name, step_names())}")


@cache
def _load(name: str) -> Step:
    try:
        function = _others()[name].load()
    except Exception as error:
        raise PolicyError(f"step {name} of {_others()[name].value} cannot be loaded: {error}") from error
    return Step(name, function, getattr(function, "Options", _AnyOptions))


def near(word: str, known: list[str]) -> str:
    """What was probably meant."""
    folded = {name.lower(): name for name in known}
    close = [folded[match] for match in difflib.get_close_matches(word[:100].lower(), folded, n=2, cutoff=0.6)]
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known are: " + ", ".join(known)


def read_options(name: str, options: Mapping[str, object]) -> Any:
    """The options of step `name`, checked. Raises PolicyError that names the step, the option and the cure."""
    model = step(name).options
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        where = f"step {name}, option {key}"
        if problem["type"] == "extra_forbidden":
            known = list(model.model_fields)
            cure = near(key, known) if known else "it has none: remove it"
            raise PolicyError(f"{where}: there is no such option; {cure}") from None
        says = problem["msg"].removeprefix("Value error, ")
        what = f"{shown(problem['input'])} {says}" if problem["type"] == "value_error" else says
        raise PolicyError(f"{where}: {what}; {_cure(model, key)}") from None


def shown(value: object) -> str:
    text = {True: "true", False: "false", None: "nothing"}.get(value) if isinstance(value, bool | None) else None
    try:
        text = text or repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _cure(model: type[BaseModel], key: str) -> str:
    field = model.model_fields.get(key)
    if field is None:
        return "correct it"
    example = "0.5" if field.annotation is float else "true" if field.annotation is bool else "10"
    return f"write for instance {key} = {example}"

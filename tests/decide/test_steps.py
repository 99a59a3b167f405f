"""Every step: its formula, its reason, and its options as APF's files write them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from apf_elastic.decide import chain as chains
from apf_elastic.decide import steps
from apf_elastic.decide.steps import PolicyError, View, read_options, step
from apf_elastic.settings import StepSettings


def ask(name: str, n: int = 0, options: Mapping[str, object] | None = None, **view: Any) -> int:
    return step(name).function(n, View(**view), read_options(name, options or {}))[0]


def reason(name: str, n: int = 0, options: Mapping[str, object] | None = None, **view: Any) -> str:
    return step(name).function(n, View(**view), read_options(name, options or {}))[1]


@pytest.mark.parametrize(
    ("name", "n", "options", "view", "result"),
    [
        ("Ready", 7, {"offset": 4}, {"ready": 100, "pending": 10, "running": 8}, 86),
        ("Ready", 7, {}, {"ready": 3, "pending": 10}, 0),
        ("Scale", 86, {"factor": 0.5}, {}, 43),
        ("Scale", 1, {"factor": 0.01}, {}, 1),
        ("Scale", 0, {"factor": 0.5}, {}, 0),
        ("Scale", 5, {"factor": 0}, {}, 0),
        ("Scale", -3, {"factor": 0.5}, {}, -1),
        ("MaxPerCycle", 615, {"maximum": 100}, {}, 100),
        ("MaxPerCycle", 615, {"maximum": 0}, {}, 0),
        ("MaxPerCycle", 615, {}, {}, 615),
        ("MaxPerCycle", -5, {"maximum": 100}, {}, -5),
        ("MinPerCycle", 0, {"minimum": 1}, {}, 1),
        ("MinPerCycle", -5, {"minimum": -2}, {}, -2),
        ("MinPerCycle", -5, {"minimum": 0}, {}, 0),
        ("MinPerCycle", -5, {}, {}, -5),
        ("MaxPending", 43, {"maximum": 25}, {"pending": 10}, 15),
        ("MaxPending", 43, {"maximum": 25}, {"pending": 0}, 25),
        ("MaxPending", 43, {"maximum": 0}, {"pending": 0}, 0),
        ("MaxPending", 43, {}, {"pending": 10}, 43),
        ("MaxPending", 43, {"maximum": 25}, {"pending": 30}, 0),
        ("MaxPending", 43, {"maximum": 25, "allow_negative": True}, {"pending": 30}, -5),
        ("MaxPending", -9, {"maximum": 25}, {"pending": 30}, -9),
        ("MinPending", 2, {"minimum": 10}, {"pending": 4}, 6),
        ("MinPending", 8, {"minimum": 10}, {"pending": 4}, 8),
        ("MinPending", 2, {}, {"pending": 4}, 2),
        ("MaxToRun", 20, {"maximum": 30}, {"pending": 5, "running": 10, "retiring": 99}, 15),
        ("MaxToRun", 20, {"maximum": 10}, {"pending": 5, "running": 10}, -5),
        ("MaxToRun", 20, {}, {"pending": 5}, 20),
        ("MaxPerFactory", 20, {"maximum": 100}, {"pending": 20, "running": 30, "other": 40}, 10),
        ("MaxPerFactory", 20, {"maximum": 100}, {"other": 101}, 0),
        ("MaxPerFactory", 20, {"maximum": 100}, {"other": 100}, 0),
        ("MaxPerFactory", 20, {"maximum": 100}, {"other": 10}, 20),
        ("MaxPerFactory", 20, {}, {"other": 1000}, 20),
        ("StatusTest", 20, {"pilots": 1}, {"status": "test"}, 1),
        ("StatusTest", 20, {"pilots": 1}, {"status": "online"}, 20),
        ("StatusTest", 20, {}, {"status": "test"}, 0),
        ("StatusOffline", 20, {"pilots": 0}, {"status": "offline"}, 0),
        ("StatusOffline", 20, {"pilots": 0}, {"status": "brokeroff"}, 20),
        ("KeepNRunning", 0, {"keep_running": 10}, {"pending": 2, "running": 3, "retiring": 5}, 5),
        ("KeepNRunning", 0, {"keep_running": 0}, {"pending": 2, "running": 3}, -5),
        ("KeepNRunning", 7, {}, {"pending": 2, "running": 3}, 2),
        ("KeepNRunning", 7, {"keep_running": None}, {"pending": 2, "running": 3}, 2),
        ("KeepNQueueLife", 0, {"njobs": 10}, {"pending": 2, "running": 3, "retiring": 1}, 4),
        ("Fixed", 7, {"pilotspercycle": 3}, {}, 3),
        ("Fixed", 7, {}, {}, 0),
        ("Null", 7, {}, {"ready": 100}, 0),
        ("Throttle", 50, {}, {"recent_started": 100, "recent_short": 51}, 1),
        ("Throttle", 50, {}, {"recent_started": 100, "recent_short": 50}, 50),
        ("Throttle", 50, {"ratio": 0.1, "submit": 2}, {"recent_started": 10, "recent_short": 2}, 2),
        ("Throttle", 50, {}, {}, 50),
        ("WeightedActivated", 0, {"activated": 0.55, "pending": 0.5}, {"ready": 9, "pending": 3}, 3),
        ("WeightedActivated", 0, {}, {"ready": 1, "pending": 3}, 0),
        ("Fillactivated", 9, {}, {"ready": 5, "pending": 3}, 2),
        ("Fillactivated", 9, {"default": 4}, {"ready": 1, "pending": 3}, 0),
        ("MaxToSubmit", 20, {"maximum": 100}, {"submitted": 95}, 5),
        ("MaxToSubmit", 20, {"maximum": 100}, {"submitted": 200}, 0),
        ("MaxToSubmit", 20, {}, {"submitted": 200}, 20),
        ("MinToSubmit", 2, {"minimum": 100}, {"submitted": 95}, 5),
        ("MinToSubmit", 20, {"minimum": 100}, {"submitted": 95}, 20),
        ("MinToSubmit", -2, {"minimum": 100}, {"submitted": 100}, -2),
        ("Fit", 9, {}, {"deficit": 3}, 3),
    ],
)
def test_a_step_follows_its_formula(
    name: str, n: int, options: Mapping[str, object], view: Mapping[str, Any], result: int
) -> None:
    assert ask(name, n, options, **view) == result


def test_every_step_of_apf_is_there() -> None:
    assert set(steps.step_names()) >= {
        *("Ready", "Scale", "MaxPerCycle", "MinPerCycle", "MaxPending", "MinPending", "MaxToRun", "MaxPerFactory"),
        *("StatusTest", "StatusOffline", "KeepNRunning", "KeepNQueueLife", "Fixed", "Null", "Throttle"),
        *("WeightedActivated", "Fillactivated", "MaxToSubmit", "MinToSubmit", "Fit"),
    }


@pytest.mark.parametrize(
    ("name", "n", "options", "view", "words"),
    [
        ("Ready", 0, {"offset": 4}, {"ready": 100, "pending": 10}, "100 activated, 10 pending, offset 4: 86"),
        ("Scale", 86, {"factor": 0.5}, {}, "86 times 0.5, rounded up: 43"),
        ("MaxPerCycle", 615, {"maximum": 100}, {}, "615 capped to 100: at most 100 per cycle"),
        ("MaxPerCycle", 43, {"maximum": 100}, {}, "43 passes: at most 100 per cycle"),
        ("MaxPending", 43, {"maximum": 25}, {"pending": 10}, "43 capped to 15: at most 25 pending, 10 are"),
        ("MinPerCycle", 0, {"minimum": 1}, {}, "0 raised to 1: at least 1 per cycle"),
        ("StatusOffline", 9, {}, {"status": "offline"}, "status is offline: 0"),
        ("StatusTest", 9, {}, {}, "status is online, not test: 9"),
        (
            *("Throttle", 9, {}, {"recent_started": 4, "recent_short": 3}),
            "3 of 4 recently started ended early, more than 0.5 of them: 1",
        ),
    ],
)
def test_a_step_says_why(name: str, n: int, options: Mapping[str, object], view: Mapping[str, Any], words: str) -> None:
    assert reason(name, n, options, **view) == words


@pytest.mark.parametrize(
    ("name", "options", "field", "value"),
    [
        ("Ready", {"offset": "4"}, "offset", 4),
        ("Scale", {"factor": "0.25"}, "factor", 0.25),
        ("Scale", {"factor": 1}, "factor", 1.0),
        ("MaxPending", {"maximum": "None"}, "maximum", None),
        ("MaxPending", {"maximum": "none"}, "maximum", None),
        ("MaxPending", {"maximum": "0"}, "maximum", 0),
        ("MaxPending", {"allow_negative": "True"}, "allow_negative", True),
        ("MaxPending", {"allow_negative": "false"}, "allow_negative", False),
        ("StatusTest", {"allowed": "True", "pilots": "1"}, "pilots", 1),
        ("StatusOffline", {"allowed": "x"}, "pilots", 0),
    ],
)
def test_options_are_read_as_apf_wrote_them(
    name: str, options: Mapping[str, object], field: str, value: object
) -> None:
    assert getattr(read_options(name, options), field) == value


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            *("Ready", {"offset": True}),
            "step Ready, option offset: true is not a whole number; write for instance offset = 10",
        ),
        (
            *("Ready", {"offset": "many"}),
            "step Ready, option offset: 'many' is not a whole number; write for instance offset = 10",
        ),
        (
            "Ready",
            {"offset": 4.5},
            "step Ready, option offset: 4.5 is not a whole number; write for instance offset = 10",
        ),
        ("Scale", {"factor": float("nan")}, "nan is not a number that can be used; write for instance factor = 0.5"),
        ("Scale", {"factor": float("inf")}, "inf is not a number that can be used"),
        ("Scale", {"factor": -1}, "-1 is negative"),
        ("MaxPerCycle", {"maximum": 10**5000}, "a huge number is too large to be meant"),
        ("MaxPending", {"allow_negative": 1}, "1 is neither true nor false; write for instance allow_negative = true"),
        (
            *("MaxPending", {"maximun": 1}),
            "step MaxPending, option maximun: there is no such option; did you mean maximum?",
        ),
        ("Null", {"x": 1}, "step Null, option x: there is no such option; it has none: remove it"),
    ],
)
def test_a_wrong_option_is_named_with_the_cure(name: str, options: Mapping[str, object], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_options(name, options)
    assert words in str(caught.value)


def test_an_unknown_step_names_near_matches() -> None:
    with pytest.raises(PolicyError, match="there is no step 'maxPerCycel'; did you mean MaxPerCycle"):
        step("maxPerCycel")


def test_a_step_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("Half", "tests.decide.test_steps:half", "apf_elastic.steps")
    monkeypatch.setattr(steps, "_others", lambda: {"Half": entry})
    steps._load.cache_clear()
    assert chains.run(chains.compile_chain([StepSettings("Half")]), View(ready=9)).n == 4


def half(n: int, view: View, options: Any) -> tuple[int, str]:
    """A step of somebody else."""
    return view.ready // 2, "half of them"


def test_a_step_that_cannot_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("Gone", "no_such_module:step", "apf_elastic.steps")
    monkeypatch.setattr(steps, "_others", lambda: {"Gone": entry})
    steps._load.cache_clear()
    with pytest.raises(PolicyError, match="step Gone of no_such_module:step cannot be loaded: No module named"):
        step("Gone")


def fold(chain: str, view: View, **options: Mapping[str, object]) -> chains.Outcome:
    return chains.run(chains.compile_chain([StepSettings(n, options.get(n, {})) for n in chain.split(",")]), view)


def test_a_chain_is_a_left_fold_and_order_matters() -> None:
    view = View(ready=0, pending=10)
    options: dict[str, Mapping[str, object]] = {"MinPerCycle": {"minimum": 5}, "MaxPending": {"maximum": 12}}
    assert fold("Ready,MinPerCycle,MaxPending", view, **options).n == 2
    assert fold("Ready,MaxPending,MinPerCycle", view, **options).n == 5


def test_a_negative_from_max_pending_is_for_pending_ones_only() -> None:
    options: dict[str, Mapping[str, object]] = {
        "MaxPending": {"maximum": 2, "allow_negative": True},
        "KeepNRunning": {"keep_running": 0},
        "MinPerCycle": {"minimum": -1},
    }
    view = View(ready=10, pending=5, running=9)
    assert fold("Ready,MaxPending", view, **options).pending_only
    assert fold("Ready,MaxPending,MinPerCycle", view, **options).pending_only
    assert not fold("KeepNRunning", view, **options).pending_only
    assert not fold("Ready,MaxPending,KeepNRunning", view, **options).pending_only
    assert not fold("Ready,MaxPending,Fixed", view, **options).pending_only


def test_a_step_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(n: int, view: View, options: Any) -> tuple[int, str]:
        raise ZeroDivisionError("division by zero")

    link = chains.Link(steps.Step("Broken", broken, steps.NoOptions), steps.NoOptions())
    with pytest.raises(PolicyError, match="step Broken failed: ZeroDivisionError: division by zero"):
        chains.run((link,), View())


def test_a_step_that_answers_no_whole_number_is_named() -> None:
    def odd(n: int, view: View, options: Any) -> tuple[Any, str]:
        return 0.5, "half a resource"

    link = chains.Link(steps.Step("Odd", odd, steps.NoOptions), steps.NoOptions())
    with pytest.raises(PolicyError, match=r"step Odd failed: it answered 0\.5, which is not a whole number"):
        chains.run((link,), View())

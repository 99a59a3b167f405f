"""`try-policy`: what a chain of steps makes of given numbers, step by step, with the reasons. Asks no server."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text

from apf_elastic.commands.options import Json
from apf_elastic.commands.words import clean, console, fail, print_json, table
from apf_elastic.decide.trial import TrialResult
from apf_elastic.decide.trial import try_policy as trial

#: A longer line is not a question.
LONGEST_LINE = 2**20
#: Columns of a table that nobody reads on a terminal: one step, one line.
UNFOLDED = 1000
#: What may have no answer: the source and the backend.
UNKNOWNS = ("wms", "batch")


def try_policy(
    chain: Annotated[
        str | None,
        typer.Option(help="steps in their order, with commas; without it, JSON lines are read from standard input"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="an option of a step, sched.ready.offset=4")
    ] = None,
    ready: Annotated[int, typer.Option(help="jobs that wait")] = 0,
    pending: Annotated[int, typer.Option(help="pilots that have not started")] = 0,
    running: Annotated[int, typer.Option(help="pilots that run")] = 0,
    retiring: Annotated[int, typer.Option(help="pilots that finish and take no new job")] = 0,
    other: Annotated[int, typer.Option(help="pilots of other queues, pending and running")] = 0,
    submitted: Annotated[int, typer.Option(help="pilots created over the queue's life, for MaxToSubmit")] = 0,
    recent_started: Annotated[int, typer.Option(help="pilots that started lately, for Throttle")] = 0,
    recent_short: Annotated[int, typer.Option(help="those of them that ended early, for Throttle")] = 0,
    deficit: Annotated[int, typer.Option(help="new pilots that the waiting jobs need, for Fit")] = 0,
    status: Annotated[str, typer.Option(help="of the queue: online, test, offline")] = "online",
    wms: Annotated[str, typer.Option(help="`none`: the source has no answer")] = "",
    batch: Annotated[str, typer.Option(help="`none`: the backend has no answer")] = "",
    json: Json = False,
) -> None:
    """Try a policy chain on given numbers: each step's number and why. Nothing is asked and nothing is changed.

    With JSON lines on standard input, each {"chain": ..., "config": {...}, "state": {...}}, all are answered; a bad
    line does not stop the others, and makes the exit code 1.
    """
    if chain is None:
        raise typer.Exit(0 if answer_lines(_standard_input(), json) else 1)
    state: dict[str, Any] = {
        "ready": ready,
        "pending": pending,
        "running": running,
        "retiring": retiring,
        "other": other,
        "submitted": submitted,
        "recent_started": recent_started,
        "recent_short": recent_short,
        "deficit": deficit,
        "status": status,
    }
    state |= {word: value for word, value in (("wms", wms), ("batch", batch)) if value}
    try:
        show(ask({"chain": chain, "config": assignments(set_ or ()), "state": state}), json)
    except ValueError as error:
        if json:
            print_json({"error": str(error)})
            raise typer.Exit(1) from None
        raise fail(str(error)) from None


def _standard_input() -> TextIO:
    if sys.stdin.isatty():
        raise fail("say which steps: --chain Ready,Scale, or give JSON lines on standard input", 2)
    return sys.stdin


def assignments(words: Iterable[str]) -> dict[str, Any]:
    """``sched.ready.offset=4`` as a key and a value; a number or a truth where it reads as one."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (equals and key.strip()):
            raise ValueError(f"--set {word}: write KEY=VALUE, as in sched.ready.offset=4")
        if key.strip() in found:
            raise ValueError(f"--set {word}: {key.strip()} is set twice")
        found[key.strip()] = _value(text.strip())
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def ask(question: Mapping[str, Any]) -> TrialResult:
    """One trial. Raises ValueError for anything that is no question."""
    unknown = question.keys() - {"chain", "config", "state", *UNKNOWNS}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}: a line has chain, config and state")
    if "chain" not in question:
        raise ValueError("chain is missing")
    state = question.get("state", {})
    config = question.get("config", {})
    if not isinstance(state, dict) or not isinstance(config, dict):
        raise ValueError("config and state are objects")
    state = {**{word: question[word] for word in UNKNOWNS if word in question}, **state}
    state |= {word: "none" for word in UNKNOWNS if word in state and state[word] is None}
    return trial(_chain(question["chain"]), config, state)


def _chain(value: object) -> list[str]:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise ValueError("chain is a list of steps, or their names with commas")


def answer_lines(lines: Iterable[str], json: bool) -> bool:
    """Answer every line; whether all were good."""
    good = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            show(ask(_question(line)), json)
        except ValueError as error:
            good = False
            message = f"line {number}: {error}"
            if json:
                print_json({"error": message})
            else:
                console().print(Text(clean(message), style="red"))
    return good


def _question(line: str) -> Mapping[str, Any]:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"has more than {LONGEST_LINE} characters")
    try:
        question = jsonlib.loads(line, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(question, dict):
        raise ValueError("is not a JSON object")
    return question


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def show(result: TrialResult, json: bool) -> None:
    """One JSON line, or a table."""
    steps = list(_steps(result))
    if json:
        print_json({"result": result.result, "steps": steps})
        return
    rows = table("", ("step", "n", "reason"))
    rows.columns[1].justify = "right"
    for step in steps:
        rows.add_row(clean(step["name"]), str(step["n"]), Text(clean(step["reason"])))
    out = console()
    out.width = out.width if out.is_terminal else UNFOLDED
    out.print(rows)
    out.print(Text(f"result: {result.result}", style="bold"))


def _steps(result: TrialResult) -> Iterator[dict[str, Any]]:
    for step in result.steps:
        yield dict(zip(("name", "n", "reason"), step, strict=True))

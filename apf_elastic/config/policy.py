"""The chain of a queue: known steps, with options that they know."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from apf_elastic.config.problems import Key, escaped, suggestion
from apf_elastic.config.report import Report
from apf_elastic.config.tables import read_table
from apf_elastic.decide.steps import PolicyError, step, step_names
from apf_elastic.settings import StepSettings


def read_chain(policy: Mapping[str, Any], key: Key, report: Report) -> tuple[StepSettings, ...]:
    """The steps of a `policy` table. Its other keys are the tables of options, by the steps' names in lower case."""
    named = policy.get("chain", [])
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    chain = []
    for index, name in enumerate(names):
        if name not in step_names():
            message = f'there is no step "{escaped(name, 60)}"'
            report.problem((*key, "chain", index), message, suggestion(name, step_names(), "steps"))
        else:
            chain.append(_read(name, policy.get(name.lower(), {}), (*key, name.lower()), report))
    _check_leftovers(policy, names, key, report)
    return tuple(chain)


def _read(name: str, options: object, key: Key, report: Report) -> StepSettings:
    if not isinstance(options, dict):
        report.problem(key, f"the options of {name} must be a table", f"write {key[-1]} = {{ option = value }}")
        return StepSettings(name)
    try:
        model = step(name).options
    except PolicyError as error:
        report.problem(key, str(error), "repair the package that brings it")
        return StepSettings(name)
    made = read_table(model, options, key, report)
    return StepSettings(name, made.model_dump(exclude_unset=True) if made is not None else {})


def _check_leftovers(policy: Mapping[str, Any], names: list[str], key: Key, report: Report) -> None:
    """Options of steps that are not in the chain: another file may have replaced it, or the word is wrong."""
    in_use = {name.lower() for name in names}
    known = {name.lower() for name in step_names()}
    for word in policy.keys() - {"chain"} - in_use:
        if word in known:
            report.warning(
                (*key, word), "is the table of a step that is not in the chain", "add the step, or remove it"
            )
        else:
            report.problem(
                (*key, word), "is not a known key", suggestion(word, {"chain", *(in_use or known)}, "keys here")
            )


def step_options() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Every step with what it does and the model of its options, for the reference."""
    for name in step_names():
        found = step(name)
        yield name, inspect.cleandoc(found.function.__doc__ or "").partition("\n\n")[0], found.options

"""The policy chain: a left fold over its steps from n = 0, with a reason at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apf_elastic.decide.steps import PolicyError, Step, View, read_options, step
from apf_elastic.model import StepResult
from apf_elastic.settings import StepSettings


@dataclass(frozen=True, slots=True)
class Link:
    """One step with its options, checked."""

    step: Step
    options: Any


Chain = tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a chain says. `pending_only`: a negative `n` may cancel pending resources, and nothing else."""

    n: int
    steps: tuple[StepResult, ...]
    pending_only: bool = False


def compile_chain(settings: Sequence[StepSettings]) -> Chain:
    """Look up every step and check its options. Raises PolicyError."""
    return tuple(Link(step(one.name), read_options(one.name, one.options)) for one in settings)


def run(chain: Chain, view: View) -> Outcome:
    """Fold the chain. Raises PolicyError if a step fails or answers something else than a number and a reason."""
    n = 0
    results = []
    pending_only = False
    for link in chain:
        before = n
        n, reason = _apply(link, n, view)
        results.append(StepResult(link.step.name, n, reason))
        if n >= 0:
            pending_only = False
        elif n < before:
            pending_only = link.step.name == "MaxPending"
    return Outcome(n, tuple(results), pending_only)


def _apply(link: Link, n: int, view: View) -> tuple[int, str]:
    name = link.step.name
    try:
        n, reason = link.step.function(n, view, link.options)
    except Exception as error:
        raise PolicyError(f"step {name} failed: {type(error).__name__}: {error}") from error
    if isinstance(n, bool) or not isinstance(n, int):
        raise PolicyError(f"step {name} failed: it answered {n!r}, which is not a whole number")
    return n, str(reason)


def held(names: Sequence[str], why: str) -> tuple[StepResult, ...]:
    """A chain that holds: every step listed, none asked."""
    return tuple(StepResult(name, 0, f"holds: {why}") for name in names)

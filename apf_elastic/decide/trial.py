"""Try a policy chain on given numbers: the pure part of ``try-policy``.

The input is what a person writes as JSON::

    {"chain": ["Ready", "Scale"],
     "config": {"sched.ready.offset": 4, "sched.scale.factor": 0.5},
     "state": {"ready": 100, "pending": 10, "running": 8, "retiring": 0, "status": "online", "other": 0}}

A count that is missing is 0, a missing status is online. ``submitted``, ``recent_started``, ``recent_short`` and
``deficit`` may be given too, see `View`. ``"wms": "none"`` or ``"batch": "none"``, in the state or beside it, means
that the source or the backend is unknown: the chain holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apf_elastic.decide import chain as chains
from apf_elastic.decide.steps import HUGE, PolicyError, View, near, read_options, shown, step, step_names
from apf_elastic.settings import StepSettings

COUNTS = (
    "ready",
    "pending",
    "running",
    "retiring",
    "other",
    "submitted",
    "recent_started",
    "recent_short",
    "deficit",
)
_UNKNOWN = {"wms": "the demand is unknown", "batch": "the backend is unknown"}


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What the chain answers, and (name, n, reason) after each of its steps."""

    result: int
    steps: tuple[tuple[str, int, str], ...]


def try_policy(chain: Sequence[str], config: Mapping[str, Any], state: Mapping[str, Any]) -> TrialResult:
    """Run `chain` with APF's keys in `config` on `state`. Raises PolicyError (a ValueError) on wrong input."""
    names = _names(chain)
    links = chains.compile_chain([StepSettings(name, options) for name, options in _options(names, config)])
    view, hold = _state(state)
    steps = chains.held(names, hold) if hold else chains.run(links, view).steps
    return TrialResult(steps[-1].n if steps else 0, tuple((one.name, one.n, one.reason) for one in steps))


def try_document(document: object) -> TrialResult:
    """The same for a whole JSON document: chain, config and state, with wms or batch in the state or beside it."""
    if not isinstance(document, Mapping):
        raise PolicyError('write an object such as {"chain": ["Ready"], "config": {}, "state": {"ready": 100}}')
    known = ["chain", "config", "state", *_UNKNOWN]
    for key in document:
        if key not in known:
            raise PolicyError(f"there is no key {shown(key)}; {near(str(key), known)}")
    state = document.get("state", {})
    beside = {key: document[key] for key in _UNKNOWN if key in document}
    if isinstance(state, Mapping):
        state = {**state, **beside}
    return try_policy(document.get("chain", []), document.get("config", {}), state)


def option_key(name: str, option: str) -> str:
    """APF's key of a step's option."""
    return f"{name.lower()}.{option}" if name == "MaxPerFactory" else f"sched.{name.lower()}.{option}"


def _names(chain: object) -> list[str]:
    if isinstance(chain, str) or not isinstance(chain, Sequence):
        raise PolicyError('chain: write the steps as a list of names, such as ["Ready", "MaxPerCycle"]')
    if not chain:
        raise PolicyError('chain: it is empty; name at least one step, such as ["Ready"]')
    for at, name in enumerate(chain):
        if not isinstance(name, str):
            raise PolicyError(f"chain, step {at + 1}: {shown(name)} is not a name; write it in quotes")
        step(name)
    return list(chain)


def _options(names: Sequence[str], config: object) -> list[tuple[str, dict[str, Any]]]:
    """The options of each step of the chain. Keys of steps that are not in the chain are checked too, and unused."""
    if not isinstance(config, Mapping):
        raise PolicyError('config: write an object of keys and values, such as {"sched.ready.offset": 4}')
    found: dict[str, dict[str, Any]] = {}
    known = {option_key(name, ""): name for name in step_names()}
    for key, value in config.items():
        prefix, _, option = key.rpartition(".") if isinstance(key, str) else ("", "", "")
        name = known.get(f"{prefix}.")
        if name is None:
            raise PolicyError(f"config: no step has a key {shown(key)}; {near(str(key), _all_keys())}")
        found.setdefault(name, {})[option] = value
    for name, options in found.items():
        read_options(name, options)
    return [(name, found.get(name, {})) for name in names]


def _all_keys() -> list[str]:
    return [option_key(name, option) for name in step_names() for option in step(name).options.model_fields]


def _state(state: object) -> tuple[View, str]:
    if not isinstance(state, Mapping):
        raise PolicyError('state: write an object of counts, such as {"ready": 100, "pending": 10}')
    hold = ""
    counts: dict[str, int] = {}
    status = "online"
    for key, value in state.items():
        if key in COUNTS:
            counts[key] = _count(key, value)
        elif key == "status":
            if not isinstance(value, str) or not value:
                raise PolicyError(f'state, status: {shown(value)} is not a status; write for instance "online"')
            status = value
        elif key in _UNKNOWN:
            if value != "none":
                raise PolicyError(f'state, {key}: {shown(value)} means nothing; write "none" or leave it out')
            hold = hold or _UNKNOWN[key]
        else:
            raise PolicyError(f"state: there is no {shown(key)}; {near(str(key), [*COUNTS, 'status', *_UNKNOWN])}")
    if counts.get("recent_short", 0) > counts.get("recent_started", 0):
        raise PolicyError("state, recent_short: more than recent_started; it counts some of those")
    return View(status=status, **counts), hold


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(f"state, {key}: {shown(value)} is not a count; write a whole number such as 10")
    if not 0 <= value <= HUGE or value != int(value):
        raise PolicyError(f"state, {key}: {shown(value)} is not a count; write a whole number from 0 to {HUGE}")
    return int(value)

"""From what a job's ad says, or fails to say, to a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from apf_elastic.model import Shape

# HTCondor's execute nodes round requests up themselves before they carve a slot: memory to 128 MB, disk to 1 MB
# (MODIFY_REQUEST_EXPR_REQUESTMEMORY, _REQUESTDISK in its manual).
MEMORY_STEP_MB = 128
DISK_STEP_MB = 1
WALLTIME_STEP_S = 60


class _Dimension(NamedTuple):
    least: int
    most: float
    step: int


DIMENSIONS: Mapping[str, _Dimension] = {
    "cores": _Dimension(1, 1e5, 1),
    "memory_mb": _Dimension(0, 1e9, MEMORY_STEP_MB),
    "disk_mb": _Dimension(0, 1e12, DISK_STEP_MB),
    "gpus": _Dimension(0, 1e4, 1),
    "walltime_s": _Dimension(1, 1e10, WALLTIME_STEP_S),
}


@dataclass(frozen=True, slots=True)
class Odd:
    """A value that is no amount: the default was taken. `said` is what it was instead."""

    dimension: str
    said: str
    default: object


def shape_of(values: Mapping[str, Any], default: Shape) -> tuple[Shape, list[Odd]]:
    """The shape that evaluated expressions describe, one per dimension; what is undefined is as in `default`.

    Amounts are rounded up to steps. A string, an error, a negative, infinite or absurd amount is reported as Odd
    and also replaced by the default.
    """
    found: dict[str, Any] = {}
    odd = []
    for name, limits in DIMENSIONS.items():
        value = values.get(name)
        if value is None:
            continue
        amount = _amount(value, limits)
        if amount is None:
            odd.append(Odd(name, _said(value), getattr(default, name)))
        else:
            found[name] = amount
    arch = values.get("arch")
    if isinstance(arch, str) and len(arch) <= 100:
        found["arch"] = arch
    elif arch is not None:
        odd.append(Odd("arch", _said(arch), default.arch))
    return replace(default, **found), odd


def _amount(value: Any, limits: _Dimension) -> int | None:
    # Not isinstance: True is an int, and no request for one core.
    if type(value) not in (int, float) or not math.isfinite(value):
        return None
    if not limits.least <= value <= limits.most:
        return None
    steps: int = math.ceil(value / limits.step)
    return steps * limits.step


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return f"an error ({value.get('error', '')})"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def order(shape: Shape) -> tuple[Any, ...]:
    """A key to sort shapes by: None does not compare with numbers."""
    wall = -1 if shape.walltime_s is None else shape.walltime_s
    return (shape.cores, shape.memory_mb, shape.disk_mb, shape.gpus, wall, shape.arch)

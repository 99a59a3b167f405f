"""Quantities as people write them: "90 s", "5 min", "2 GB", "50%".

A duration becomes seconds (float); a bare number is seconds. A size becomes MB of 2**20 bytes, the MB in which
HTCondor and Slurm count; a bare number is already that. Units are what they say: GB is 1000**3 bytes and GiB 1024**3.
The result is rounded up, so "2 GB" is 1908 MB (1907.35) and "2 GiB" is 2048. A share becomes a number from 0 to 1.

Errors are plain ValueErrors that do not repeat the value: whoever prints it decides whether it may be shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator

MB = 2**20
#: Longer is a mistake: a missing blank, a number of milliseconds.
LONGEST_S = 100 * 365.25 * 86400
LARGEST_MB = 2**50
#: A quantity needs no more characters; a longer text is not even looked at.
_LONGEST_TEXT = 60

_SECONDS = {
    "ms": Fraction(1, 1000),
    **dict.fromkeys(("s", "sec", "second", "seconds"), Fraction(1)),
    **dict.fromkeys(("min", "minute", "minutes"), Fraction(60)),
    **dict.fromkeys(("h", "hour", "hours"), Fraction(3600)),
    **dict.fromkeys(("d", "day", "days"), Fraction(86400)),
    **dict.fromkeys(("w", "week", "weeks"), Fraction(7 * 86400)),
}
_BYTES = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgtp", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtp", 1)},
}

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_QUANTITY = re.compile(_NUMBER + r"\s*([A-Za-z]*)", re.ASCII)
_QUANTITIES = re.compile(rf"(?:{_NUMBER}\s*[A-Za-z]+\s*)+", re.ASCII)
_PERCENT = re.compile(_NUMBER + r"\s*%", re.ASCII)

DURATION_HOW = 'write a number of seconds or "90 s", "5 min", "2 h", "1 d"'
SIZE_HOW = 'write a number of MB (2**20 bytes) or "512 MiB", "2 GiB", "2 GB", "1 TB"'
SHARE_HOW = 'write "50%" or a number from 0 to 1'


class UnitError(ValueError):
    """Not a quantity of this kind. `cure` says what to write."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


def seconds(value: object) -> float:
    """A duration in seconds, from a number or a text like "90 s" or "1 h 30 min"."""
    total = _number(value, DURATION_HOW) if not isinstance(value, str) else _seconds_of(value)
    if total > LONGEST_S:
        raise UnitError("is longer than 100 years", DURATION_HOW)
    return float(total)


def _seconds_of(text: str) -> Fraction:
    parts = _parts(text, DURATION_HOW)
    if len(parts) == 1 and not parts[0][1]:
        return Fraction(parts[0][0])
    return sum((Fraction(number) * _unit(unit, _SECONDS, DURATION_HOW) for number, unit in parts), Fraction(0))


def megabytes(value: object) -> int:
    """A size in MB of 2**20 bytes, rounded up, from a number of them or a text like "2 GB"."""
    mb = _number(value, SIZE_HOW) if not isinstance(value, str) else _megabytes_of(value)
    if mb > LARGEST_MB:
        raise UnitError("is larger than any machine", SIZE_HOW)
    return math.ceil(mb)


def _megabytes_of(text: str) -> Fraction:
    parts = _parts(text, SIZE_HOW)
    if len(parts) > 1:
        raise UnitError("is not one size", SIZE_HOW)
    ((number, unit),) = parts
    if not unit:
        return Fraction(number)
    return Fraction(number) * _unit(unit, {k: Fraction(n, MB) for k, n in _BYTES.items()}, SIZE_HOW)


def share(value: object) -> float:
    """A number from 0 to 1, from one or from a percentage."""
    if isinstance(value, str):
        found = _PERCENT.fullmatch(value.strip()) if len(value) <= _LONGEST_TEXT else None
        if found is None:
            raise UnitError("is not a percentage", SHARE_HOW)
        part = Fraction(found[1]) / 100
    else:
        part = _number(value, SHARE_HOW)
    if part > 1:
        raise UnitError("is more than 100%", SHARE_HOW)
    return float(part)


def _number(value: object, how: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnitError("is neither a number nor a text with a unit", how)
    if isinstance(value, float) and not math.isfinite(value):
        raise UnitError("is not a finite number", how)
    if value < 0:
        raise UnitError("is negative", how)
    return Fraction(value)


def _parts(text: str, how: str) -> list[tuple[str, str]]:
    """The (number, unit) pairs of a text; a single number may come without a unit."""
    text = text.strip()
    if len(text) > _LONGEST_TEXT:
        raise UnitError(f"is a text of {len(text)} characters, not a quantity", how)
    if text.startswith("-"):
        raise UnitError("is negative", how)
    if not (_QUANTITY.fullmatch(text) or _QUANTITIES.fullmatch(text)):
        raise UnitError("is not a number with a unit", how)
    return [(found[1], found[2]) for found in _QUANTITY.finditer(text)]


def _unit(unit: str, known: Mapping[str, Fraction], how: str) -> Fraction:
    try:
        return known[unit.lower()]
    except KeyError:
        raise UnitError(f"has the unknown unit {unit!r}", how) from None


# ------------------------------------------------------------------------------------------- for pydantic


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a field as a quantity: how the reference calls it, how it is read, and the suffix of its plain spelling.

    ``join: Duration`` may also be written ``join_s = 900``, and a plugin's ``join_s: float`` also ``join = "15 min"``.
    """

    name: str
    suffix: str
    read: Callable[[object], float]
    how: str


DURATION = Unit("duration", "_s", seconds, DURATION_HOW)
SIZE = Unit("size", "_mb", megabytes, SIZE_HOW)
SHARE = Unit("share", "", share, SHARE_HOW)


def _reader(unit: Unit) -> Callable[[Any], Any]:
    return lambda value: None if value is None else unit.read(value)


Duration = Annotated[float, BeforeValidator(_reader(DURATION)), DURATION]
Size = Annotated[int, BeforeValidator(_reader(SIZE)), SIZE]
Share = Annotated[float, BeforeValidator(_reader(SHARE)), SHARE]

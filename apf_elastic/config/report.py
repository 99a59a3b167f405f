"""Collects problems and warnings with their places, so that all are said at once."""

from __future__ import annotations

import datetime
import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from apf_elastic.config.files import Document, Merged
from apf_elastic.config.locate import line_of
from apf_elastic.config.problems import (
    Key,
    Problem,
    dotted,
    escaped,
    is_path,
    is_secret_name,
    last_word,
    looks_secret,
    shown,
)

LONGEST_TEXT = 16_384
LONGEST_KEY = 200
DEEPEST = 20
_LARGEST = 2**63
#: Characters that make a terminal show text in another order than it is read.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Report:
    """What is wrong, and what is doubtful, in a merged configuration."""

    def __init__(self, merged: Merged) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._merged = merged
        self._bad: set[Key] = set()
        self._secrets = sorted(set(_secrets(merged.tree, ())), key=len, reverse=True)

    def problem(self, key: Key, message: str, cure: str = "") -> None:
        """Add a problem, unless the value has already been refused as a whole."""
        if not any(key[:length] in self._bad for length in range(len(key) + 1)):
            self.problems.append(self._at(key, message, cure))

    def refuse(self, key: Key, message: str, cure: str = "") -> None:
        """Add a problem after which nothing more needs to be said about this value."""
        self.problem(key, message, cure)
        self._bad.add(key)

    def sorted_problems(self) -> list[Problem]:
        """In the order in which the files are read, from top to bottom."""
        order = {document.path: number for number, document in enumerate(self._merged.documents)}
        return sorted(self.problems, key=lambda it: (order.get(it.file, -1) if it.file else -1, it.line or 0))

    def warning(self, key: Key, message: str, cure: str = "") -> None:
        self.warnings.append(self._at(key, message, cure))

    def document_of(self, key: Key) -> Document | None:
        return self._merged.document_of(key)

    def _at(self, key: Key, message: str, cure: str) -> Problem:
        document = self._merged.document_of(key)
        line = line_of(document.lines, key) if document else None
        return Problem(document.path if document else None, line, dotted(key), self._safe(message), self._safe(cure))

    def _safe(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "(not shown)")
        return escaped(text, 2000)


def _secrets(value: object, key: Key) -> Iterator[str]:
    """Every text that must not be shown, as it is and as Python would quote it."""
    if len(key) > DEEPEST:
        return
    if isinstance(value, dict):
        for word, inner in value.items():
            yield from _secrets(inner, (*key, word))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _secrets(inner, (*key, index))
    elif isinstance(value, str) and len(value) >= 4 and looks_secret(key, value) and not is_path(value):
        yield value
        yield repr(value)[1:-1]


def is_inline_secret(key: Key, value: object) -> bool:
    """Whether the value itself, not a file that it names, is a secret."""
    return isinstance(value, str) and bool(value) and is_secret_name(last_word(key)) and not is_path(value)


def refuse_hostile(tree: Mapping[str, Any], report: Report) -> None:
    """Refuse what no configuration needs and what would do harm where it is printed, stored or computed with."""
    _walk(tree, (), report)


def _walk(value: object, key: Key, report: Report) -> None:
    if len(key) > DEEPEST:
        report.refuse(key, f"is nested more than {DEEPEST} deep", "use fewer tables within tables")
    elif isinstance(value, dict):
        for word, inner in value.items():
            if why := _wrong_text(word, LONGEST_KEY, allowed=""):
                report.refuse((*key, word), f"is a key that {why}", "use letters, digits, hyphens and underscores")
            else:
                _walk(inner, (*key, word), report)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _walk(inner, (*key, index), report)
    elif wrong := _wrong_value(value):
        report.refuse(key, f"{shown(key, value)} {wrong[0]}", wrong[1])


def _wrong_value(value: object) -> tuple[str, str] | None:
    """What is wrong with a value of any key, and the cure."""
    if isinstance(value, str) and (why := _wrong_text(value, LONGEST_TEXT)):
        return why, "write it without, or put it into a file"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number", "leave the key out if there is no limit"
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "is too large a number", "leave the key out if there is no limit"
    if isinstance(value, datetime.date | datetime.time):
        return "is a date or a time", "text goes in quotes"
    return None


def _wrong_text(text: str, longest: int, allowed: str = "\n\t") -> str:
    if len(text) > longest:
        return f"has {len(text)} characters, more than {longest}"
    for char in text:
        if char in _BIDI or (unicodedata.category(char) in ("Cc", "Cs") and char not in allowed):
            return f"has a control character (U+{ord(char):04X})"
    return ""

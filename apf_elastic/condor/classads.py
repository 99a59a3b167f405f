"""The ClassAd language as far as we write it: strings, names, and expressions that users give."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<operand>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)+' | (?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\w* | [A-Za-z_]\w*)
      | (?P<open>[(\[{]) | (?P<close>[)\]}])
      | (?P<operator>=\?=|=!=|>>>|>>|<<|<=|>=|==|!=|&&|\|\||\?:|[-+*/%<>?:,.;!~&|^=])
      | (?P<unclosed>["'])""",
    re.VERBOSE,
)
_PREFIX = frozenset("+-!~")
_WORD_OPERATORS = frozenset({"is", "isnt"})
_PAIRS = {")": "(", "]": "[", "}": "{"}


def quote(text: str) -> str:
    """`text` as a ClassAd string literal. Raises ValueError for what no ad carries unharmed: control characters."""
    bad = next((letter for letter in text if ord(letter) < 32 or ord(letter) == 127), None)
    if bad is not None:
        raise ValueError(f"{text!r}: contains the control character {bad!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def equals(attribute: str, text: str) -> str:
    """A constraint: the attribute is this string, letter by letter (``==`` ignores case)."""
    return f"{attribute} =?= {quote(text)}"


def any_of(attribute: str, texts: Iterable[str]) -> str:
    """A constraint: the attribute is one of these strings. No text, no match."""
    return " || ".join(equals(attribute, text) for text in texts) or "false"


def both(*constraints: str) -> str:
    """All of `constraints`; empty ones do not count."""
    return " && ".join(f"({constraint})" for constraint in constraints if constraint.strip()) or "true"


def is_name(text: str) -> bool:
    """Whether `text` can be the name of an attribute."""
    return _NAME.fullmatch(text) is not None


def check_expression(text: str) -> str:
    """`text` itself. Raises ValueError, pointing at the column, when it cannot be a ClassAd expression.

    This finds the place of an error, which HTCondor's own parser does not tell; the parser has the last word.
    """
    opened: list[tuple[str, int]] = []
    want_operand, place = True, 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise _error(text, place, f"{text[place]!r} is not part of the language")
        kind, word = str(token.lastgroup), token.group()
        if kind == "unclosed":
            raise _error(text, place, "this string has no end")
        if kind == "operand" and word.lower() in _WORD_OPERATORS:
            kind = "operator"
        if kind != "space":
            want_operand = _step(text, place, kind, word, want_operand, opened)
        place = token.end()
    if opened:
        raise _error(text, opened[-1][1], f"this {opened[-1][0]!r} is not closed")
    if want_operand:
        raise _error(text, len(text), "a value is missing here")
    return text


def _step(text: str, place: int, kind: str, word: str, want: bool, opened: list[tuple[str, int]]) -> bool:
    """Take one token; returns whether a value must come next."""
    if kind == "operand":
        if not want:
            raise _error(text, place, "an operator is missing before this")
        return False
    if kind == "open":
        if not want and word == "{":
            raise _error(text, place, "an operator is missing before this")
        opened.append((word, place))
        return True
    if kind == "close":
        return _closed(text, place, word, want, opened)
    if word == "=" and not any(bracket == "[" for bracket, _ in opened):
        raise _error(text, place, "'=' assigns: compare with '==' or '=?='")
    if want and word not in _PREFIX and word not in (".", ":"):  # .absolute, and `a ? : b`
        raise _error(text, place, f"a value is missing before {word!r}")
    return True


def _closed(text: str, place: int, word: str, want: bool, opened: list[tuple[str, int]]) -> bool:
    if not opened or opened[-1][0] != _PAIRS[word]:
        raise _error(text, place, f"this {word!r} closes nothing")
    bracket, start = opened.pop()
    # size() and {} are fine; (a + ) is not.
    empty = not text[start + 1 : place].strip() and (bracket != "(" or text[:start].rstrip()[-1:].isalnum())
    if want and not empty and not (bracket == "[" and text[:place].rstrip().endswith(";")):
        raise _error(text, place, f"a value is missing before {word!r}")
    return False


def _error(text: str, place: int, what: str) -> ValueError:
    line = " ".join(text.splitlines()) if "\n" in text else text
    return ValueError(f"column {place + 1}: {what}\n    {line}\n    {' ' * place}^")

"""What is wrong in a configuration, all of it at once, safe to print.

Keys and values come from files that anybody may have written: control characters are escaped, long texts cut, and
what looks like a secret is not shown at all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: A key as the path to it: table names, keys, and indices of arrays.
Key = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SECRET_WORD = r"(tokens?|passw(or)?d|passphrase|secrets?|credentials?|cookie|(secret|access|api|private)[_-]?key)"
_SECRET = re.compile(rf"(^|.*[_-]){_SECRET_WORD}", re.IGNORECASE)
_SECRET_FILE = re.compile(rf"(^|.*[_-])({_SECRET_WORD}|signing[_-]?key|proxy)([_-](file|dir|path))?", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"-----BEGIN|eyJ[\w-]{8}|AKIA[0-9A-Z]{16}|gh[pousr]_\w{20}|[A-Za-z0-9+/_=-]{40}")
_LONGEST = 60
#: Problems that are printed; nobody reads more at once.
MOST = 100


def escaped(text: str, longest: int = 500) -> str:
    """`text` without control characters, cut to `longest`."""
    cut = text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in cut)


def dotted(key: Key) -> str:
    """A key as one would write it in TOML, with indices of arrays in brackets."""
    words = ""
    for part in key:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            short = escaped(part, _LONGEST)
            word = short if _BARE.fullmatch(part) else '"' + short.replace('"', '\\"') + '"'
            words += f".{word}" if words else word
    return words


def is_secret_name(name: str) -> bool:
    """Whether an option of this name holds a secret."""
    return _SECRET.fullmatch(name) is not None


def names_secret_file(name: str) -> bool:
    """Whether a path in an option of this name leads to a secret."""
    return _SECRET_FILE.fullmatch(name) is not None


def looks_secret(key: Key, value: object) -> bool:
    """Whether a value should not be shown: its key says so, or it looks like a token, a key or a certificate."""
    if is_secret_name(last_word(key)):
        return True
    return isinstance(value, str) and not is_path(value) and _SECRET_TEXT.search(value[:10_000]) is not None


def last_word(key: Key) -> str:
    """The key's own name, without indices of arrays."""
    return next((part for part in reversed(key) if isinstance(part, str)), "")


def is_path(text: str) -> bool:
    """Whether a text names a file: where a secret is, is no secret."""
    return len(text) < 1000 and text.startswith(("/", "~", "./", "../")) and "\n" not in text


def shown(key: Key, value: object) -> str:
    """A value as it may be printed."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if looks_secret(key, value):
        return "a value that is not shown here"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{escaped(value, _LONGEST)}"'
    try:
        return escaped(str(value), _LONGEST)
    except ValueError:  # an integer of more than 4300 digits
        return "a huge number"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where, what, and what to write instead. Without a file it is in none of them."""

    file: Path | None
    line: int | None
    key: str
    message: str
    cure: str = ""

    @property
    def place(self) -> str:
        """As compilers and editors write it: ``file:line``."""
        if self.file is None:
            return ""
        return escaped(str(self.file)) + (f":{self.line}" if self.line else "")

    def __str__(self) -> str:
        head = ": ".join(word for word in (self.place, self.key, self.message) if word)
        return head + (f"\n    {self.cure}" if self.cure else "")


class ConfigError(Exception):
    """Everything that is wrong with a configuration."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        rest = [f"... and {count - MOST} more"] if count > MOST else []
        return "\n".join([f"{title} in the configuration", *map(str, self.problems[:MOST]), *rest])


def suggestion(word: str, known: Iterable[str], what: str = "known") -> str:
    """ "Did you mean" and all there is, for a word that is not among `known`."""
    names = sorted(known)
    if not names:
        return f"there is nothing {what}" if what == "known" else f"no {what} is configured"
    close = difflib.get_close_matches(word[:_LONGEST].lower(), [name.lower() for name in names], 1, 0.6)
    near = next((name for name in names if close and name.lower() == close[0]), None)
    there = f"{what}: " + ", ".join(escaped(name, _LONGEST) for name in names[:40])
    there += f" and {len(names) - 40} more" if len(names) > 40 else ""
    return f'did you mean "{escaped(near, _LONGEST)}"? {there}' if near else there

"""Which line of a TOML text a key stands on.

`tomllib` gives values without places, so this reads the text once more, only for its keys. It expects what tomllib
accepted; of anything else it finds what it can and never fails.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress

from apf_elastic.config.problems import Key

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*(\.?)""")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}' r"|'''(?:[^']|'(?!''))*'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'", re.DOTALL
)
_PLAIN = re.compile(r"[^,\]}\n#]*")


def lines(text: str) -> Mapping[Key, int]:
    """The line, from 1, of every key, table and array element."""
    scan = _Scan(text.replace("\r\n", "\n"))
    with suppress(_Lost, RecursionError):
        scan.document()
    return scan.found


def line_of(found: Mapping[Key, int], key: Key) -> int | None:
    """The line of `key`, or of the nearest table or array around it that the text has."""
    for length in range(len(key), 0, -1):
        if key[:length] in found:
            return found[key[:length]]
    return None


class _Lost(Exception):
    pass


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Key, int] = {}
        self._arrays: dict[Key, int] = {}  # arrays of tables, and the index of their latest table
        self._line, self._counted = 1, 0

    def document(self) -> None:
        table: Key = ()
        while True:
            self._skip_blank()
            if self.at >= len(self.text):
                return
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Key:
        line = self._line_here()
        double = self.text.startswith("[[", self.at)
        self.at += 2 if double else 1
        words = self._key()
        self.at += 2 if double else 1
        table: Key = ()
        for number, word in enumerate(words, 1):
            table = (*table, word)
            self.found.setdefault(table, line)
            if double and number == len(words):
                self._arrays[table] = self._arrays.get(table, -1) + 1
            if table in self._arrays:
                table = (*table, self._arrays[table])
        self.found[table] = line
        return table

    def _pair(self, table: Key) -> None:
        line = self._line_here()
        key = table
        for word in self._key():
            key = (*key, word)
            self.found.setdefault(key, line)
        if not self.text.startswith("=", self.at):
            raise _Lost
        self.at += 1
        self._value(key)

    def _key(self) -> list[str]:
        words = []
        while True:
            found = _KEY.match(self.text, self.at)
            if found is None:
                raise _Lost
            self.at = found.end()
            words.append(_unquoted(found[1]))
            if not found[2]:
                return words

    def _value(self, key: Key) -> None:
        self._skip_blank()
        opening = self.text[self.at : self.at + 1]
        if opening == "[":
            self._array(key)
        elif opening == "{":
            self._inline_table(key)
        else:
            found = (_STRING if opening in ('"', "'") else _PLAIN).match(self.text, self.at)
            if found is None:
                raise _Lost
            self.at = found.end()

    def _array(self, key: Key) -> None:
        index = 0
        while self._next("]"):
            element = (*key, index)
            self.found[element] = self._line_here()
            self._value(element)
            index += 1

    def _inline_table(self, key: Key) -> None:
        while self._next("}"):
            self._pair(key)

    def _next(self, closing: str) -> bool:
        """Go over the opening bracket or a comma; whether another element follows."""
        self._skip_blank()
        if not self.text.startswith(closing, self.at):
            self.at += 1
            self._skip_blank()
        if not self.text.startswith(closing, self.at):
            if self.at >= len(self.text):
                raise _Lost
            return True
        self.at += 1
        return False

    def _skip_blank(self) -> None:
        found = _BLANK.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line


def _unquoted(word: str) -> str:
    if word.startswith("'"):
        return word[1:-1]
    if word.startswith('"'):
        try:
            (key,) = tomllib.loads(f"{word} = 0")
        except ValueError:
            raise _Lost from None
        return key
    return word

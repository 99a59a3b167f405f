"""Finding, reading and merging the files.

One main file, then every ``conf.d/*.toml`` beside it in lexical order; later files win. Tables merge deeply, scalars
and arrays replace.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from apf_elastic.config.locate import lines
from apf_elastic.config.problems import ConfigError, Key, Problem, escaped

NAME = "apf-elastic.toml"
SYSTEM = Path("/etc/apf-elastic") / NAME
#: A larger file is not a configuration.
LARGEST_FILE = 4 * 2**20
#: A dotted key of hundreds of words, on which tomllib spends hours.
_ENDLESS_KEY = re.compile(r"(?<![A-Za-z0-9_-])(?:[A-Za-z0-9_-]++[ \t]*+\.[ \t]*+){200}")


@dataclass(frozen=True)
class Document:
    """One file: its text and what tomllib made of it."""

    path: Path
    text: str
    tree: Mapping[str, Any]

    @cached_property
    def lines(self) -> Mapping[Key, int]:
        return lines(self.text)


@dataclass(slots=True)
class Merged:
    """The files as one tree, and for every key the file that had the last word."""

    documents: Sequence[Document]
    tree: dict[str, Any] = field(default_factory=dict)
    origin: dict[Key, Document] = field(default_factory=dict)

    def document_of(self, key: Key) -> Document | None:
        for length in range(len(key), 0, -1):
            if key[:length] in self.origin:
                return self.origin[key[:length]]
        return self.documents[0] if self.documents else None


def find(file: Path | None = None) -> list[Path]:
    """The files that count: `file`, else the one here, else the system's; then what is in conf.d beside it."""
    main = file if file is not None else next((path for path in (Path(NAME), SYSTEM) if _is_there(path)), None)
    if main is None:
        cure = f"write {NAME} here, or name one: --config FILE"
        raise ConfigError([Problem(None, None, "", f"there is no {NAME} here and no {SYSTEM}", cure)])
    more = main.parent / "conf.d"
    try:
        names = sorted(name for name in os.listdir(more) if name.endswith(".toml") and not name.startswith("."))
    except FileNotFoundError:
        names = []
    except OSError as error:
        cure = "make it a directory that the service's user may read"
        raise ConfigError([Problem(more, None, "", f"cannot be listed: {error.strerror}", cure)]) from None
    return [main, *(more / name for name in names)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # its directory may not be entered: reading it will say so
        return True


def read(paths: Iterable[Path]) -> list[Document]:
    """Read every file; raises with the problems of all of them."""
    documents, problems = [], []
    for path in paths:
        try:
            documents.append(_read(path))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return documents


def _read(path: Path) -> Document:
    def wrong(message: str, cure: str, line: int | None = None) -> ConfigError:
        return ConfigError([Problem(path, line, "", escaped(message), cure)])

    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise wrong("does not exist", "name another with --config FILE, or create it") from None
    except PermissionError:
        raise wrong("may not be read by this user", "change its owner or mode, or run as the service's user") from None
    except (OSError, ValueError) as error:
        raise wrong(f"cannot be read: {error}", "name a file with --config FILE") from None
    if len(data) > LARGEST_FILE:
        raise wrong(f"is larger than {LARGEST_FILE} bytes", "is it a configuration?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong("is not UTF-8", "save it as UTF-8", data.count(b"\n", 0, error.start) + 1) from None
    too_deep = wrong("is nested too deeply", "use fewer tables within tables")
    if _ENDLESS_KEY.search(text):
        raise too_deep
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise wrong(*_syntax(text, str(error))) from None
    return Document(path, text, tree)


_LINE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _syntax(text: str, message: str) -> tuple[str, str, int | None]:
    """A TOML error as message, cure and line."""
    found = _LINE.search(message)
    line = int(found[1]) if found and found[1] else text.count("\n") + 1 if found else None
    where = f" at column {found[2]}" if found and found[2] else " at the end of the file" if found else ""
    what = message[: found.start()] if found else message
    cure = "text goes in quotes, tables in [brackets], every key once: https://toml.io"
    return f"is not TOML: {what}{where}", cure, line


def merge(documents: Sequence[Document]) -> Merged:
    """One tree out of all; of what two files set, the later one's stays."""
    merged = Merged(documents)
    for document in documents:
        _merge(merged.tree, document.tree, (), document, merged)
    return merged


def _merge(into: dict[str, Any], new: Mapping[str, Any], key: Key, document: Document, merged: Merged) -> None:
    for word, value in new.items():
        here = (*key, word)
        merged.origin[here] = document
        if isinstance(value, dict):
            old = into.get(word)
            into[word] = dict(old) if isinstance(old, dict) else {}
            _merge(into[word], value, here, document, merged)
        else:
            into[word] = value

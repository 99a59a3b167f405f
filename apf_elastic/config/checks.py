"""Checks across tables: references, duplicates, what cannot work together, secrets that others can read.

References are checked in the raw tree, so that one wrong value elsewhere in a table hides none of them.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from apf_elastic.config.files import Document
from apf_elastic.config.plugins import PluginSpec
from apf_elastic.config.problems import Key, escaped, is_path, names_secret_file, suggestion
from apf_elastic.config.report import Report, is_inline_secret
from apf_elastic.config.schema import FactoryTable, QueueTable, is_name
from apf_elastic.settings import StepSettings

#: The kinds of plugins that are configured, and their tables in the file.
KINDS = {"source": "sources", "pool": "pools", "backend": "backends"}

Queue = tuple[QueueTable, tuple[StepSettings, ...]]
Specs = dict[str, dict[str, PluginSpec]]

#: Files of a directory of secrets that are looked at.
_MANY = 1000
_OTHERS, _GROUP = 0o007, 0o070


def check_all(
    tree: Mapping[str, Any],
    factory: FactoryTable | None,
    specs: Specs,
    queues: Mapping[str, Queue],
    documents: Sequence[Document],
    report: Report,
) -> None:
    _check_references(tree, report)
    for name, (queue, _) in queues.items():
        _check_uses(name, queue, specs, tree, report)
    for kind, table in KINDS.items():
        for name, spec in specs[kind].items():
            _check_pace((table, name), spec, factory, report)
            _check_offering_names((table, name), tree, report)
            _check_secret_files((table, name), spec, report)
    _check_inline_secrets(tree, documents, report)


# ------------------------------------------------------------------------------------------------- references


def _check_references(tree: Mapping[str, Any], report: Report) -> None:
    queues = {name: raw for name, raw in _table(tree, "queues").items() if isinstance(raw, dict)}
    if tree and not _table(tree, "queues"):
        report.problem(("queues",), "no queue is configured", "write [queues.NAME] with a source and backends")
    used: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for name, raw in queues.items():
        references = list(_references(raw, ("queues", name)))
        uses = [it for kind, it, _ in references if kind == "backend"]
        _check_duplicates(uses, ("queues", name, "backends"), report)
        for kind, name_of_it, key in references:
            known = _table(tree, KINDS[kind])
            used[kind].add(name_of_it)
            if name_of_it not in known:
                message = f'there is no {kind} "{escaped(name_of_it, 60)}"'
                report.problem(key, message, suggestion(name_of_it, known, KINDS[kind]))
    for kind, table in KINDS.items():
        for name in _table(tree, table).keys() - used[kind]:
            report.warning((table, name), "is used by no queue", "name it in a queue, or remove it")


def _references(raw: Mapping[str, Any], key: Key) -> Iterator[tuple[str, str, Key]]:
    """The (kind, name, key) of all that a queue's table names."""
    for kind in ("source", "pool"):
        if isinstance(raw.get(kind), str):
            yield kind, raw[kind], (*key, kind)
    uses = raw.get("backends")
    for index, use in enumerate(uses if isinstance(uses, list) else ()):
        if isinstance(use, str):
            yield "backend", use, (*key, "backends", index)
        elif isinstance(use, dict) and isinstance(use.get("name"), str):
            yield "backend", use["name"], (*key, "backends", index, "name")


def _table(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


# ------------------------------------------------------------------------------------------------------- uses


def _check_uses(name: str, queue: QueueTable, specs: Specs, tree: Mapping[str, Any], report: Report) -> None:
    key: Key = ("queues", name, "backends")
    source = specs["source"].get(queue.source)
    if source is not None:
        _check_select(queue.select, source, ("queues", name, "select"), report)
    for index, use in enumerate(queue.backends):
        here = (*key, index)
        _check_duplicates(use.offerings, (*here, "offerings"), report)
        _check_offerings(use.offerings, _offerings(tree, use.name), (*here, "offerings"), report)
        if use.burst_after and source is not None and not getattr(source.cls, "counts_waits", True):
            message = f'the source "{source.name}" ({source.type}) does not say how long jobs have waited'
            report.problem((*here, "burst_after"), message, "leave burst_after out, or use another source")


def _check_select(select: str, source: PluginSpec, key: Key, report: Report) -> None:
    """Let the source read the selection, if its class can without asking a server: ``check_select(select)``."""
    check = getattr(source.cls, "check_select", None)
    if check is None or not select.strip():
        return
    try:
        check(select)
    except Exception as error:
        report.problem(key, str(error), f"write it in the language of {source.type} sources")


def _check_duplicates(names: Iterable[str], key: Key, report: Report) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            report.problem(key, f'names "{escaped(name, 60)}" {count} times', "name it once")


def _offerings(tree: Mapping[str, Any], backend: str) -> Mapping[str, Any]:
    """The offerings that the file gives a backend; empty if it finds its own."""
    return _table(_table(_table(tree, "backends"), backend), "offerings")


def _check_offerings(names: Iterable[str], known: Mapping[str, Any], key: Key, report: Report) -> None:
    for index, name in enumerate(names):
        if known and name not in known:
            message = f'there is no offering "{escaped(name, 60)}"'
            report.problem((*key, index), message, suggestion(name, known, "offerings"))


def _check_offering_names(key: Key, tree: Mapping[str, Any], report: Report) -> None:
    for name in _offerings(tree, str(key[1])) if key[0] == "backends" else ():
        if not is_name(name):
            cure = "use 1 to 60 letters, digits, dots, underscores and hyphens"
            report.problem((*key, "offerings", name), "is not a usable name", cure)


def _check_pace(key: Key, spec: PluginSpec, factory: FactoryTable | None, report: Report) -> None:
    """An answer must be followed by the next before it is too old."""
    if factory is None:
        return
    if spec.every_s >= factory.max_age:
        message = f"asked every {spec.every_s:g} s, it is unknown half of the time: answers count for"
        report.problem((*key, "every"), f"{message} factory.max_age = {factory.max_age:g} s", "ask more often")
    elif spec.every_s + spec.timeout_s > factory.max_age:
        message = f"every + timeout is more than factory.max_age = {factory.max_age:g} s"
        report.warning((*key, "timeout"), message, "a slow answer makes it unknown until the next one")


# ---------------------------------------------------------------------------------------------------- secrets


def _check_secret_files(key: Key, spec: PluginSpec, report: Report) -> None:
    for name, path in _named_files(spec.options):
        if names_secret_file(name):
            for file in _files_in(path):
                _check_mode(file, (*key, name), str(file), report)


def _named_files(options: BaseModel) -> Iterator[tuple[str, Path]]:
    for name, value in options:
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Path) or (isinstance(one, str) and is_path(one)):
                yield name, Path(one)


def _files_in(path: Path) -> list[Path]:
    """The file itself, or the files of a directory that others may enter."""
    try:
        path = path.expanduser()
        if not path.is_dir():
            return [path]
        if not path.stat().st_mode & (_OTHERS | _GROUP):
            return []
        return [Path(entry.path) for entry, _ in zip(os.scandir(path), range(_MANY), strict=False) if entry.is_file()]
    except (OSError, ValueError, RuntimeError):
        return []


def _check_inline_secrets(tree: Mapping[str, Any], documents: Sequence[Document], report: Report) -> None:
    """A secret in the configuration itself makes the file a secret."""
    keys = list(_inline_secrets(tree, ()))
    for document in documents:
        for key in keys:
            if report.document_of(key) is document:
                _check_mode(document.path, key, f"a secret stands here, and {document.path}", report)
                break


def _inline_secrets(value: object, key: Key) -> Iterator[Key]:
    if isinstance(value, dict):
        for word, inner in value.items():
            yield from _inline_secrets(inner, (*key, word))
    elif is_inline_secret(key, value):
        yield key


def _check_mode(path: Path, key: Key, what: str, report: Report) -> None:
    """A file that everybody may read is refused; one that a group may read is mentioned."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        return
    cure = f"chmod 600 {escaped(str(path), 300)}"
    if mode & _OTHERS:
        report.problem(key, f"{what} is open to every user of this machine (mode {mode & 0o777:03o})", cure)
    elif mode & _GROUP:
        report.warning(key, f"{what} is open to its group (mode {mode & 0o777:03o})", cure)

"""Writes docs/configuration.md from the schema and the plugins: ``python -m apf_elastic.config.reference [FILE]``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from apf_elastic.config import schema
from apf_elastic.config.plugins import BUILT_IN, plugin_class
from apf_elastic.config.policy import step_options
from apf_elastic.config.tables import alternatives, choices_of, is_model, recommended, unit_by_name, unit_of
from apf_elastic.config.units import DURATION, SHARE, SIZE, Unit

HERE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

HEAD = """\
# Configuration

Generated from the schema by `python -m apf_elastic.config.reference`; do not edit.

## Files

`apf-elastic.toml` in the current directory, else `/etc/apf-elastic/apf-elastic.toml`, or the file named with
`--config`. Then every `conf.d/*.toml` beside it, in lexical order. Later files win: tables merge deeply, scalars and
arrays replace. Relative paths count from the directory in which the service starts.

Everything is checked before anything starts, and all mistakes are listed at once, with file, line, key and what to
write instead. `apf-elastic check` does that and asks every source, pool and backend too. On SIGHUP the service reads
the files again; a wrong configuration is refused, and the old one stays. The factory's name and ledger cannot change
while it runs.

## Values

| kind | how it is written |
| --- | --- |
| duration | `"90 s"`, `"5 min"`, `"2 h"`, `"1 d"`, `"1 h 30 min"`; also `ms`, `weeks`. A bare number is seconds |
| size | `"2 GiB"` is 1024^3 bytes each, `"2 GB"` 1000^3; from `B` to `PB`. A bare number is MB of 2^20 bytes, as \
HTCondor and Slurm count. Rounded up to such MB: `"2 GB"` is 1908, `"2 GiB"` is 2048 |
| share | `"50%"`, or a number from 0 to 1 |
| name | 1 to 60 letters, digits, dots, underscores and hyphens |

A duration `join` may also be written `join_s = 900`, a size `memory` also `memory_mb = 2048`: plain numbers, no unit.

A file of secrets (an option like `token_dir`, `password_file`, `signing_key`), or a configuration file that has a
secret in it, must not be readable by other users of the machine; `check` mentions those that their group can read.
"""


def main() -> None:
    """Write the reference; where to may be given."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    target.write_text(reference())
    print(f"wrote {target}")


def reference() -> str:
    parts = [HEAD, *core(), *plugins(), *steps()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def core() -> Iterator[str]:
    yield section("## `[factory]`", schema.FactoryTable)
    yield section(
        "### `limits`", schema.LimitsTable, "In `[factory.limits]`, `[backends.NAME.limits]`, `[queues.NAME.limits]`."
    )
    yield section("## `[sources.NAME]`, `[pools.NAME]`, `[backends.NAME]`", schema.PluginTable)
    yield section("### `[backends.NAME]` also", schema.BackendTable, skip=schema.PluginTable)
    yield section("### `[backends.NAME.deadlines]`", schema.DeadlinesTable)
    yield section("## `[queues.NAME]`", schema.QueueTable)
    yield section("### `[[queues.NAME.backends]]`", schema.UseTable)
    yield section("### `[queues.NAME.retirement]`", schema.RetirementTable)
    yield section("### `[queues.NAME.default_shape]`", schema.ShapeTable)
    yield section("### `[queues.NAME.policy]`", schema.PolicyTable)


def plugins() -> Iterator[str]:
    for kind in ("source", "pool", "backend"):
        for name in BUILT_IN[kind]:
            options = plugin_class(kind, name).Options
            yield section(f'## `[{kind}s.NAME]` with `type = "{name}"`', options, inner=f"{kind}s.NAME")


def steps() -> Iterator[str]:
    yield "## Steps of a chain\n\nOptions go into `[queues.NAME.policy.STEP]`, with the step's name in lower case.\n"
    rows = ["| step | what it does | options |", "| --- | --- | --- |"]
    for name, meaning, options in step_options():
        words = "; ".join(_option(key, field) for key, field in options.model_fields.items())
        rows.append(f"| {name} | {cell(meaning)} | {cell(words)} |")
    yield "\n".join(rows)


def _option(key: str, field: FieldInfo) -> str:
    default = default_of(field)
    kind = kind_of(field) + (f", {default}" if default else "")
    return f"`{key}` ({kind}): {field.description}" if field.description else f"`{key}` ({kind})"


# ------------------------------------------------------------------------------------------------- one table


def section(
    title: str, model: type[BaseModel], where: str = "", skip: type[BaseModel] | None = None, inner: str = ""
) -> str:
    """A heading, what the model's docstring says, and a row for each of its keys; then the tables within."""
    text, meanings = meanings_of(model)
    lines = [title, "", *([f"{text} {where}".strip(), ""] if text or where else [])]
    words = recommended(model)
    fields = {name: it for name, it in model.model_fields.items() if skip is None or name not in skip.model_fields}
    if fields:
        lines += ["| key | kind | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        word = words[field.alias or name]
        meaning = field.description or meanings.get(name, "")
        lines.append(f"| `{word}` | {cell(kind_of(field, name))} | {cell(default_of(field, name))} | {cell(meaning)} |")
    if not fields:
        lines.append("No options of its own.")
    parts = ["\n".join(lines)]
    for name, field in fields.items() if inner else ():
        for path, table in tables_in(field, f"{inner}.{name}"):
            parts.append(section(f"### `[{path}]`", table, inner=path))
    return "\n\n".join(parts)


def tables_in(field: FieldInfo, path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models of tables within a plugin's options."""
    for kind in alternatives(field.annotation):
        if is_model(kind):
            yield path, kind
        for arg in get_args(kind) if get_origin(kind) in (dict, Mapping) else ():
            yield from ((f"{path}.NAME", inner) for inner in alternatives(arg) if is_model(inner))


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`").removesuffix(".")


# Docstrings of options say "key: meaning" or "key, key: meaning", at the start of a line or of a sentence.
_ENTRY = re.compile(r"(?:^|(?<=[.;] ))((?:\w+, )*\w+): ", re.MULTILINE)


def meanings_of(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What docstrings say of a model, and of each of its fields, its bases' included."""
    meanings: dict[str, str] = {}
    text = ""
    for cls in reversed(model.__mro__):
        doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "") if issubclass(cls, BaseModel) else ""
        if cls is BaseModel or cls is schema.Table or not doc:
            continue
        found = [it for it in _ENTRY.finditer(doc) if set(it[1].split(", ")) & model.model_fields.keys()]
        ends = [*(it.start() for it in found[1:]), len(doc)]
        for entry, end in zip(found, ends, strict=False):
            for name in entry[1].split(", "):
                meanings[name] = in_words_of_the_file(doc[entry.end() : end].strip(), model)
        text = in_words_of_the_file(doc[: found[0].start()] if found else doc, model).strip()
    return " ".join(text.split()), meanings


def in_words_of_the_file(text: str, model: type[BaseModel]) -> str:
    """A docstring says `join_s` where the file says `join`."""
    for key, word in recommended(model).items():
        text = text.replace(f"`{key}`", f"`{word}`").replace(f"`{key} ", f"`{word} ")
    return text


# ---------------------------------------------------------------------------------------------------- fields


def kind_of(field: FieldInfo, name: str = "") -> str:
    """The kind of a field's value in the words of the reference."""
    unit = unit_of(field) or unit_by_name(name, field)
    if unit is not None:
        return unit.name
    return " or ".join(dict.fromkeys(_kinds(list(alternatives(field.annotation)))))


def _kinds(kinds: Sequence[Any]) -> Iterator[str]:
    words = list(choices_of(kinds))
    if words:
        yield ", ".join(f'`"{word}"`' for word in words)
    for kind in kinds:
        origin, args = get_origin(kind), get_args(kind)
        if is_model(kind) or origin in (dict, Mapping) or kind is dict:
            yield "table"
        elif origin in (list, tuple, Sequence, set, frozenset):
            inner = dict.fromkeys(_kinds([a for arg in args if arg is not ... for a in alternatives(arg)]))
            yield "array of " + " or ".join(f"{word}s" for word in inner)
        elif not (origin or kind is type(None) or (isinstance(kind, type) and issubclass(kind, Enum))):
            yield _SIMPLE.get(kind, "text")


_SIMPLE: Mapping[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "anything",
}


def default_of(field: FieldInfo, name: str = "") -> str:
    """The default as it would be written."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or isinstance(value, BaseModel) or value in ({}, [], (), ""):
        return ""
    return f"`{_written(value, unit_of(field) or unit_by_name(name, field))}`"


def _written(value: Any, unit: Unit | None) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if unit is DURATION and value:
        return f'"{_duration(value)}"'
    if unit is SIZE and value:
        return f'"{value // 1024} GiB"' if value % 1024 == 0 else f'"{value} MiB"'
    if unit is SHARE:
        return f'"{value:.0%}"'
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(_written(it, None) for it in value) + "]"
    return f'"{value.value if isinstance(value, Enum) else value}"'


def _duration(seconds: float) -> str:
    for word, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {word}"
    return f"{seconds:g} s"


if __name__ == "__main__":
    main()

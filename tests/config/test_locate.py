"""The line of a key."""

import json
import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from apf_elastic.config.locate import line_of, lines
from apf_elastic.config.problems import Key

TEXT = """\
# a comment with [a table] and key = value
title = "x"  # [not.a.table]
[factory]
name = "a"
'quoted key' = 1
"with \\" quote"."and.dot" = [
  1, # one
  { in = 2, line = "]" }, [3,
  4],
]
text = \"\"\"
[no.table]
name = 1 \\\"""
\"\"\"
[ queues . "b.c" ]
limits.total = 3
[[queues.d.backends]]
name = "one"
[[queues.d.backends]]
name = 'two'
[queues.d.backends.more]
x = 1979-05-27T07:32:00Z
"""


def test_every_kind_of_key_has_its_line() -> None:
    found = lines(TEXT)
    assert found[("title",)] == 2
    assert found[("factory",)] == 3
    assert found[("factory", "quoted key")] == 5
    assert found[("factory", 'with " quote', "and.dot")] == 6
    assert found[("factory", 'with " quote', "and.dot", 0)] == 7
    assert found[("factory", 'with " quote', "and.dot", 1, "line")] == 8
    assert found[("factory", 'with " quote', "and.dot", 2, 1)] == 9
    assert found[("factory", "text")] == 11
    assert found[("queues", "b.c", "limits", "total")] == 16
    assert found[("queues", "d", "backends", 0, "name")] == 18
    assert found[("queues", "d", "backends", 1, "name")] == 20
    assert found[("queues", "d", "backends", 1, "more", "x")] == 22


def test_a_key_that_is_missing_is_placed_at_its_table() -> None:
    found = lines(TEXT)
    assert line_of(found, ("factory", "cycle")) == 3
    assert line_of(found, ("queues", "d", "backends", 1, "weight")) == 19
    assert line_of(found, ("pools",)) is None


def test_windows_line_ends_count_once() -> None:
    assert lines("a = 1\r\n[b]\r\nc = 2\r\n")[("b", "c")] == 3


# A TOML writer for the property: a JSON text is a TOML text, but for DEL.

KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
TREES = st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4)


def written(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{quoted(key)} = {written(it)}" for key, it in value.items()) + " }"
    if isinstance(value, list):
        return "[\n" + "".join(f"  {written(it)}, # ] }}\n" for it in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def document(tree: dict[str, dict[str, Any]]) -> tuple[str, dict[Key, int]]:
    """The text of a tree of tables, and the line of each table and key as it was written."""
    text, places = "# made\n", {}
    for name, table in tree.items():
        places[(name,)] = text.count("\n") + 1
        text += f"[{quoted(name)}]\n"
        for key, value in table.items():
            places[(name, key)] = text.count("\n") + 1
            text += f"{quoted(key)} = {written(value)}\n\n"
    return text, places


@given(TREES)
def test_what_a_writer_wrote_is_found_where_it_was_written(tree: dict[str, dict[str, Any]]) -> None:
    text, places = document(tree)
    assert tomllib.loads(text) == tree
    found = lines(text)
    assert {key: found.get(key) for key in places} == places


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    lines(text)

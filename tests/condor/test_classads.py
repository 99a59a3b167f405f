from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf_elastic.condor.classads import any_of, both, check_expression, equals, quote

classad2 = pytest.importorskip("classad2")

printable = st.text(st.characters(blacklist_categories=["Cc", "Cs"]))


@given(printable)
def test_a_quoted_string_is_read_back_as_it_was(text: str) -> None:
    assert classad2.ExprTree(quote(text)).eval() == text


def test_control_characters_are_refused() -> None:
    for letter in "\0\n\r\t\x1b\x7f":
        with pytest.raises(ValueError, match="control character"):
            quote(f"a{letter}b")


@given(printable, printable)
def test_a_constraint_matches_its_string_and_no_other(one: str, other: str) -> None:
    ad = classad2.ClassAd({"Id": one})
    assert classad2.ExprTree(equals("Id", other)).eval(ad) is (one == other)


def test_no_constraint_is_true_and_no_text_matches_nothing() -> None:
    assert both("", " ") == "true"
    assert any_of("Id", []) == "false"


@pytest.mark.parametrize(
    "text",
    [
        *('RequestCpus > 3 && Owner == "x"', "-3 + .5e3", "a is undefined || !b", "a isnt error ? 1 : 2", "a ?: b"),
        *("size({}) > 0", "f() && {1, 2}[0] == 1", "[a = 1; b = 2;].a", "TARGET.x =?= MY.y", "'odd name' =!= 1"),
        *('regexp("^a\\\\.b", s)', "a\n && b", "((a))", "~1 << 2 >>> 1"),
    ],
)
def test_what_htcondor_parses_passes(text: str) -> None:
    assert classad2.ExprTree(text)
    assert check_expression(text) == text


@pytest.mark.parametrize(
    ("text", "column"),
    [
        *(("RequestCpus >", 14), ("f(", 2), ('a == "x', 6), ("", 1), ("a b", 3), ("x=3", 2), ("( )", 3)),
        *(("a && && b", 6), ("a)", 2), ("a # b", 3), ("{1,}", 4), ("(a]", 3), ("a and b", 3), ("a = 1 || b", 3)),
    ],
)
def test_an_error_is_pointed_at(text: str, column: int) -> None:
    with pytest.raises(classad2.ClassAdException):
        classad2.ExprTree(text)
    with pytest.raises(ValueError, match=f"^column {column}: "):
        check_expression(text)


@given(st.text("ab13 .=<>!&|+-,?:", max_size=12))
def test_nothing_that_htcondor_takes_is_refused(text: str) -> None:
    """Left out are ) ] } and ; because its parser ignores them and all that follows, and oddities of quotes."""
    try:
        classad2.ExprTree(text)
    except classad2.ClassAdException:
        return
    check_expression(text)

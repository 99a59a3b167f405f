"""Quantities with units."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from apf_elastic.config.units import Duration, Share, Size, UnitError, megabytes, seconds, share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90.0),
        (0.5, 0.5),
        ("90", 90.0),
        ("90 s", 90.0),
        ("90s", 90.0),
        (" 5 min ", 300.0),
        ("2 h", 7200.0),
        ("1.5 hours", 5400.0),
        ("1 d", 86400.0),
        ("1 h 30 min", 5400.0),
        ("250 ms", 0.25),
        ("2 weeks", 14 * 86400.0),
        ("0 s", 0.0),
        ("5 MIN", 300.0),
    ],
)
def test_durations_become_seconds(text: object, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (2000, 2000),
        ("2000", 2000),
        ("2 GiB", 2048),
        ("2 GB", 1908),
        ("512 MiB", 512),
        ("512 MB", 489),
        ("1 TiB", 2**20),
        ("1 B", 1),
        ("0.1 GiB", 103),
        ("0 GB", 0),
        (0.2, 1),
    ],
)
def test_sizes_become_mb_of_2_to_the_20_rounded_up(text: object, expected: int) -> None:
    assert megabytes(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("50%", 0.5), ("50 %", 0.5), ("0%", 0.0), ("100%", 1.0), (0.25, 0.25)])
def test_shares_become_numbers_from_0_to_1(text: object, expected: float) -> None:
    assert share(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5 m", "unknown unit 'm'"),
        ("5 parsecs", "unknown unit"),
        ("-5 s", "negative"),
        (-1, "negative"),
        ("five minutes", "not a number with a unit"),
        ("", "not a number with a unit"),
        ("1e3 s", "unknown unit 'e'"),
        ("1,5 h", "not a number with a unit"),
        ("٣ s", "not a number with a unit"),
        (math.nan, "not a finite number"),
        (math.inf, "not a finite number"),
        ("9999999 d", "longer than 100 years"),
        (10**400, "longer than 100 years"),
        (True, "neither a number nor a text"),
        (None, "neither a number nor a text"),
        (["5 s"], "neither a number nor a text"),
        ("9" * 10_000, "a text of 10000 characters"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_reason_and_what_to_write(text: object, why: str) -> None:
    with pytest.raises(UnitError, match=why) as caught:
        seconds(text)
    assert '"5 min"' in caught.value.cure


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2 G", "unknown unit 'G'"),
        ("1 GiB 1 MiB", "not one size"),
        ("-2 GB", "negative"),
        ("9999999 PB", "larger than"),
    ],
)
def test_what_is_no_size_is_refused(text: object, why: str) -> None:
    with pytest.raises(UnitError, match=why):
        megabytes(text)


@pytest.mark.parametrize(("text", "why"), [("150%", "more than 100%"), (5, "more than 100%"), ("half", "percentage")])
def test_what_is_no_share_is_refused(text: object, why: str) -> None:
    with pytest.raises(UnitError, match=why):
        share(text)


def test_the_types_work_in_pydantic_models_and_keep_the_cure() -> None:
    assert TypeAdapter(Duration).validate_python("5 min") == 300.0
    assert TypeAdapter(Duration | None).validate_python(None) is None
    assert TypeAdapter(Size).validate_python("1 GiB") == 1024
    assert TypeAdapter(Share).validate_python("10%") == 0.1
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Duration).validate_python("soon")
    assert isinstance(caught.value.errors()[0]["ctx"]["error"], UnitError)


@given(st.integers(0, 10**5), st.sampled_from([("s", 1), ("min", 60), ("h", 3600), ("ms", 0.001)]))
def test_a_number_and_its_unit_multiply(number: int, unit: tuple[str, float]) -> None:
    assert seconds(f"{number} {unit[0]}") == pytest.approx(number * unit[1])
    assert seconds(f"{number}{unit[0]}") == seconds(f" {number}  {unit[0]} ")


@given(st.integers(0, 2**40), st.sampled_from(["B", "kB", "MB", "GB", "KiB", "MiB"]))
def test_a_size_never_shrinks_and_grows_by_less_than_one_mb(number: int, unit: str) -> None:
    factor = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2}[unit]
    if number * factor > 2**69:
        return
    assert 0 <= megabytes(f"{number} {unit}") * 2**20 - number * factor < 2**20


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none(), st.lists(st.integers())))
def test_anything_is_a_quantity_or_a_unit_error(value: object) -> None:
    for read in (seconds, megabytes, share):
        try:
            number = read(value)
        except UnitError:
            continue
        assert number >= 0
        assert math.isfinite(number)

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf_elastic.condor.shapes import DIMENSIONS, order, shape_of
from apf_elastic.model import Shape

DEFAULT = Shape(cores=1, memory_mb=2000, disk_mb=3000, gpus=0, walltime_s=None)


def test_amounts_are_rounded_up_to_steps() -> None:
    shape, odd = shape_of({"cores": 3, "memory_mb": 129, "disk_mb": 1024.5, "gpus": 0.5, "walltime_s": 61}, DEFAULT)
    assert shape == Shape(3, 256, 1025, 1, 120)
    assert odd == []


def test_what_is_undefined_is_as_in_the_default() -> None:
    assert shape_of({"cores": None}, DEFAULT) == (DEFAULT, [])


@pytest.mark.parametrize("value", [-1, 1e999, -1e999, math.nan, "many", True, [1], {"error": "1/0"}, 1e30, 0])
def test_nonsense_is_reported_and_the_default_taken(value: Any) -> None:
    shape, odd = shape_of({"cores": value}, DEFAULT)
    assert shape == DEFAULT
    assert [(one.dimension, one.default) for one in odd] == [("cores", 1)]


def test_an_architecture_is_a_string() -> None:
    assert shape_of({"arch": "aarch64"}, DEFAULT)[0].arch == "aarch64"
    shape, odd = shape_of({"arch": 64}, DEFAULT)
    assert (shape.arch, odd[0].dimension) == ("", "arch")


plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))


@given(st.dictionaries(st.sampled_from([*DIMENSIONS, "arch"]), plain))
def test_no_value_makes_it_fail(values: dict[str, Any]) -> None:
    shape, odd = shape_of(values, DEFAULT)
    assert shape.cores >= 1
    assert {one.dimension for one in odd} <= values.keys()
    assert order(shape)

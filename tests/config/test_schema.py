"""The schema, reading tables with it, and the reference that is made from it."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from apf_elastic import settings
from apf_elastic.config import Config, reference, schema
from apf_elastic.config.files import Document, merge
from apf_elastic.config.report import Report
from apf_elastic.config.tables import read_table, recommended
from apf_elastic.config.units import Duration, Size
from apf_elastic.model import Shape

TABLES = [it for it in vars(schema).values() if isinstance(it, type) and issubclass(it, schema.Table)]


@pytest.mark.parametrize("table", TABLES)
def test_every_key_says_what_it_means(table: type[BaseModel]) -> None:
    assert table.__doc__
    assert all(field.description for field in table.model_fields.values())


def test_the_defaults_of_the_file_are_those_of_the_frozen_settings() -> None:
    assert schema.LimitsTable().frozen() == settings.Limits()
    assert schema.RetirementTable().frozen() == settings.Retirement()
    assert schema.BackendTable(type="x").frozen("b") == settings.BackendSettings("b")
    assert schema.UseTable(name="b").frozen() == settings.BackendUse("b")
    assert schema.ShapeTable().frozen() == Shape(cores=1)
    assert schema.FactoryTable(name="x").max_age == settings.Settings("x", {}, {}).max_age_s


# --------------------------------------------------------------------------------- units in plugins' options


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    memory_mb: int = 0
    walltime_s: int | None = None


class One(Inner):
    kind: Literal["one"] = "one"
    first_s: float = 0


class Two(Inner):
    kind: Literal["two"] = "two"
    second_s: float = 0


class Options(BaseModel):
    wait_s: float = 1
    count: int = 0
    size_mb: Annotated[int, Field(ge=1)] = 1
    both_s: float = 0
    both_mb: int = 0
    names_s: list[str] = []
    expression_mb: str = ""
    real: Duration = 0
    real_size: Size | None = None
    by_name: dict[str, Inner] = {}
    listed: list[Inner] = []
    maybe: Inner | None = None
    either: One | Two | None = None
    other: int = Field(0, alias="else")
    word: str = Field("a", pattern="^a$")


def read(raw: dict[str, Any], model: type[BaseModel] = Options) -> tuple[Any, list[str]]:
    report = Report(merge([Document(__file__, "", {"t": raw})]))  # type: ignore[arg-type]
    made = read_table(model, raw, ("t",), report)
    return made, [f"{problem.key}: {problem.message}" for problem in report.problems]


def test_a_key_with_a_unit_sets_the_field_with_the_suffix() -> None:
    made, problems = read({"wait": "5 min", "size": "1 GiB", "real": "2 h", "real_size": "1 GiB"})
    assert problems == []
    assert (made.wait_s, made.size_mb, made.real, made.real_size) == (300.0, 1024, 7200.0, 1024)


def test_the_plain_spelling_takes_plain_numbers_everywhere() -> None:
    made, problems = read({"wait_s": 5, "size_mb": 10, "real_s": 7, "real_size_mb": 3})
    assert problems == []
    assert (made.wait_s, made.size_mb, made.real, made.real_size) == (5.0, 10, 7.0, 3)


def test_units_work_in_tables_within() -> None:
    inner = {"memory": "1 GiB", "walltime": "2 h"}
    made, problems = read({"by_name": {"a": inner}, "listed": [inner], "maybe": inner})
    assert problems == []
    assert made.by_name["a"] == made.listed[0] == made.maybe == Inner(memory_mb=1024, walltime_s=7200)


def test_of_several_models_the_one_that_knows_most_keys_translates() -> None:
    made, problems = read({"either": {"kind": "two", "second": "1 min", "memory": 5}})
    assert problems == []
    assert made.either == Two(second_s=60, memory_mb=5)


def test_only_numbers_have_units_by_their_suffix() -> None:
    made, problems = read({"names_s": ["a"], "expression_mb": "RequestMemory"})
    assert problems == []
    assert (made.names_s, made.expression_mb) == (["a"], "RequestMemory")
    assert read({"names": ["a"]})[1] == ["t.names: is not a known key"]


def test_a_word_that_could_be_two_fields_is_none() -> None:
    assert read({"both": 3})[1] == ["t.both: is not a known key"]
    assert read({"both_s": 3, "both_mb": 4})[0].both_mb == 4


def test_an_alias_is_the_key() -> None:
    assert read({"else": 3})[0].other == 3
    assert read({"other": 3})[1] == ["t.other: is not a known key"]


def test_an_unknown_key_is_a_problem_even_where_the_plugin_would_ignore_it() -> None:
    assert read({"cuont": 1})[1] == ["t.cuont: is not a known key"]
    assert read({"by_name": {"a": {"memroy": 1}}})[1] == ["t.by_name.a.memroy: is not a known key"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"wait": "1 min", "wait_s": 60}, "t.wait_s: says the same as `wait`, which is given too"),
        ({"wait_s": "60"}, 't.wait_s: "60" is not a plain number'),
        ({"wait_s": True}, "t.wait_s: true is not a plain number"),
        ({"real_s": "1 min"}, 't.real_s: "1 min" is not a plain number'),
        ({"size": 0}, "t.size: is 0, must be at least 1"),
        ({"count": "many"}, 't.count: is "many", must be a whole number'),
        ({"by_name": {"a": {"walltime": "0.5 s"}}}, "t.by_name.a.walltime: is 0.5, must be a whole number"),
        ({"listed": [{}, {"memory": "-1 GB"}]}, 't.listed[1].memory: "-1 GB" is negative'),
        ({"listed": {"a": 1}}, "t.listed: is a table, must be an array"),
        ({"word": "b"}, "t.word: is \"b\", string should match pattern '^a$'"),
        ({"maybe": 3}, "t.maybe: is 3, must be a table"),
    ],
)
def test_problems_are_placed_at_the_word_of_the_file(raw: dict[str, Any], expected: str) -> None:
    assert read(raw) == (None, [expected])


def test_the_spelling_with_a_unit_is_recommended() -> None:
    assert recommended(Options)["wait_s"] == "wait"
    assert recommended(Options)["real"] == "real"
    assert recommended(Options)["expression_mb"] == "expression_mb"


# ----------------------------------------------------------------------------------------------------- policy

CHAIN = """
[queues.analysis.policy]
chain = ["Ready", "Scale", "MaxPerCycle"]
ready = { offset = 4 }
scale = { factor = 0.5 }
"""


def test_a_chain_has_its_steps_with_their_options(loaded: Callable[..., Config], good: str) -> None:
    chain = loaded(good + CHAIN).settings.queues["analysis"].chain
    assert [step.name for step in chain] == ["Ready", "Scale", "MaxPerCycle"]
    assert (chain[0].options["offset"], chain[1].options["factor"]) == (4, 0.5)


def test_without_a_chain_jobs_are_fitted(loaded: Callable[..., Config], good: str) -> None:
    assert loaded(good).settings.queues["analysis"].chain == ()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (
            'chain = ["Ready", "Scael"]',
            '24: queues.analysis.policy.chain[1]: there is no step "Scael"\n    did you mean "Scale"? steps: ',
        ),
        (
            'chain = ["Ready"]\nready = { ofset = 4 }',
            '25: queues.analysis.policy.ready.ofset: is not a known key\n    did you mean "offset"? keys here: offset',
        ),
        (
            'chain = ["Ready"]\nready = { offset = 1.5 }',
            "25: queues.analysis.policy.ready.offset: 1.5 is not a whole number",
        ),
        (
            'chain = ["Ready"]\nredy = { offset = 1 }',
            '25: queues.analysis.policy.redy: is not a known key\n    did you mean "ready"? keys here: chain, ready',
        ),
        (
            'chain = ["Ready"]\nready = 4',
            "25: queues.analysis.policy.ready: the options of Ready must be a table\n"
            "    write ready = { option = value }",
        ),
        ('chain = "Ready"', '24: queues.analysis.policy.chain: is "Ready", must be an array'),
    ],
)
def test_a_mistake_in_a_policy_is_named(policy: str, expected: str, message: Callable[..., str], good: str) -> None:
    words = message(f"{good}[queues.analysis.policy]\n{policy}\n")
    assert words.startswith(f"1 problem in the configuration\nDIR/apf-elastic.toml:{expected}")


def test_options_of_a_step_outside_the_chain_are_mentioned(loaded: Callable[..., Config], good: str) -> None:
    (warning,) = loaded(f"{good}{CHAIN}throttle = {{ ratio = 0.3 }}\n").warnings
    assert "queues.analysis.policy.throttle: is the table of a step that is not in the chain" in str(warning)


# -------------------------------------------------------------------------------------------------- reference


def test_the_reference_is_up_to_date() -> None:
    assert reference.HERE.read_text() == reference.reference(), "run: python -m apf_elastic.config.reference"


def test_the_reference_names_every_key_by_the_word_that_users_write() -> None:
    text = reference.reference()
    for table in set(TABLES) - {schema.File, schema.Table}:
        for word in recommended(table).values():
            assert f"| `{word}` |" in text

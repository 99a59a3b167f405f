"""`try-policy`: chains on given numbers, from options or from JSON lines."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from apf_elastic.cli import app
from apf_elastic.commands.try_policy import answer_lines, assignments

CHAIN = "Ready,Scale,StatusTest,MaxPerCycle,MinPerCycle,MaxPending,StatusOffline"
CONFIG = {
    "sched.ready.offset": 4,
    "sched.scale.factor": 0.5,
    "sched.maxpercycle.maximum": 100,
    "sched.minpercycle.minimum": 0,
    "sched.maxpending.maximum": 25,
}
STATE = {"ready": 100, "pending": 10, "running": 8, "status": "online"}


def run(*words: str, stdin: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["try-policy", *words], input=stdin)
    return result.exit_code, result.stdout


def options() -> list[str]:
    return [word for key, value in CONFIG.items() for word in ("--set", f"{key}={value}")]


def line(**changes: Any) -> str:
    return json.dumps({"chain": CHAIN.split(","), "config": CONFIG, "state": STATE} | changes) + "\n"


def test_the_documented_chain_from_options_comes_out_as_documented() -> None:
    code, words = run("--chain", CHAIN, *options(), "--ready", "100", "--pending", "10", "--running", "8", "--json")
    answer = json.loads(words)
    assert code == 0
    assert answer["result"] == 15
    assert [(step["name"], step["n"]) for step in answer["steps"]] == [
        ("Ready", 86),
        ("Scale", 43),
        ("StatusTest", 43),
        ("MaxPerCycle", 43),
        ("MinPerCycle", 43),
        ("MaxPending", 15),
        ("StatusOffline", 15),
    ]
    assert all(step["reason"] for step in answer["steps"])


def test_people_get_a_table_with_the_reason_of_each_step() -> None:
    code, words = run("--chain", "Ready, Scale", "--set", "sched.scale.factor=0.5", "--ready", "7")
    assert code == 0
    assert "7 times 0.5, rounded up: 4" in words
    assert words.splitlines()[-1] == "result: 4"
    assert "\x1b" not in words


def test_json_lines_are_answered_line_by_line() -> None:
    code, words = run("--json", stdin=line() + line(state=STATE | {"ready": 15}) + "\n" + line(chain="Ready"))
    assert code == 0
    assert [json.loads(it)["result"] for it in words.splitlines()] == [15, 1, 86]


def test_a_bad_line_is_named_by_its_number_and_the_others_go_on() -> None:
    code, words = run("--json", stdin=line() + "{not json\n" + line(chain=["Raedy"]) + line())
    first, second, third, fourth = map(json.loads, words.splitlines())
    assert code == 1
    assert first["result"] == fourth["result"] == 15
    assert second["error"].startswith("line 2: is not JSON")
    assert third["error"].startswith("line 3: ")
    assert "Raedy" in third["error"]
    assert "Ready" in third["error"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("[]", "is not a JSON object"),
        ("{}", "chain is missing"),
        ('{"chain": 3}', "chain is a list of steps"),
        ('{"chain": "Ready", "sate": {}}', "unknown key 'sate'"),
        ('{"chain": "Ready", "state": 3}', "config and state are objects"),
        ('{"chain": "Ready", "state": {"ready": NaN}}', "NaN is not a number"),
        ('{"chain": "Ready", "state": {"ready": "many"}}', "ready"),
        ('{"chain": "Ready", "state": {"ready": -1}}', "ready"),
        ('{"chain": "Ready", "config": {"sched.ready.ofset": 4}}', "ofset"),
        ('{"chain": "Ready", "state": {"reday": 4}}', "reday"),
        ("[" * 100_000, "nested too deeply"),
        ('"' + "x" * 2**21, "has more than"),
    ],
)
def test_a_line_that_is_no_question_says_why(bad: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not answer_lines([bad], json=True)
    error = json.loads(capsys.readouterr().out)["error"]
    assert error.startswith("line 1: ")
    assert why in error
    assert len(error) < 500


@pytest.mark.parametrize("where", ["inside the state", "beside it"])
@pytest.mark.parametrize("what", ["wms", "batch"])
@pytest.mark.parametrize("value", [None, "none"])
def test_without_an_answer_the_chain_holds(where: str, what: str, value: str | None) -> None:
    inside = where == "inside the state"
    code, words = run("--json", stdin=line(state=STATE | {what: value}) if inside else line(**{what: value}))
    answer = json.loads(words)
    assert (code, answer["result"]) == (0, 0)
    assert "hold" in answer["steps"][0]["reason"]


def test_no_answer_can_be_said_on_the_command_line() -> None:
    code, words = run("--chain", "Ready", "--ready", "9", "--batch", "none", "--json")
    assert (code, json.loads(words)["result"]) == (0, 0)


def test_a_wrong_option_value_is_an_error_that_names_it() -> None:
    code, words = run("--chain", "Ready", "--set", "sched.ready.offset=four", "--json")
    assert code == 1
    assert "offset" in json.loads(words)["error"]
    assert CliRunner().invoke(app, ["try-policy", "--chain", "Ready", "--set", "offset"]).exit_code == 1


def test_assignments_are_read_as_numbers_and_truths_where_they_are() -> None:
    words = ["a.b.c=4", "d=0.5", "e=true", "f=none", "g = text = more "]
    assert assignments(words) == {"a.b.c": 4, "d": 0.5, "e": True, "f": None, "g": "text = more"}


@pytest.mark.parametrize(("word", "why"), [("offset", "write KEY=VALUE"), ("=4", "write KEY=VALUE")])
def test_what_is_no_assignment_is_refused(word: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        assignments([word])


def test_a_key_that_is_set_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="is set twice"):
        assignments(["a=1", "a=2"])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
QUESTIONS = st.fixed_dictionaries(
    {},
    optional={
        "chain": st.lists(st.sampled_from(CHAIN.split(",")), max_size=4) | ANYTHING,
        "config": st.dictionaries(st.sampled_from(sorted(CONFIG)) | st.text(max_size=8), ANYTHING, max_size=3)
        | ANYTHING,
        "state": st.dictionaries(st.sampled_from([*STATE, "wms", "batch"]), ANYTHING, max_size=5) | ANYTHING,
        "wms": ANYTHING,
    },
)


@given(QUESTIONS | ANYTHING)
def test_any_line_is_answered_or_refused(question: Any) -> None:
    answer_lines([json.dumps(question)], json=True)


@given(st.text(max_size=30))
def test_any_text_is_answered_or_refused(text: str) -> None:
    answer_lines([text], json=False)

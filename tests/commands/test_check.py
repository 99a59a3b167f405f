"""`check`: every finding at once."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from apf_elastic.cli import app
from apf_elastic.commands import check
from apf_elastic.config import PluginSpec
from apf_elastic.contracts import CallError
from apf_elastic.model import Demand, JobGroup, Shape

GOOD = """\
[factory]
name = "campus"
state_dir = "{dir}/state"
[sources.work]
type = "embedded"
directory = "{dir}/work"
[backends.here]
type = "local"
[queues.analysis]
source = "work"
backends = ["here"]
"""


class NoOptions(BaseModel):
    pass


class Plugin:
    """Answers as a test says, and tells whether it was closed."""

    def __init__(self, answer: Callable[[], str]) -> None:
        self.answer = answer
        self.closed = False

    def ping(self) -> str:
        return self.answer()

    def close(self) -> None:
        self.closed = True


def spec(name: str, kind: str = "source", timeout_s: float = 5.0) -> PluginSpec:
    return PluginSpec(name, kind, "fake", Plugin, NoOptions(), 10.0, timeout_s)


def asked(answers: dict[str, Callable[[], str]], timeout_s: float = 5.0) -> dict[str, check.Finding]:
    specs = [spec(name, timeout_s=timeout_s) for name in answers]
    findings = check.ask_all(specs, lambda it: Plugin(answers[it.name]))
    return {finding.name: finding for finding in findings}


def raising(error: Exception) -> Callable[[], str]:
    def answer() -> str:
        raise error

    return answer


def test_one_that_fails_does_not_hide_the_others() -> None:
    found = asked({"bad": raising(CallError("no route to host")), "good": lambda: "schedd a, 3 jobs"})
    assert (found["bad"].ok, found["bad"].message) == (False, "no route to host")
    assert (found["good"].ok, found["good"].message) == (True, "schedd a, 3 jobs")


def test_one_that_hangs_is_given_up_after_its_timeout_and_the_others_are_heard() -> None:
    release = threading.Event()

    def hang() -> str:
        release.wait(30)
        return "too late"

    started = time.monotonic()
    found = asked({"slow": hang, "good": lambda: "fine"}, timeout_s=0.2)
    release.set()
    assert time.monotonic() - started < 5
    assert (found["slow"].ok, found["slow"].message) == (False, "no answer within 0.2 s")
    assert found["good"].ok


def test_all_are_asked_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=5)

    def meet() -> str:
        together.wait()
        return "met"

    assert all(finding.ok for finding in asked({"a": meet, "b": meet, "c": meet}).values())


def test_a_plugin_is_closed_whether_it_answers_or_not() -> None:
    made = [Plugin(lambda: "fine"), Plugin(raising(ValueError()))]
    findings = check.ask_all([spec("0"), spec("1")], lambda it: made[int(it.name)])
    assert [plugin.closed for plugin in made] == [True, True]
    assert [finding.message for finding in findings] == ["fine", "ValueError"]


def test_a_plugin_that_cannot_be_made_is_a_finding() -> None:
    def make(it: PluginSpec) -> Any:
        raise ValueError("select of queue analysis: this '(' is not closed")

    (finding,) = check.ask_all([spec("home")], make)
    assert (finding.ok, finding.message) == (False, "select of queue analysis: this '(' is not closed")


class Silent:
    """A plugin without `ping`."""

    def demand(self) -> dict[str, Demand]:
        return {"a": Demand((JobGroup(Shape(), 3),)), "b": Demand()}

    def slots(self) -> list[str]:
        return ["one"]

    def list(self) -> list[str]:
        return []

    def offerings(self) -> tuple[str, ...]:
        return ("a", "b")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("source", "3 jobs waiting for 2 queues"),
        ("pool", "1 resource joined"),
        ("backend", "0 resources, 2 offerings"),
    ],
)
def test_without_ping_the_first_answer_is_summed_up(kind: str, sentence: str) -> None:
    assert check.say(kind, Silent()) == sentence


# ------------------------------------------------------------------------------------------ the command itself


def run(tmp_path: Path, text: str, *options: str) -> tuple[int, str]:
    file = tmp_path / "apf-elastic.toml"
    file.write_text(text.replace("{dir}", str(tmp_path)))
    result = CliRunner().invoke(app, ["check", "--config", str(file), *options])
    return result.exit_code, result.stdout


def test_a_wrong_configuration_is_printed_whole(tmp_path: Path) -> None:
    code, words = run(tmp_path, GOOD.replace('"work"\nbackends = ["here"]', '"wrk"\nbackends = []'))
    assert code == 1
    assert words.startswith("2 problems in the configuration\n")
    assert f'{tmp_path}/apf-elastic.toml:10: queues.analysis.source: there is no source "wrk"' in words
    assert "needs at least 1" in words


def test_a_wrong_configuration_is_findings_in_json(tmp_path: Path) -> None:
    code, words = run(tmp_path, GOOD.replace('"local"', '"locl"'), "--json")
    (finding,) = json.loads(words)
    assert code == 1
    assert finding == {
        "kind": "configuration",
        "name": f"{tmp_path}/apf-elastic.toml:8 backends.here.type",
        "ok": False,
        "message": 'there is no backend of type "locl"; did you mean "local"? types of backends: htcondor, local',
        "seconds": 0.0,
    }


def test_everything_that_answers_and_everything_that_does_not_is_in_one_list(tmp_path: Path) -> None:
    code, words = run(tmp_path, GOOD, "--json")
    findings = {finding["kind"]: finding for finding in json.loads(words)}
    assert code == 1
    assert findings["configuration"]["message"] == "1 source, 0 pools, 1 backend, 1 queue"
    assert findings["state"]["ok"]
    assert not findings["source"]["ok"]  # there is no work queue yet
    assert findings["backend"] == findings["backend"] | {"name": "here", "ok": True}


def test_all_well_is_exit_code_0_and_one_line_each(tmp_path: Path) -> None:
    from apf_elastic.embedded.store import Store

    with Store(tmp_path / "work", create=True):
        code, words = run(tmp_path, GOOD)
    assert code == 0
    assert [line.split()[0] for line in words.splitlines()[1:]] == ["ok"] * 4
    assert "\x1b" not in words


def test_a_doubt_is_noted_and_is_no_problem(tmp_path: Path) -> None:
    from apf_elastic.embedded.store import Store

    with Store(tmp_path / "work", create=True):
        code, words = run(tmp_path, GOOD + '[backends.spare]\ntype = "local"\n')
    assert code == 0
    assert "backends.spare" in words
    assert "is used by no queue" in words


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    run(tmp_path, GOOD)
    assert [path.name for path in tmp_path.iterdir()] == ["apf-elastic.toml"]


def test_a_state_directory_that_cannot_be_made_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    code, words = run(tmp_path, GOOD, "--json")
    state = next(finding for finding in json.loads(words) if finding["kind"] == "state")
    assert code == 1
    assert not state["ok"]
    assert "is no directory" in state["message"]

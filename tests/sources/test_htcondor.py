"""How answers of schedds become demand. Real schedds are in tests/real/test_htcondor_source.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from apf_elastic.condor.link import CondorLink
from apf_elastic.contracts import CallError, Context, Selection
from apf_elastic.model import Shape
from apf_elastic.sources.htcondor import HTCondorSource, HTCondorSourceOptions


class FakeSchedds:
    """Answers for the link: rows by schedd, and what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listed: Sequence[str] = ()
        self.rows: dict[str, Any] = {}
        self.missing: list[dict[str, list[str]]] = []
        self.asked: list[Mapping[str, Any]] = []
        self.ages: list[Sequence[Sequence[int]]] = []
        monkeypatch.setattr(CondorLink, "call", self._call)

    def _call(self, op: str, arguments: Mapping[str, Any], *_: object) -> Any:
        return getattr(self, f"_{op}")(**arguments)

    def _parse(self, expressions: Sequence[str]) -> list[list[str]]:
        words = [text.replace("(", " ").replace(")", " ").split() for text in expressions]
        return [[word for word in found if word[:1].isupper()] for found in words]

    def _ads(self, **_: object) -> list[dict[str, str]]:
        return [{"Name": name} for name in self.listed]

    def _groups(self, schedd: str, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        rows = self.rows.get(schedd, [])
        if isinstance(rows, Exception):
            raise rows
        missing = self.missing.pop(0) if self.missing else {}
        return {"rows": rows, "missing": missing, "distinct": {}, "full": False}

    def _ages(self, schedd: str, ids: Sequence[Sequence[int]]) -> list[float | None]:
        self.ages.append(ids)
        return [1000.0 - cluster if cluster != 99 else None for cluster, _ in ids]


def row(count: int = 1, status: Any = 1, chosen: int | None = 0, first: Sequence[int] = (1, 0), **values: Any) -> Any:
    values = {"cores": 1, "memory_mb": 100, **values}
    return {"count": count, "status": status, "chosen": chosen, "first": list(first), "values": values}


@pytest.fixture
def schedds(monkeypatch: pytest.MonkeyPatch) -> FakeSchedds:
    return FakeSchedds(monkeypatch)


def source(*names: str, queues: Mapping[str, Selection] | None = None, **options: Any) -> HTCondorSource:
    given = HTCondorSourceOptions.model_validate({"schedds": names or ("a",), "collector": "cm:9618", **options})
    return HTCondorSource("jobs", given, Context("f", Path("/nonexistent")), queues or {"q": Selection()})


def test_groups_of_several_schedds_with_one_shape_are_one(schedds: FakeSchedds) -> None:
    schedds.rows = {"a": [row(3), row(2, memory_mb=120), row(1, status=5)], "b": [row(4, status=2), row(5)]}
    group = source("a", "b").demand()["q"].groups
    assert [(it.shape, it.waiting, it.running, it.held) for it in group] == [(Shape(1, 128), 10, 4, 1)]


@pytest.mark.parametrize(
    ("status", "counted"),
    [(1, (1, 0, 0)), (2, (0, 1, 0)), (5, (0, 0, 1)), (6, (0, 1, 0)), (7, (0, 1, 0)), (8, (0, 0, 1)), (None, (0, 0, 1))],
)
def test_every_state_is_counted_and_an_invented_one_is_noted(
    schedds: FakeSchedds, status: Any, counted: tuple[int, int, int]
) -> None:
    schedds.rows = {"a": [row(status=status)]}
    demand = source().demand()["q"]
    assert (demand.waiting, demand.running, demand.held) == counted
    assert bool(demand.notes) is (status in (8, None))


def test_jobs_that_no_queue_takes_are_counted(schedds: FakeSchedds) -> None:
    schedds.rows = {"a": [row(3, chosen=None), row(2, chosen=None, status=2), row(1)]}
    made = source()
    made.demand()
    assert made.unclaimed == 3


def test_one_schedd_that_fails_makes_the_answer_unknown(schedds: FakeSchedds) -> None:
    schedds.rows = {"a": [row(3)], "b": CallError("schedd b: nothing answers there")}
    with pytest.raises(CallError, match="schedd b"):
        source("a", "b").demand()


def test_a_schedd_that_leaves_the_collector_must_stay_away_three_times(schedds: FakeSchedds) -> None:
    schedds.listed = ["a", "b"]
    schedds.rows = {"a": [row(1)], "b": [row(2)]}
    made = source("*")
    assert made.demand()["q"].waiting == 3
    schedds.listed = ["a"]
    for _ in range(2):
        with pytest.raises(CallError, match="no longer lists the schedd b"):
            made.demand()
    assert made.demand()["q"].waiting == 1
    schedds.listed = ["a", "b"]
    assert made.demand()["q"].waiting == 3


def test_a_schedd_that_comes_and_goes_is_never_given_up(schedds: FakeSchedds) -> None:
    made = source("*")
    for _ in range(5):
        schedds.listed = ["a", "b"]
        made.demand()
        schedds.listed = ["a"]
        with pytest.raises(CallError):
            made.demand()


def test_a_collector_without_schedds_is_no_empty_demand(schedds: FakeSchedds) -> None:
    with pytest.raises(CallError, match="lists no schedd at all"):
        source("*").demand()


def test_what_requests_refer_to_is_grouped_by_from_then_on(schedds: FakeSchedds) -> None:
    schedds.missing = [{"memory_mb": ["MemoryUsage"]}, {"memory_mb": ["MemoryUsage", "ImageSize"]}]
    made = source()
    made.demand()
    assert ["ImageSize" in asked["projection"] for asked in schedds.asked] == [False, False, True]
    schedds.asked.clear()
    made.demand()
    assert len(schedds.asked) == 1


def test_all_that_the_constraint_mentions_is_grouped_by(schedds: FakeSchedds) -> None:
    source(constraint="Owner == 1", queues={"q": Selection("Project == 2")}).demand()
    wanted = {"JobStatus", "JobUniverse", "ApfElasticFactory", "Owner", "Project", "RequestCpus"}
    assert wanted <= set(schedds.asked[0]["projection"])
    assert "ApfElasticFactory =?= undefined" in schedds.asked[0]["constraint"]
    assert "(Owner == 1)" in schedds.asked[0]["constraint"]


def test_thresholds_are_asked_for_only_when_a_queue_has_them(schedds: FakeSchedds) -> None:
    schedds.rows = {"a": [row(5)]}
    source().demand()
    assert len(schedds.asked) == 1
    demand = source(queues={"q": Selection("", (60.0, 0.0))}).demand()["q"]
    assert "time() - QDate >= 60.0" in schedds.asked[-1]["constraint"]
    assert "QDate" in schedds.asked[-1]["projection"]
    assert demand.groups[0].waited == ((60.0, 5),)


def test_when_a_job_was_submitted_is_asked_once(schedds: FakeSchedds) -> None:
    schedds.rows = {"a": [row(first=(7, 1)), row(first=(5, 0)), row(cores=2, first=(99, 0))]}
    made = source()
    oldest = [group.oldest_wait_s for group in made.demand()["q"].groups]
    assert oldest[0] == pytest.approx(995, abs=1)
    assert oldest[1] is None
    made.demand()
    assert schedds.ages == [[(5, 0), (99, 0)], [(99, 0)]]


def test_notes_name_the_attribute_a_job_and_how_many(schedds: FakeSchedds) -> None:
    schedds.rows = {"a": [row(3, cores="many", first=(12, 4)), row(2, cores={"error": "1/0"})]}
    notes = source(default_shape={"cores": 2}).demand()["q"].notes
    assert notes == (
        "schedd a: cores (RequestCpus) is 'many', for example in job 12.4: taken as 2; jobs: 3",
        "schedd a: cores (RequestCpus) is an error (1/0), for example in job 1.0: taken as 2; jobs: 2",
    )


def test_notes_do_not_flood(schedds: FakeSchedds) -> None:
    schedds.rows = {"a": [row(cores=f"x{n}") for n in range(500)]}
    notes = source().demand()["q"].notes
    assert len(notes) == 21
    assert notes[-1] == "and 480 more notes"


@pytest.mark.parametrize(
    "options",
    [
        *({"constraint": "a ="}, {"shape": {"cores": "("}}, {"shape": {"no": "1"}}, {"timeout_s": 0}),
        *({"default_shape": {"cores": 0}}, {"nonsense": 1}),
    ],
)
def test_options_that_cannot_work_are_refused(options: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HTCondorSourceOptions.model_validate(options)

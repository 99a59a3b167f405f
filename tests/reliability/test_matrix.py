"""The empty-answer matrix: every wrong answer, from every side, at every time of a fleet's life."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from apf_elastic.model import Demand, State
from apf_elastic.settings import BackendSettings
from apf_elastic.testing.faults import (
    DoneButFailed,
    Empty,
    Fault,
    Garbage,
    Hang,
    Lose,
    Others,
    Raise,
    Repeat,
    Stale,
    Truncate,
    Twice,
)
from tests.reliability.stage import Stage
from tests.site import queue_settings

pytestmark = pytest.mark.slow

FAULTS: dict[str, Fault] = {
    "empty": Empty(),
    "truncated": Truncate(0.6),
    "truncated a little": Truncate(0.3),
    "stale": Stale(),
    "raises": Raise(),
    "hangs": Hang(),
    "garbage": Garbage(7),
    "garbage inside": Garbage(["?", None]),
    "others' records": Others(),
}
SIDES = {"source": ("source jobs", "demand"), "pool": ("pool home", "slots"), "backend": ("backend cloud", "list")}
#: Cycles of 5 s: shorter than what confirms a sudden loss, and a minute.
LENGTHS = {"short": 2, "minute": 12}
JOBS = 10


def growing(site: Stage) -> None:
    """Half of the jobs have machines that start, the other half was submitted this moment."""
    site.submit(JOBS // 2)
    site.step(2)
    site.submit(JOBS // 2)


def at_rest(site: Stage) -> None:
    """Every job runs on a machine of its own."""
    site.submit(JOBS, run_s=200)
    site.step(8)


def shrinking(site: Stage) -> None:
    """Most jobs are done and their machines begin to leave; the others run on."""
    site.submit(JOBS - 4, run_s=30)
    site.submit(4, run_s=300)
    while not any(resource.state is State.DRAINING for resource in site.live):
        site.step()


PHASES: dict[str, Callable[[Stage], None]] = {"growing": growing, "shrinking": shrinking, "at rest": at_rest}


def allowance(case: Case) -> int:
    """Machines that may be made beyond one per job.

    A source that repeats its last answer for a minute, or gives none so that it is used until it is too old, shows
    jobs as waiting that have started meanwhile: they are served once more, never more than that.
    """
    old_news = case.side == "source" and case.fault in ("stale", "hangs") and case.length == "minute"
    return JOBS // 2 if old_news and case.phase == "growing" else 0


@dataclass(frozen=True)
class Case:
    fault: str
    side: str
    phase: str
    length: str

    def __str__(self) -> str:
        return f"{self.fault}, {self.side}, {self.phase}, {self.length}"


CASES = [Case(f, s, p, n) for f in FAULTS for s in SIDES for p in PHASES for n in LENGTHS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_answer_kills_doubles_and_leaks_nothing(
    case: Case, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    site = Stage(tmp_path, backends={"cloud": BackendSettings("cloud")})
    PHASES[case.phase](site)
    key, verb = SIDES[case.side]
    site.scripts[key].on(verb, FAULTS[case.fault])
    site.step(LENGTHS[case.length])
    struck = len(site.scripts[key].struck)
    site.clear()
    site.settle()
    site.stop()
    record_property(
        "matrix",
        {
            "fault": case.fault,
            "side": case.side,
            "phase": case.phase,
            "struck": struck,
            "made": site.created,
            "leaked": site.leaked,
            "doubled": site.doubled,
            "evicted": site.evicted,
        },
    )
    assert struck > 0
    assert (site.done, site.jobs) == (JOBS, [])
    assert (site.evicted, site.doubled) == (0, 0)
    assert site.created <= JOBS + allowance(case)
    assert (site.states(), site.machines, site.pool.joined) == ({}, set(), {})


WRONG_FORMS = [
    ("source jobs", "demand", {"q": 7}),
    ("source jobs", "demand", {"q": Demand((7,))}),  # type: ignore[arg-type]
    ("source jobs", "demand", {}),
    ("pool home", "slots", ["slot"]),
    ("pool home", "drain", None),
    ("pool home", "undrain", 3),
    ("pool home", "payloads", []),
    ("pool home", "renew_lease", 3),
    ("backend cloud", "list", {"f.q.1": "running"}),
    ("backend cloud", "offerings", ["one"]),
    ("backend cloud", "offerings", None),
    ("backend cloud", "create", None),
    ("backend cloud", "create", ["yes", None]),
    ("backend cloud", "delete", True),
    ("backend cloud", "delete", [7]),
]


@pytest.mark.parametrize(("key", "verb", "value"), WRONG_FORMS, ids=lambda value: str(value)[:30])
def test_an_answer_of_the_wrong_form_counts_as_none(key: str, verb: str, value: object, tmp_path: Path) -> None:
    site = Stage(tmp_path)
    site.submit(JOBS, run_s=30)
    site.step(3)
    site.scripts[key].on(verb, Garbage(value))
    site.submit(JOBS, run_s=30)
    site.step(30)
    site.clear()
    site.settle()
    site.stop()
    assert (site.done, site.evicted, site.doubled, site.leaked) == (2 * JOBS, 0, 0, 0)


def test_what_a_backend_never_lists_is_not_made_without_end(tmp_path: Path) -> None:
    site = Stage(tmp_path)
    site.scripts["backend cloud"].on("create", Lose())
    site.submit(JOBS)
    site.step(200)
    asked = sum(verb == "create" for verb, _ in site.scripts["backend cloud"].struck)
    site.clear()
    site.settle()
    site.stop()
    assert asked <= 20
    assert (site.done, site.leaked) == (JOBS, 0)


@pytest.mark.parametrize("fault", [DoneButFailed(), DoneButFailed(told=True), Repeat(), Twice(), Hang()], ids=str)
@pytest.mark.parametrize("verb", ["create", "delete", "drain"])
def test_a_call_whose_answer_does_not_say_what_was_done_doubles_nothing(
    fault: Fault, verb: str, tmp_path: Path
) -> None:
    site = Stage(tmp_path)
    key = "pool home" if verb == "drain" else "backend cloud"
    site.scripts[key].on(verb, fault)
    site.submit(JOBS, run_s=30)
    site.step(20)
    site.clear()
    site.settle()
    site.stop()
    assert (site.done, site.evicted, site.doubled, site.leaked) == (JOBS, 0, 0, 0)
    assert site.created <= JOBS if not isinstance(fault, Hang) else 2 * JOBS


@pytest.mark.parametrize("fault", [Empty(), Truncate(0.6)], ids=str)
def test_a_job_on_a_machine_that_drains_survives_a_pool_that_does_not_show_it(fault: Fault, tmp_path: Path) -> None:
    site = Stage(tmp_path)
    site.submit(1, run_s=600)
    site.step(6)
    busy = next(iter(site.pool.joined))
    site.pool.drain([busy])  # by hand, or because the job landed a moment before the drain
    site.step(40)
    site.scripts["pool home"].on("slots", fault)
    site.step(10)
    site.clear()
    site.settle()
    site.stop()
    assert (site.done, site.evicted, site.leaked) == (1, 0, 0)


@pytest.mark.parametrize("value", [["one"], [None]], ids=str)
def test_a_backend_with_offerings_of_the_wrong_form_leaves_the_others_at_work(value: object, tmp_path: Path) -> None:
    backends = {name: BackendSettings(name) for name in ("bad", "good")}
    site = Stage(tmp_path, queue=queue_settings("bad", "good"), backends=backends)
    site.scripts["backend bad"].on("offerings", Garbage(value))
    site.submit(JOBS, run_s=30)
    site.step(20)
    site.stop()
    assert (site.done, site.clouds["good"].made, site.cycle.trouble) == (JOBS, JOBS, "")

"""The ledger keeps what it acknowledged, tells what it cannot keep, and its mirror is what the database says."""

from __future__ import annotations

import json
import os
import resource as limits
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from apf_elastic import ledger_place, ledger_schema
from apf_elastic.ledger import DECISIONS, Ledger, LedgerDamaged, LedgerError, LedgerHeld
from apf_elastic.model import Resource, Shape, Slot, State

NOW = 1_800_000_000.0
SLOT = Slot(id="x", free=Shape(1), jobs=1)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(path, "f", clock=clock) as ledger:
        yield ledger


def intention(id: str = "f.q.1", queue: str = "q", at: float = NOW) -> Resource:
    return Resource(id, queue, "site", "big", Shape(8, 16000), State.INTENDED, at, at, pool="p")


def intentions(n: int) -> list[Resource]:
    return [intention(f"f.q.{i:012x}") for i in range(n)]


def moved(resource: Resource, state: State, at: float, **changes: Any) -> Resource:
    return replace(resource, state=state, changed_at=at, **changes)


def life(ledger: Ledger, id: str, *, started_at: float, ended_at: float | None = None) -> None:
    """A resource from its intention to its run, and to its end if it has one."""
    new = intention(id, at=started_at - 1)
    ledger.intend([new])
    new = moved(new, State.SUBMITTED, started_at - 1, remote_id=f"remote {id}")
    ledger.record([new])
    new = moved(new, State.RUNNING, started_at)
    ledger.record([new])
    if ended_at is not None:
        ledger.record([moved(new, State.GONE, ended_at, outcome="ended by itself")])


def seen_by_reader(path: Path) -> dict[str, Resource]:
    with Ledger.read(path) as reader:
        return dict(reader.resources())


def without_volatile(resource: Resource) -> Resource:
    return replace(resource, slot=None, missing=0)


# ------------------------------------------------------------------------------------------------------ resources


def test_an_intention_is_there_after_a_restart(path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend([intention()])
    with Ledger.open(path, "f") as ledger:
        assert ledger.resources() == {"f.q.1": intention()}


def test_a_change_is_there_after_a_restart(path: Path) -> None:
    submitted = moved(intention(), State.SUBMITTED, NOW + 1, remote_id="77.0", reason="accepted")
    with Ledger.open(path, "f") as ledger:
        ledger.intend([intention()])
        ledger.record([submitted])
    with Ledger.open(path, "f") as ledger:
        assert ledger.resources() == {"f.q.1": submitted}


def test_an_adopted_resource_is_recorded(ledger: Ledger, path: Path) -> None:
    adopted = moved(intention(), State.PENDING, NOW, remote_id="77.0", reason="adopted")
    ledger.record([adopted])
    assert ledger.resources() == seen_by_reader(path) == {"f.q.1": adopted}


def test_what_is_gone_leaves_the_mirror_and_is_still_found(ledger: Ledger, path: Path) -> None:
    gone = moved(intention(), State.GONE, NOW + 5, outcome="refused: no quota")
    ledger.intend([intention()])
    ledger.record([gone])
    assert ledger.resources() == seen_by_reader(path) == {}
    assert ledger.find("f.q.1") == gone
    assert ledger.everything() == [gone]
    assert ledger.find("never was") is None


def test_what_was_thought_gone_can_return(ledger: Ledger, path: Path) -> None:
    ledger.intend([intention()])
    ledger.record([moved(intention(), State.GONE, NOW + 5, outcome="never created")])
    back = moved(intention(), State.STARTING, NOW + 9, remote_id="77.0", reason="adopted")
    ledger.record([back])
    assert ledger.resources() == seen_by_reader(path) == {"f.q.1": back}
    assert ledger.history("q").submitted == 1


def test_slot_and_missing_stay_in_the_mirror(path: Path) -> None:
    ready = moved(intention(), State.READY, NOW + 1, joined_at=NOW + 1)
    with Ledger.open(path, "f") as ledger:
        ledger.intend([intention()])
        ledger.record([replace(ready, slot=SLOT, missing=1)])
        assert ledger.resources()["f.q.1"].slot == SLOT
        ledger.record([replace(ready, slot=None, missing=2)])
        assert ledger.resources()["f.q.1"] == replace(ready, missing=2)
    with Ledger.open(path, "f") as ledger:
        assert ledger.resources()["f.q.1"] == ready


def test_an_id_is_used_once(ledger: Ledger, path: Path) -> None:
    ledger.intend([intention()])
    with pytest.raises(LedgerError, match="record resources"):
        ledger.intend([intention("f.q.2"), intention()])
    assert ledger.resources() == seen_by_reader(path) == {"f.q.1": intention()}
    assert ledger.history("q").submitted == 1


def test_only_an_intention_can_be_intended(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="is not an intention"):
        ledger.intend([moved(intention(), State.READY, NOW)])


def test_the_resources_that_were_handed_out_follow_the_mirror_and_cannot_be_changed(ledger: Ledger) -> None:
    resources = ledger.resources()
    ledger.intend([intention()])
    assert list(resources) == ["f.q.1"]
    with pytest.raises(TypeError):
        resources["x"] = intention("x")  # type: ignore[index]


@pytest.mark.parametrize("words", ["a \0 b", "broken \udcff bytes", "ж" * 5000])
def test_whatever_words_a_server_uses_can_be_stored(ledger: Ledger, path: Path, words: str) -> None:
    ledger.intend([intention()])
    ledger.record([moved(intention(), State.SUBMITTED, NOW, reason=words, outcome=words)])
    stored = ledger.resources()["f.q.1"]
    assert len(stored.reason) <= 1000
    assert seen_by_reader(path) == {"f.q.1": stored}


times = st.floats(0, 4e9)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
amounts = st.integers(0, 2**53)
shapes = st.builds(Shape, amounts, amounts, amounts, amounts, st.none() | amounts, words)
resources = st.builds(
    Resource,
    id=words.filter(bool),
    queue=words,
    backend=words,
    offering=words,
    shape=shapes,
    state=st.sampled_from([state for state in State if state is not State.GONE]),
    created_at=times,
    changed_at=times,
    remote_id=st.none() | words,
    pool=st.none() | words,
    joined_at=st.none() | times,
    reason=words,
    outcome=words,
    price_per_hour=st.floats(0, 1e6),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with Ledger.open(tmp_path_factory.mktemp("shared") / "ledger.sqlite", "f") as ledger:
        yield ledger


@given(resource=resources)
@settings(max_examples=150, deadline=None)
def test_every_resource_round_trips_exactly(shared: Ledger, resource: Resource) -> None:
    shared.record([resource])
    with Ledger.read(Path(shared._place.name), "f") as reader:
        assert reader.find(resource.id) == shared.resources()[resource.id] == resource


# -------------------------------------------------------------------------------------------------------- history


def test_submitted_counts_what_was_intended_and_not_refused(ledger: Ledger) -> None:
    ledger.intend(intentions(3))
    assert ledger.history("q").submitted == 3
    first, second, third = intentions(3)
    ledger.record([moved(first, State.GONE, NOW, outcome="refused: no quota")])
    ledger.record([moved(second, State.SUBMITTED, NOW, remote_id="7")])
    ledger.record([moved(second, State.GONE, NOW, remote_id="7", outcome="ended")])
    ledger.record([moved(third, State.SUBMITTED, NOW, remote_id="8")])
    assert ledger.history("q").submitted == 2


def test_submitted_survives_pruning_and_restart(path: Path, clock: Clock) -> None:
    with Ledger.open(path, "f", clock=clock) as ledger:
        life(ledger, "one", started_at=NOW, ended_at=NOW + 10)
        life(ledger, "two", started_at=NOW, ended_at=NOW + 20)
        assert ledger.prune(NOW + 15) == 1
        assert ledger.find("one") is None
        assert ledger.find("two") is not None
    with Ledger.open(path, "f", clock=clock) as ledger:
        assert ledger.history("q").submitted == 2


def test_pruning_takes_the_oldest_first_and_never_what_lives(ledger: Ledger) -> None:
    for n in range(4):
        life(ledger, f"gone {n}", started_at=NOW, ended_at=NOW + n)
    life(ledger, "lives", started_at=NOW)
    assert ledger.prune(NOW + 100, limit=3) == 3
    assert [r.id for r in ledger.everything()] == ["gone 3", "lives"]
    assert ledger.prune(NOW + 100, limit=3) == 1


@pytest.mark.parametrize("restart", [False, True])
def test_history_counts_recent_starts_and_short_runs(path: Path, clock: Clock, restart: bool) -> None:
    with Ledger.open(path, "f", clock=clock) as ledger:
        life(ledger, "long ago", started_at=NOW - 5000, ended_at=NOW - 4999)
        life(ledger, "short", started_at=NOW - 100, ended_at=NOW - 95)
        life(ledger, "long enough", started_at=NOW - 100, ended_at=NOW - 85)
        life(ledger, "still runs", started_at=NOW - 100)
        ledger.intend([intention("has not started")])
    with Ledger.open(path, "f", clock=clock) as ledger, Ledger.read(path, clock=clock) as reader:
        for history in (ledger.history, reader.history):
            recent = history("q")
            assert (recent.submitted, recent.recent_started, recent.recent_short) == (5, 3, 1)
            recent = history("q", interval_s=6000, short_s=20)
            assert (recent.recent_started, recent.recent_short) == (4, 3)
            assert history("another").submitted == 0


def test_what_was_accepted_and_ended_unseen_ran_short(ledger: Ledger) -> None:
    pending = moved(intention(), State.PENDING, NOW, remote_id="7")
    ledger.intend([intention()])
    ledger.record([pending])
    ledger.record([moved(pending, State.GONE, NOW, outcome="vanished while pending")])
    history = ledger.history("q")
    assert (history.recent_started, history.recent_short) == (1, 1)


def test_what_we_cancelled_while_pending_did_not_run(ledger: Ledger) -> None:
    removing = moved(intention(), State.REMOVING, NOW, remote_id="7")
    ledger.intend([intention()])
    ledger.record([moved(intention(), State.PENDING, NOW, remote_id="7")])
    ledger.record([removing])
    ledger.record([moved(removing, State.GONE, NOW, outcome="not needed")])
    assert ledger.history("q").recent_started == 0


def test_old_runs_are_forgotten(ledger: Ledger, clock: Clock) -> None:
    for n in range(10):
        life(ledger, f"{n}", started_at=NOW, ended_at=NOW + 1)
    clock.now += 10_000
    assert ledger.history("q").recent_started == 0
    assert not ledger._run_of["q"]


# ----------------------------------------------------------------------------------- decisions, snapshots, notes


def test_the_same_decision_is_stored_once_with_the_time_it_was_last_made(path: Path, ledger: Ledger) -> None:
    ledger.decided("q", NOW, {"hold": "", "n": 1})
    ledger.decided("q", NOW + 5, {"n": 1, "hold": ""})
    ledger.decided("other", NOW + 6, {})
    ledger.decided("q", NOW + 9, {"hold": "", "n": 2})
    with Ledger.read(path) as reader:
        found = [(d.at, d.seen_at, d.record["n"]) for d in reader.last_decisions("q", 10)]
    assert found == [(NOW + 9, NOW + 9, 2), (NOW, NOW + 5, 1)]


def test_the_last_time_of_a_decision_is_kept_at_the_end_and_known_after_a_restart(path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.decided("q", NOW, {"n": 1})
        ledger.decided("q", NOW + 5, {"n": 1})
    with Ledger.open(path, "f") as ledger:
        ledger.decided("q", NOW + 7, {"n": 1})
        ledger.snapshot({}, NOW + 8)
        assert [(d.at, d.seen_at) for d in ledger.last_decisions("q", 10)] == [(NOW, NOW + 7)]


def test_the_newest_decisions_are_kept(ledger: Ledger) -> None:
    ledger.decided("other", NOW, {})
    for n in range(DECISIONS + 50):
        ledger.decided("q", NOW + n, {"n": n})
    kept = ledger.last_decisions("q", 1000)
    assert [d.record["n"] for d in kept] == list(range(DECISIONS + 49, 49, -1))
    assert len(ledger.last_decisions("other", 10)) == 1


def test_a_snapshot_replaces_the_last(ledger: Ledger, path: Path) -> None:
    with Ledger.read(path) as reader:
        assert reader.last_snapshot() is None
        ledger.snapshot({"queues": 1}, NOW)
        ledger.snapshot({"queues": 2}, NOW + 1)
        assert reader.last_snapshot() == (NOW + 1, {"queues": 2})


def test_a_note_is_kept(path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        assert ledger.meta_get("breakers") is None
        ledger.meta_set("breakers", [1])
        ledger.meta_set("breakers", {"a": None})
    with Ledger.open(path, "f") as ledger:
        assert ledger.meta_get("breakers") == {"a": None}


def test_a_steady_service_writes_nothing(ledger: Ledger, path: Path) -> None:
    ready = moved(intention(), State.READY, NOW, joined_at=NOW)
    ledger.intend([intention()])
    ledger.record([ready])
    ledger.decided("q", NOW, {"n": 1})
    ledger.meta_set("breakers", [1])
    with closing(sqlite3.connect(path)) as other:
        before = other.execute("PRAGMA data_version").fetchone()
        for n in range(5):
            ledger.record([replace(ready, slot=SLOT, missing=n), replace(ready)])
            ledger.decided("q", NOW + n, {"n": 1})
            ledger.meta_set("breakers", [1])
            ledger.record([])
            ledger.intend([])
            ledger.history("q")
        assert other.execute("PRAGMA data_version").fetchone() == before


def test_a_copy_says_the_same_and_changing_it_changes_nothing_else(
    ledger: Ledger, path: Path, tmp_path: Path, clock: Clock
) -> None:
    life(ledger, "long ago", started_at=NOW - 9000, ended_at=NOW - 8000)
    life(ledger, "short", started_at=NOW - 100, ended_at=NOW - 95)
    life(ledger, "lives", started_at=NOW)
    ledger.meta_set("breakers", [1])
    ledger.decided("q", NOW, {"n": 1})
    with Ledger.read(path, clock=clock) as reader:
        reader.copy(tmp_path / "dry" / "ledger.sqlite", since=NOW - 3600)
    with Ledger.open(tmp_path / "dry" / "ledger.sqlite", "f", clock=clock) as copy:
        assert copy.resources() == ledger.resources()
        assert copy.history("q") == ledger.history("q")
        assert [r.id for r in copy.everything()] == ["short", "lives"]
        assert copy.meta_get("breakers") == [1]
        copy.intend([intention("only there")])
    assert ledger.find("only there") is None


# ------------------------------------------------------------------------------------------------------- the hold


def test_a_second_service_is_told_who_holds_the_ledger(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerHeld, match=rf"held by process {os.getpid()} on .* since 2027-01-15 08:00:00 UTC"):
        Ledger.open(path, "f")
    ledger.close()
    Ledger.open(path, "f").close()


def test_a_failed_start_lets_go(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    for _ in range(2):
        with pytest.raises(LedgerDamaged):
            Ledger.open(path, "f")


def test_readers_look_on_while_a_service_writes(ledger: Ledger, path: Path) -> None:
    with Ledger.read(path) as reader:
        for n, resource in enumerate(intentions(5), start=1):
            ledger.intend([resource])
            assert len(reader.resources()) == n


def test_a_reader_in_the_middle_of_a_look_does_not_stop_the_service(ledger: Ledger, path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM resources").fetchall()
        ledger.intend([intention()])


def test_reading_a_ledger_that_is_not_there_says_so_and_makes_none(path: Path) -> None:
    with pytest.raises(LedgerError, match=r"no ledger at .* yet"):
        Ledger.read(path)
    assert not path.parent.exists()


def test_a_reader_cannot_write(ledger: Ledger, path: Path) -> None:
    with (
        Ledger.read(path) as reader,
        pytest.raises(sa.exc.OperationalError, match="readonly"),
        reader._engine.begin() as connection,
    ):
        connection.exec_driver_sql("DELETE FROM notes")


def test_a_ledger_can_be_read_where_the_reader_may_write_nothing(path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend([intention()])
    assert as_nobody(path, lambda place: [r.id for r in Ledger.read(place).resources().values()]) == "['f.q.1']"


def test_one_ledger_cannot_serve_a_factory_of_another_name(path: Path) -> None:
    with Ledger.open(path, "old") as ledger:
        ledger.intend([intention()])
    with pytest.raises(LedgerError, match="resources of factory 'old'"):
        Ledger.open(path, "new")
    with Ledger.open(path, "old") as ledger:
        ledger.record([moved(intention(), State.GONE, NOW)])
    Ledger.open(path, "new").close()
    with Ledger.read(path) as reader:
        assert reader.factory == "new"


def test_files_are_for_their_owner_only(path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend([intention()])
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
            "ledger.sqlite": 0o600,
            "ledger.sqlite-shm": 0o600,
            "ledger.sqlite-wal": 0o600,
            "ledger.sqlite.lock": 0o600,
        }
    path.chmod(0o644)
    with Ledger.open(path, "f"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_url_names_a_ledger_too(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/l.sqlite", "f") as ledger:
        ledger.intend([intention()])
    assert seen_by_reader(tmp_path / "l.sqlite") == {"f.q.1": intention()}
    with pytest.raises(LedgerError, match="only SQLite and PostgreSQL"):
        Ledger.open("mysql://host/ledger", "f")
    with pytest.raises(LedgerError, match="name a file"):
        Ledger.open("sqlite://", "f")
    with pytest.raises(LedgerError, match="not of the form"):
        Ledger.open("://", "f")


def test_a_password_in_a_url_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    with pytest.raises(LedgerError, match=r"postgresql\+psycopg://me:\*\*\*@host/db: needs a driver"):
        Ledger.open("postgresql://me:password@host/db", "f")


# --------------------------------------------------------------------------------------------------------- faults


def assert_unchanged_by_a_failing_write(ledger: Ledger, path: Path, pattern: str) -> None:
    before = dict(ledger.resources())
    with pytest.raises(LedgerError, match=pattern):
        ledger.intend([replace(r, id=f"new {r.id}") for r in intentions(2000)])
    changed = [moved(r, State.SUBMITTED, NOW + 1, reason="x" * 500) for r in before.values()]
    with pytest.raises(LedgerError, match=pattern):
        ledger.record(changed)
    assert ledger.resources() == before == seen_by_reader(path)
    assert ledger.history("q").submitted == len(before)


def pragma(ledger: Ledger, words: str) -> None:
    with closing(ledger._engine.raw_connection()) as connection:
        connection.cursor().execute(f"PRAGMA {words}")


def test_a_full_disk_is_told_and_changes_nothing(ledger: Ledger, path: Path) -> None:
    ledger.intend(intentions(2000))
    pragma(ledger, "max_page_count=1")  # as many as there are
    assert_unchanged_by_a_failing_write(ledger, path, "disk is full: free some space")
    pragma(ledger, "max_page_count=1000000")
    ledger.intend([intention("after")])
    assert len(seen_by_reader(path)) == 2001


def test_a_size_limit_is_told_and_the_service_goes_on_once_it_is_lifted(ledger: Ledger, path: Path) -> None:
    ledger.intend(intentions(2000))
    soft, hard = limits.getrlimit(limits.RLIMIT_FSIZE)
    size = path.with_name("ledger.sqlite-wal").stat().st_size
    limits.setrlimit(limits.RLIMIT_FSIZE, (size + 20_000, hard))
    try:
        assert_unchanged_by_a_failing_write(ledger, path, "full|I/O error")
    finally:
        limits.setrlimit(limits.RLIMIT_FSIZE, (soft, hard))
    ledger.intend([intention("after")])
    assert len(ledger.resources()) == len(seen_by_reader(path)) == 2001


def test_a_ledger_that_may_not_be_written_any_more_is_told(ledger: Ledger, path: Path) -> None:
    ledger.intend(intentions(10))
    pragma(ledger, "query_only=1")
    assert_unchanged_by_a_failing_write(ledger, path, "may not be written: check owner and mode")


def test_a_ledger_that_may_not_be_opened_for_writing_is_told(path: Path) -> None:
    Ledger.open(path, "f").close()
    answer = as_nobody(path, lambda place: Ledger.open(place, "f"))
    assert "LedgerError" in answer
    assert "check owner, mode" in answer


def test_another_writer_is_waited_for_and_then_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_place, "BUSY_S", 0.2)
    with Ledger.open(path, "f") as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        ledger.intend(intentions(10))
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert_unchanged_by_a_failing_write(ledger, path, "another program has kept it locked")
        assert time.monotonic() - started >= 0.3
        other.execute("ROLLBACK")
        ledger.intend([intention("after")])


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_deleted_under_the_service_is_told(ledger: Ledger, path: Path, replaced: bool) -> None:
    ledger.intend([intention()])
    copy = shutil.copy(path, path.with_name("copy"))
    path.unlink()
    if replaced:
        Path(copy).rename(path)
    with pytest.raises(LedgerError, match="deleted or replaced while the service ran"):
        ledger.intend([intention("new")])
    assert list(ledger.resources()) == ["f.q.1"]


def test_the_log_of_a_removed_ledger_does_not_spoil_a_new_one(path: Path, tmp_path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend(intentions(500))
        shutil.copytree(path.parent, tmp_path / "crashed")
    crashed = tmp_path / "crashed" / path.name
    crashed.unlink()
    for _ in range(2):
        with Ledger.open(crashed, "f") as ledger:
            assert ledger.resources() == {}
            ledger.intend([intention()])
            ledger.record([moved(intention(), State.GONE, NOW)])
            ledger.prune(NOW + 1)


def test_two_services_cannot_write_even_if_the_lock_was_removed(ledger: Ledger, path: Path) -> None:
    path.with_name("ledger.sqlite.lock").unlink()
    with Ledger.open(path, "f") as second:
        second.intend([intention("second")])
        with pytest.raises(LedgerError, match="was removed while the service ran"):
            ledger.intend([intention("first")])


def torn(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def overwritten(path: Path) -> None:
    path.write_text("this is no database\n" * 1000)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = [torn, emptied, overwritten, cut]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_refused_with_the_cure(path: Path, damage: Callable[[Path], None]) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend(intentions(500))
    damage(path)
    before = path.read_bytes()
    with pytest.raises(LedgerDamaged, match=r"Restore it from a backup, or .*adopted"):
        Ledger.open(path, "f")
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_moved_aside_when_told_so(path: Path, clock: Clock, damage: Callable[[Path], None]) -> None:
    for suffix in ("", "-2"):
        with Ledger.open(path, "f", clock=clock) as ledger:
            ledger.intend(intentions(500))
        damage(path)
        before = path.read_bytes()
        with Ledger.open(path, "f", clock=clock, on_damage="replace") as ledger:
            assert ledger.resources() == {}
        aside = path.with_name(f"ledger.sqlite.damaged-20270115T080000Z{suffix}")
        assert aside.read_bytes() == before


def test_damage_that_shows_later_is_told(ledger: Ledger, path: Path) -> None:
    ledger.intend(intentions(500))
    ledger.record([moved(r, State.GONE, NOW) for r in intentions(500)])
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    torn(path)
    pragma(ledger, "shrink_memory")
    with pytest.raises(LedgerDamaged, match="Restore it from a backup"):
        ledger.find("f.q.000000000007")


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url)")
        other.commit()
    choices: tuple[Literal["raise", "replace"], ...] = ("raise", "replace")
    for on_damage in choices:
        with pytest.raises(LedgerError, match="not a ledger of apf-elastic"):
            Ledger.open(path, "f", on_damage=on_damage)
    with pytest.raises(LedgerError, match="not a ledger of apf-elastic"):
        Ledger.read(path)


def test_a_half_made_ledger_is_made_anew(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("ledger.sqlite.new").write_bytes(b"a crash left this")
    Ledger.open(path, "f").close()
    assert not path.with_name("ledger.sqlite.new").exists()


@pytest.mark.parametrize("bad", [{"remote_id": "broken \udcff"}, {"shape": Shape(cores=2**70)}])
def test_values_that_no_column_takes_are_told_and_change_nothing(
    ledger: Ledger, path: Path, bad: dict[str, Any]
) -> None:
    ledger.intend(intentions(2))
    changed = [replace(r, reason="new", **bad) for r in intentions(2)]
    with pytest.raises(LedgerError, match="record resources"):
        ledger.record(changed)
    assert ledger.resources() == seen_by_reader(path) == {r.id: r for r in intentions(2)}


def test_intentions_are_synced_to_the_disk_and_the_rest_is_not(ledger: Ledger) -> None:
    statements: list[str] = []
    sa.event.listen(ledger._engine, "before_cursor_execute", lambda c, cursor, words, *rest: statements.append(words))
    ledger.intend([intention()])
    ledger.record([moved(intention(), State.SUBMITTED, NOW)])
    ledger.decided("q", NOW, {})
    levels = [words.partition("=")[2] for words in statements if words.startswith("PRAGMA synchronous")]
    assert levels == ["FULL", "NORMAL", "NORMAL"]


# --------------------------------------------------------------------------------------------------------- schema


def test_the_migrations_make_the_tables_that_the_queries_use(ledger: Ledger) -> None:
    inspector = sa.inspect(ledger._engine)
    made = {
        table: {(c["name"], bool(c["nullable"])) for c in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }
    used = {
        table.name: {(c.name, bool(c.nullable)) for c in table.columns}
        for table in ledger_schema.metadata.tables.values()
    }
    assert made == used


def test_a_newer_schema_is_refused(path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        pragma(ledger, "user_version=1")
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE schema_version SET version = 99")
        other.commit()
    for opened in (lambda: Ledger.open(path, "f"), lambda: Ledger.read(path)):
        with pytest.raises(LedgerError, match=r"newer apf-elastic \(schema 99"):
            opened()


def with_migration(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    monkeypatch.setattr(ledger_schema, "MIGRATIONS", (*ledger_schema.MIGRATIONS, statements))
    monkeypatch.setattr(ledger_schema, "SCHEMA", ledger_schema.SCHEMA + 1)


def test_an_older_schema_is_migrated_and_keeps_its_resources(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend([intention()])
    with_migration(monkeypatch, "ALTER TABLE resources ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'")
    with pytest.raises(LedgerError, match="older schema 1: start the service once"):
        Ledger.read(path)
    with Ledger.open(path, "f") as ledger:
        assert ledger.resources() == seen_by_reader(path) == {"f.q.1": intention()}


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend([intention()])
    with monkeypatch.context() as patch:
        with_migration(patch, "ALTER TABLE resources ADD COLUMN colour TEXT", "NO SUCH STATEMENT")
        with pytest.raises(LedgerError, match="prepare it"):
            Ledger.open(path, "f")
    with Ledger.open(path, "f") as ledger:
        assert ledger.resources() == {"f.q.1": intention()}


# -------------------------------------------------------------------------------------------------------- crashes

WRITER = """
import sys
from dataclasses import replace
from apf_elastic.ledger import Ledger
from apf_elastic.model import Resource, Shape, State

ledger = Ledger.open(sys.argv[1], "f")
for n in range(100000):
    new = [Resource(f"{sys.argv[2]}.{n}.{i}", "q", "b", "o", Shape(1), State.INTENDED, n, n) for i in range(7)]
    ledger.intend(new)
    print("intended", *(r.id for r in new), flush=True)
    ledger.record([replace(r, state=State.SUBMITTED, remote_id=f"remote {r.id}") for r in new])
    print("submitted", *(r.id for r in new), flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    acknowledged: dict[str, set[str]] = {"intended": set(), "submitted": set()}
    for n in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(0.05 * (n + 1))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
        writer.stdout.close()
        writer.wait()
        for line in (first + rest).decode().splitlines(keepends=True):
            if line.endswith("\n"):
                word, *ids = line.split()
                acknowledged[word].update(ids)
        with Ledger.open(path, "f") as ledger:
            found = ledger.resources()
            assert acknowledged["intended"] <= found.keys()
            assert all(found[id].remote_id == f"remote {id}" for id in acknowledged["submitted"])
            assert len(found) % 7 == 0
            assert ledger.history("q").submitted == len(found)
    assert len(acknowledged["submitted"]) > 50


class Machine(RuleBasedStateMachine):
    """The ledger against a dict, through restarts and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="apf-elastic-ledger-"))
        self.path = self.base / "0" / "ledger.sqlite"
        self.ledger = Ledger.open(self.path, "f", clock=lambda: NOW)
        self.number = 0
        self.live: dict[str, Resource] = {}
        self.gone: dict[str, Resource] = {}
        self.ran: set[str] = set()
        self.decisions: list[int] = []

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.base)

    @initialize()
    def first(self) -> None:
        self.intend(2)

    def _new(self, n: int) -> list[Resource]:
        start, self.number = self.number, self.number + n
        return [intention(f"r{i}", queue=f"q{i % 2}") for i in range(start, self.number)]

    @rule(n=st.integers(1, 3))
    def intend(self, n: int) -> None:
        new = self._new(n)
        self.ledger.intend(new)
        self.live.update((r.id, r) for r in new)

    @rule(remote_id=st.none() | st.just("7"))
    def adopt(self, remote_id: str | None) -> None:
        (new,) = self._new(1)
        self._record([moved(new, State.PENDING, NOW, remote_id=remote_id, reason="adopted")])

    @precondition(lambda self: self.live)
    @rule(
        data=st.data(),
        state=st.sampled_from(list(State)),
        at=times,
        remote_id=st.none() | st.just("9"),
        missing=st.integers(0, 2),
        joined=st.booleans(),
    )
    def change(
        self, data: st.DataObject, state: State, at: float, remote_id: str | None, missing: int, joined: bool
    ) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.live)), unique=True, max_size=3))
        changes = {"remote_id": remote_id, "missing": missing, "slot": SLOT if joined else None}
        self._record([moved(self.live[id], state, at, **changes) for id in ids])

    @precondition(lambda self: self.gone)
    @rule(data=st.data(), state=st.sampled_from([State.PENDING, State.READY, State.GONE]))
    def come_back(self, data: st.DataObject, state: State) -> None:
        id = data.draw(st.sampled_from(sorted(self.gone)))
        self._record([moved(self.gone[id], state, NOW, reason="adopted")])

    def _record(self, changed: list[Resource]) -> None:
        self.ledger.record(changed)
        for new in changed:
            before = self.live.get(new.id)
            ended_unseen = before is not None and before.state in (State.SUBMITTED, State.PENDING)
            if new.state in (State.STARTING, State.RUNNING, State.READY, State.DRAINING):
                self.ran.add(new.id)
            if new.state is State.GONE and ended_unseen:
                self.ran.add(new.id)
            for where in (self.live, self.gone):
                where.pop(new.id, None)
            if new.state is State.GONE:
                self.gone[new.id] = without_volatile(new)
            else:
                self.live[new.id] = new

    @rule(n=st.integers(0, 2))
    def decide(self, n: int) -> None:
        self.ledger.decided("q0", NOW, {"n": n})
        if self.decisions[:1] != [n]:
            self.decisions.insert(0, n)

    @rule()
    def fail(self) -> None:
        with pytest.raises(LedgerError):
            self.ledger.intend([*self._new(1), intention("r0")])

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self._reopen()

    @rule()
    def crash(self) -> None:
        """What a kill -9 leaves is what lies in the files now."""
        shutil.copytree(self.path.parent, self.base / str(self.number) / "copy", dirs_exist_ok=True)
        self.ledger.close()
        self.path = self.base / str(self.number) / "copy" / "ledger.sqlite"
        self.number += 1
        self._reopen()

    def _reopen(self) -> None:
        self.ledger = Ledger.open(self.path, "f", clock=lambda: NOW)
        self.live = {id: without_volatile(resource) for id, resource in self.live.items()}

    @invariant()
    def mirror_database_and_model_agree(self) -> None:
        assert dict(self.ledger.resources()) == self.live
        with Ledger.read(self.path) as reader:
            assert reader.resources() == {id: without_volatile(r) for id, r in self.live.items()}
            everything = {r.id: r for r in reader.everything()}
        assert {id: r for id, r in everything.items() if r.state is State.GONE} == self.gone

    @invariant()
    def counts_agree(self) -> None:
        for queue in ("q0", "q1"):
            refused = [r for r in self.gone.values() if r.remote_id is None and r.id not in self.ran]
            made = [r for r in [*self.live.values(), *self.gone.values()] if r not in refused]
            assert self.ledger.history(queue).submitted == sum(r.queue == queue for r in made)

    @invariant()
    def decisions_agree(self) -> None:
        assert [d.record["n"] for d in self.ledger.last_decisions("q0", 100)] == self.decisions


TestAgainstADict = Machine.TestCase
TestAgainstADict.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


# ---------------------------------------------------------------------------------------------- speed and memory


def test_a_thousand_intentions_take_well_under_100_ms(ledger: Ledger) -> None:
    took = []
    for n in range(4):
        new = [replace(r, id=f"{n}.{r.id}") for r in intentions(1000)]
        submitted = [moved(r, State.SUBMITTED, NOW + 1, remote_id=r.id) for r in new]
        started = time.perf_counter()
        ledger.intend(new)
        between = time.perf_counter()
        ledger.record(submitted)
        took.append((between - started, time.perf_counter() - between))
    assert min(intend for intend, _ in took) < 0.1
    assert min(record for _, record in took) < 0.1


def test_a_resource_takes_less_than_1_kib_of_memory(path: Path) -> None:
    with Ledger.open(path, "f") as ledger:
        ledger.intend(intentions(4000))
        ledger.record([moved(r, State.READY, NOW, remote_id=f"{r.id}#77.0", joined_at=NOW) for r in intentions(4000)])
    tracemalloc.start()
    try:
        with Ledger.open(path, "f") as ledger:
            taken = tracemalloc.get_traced_memory()[0]
            assert len(ledger.resources()) == 4000
    finally:
        tracemalloc.stop()
    assert taken / 4000 < 1024


# -------------------------------------------------------------------------------------------------------- helpers


def as_nobody(path: Path, function: Callable[[Path], object]) -> str:
    """What a function says of a read-only copy of a ledger, run by someone who may read and not write it."""
    place = Path(tempfile.mkdtemp(prefix="apf-elastic-ro-"))
    for file in path.parent.iterdir():
        shutil.copy(file, place)
        (place / file.name).chmod(0o444)
    place.chmod(0o555)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            answer = repr(function(place / path.name))
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.waitpid(child, 0)
    place.chmod(0o755)
    shutil.rmtree(place)
    return str(answer)

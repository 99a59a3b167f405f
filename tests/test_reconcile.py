"""Matching the ledger with what backends and pools say."""

from collections.abc import Mapping
from dataclasses import replace

from apf_elastic.contracts import Listed, Status
from apf_elastic.health import Stage
from apf_elastic.model import Observation, Resource, Seen, Shape, Slot, State, Unknown, Verb
from apf_elastic.reconcile import HELD_S, LEAVE_S, REDRAIN_S, Reconciled, Sight, reconcile
from apf_elastic.settings import BackendSettings, BackendUse, QueueSettings, Settings

SETTINGS = Settings(
    factory="f",
    queues={"q": QueueSettings("q", "s", (BackendUse("b"),), pool="p")},
    backends={"b": BackendSettings("b", uncertain_s=60, join_s=900, gone_lists=2)},
)
NOW = 10_000.0


def resource(state: State = State.READY, age: float = 100.0, **more: object) -> Resource:
    made = Resource("r1", "q", "b", "small", Shape(2), state, NOW - 1000, NOW - age, "remote-1", pool="p")
    return replace(made, **more)


def entry(status: Status = Status.RUNNING, **more: object) -> Listed:
    return replace(Listed("r1", "remote-1", status), **more)


def slot(jobs: int = 0, draining: bool = False) -> Slot:
    return Slot("r1", Shape(2), jobs, None if jobs else NOW - 50, draining)


def look(
    r: Resource | None,
    listed: Listed | Unknown | None = None,
    seen: Slot | Unknown | None = None,
    fresh: bool = True,
    in_flight: frozenset[str] = frozenset(),
    asked_at: float = NOW - 1,
) -> Reconciled:
    listing: Observation[Mapping[str, Listed]] = (
        listed if isinstance(listed, Unknown) else Seen({listed.id: listed} if listed else {}, asked_at)
    )
    slots: Observation[Mapping[str, Slot]] = (
        seen if isinstance(seen, Unknown) else Seen({seen.id: seen} if seen else {}, asked_at)
    )
    sight = Sight(
        {r.id: r} if r else {}, {"b": listing}, {"p": slots}, NOW, frozenset({"b"} if fresh else ()), in_flight
    )
    return reconcile(sight, SETTINGS)


def after(*args: object, **more: object) -> Resource:
    """The resource after one look; itself if nothing changed."""
    found = look(*args, **more)  # type: ignore[arg-type]
    assert len(found.changed) == 1
    return found.changed[0]


def unchanged(*args: object, **more: object) -> bool:
    return look(*args, **more).changed == []  # type: ignore[arg-type]


DOWN = Unknown("down", NOW - 5)


def test_nothing_changes_on_an_unknown_list_and_pool() -> None:
    for state in State:
        if state is not State.GONE:
            assert unchanged(resource(state, age=10**6), DOWN, DOWN)


def test_an_intention_that_the_backend_lists_is_adopted() -> None:
    r = after(resource(State.INTENDED, remote_id=None), entry(Status.PENDING))
    assert (r.state, r.remote_id) == (State.PENDING, "remote-1")


def test_an_intention_nobody_lists_is_kept_while_it_may_still_show_up() -> None:
    assert unchanged(resource(State.INTENDED, age=30), None)


def test_an_intention_nobody_lists_for_long_was_never_created() -> None:
    r = after(resource(State.INTENDED, age=62), None)
    assert (r.state, r.outcome) == (State.GONE, "never created")


def test_an_intention_whose_call_is_under_way_is_left_alone() -> None:
    assert unchanged(resource(State.INTENDED, age=600), None, in_flight=frozenset({"r1"}))


def test_a_list_asked_before_the_resource_was_submitted_says_nothing() -> None:
    assert unchanged(resource(State.SUBMITTED, age=600), None, asked_at=NOW - 700)


def test_a_running_resource_is_gone_only_after_several_lists_without_it() -> None:
    first = after(resource(), None)
    assert (first.state, first.missing) == (State.READY, 1)
    assert after(first, None).state is State.GONE


def test_the_same_list_looked_at_twice_counts_once() -> None:
    assert unchanged(resource(), None, fresh=False)


def test_what_the_pool_still_sees_is_not_gone() -> None:
    assert all(r.state is State.READY for r in look(resource(missing=5, slot=slot()), None, slot()).changed)


def test_what_an_unknown_pool_may_still_see_is_not_gone() -> None:
    assert unchanged(resource(missing=5), None, DOWN)


def test_a_running_resource_waits_for_the_pool() -> None:
    assert after(resource(State.PENDING), entry()).state is State.STARTING


def test_a_running_pilot_that_joins_no_pool_runs() -> None:
    assert after(resource(State.PENDING, pool=None), entry()).state is State.RUNNING


def test_a_resource_seen_in_the_pool_has_joined() -> None:
    found = look(resource(State.STARTING), entry(), slot())
    assert (found.changed[0].state, found.changed[0].joined_at) == (State.READY, NOW)
    assert found.successes[-1].stage is Stage.JOIN


def test_a_resource_may_join_before_the_backend_says_it_runs() -> None:
    assert after(resource(State.PENDING), entry(Status.PENDING), slot()).state is State.READY


def test_an_end_before_joining_counts_against_the_offering() -> None:
    found = look(resource(State.STARTING), entry(Status.ENDED, native="exit 81"))
    assert found.changed[0].state is State.GONE
    assert "never joined: exit 81" in found.changed[0].outcome
    assert (found.faults[0].offering, found.faults[0].stage) == ("small", Stage.JOIN)


def test_an_end_after_joining_is_no_fault() -> None:
    found = look(resource(joined_at=NOW - 500), entry(Status.ENDED, native="exit 0"))
    assert (found.changed[0].outcome, found.faults) == ("exit 0", [])


def test_a_resource_that_never_joins_is_removed_and_counted() -> None:
    found = look(resource(State.STARTING, age=901), entry())
    assert (found.again[0].verb, found.faults[0].stage) == (Verb.DELETE, Stage.JOIN)


def test_while_the_pool_is_unknown_nobody_is_late_in_joining() -> None:
    assert look(resource(State.STARTING, age=901), entry(), DOWN).again == []


def test_a_held_resource_is_given_time_then_removed_as_one_that_never_started() -> None:
    held = entry(Status.HELD, reason="no such file")
    assert after(resource(State.SUBMITTED), held).reason == "held: no such file"
    found = look(resource(State.PENDING, age=HELD_S + 1), held)
    assert (found.again[0].verb, found.faults[0].stage) == (Verb.CANCEL, Stage.START)


def test_a_drain_that_the_pool_does_not_show_is_asked_for_again() -> None:
    found = look(resource(State.DRAINING, age=REDRAIN_S + 1), entry(), slot(jobs=1))
    assert found.again[0].verb is Verb.DRAIN


def test_a_busy_draining_resource_is_never_removed() -> None:
    found = look(resource(State.DRAINING, age=10**7), entry(), slot(jobs=1, draining=True))
    assert found.again == []


def test_a_drained_resource_that_does_not_leave_is_removed() -> None:
    found = look(resource(State.DRAINING, age=LEAVE_S + 1), entry(), slot(draining=True))
    assert found.again[0].verb is Verb.DELETE


def test_a_drained_resource_is_not_removed_while_the_pool_is_unknown() -> None:
    assert look(resource(State.DRAINING, age=10**6), entry(), DOWN).again == []


def test_somebody_elses_drain_is_noticed() -> None:
    assert after(resource(slot=slot()), entry(), slot(draining=True)).state is State.DRAINING


def test_a_pool_asked_before_we_took_it_back_does_not_drain_it_again() -> None:
    taken_back = resource(age=10, slot=slot())
    assert all(
        r.state is State.READY for r in look(taken_back, entry(), slot(draining=True), asked_at=NOW - 20).changed
    )


def test_a_removal_that_the_backend_confirms_is_gone_with_its_reason() -> None:
    r = after(resource(State.REMOVING, reason="never joined"), None)
    assert (r.state, r.outcome) == (State.GONE, "never joined")


def test_what_carries_our_mark_and_is_unknown_is_adopted_with_its_queue() -> None:
    found = look(None, entry(queue="q", offering="small"))
    r = found.changed[0]
    assert (r.id, r.queue, r.offering, r.pool, r.state) == ("r1", "q", "small", "p", State.STARTING)


def test_what_ended_unknown_to_us_is_not_adopted() -> None:
    assert look(None, entry(Status.ENDED)).changed == []

"""The plan as a whole: holding, chains, accounts, and what must be true in every world."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from apf_elastic.decide import decide
from apf_elastic.decide.fit import Need, bins_of_lot
from apf_elastic.decide.fleet import Fleet, Stage, _Rooms, index
from apf_elastic.model import (
    ON_ITS_WAY,
    BackendView,
    Breaker,
    Demand,
    Health,
    JobGroup,
    Offering,
    Plan,
    QueueHistory,
    Resource,
    Seen,
    Shape,
    Slot,
    State,
    Unknown,
    Verb,
    World,
)
from apf_elastic.settings import (
    Allocation,
    BackendSettings,
    BackendUse,
    Limits,
    Order,
    QueueSettings,
    Retirement,
    Settings,
    StepSettings,
)
from tests.decide.worlds import (
    LARGE,
    MEDIUM,
    NOW,
    SMALL,
    UNKNOWN,
    account,
    backend,
    created,
    decision,
    jobs,
    plan,
    queue,
    resource,
    some,
    total,
    world,
)

# ------------------------------------------------------------------------------------------------------------ holding


@pytest.mark.parametrize("observation", [None, UNKNOWN, Seen(Demand((jobs(9),)), NOW - 121)])
@pytest.mark.parametrize("chain", ["", "Fixed", "Ready,MinPerCycle"])
def test_unknown_demand_holds_the_queue(observation: Any, chain: str) -> None:
    it = world([], [*some(3), *some(3, State.READY, first=5, idle_s=9999)])
    it = replace(it, demand={} if observation is None else {"q": observation})
    made = plan(it, queue(chain=chain, options={"Fixed": {"pilotspercycle": 5}, "MinPerCycle": {"minimum": 5}}))
    assert (made.creates, made.retirements) == ((), ())
    assert decision(made).hold.startswith("the demand is unknown: ")
    assert all(step.n == 0 and step.reason.startswith("holds: ") for step in decision(made).steps)
    assert len(decision(made).steps) == len([one for one in chain.split(",") if one])


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (None, "the demand is unknown: not asked yet"),
        (UNKNOWN, "the demand is unknown: timeout"),
        (Seen(Demand(), NOW - 121), "the demand is unknown: the last answer is older than 120 s"),
    ],
)
def test_a_hold_says_why(observation: Any, words: str) -> None:
    it = replace(world([]), demand={} if observation is None else {"q": observation})
    assert decision(plan(it)).hold == words


def test_a_chain_holds_when_no_backend_is_known() -> None:
    made = plan(world([jobs(9)], backends={"cloud": replace(backend(), listing=UNKNOWN)}), queue(chain="Ready"))
    assert (made.creates, decision(made).hold) == ((), "cloud is unknown: timeout")


@pytest.mark.parametrize(
    ("chain", "words"),
    [("Redy", "there is no step 'Redy'; did you mean Ready?"), ("Scale", "step Scale, option factor: 'x'")],
)
def test_a_chain_that_cannot_run_holds_its_queue_and_no_other(chain: str, words: str) -> None:
    it = world({"p": [jobs(3)], "q": [jobs(3)]})
    made = plan(it, queue(name="p", chain=chain, options={"Scale": {"factor": "x"}}), queue(name="q"))
    assert decision(made, "p").hold.startswith(words)
    assert (total(made, queue="p"), total(made, queue="q")) == (0, 3)


# ------------------------------------------------------------------------------------------------------------- chains


def test_a_chain_counts_resources() -> None:
    it = queue(chain="Ready,Scale,MaxPending", options={"Scale": {"factor": 0.5}, "MaxPending": {"maximum": 25}})
    made = plan(world([jobs(100)], some(10)), it)
    assert [step.n for step in decision(made).steps] == [90, 45, 15]
    assert created(made) == {("cloud", "small"): 15}
    assert made.creates[0].reason == "the chain asks for 15"
    assert (account(made).shape, account(made).waiting, account(made).granted) == (None, 15, 15)


def test_a_chain_counts_what_starts_and_runs_as_running() -> None:
    there = [*some(1), *some(2, State.STARTING, first=5), *some(3, State.READY, first=10, busy=1)]
    there += [*some(4, State.RUNNING, first=20), *some(5, State.DRAINING, first=30), *some(6, State.REMOVING, first=40)]
    it = queue(chain="MaxToRun", options={"MaxToRun": {"maximum": 0}})
    assert decision(plan(world([jobs(9)], there), it)).steps[0].n == -10
    it = queue(chain="KeepNQueueLife", options={"KeepNQueueLife": {"njobs": 15}})
    assert decision(plan(world([jobs(9)], there), it)).steps[0].n == 0


def test_what_a_chain_asks_for_is_held_by_limits_too() -> None:
    made = plan(world([jobs(9)]), queue(chain="Ready"), cloud=Limits(total=4))
    assert total(made) == 4
    assert account(made).withheld == {"cloud is at its limit of 4 resources": 5}


def test_a_chain_takes_the_best_offering_that_fits() -> None:
    views = {"cloud": backend(LARGE, MEDIUM, SMALL)}
    assert created(plan(world([jobs(9)], backends=views), queue(chain="Ready"))) == {("cloud", "small"): 9}
    made = plan(world([jobs(2, 3, 3000)], backends=views), queue(chain="Ready"))
    assert created(made) == {("cloud", "medium"): 2}


def test_a_chain_serves_every_shape_in_proportion() -> None:
    views = {"cloud": backend(SMALL, LARGE)}
    made = plan(
        world([jobs(30), jobs(10, 8, 8000)], backends=views),
        queue(chain="Ready,Scale", options={"Scale": {"factor": 0.1}}),
    )
    assert created(made) == {("cloud", "small"): 3, ("cloud", "large"): 1}


def test_without_jobs_to_judge_by_a_chain_takes_the_first_offering() -> None:
    it = queue(chain="Fixed", options={"Fixed": {"pilotspercycle": 3}})
    assert created(plan(world([], backends={"cloud": backend(LARGE, SMALL)}), it)) == {("cloud", "large"): 3}


def test_a_chain_for_jobs_that_fit_nowhere_says_so() -> None:
    made = plan(world([jobs(3, 16)]), queue(chain="Ready"))
    assert account(made).withheld == {"asks for 16 cores; the largest offering here is 1 core": 3}


def test_a_chain_may_fit_and_bound() -> None:
    it = queue(chain="Fit,MaxPerCycle", options={"MaxPerCycle": {"maximum": 2}})
    made = plan(world([jobs(32)], some(1, State.PENDING, LARGE), backends={"cloud": backend(LARGE)}), it)
    assert [step.n for step in decision(made).steps] == [3, 2]
    assert created(made) == {("cloud", "large"): 2}
    assert (account(made).waiting, account(made).granted) == (2, 2)


def test_a_chain_that_fits_may_keep_more_than_jobs_need() -> None:
    it = queue(chain="Fit,MinPending", options={"MinPending": {"minimum": 3}})
    made = plan(world([jobs(8)], backends={"cloud": backend(LARGE)}), it)
    assert created(made) == {("cloud", "large"): 3}


def test_what_drains_counts_towards_what_fits() -> None:
    there = some(2, State.DRAINING)
    made = plan(world([jobs(3)], there), queue(chain="Fit"))
    assert (total(made), len(made.retirements), account(made).covered) == (1, 2, 2)
    assert plan(world([jobs(3)], there), queue(chain="Fit,Null")).retirements == ()


def test_max_per_factory_holds_for_all_queues_together() -> None:
    options = {"MaxPerFactory": {"maximum": 12}}
    queues = [queue(name=name, chain="Ready,MaxPerFactory", options=options) for name in "pqr"]
    it = world(
        {name: [jobs(100)] for name in "pqr"},
        [resource(1, queue="p"), resource(2, queue="elsewhere", state=State.RUNNING)],
    )
    assert total(plan(it, *queues)) == 10


def test_what_a_queue_cannot_get_is_left_to_others_by_max_per_factory() -> None:
    options = {"MaxPerFactory": {"maximum": 10}}
    queues = [queue(f"b{name}", name=name, chain="Ready,MaxPerFactory", options=options) for name in "pq"]
    closed = backend(health=Health(Breaker.OPEN, "down"))
    made = plan(world({name: [jobs(100)] for name in "pq"}, backends={"bp": closed, "bq": backend()}), *queues)
    assert (total(made, queue="p"), total(made, queue="q")) == (0, 10)


def test_a_queue_without_backends_says_so() -> None:
    made = plan(world([jobs(2)]), replace(queue(), backends=()))
    assert account(made).withheld == {"the queue has no backend": 2}


# ------------------------------------------------------------------------------------------------------ any world

SHAPES = [
    Shape(1, 1000),
    Shape(2, 4000),
    Shape(8, 8000),
    Shape(1, 1000, gpus=1),
    Shape(1, 500, walltime_s=7200),
    Shape(1, 500, walltime_s=90000),
    Shape(16, 1000),
    Shape(1, 1000, arch="aarch64"),
]
OFFERINGS = [
    SMALL,
    MEDIUM,
    replace(LARGE, price_per_hour=0.3),
    Offering("gpu", Shape(4, 8000, gpus=2), 1.0, limit=2),
    Offering("day", Shape(2, 4000, walltime_s=86400), start_s=10),
    Offering("arm", Shape(2, 4000, arch="aarch64")),
]
BACKENDS = ("a", "b", "c")
QUEUES = ("p", "q", "r")
CHAINS: list[tuple[StepSettings, ...]] = [
    (),
    (),
    (),
    (StepSettings("Ready"), StepSettings("MaxPending", {"maximum": 4}), StepSettings("MaxPerFactory", {"maximum": 12})),
    (StepSettings("Fixed", {"pilotspercycle": 3}), StepSettings("MaxPerFactory", {"maximum": 12})),
    (StepSettings("KeepNRunning", {"keep_running": 3}),),
    (StepSettings("Ready"), StepSettings("MaxPending", {"maximum": 1, "allow_negative": True})),
    (StepSettings("Fit"), StepSettings("MaxPerCycle", {"maximum": 3})),
    (StepSettings("Null"),),
]

#: A loaded machine is no failure.
patient = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

few = st.integers(0, 6)
maybe = st.one_of(st.none(), few)
limits = st.builds(Limits, maybe, maybe, maybe, maybe)
no_limits = st.just(Limits())


def observed(value: Any) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.just(Seen(value, NOW)), st.just(Seen(value, NOW)), st.just(Seen(value, NOW - 500)), st.just(UNKNOWN)
    )


@st.composite
def groups(draw: st.DrawFn) -> JobGroup:
    waiting = draw(st.integers(0, 12))
    waited = draw(st.one_of(st.just(()), st.builds(lambda n: ((600.0, n),), st.integers(0, waiting))))
    return JobGroup(
        draw(st.sampled_from(SHAPES)), waiting, waited=waited, oldest_wait_s=draw(st.sampled_from((None, 900.0)))
    )


@st.composite
def healths(draw: st.DrawFn) -> Health:
    breaker = draw(st.sampled_from((Breaker.CLOSED, Breaker.CLOSED, Breaker.HALF_OPEN, Breaker.OPEN)))
    return Health(breaker, "sick", draw(st.sampled_from((None, NOW - 100))))


@st.composite
def views(draw: st.DrawFn) -> BackendView:
    offerings = tuple(draw(st.lists(st.sampled_from(OFFERINGS), min_size=1, max_size=3, unique_by=lambda o: o.name)))
    sick = {offerings[0].name: draw(healths())} if draw(st.booleans()) else {}
    return BackendView(draw(observed(offerings)), draw(observed(None)), draw(healths()), sick, draw(few))


@st.composite
def resources(draw: st.DrawFn, number: int) -> Resource:
    state = draw(st.sampled_from([one for one in State if one is not State.GONE]))
    offering = draw(st.sampled_from(OFFERINGS))
    slot, joined = None, None
    if state in (State.READY, State.DRAINING) and draw(st.integers(0, 9)):
        busy = draw(st.sampled_from((0, 0, 1)))
        joined = NOW - draw(st.sampled_from((500, 40000, 86380)))
        room = replace(offering.shape, cores=offering.shape.cores - busy, walltime_s=None)
        idle = None if busy else NOW - draw(st.sampled_from((0, 5000)))
        slot = Slot(f"r{number}", room, busy, idle, draw(st.integers(0, 9)) == 0)
    return Resource(
        id=f"r{number}",
        queue=draw(st.sampled_from((*QUEUES, "gone"))),
        backend=draw(st.sampled_from((*BACKENDS, "gone"))),
        offering=offering.name,
        shape=offering.shape,
        state=state,
        created_at=NOW - draw(st.sampled_from((30, 5000))),
        changed_at=NOW - 20,
        pool=draw(st.sampled_from(("home", "home", "home", "other", None))),
        joined_at=joined,
        slot=slot,
        reason=draw(st.sampled_from(("", "drained in the pool"))),
    )


@st.composite
def histories(draw: st.DrawFn) -> QueueHistory:
    keys = [(b, o.name) for b in BACKENDS for o in OFFERINGS[:2]]
    times = st.dictionaries(st.sampled_from(keys), st.sampled_from((NOW - 5, NOW - 500)), max_size=3)
    return QueueHistory(
        last_created=draw(times), last_retired=draw(times), demand_changed_at=draw(st.sampled_from((None, NOW - 2)))
    )


@st.composite
def queues(draw: st.DrawFn, name: str) -> QueueSettings:
    used = draw(st.lists(st.sampled_from(BACKENDS), max_size=3, unique=True))
    return QueueSettings(
        name,
        "jobs",
        tuple(BackendUse(b, draw(st.sampled_from((1.0, 3.0))), draw(st.sampled_from((0.0, 0.0, 600.0)))) for b in used),
        pool=draw(st.sampled_from(("home", "home", "other", None))),
        chain=draw(st.sampled_from(CHAINS)),
        allocation=draw(st.sampled_from(Allocation)),
        limits=draw(st.one_of(no_limits, limits)),
        priority=draw(st.integers(0, 1)),
        weight=draw(st.sampled_from((1.0, 1.0, 4.0))),
        retirement=Retirement(
            draw(st.sampled_from((None, 0.0))), draw(st.sampled_from(Order)), draw(st.sampled_from((0.1, 1.0)))
        ),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[World, Settings]:
    demand = {
        name: draw(
            observed(Demand(tuple(draw(st.lists(groups(), max_size=4))), draw(st.sampled_from(("online", "offline")))))
        )
        for name in QUEUES
    }
    configured = {name: draw(queues(name)) for name in QUEUES}
    it = World(
        NOW,
        demand,
        {name: draw(views()) for name in BACKENDS},
        {"home": draw(observed(None)), "other": draw(observed(None))},
        [draw(resources(at)) for at in range(draw(st.integers(0, 14)))],
        {name: draw(histories()) for name in QUEUES},
    )
    backends = {name: BackendSettings(name, draw(st.one_of(no_limits, limits))) for name in BACKENDS}
    return it, Settings("f", configured, backends, draw(st.one_of(no_limits, limits)))


def fresh(observation: Any) -> bool:
    return isinstance(observation, Seen) and observation.asked_at >= NOW - 120


@patient
@given(cases())
def test_every_account_balances(case: tuple[World, Settings]) -> None:
    made = decide(*case)
    for one in made.decisions:
        for row in one.accounts:
            assert row.waiting == row.covered + row.granted + sum(row.withheld.values())
            assert min(row.covered, row.granted, *row.withheld.values(), 0) == 0
            assert all(row.withheld)
    assert [one.queue for one in made.decisions] == sorted(case[1].queues)


def _bounded(scope: Limits, before: list[Resource], new: int, recent: int) -> Iterator[bool]:
    if not new:
        return
    yield scope.total is None or len(before) + new <= scope.total
    yield scope.pending is None or sum(r.state in ON_ITS_WAY for r in before) + new <= scope.pending
    yield scope.per_cycle is None or new <= scope.per_cycle
    yield scope.per_minute is None or recent + new <= scope.per_minute


@patient
@given(cases())
def test_no_limit_is_ever_passed(case: tuple[World, Settings]) -> None:
    it, configured = case
    there = list(it.resources)
    made = decide(it, configured)
    recent = sum(view.recent_creates for view in it.backends.values())
    assert all(_bounded(configured.limits, there, total(made), recent))
    for name, one in configured.queues.items():
        mine = [r for r in there if r.queue == name]
        young = sum(r.created_at > NOW - 60 and r.state is not State.REMOVING for r in mine)
        assert all(_bounded(one.limits, mine, total(made, queue=name), young))
    for name, backend_settings in configured.backends.items():
        mine = [r for r in there if r.backend == name]
        new = total(made, backend=name)
        assert all(_bounded(backend_settings.limits, mine, new, it.backends[name].recent_creates))
        _check_health(it, made, name, mine, new)


def _check_health(it: World, made: Plan, name: str, mine: list[Resource], new: int) -> None:
    view = it.backends[name]
    assert new <= {Breaker.OPEN: 0, Breaker.HALF_OPEN: 1}.get(view.health.breaker, new)
    for (_, offering), count in created(made, backend=name).items():
        health = view.offering_health.get(offering, Health())
        assert count <= {Breaker.OPEN: 0, Breaker.HALF_OPEN: 1}.get(health.breaker, count)
        assert isinstance(view.offerings, Seen)
        (limit,) = [one.limit for one in view.offerings.value if one.name == offering]
        assert limit is None or sum(r.offering == offering for r in mine) + count <= limit


@patient
@given(cases())
def test_unknown_in_nothing_out(case: tuple[World, Settings]) -> None:
    it, configured = case
    made = decide(it, configured)
    by_id = {r.id: r for r in it.resources}
    for one in made.creates:
        pool = configured.queues[one.queue].pool
        assert fresh(it.demand[one.queue])
        assert pool is None or fresh(it.pools[pool])
        assert fresh(it.backends[one.backend].listing)
        assert fresh(it.backends[one.backend].offerings)
    for retire in made.retirements:
        gone = by_id[retire.id]
        assert gone.queue not in configured.queues or fresh(it.demand[gone.queue])
        assert gone.backend in it.backends
        assert fresh(it.backends[gone.backend].listing)
        assert retire.verb is Verb.CANCEL or (gone.pool is not None and fresh(it.pools[gone.pool]))


@patient
@given(cases())
def test_only_what_may_leave_leaves(case: tuple[World, Settings]) -> None:
    it, configured = case
    made = decide(it, configured)
    by_id = {r.id: r for r in it.resources}
    allowed = {
        Verb.CANCEL: {State.SUBMITTED, State.PENDING},
        Verb.DRAIN: {State.READY},
        Verb.UNDRAIN: {State.DRAINING},
    }
    for retire in made.retirements:
        assert by_id[retire.id].state in allowed[retire.verb]
        assert retire.verb is Verb.UNDRAIN or not by_id[retire.id].busy
        assert retire.reason
    assert max(Counter(retire.id for retire in made.retirements).values(), default=1) == 1
    for name in configured.queues:
        mine = [r for r in it.resources if r.queue == name]
        drains = sum(retire.verb is Verb.DRAIN and by_id[retire.id].queue == name for retire in made.retirements)
        joined = sum(r.state is State.READY for r in mine)
        assert drains <= max(1, configured.queues[name].retirement.budget * joined)


@patient
@given(cases())
def test_nothing_is_created_and_retired_at_once(case: tuple[World, Settings]) -> None:
    it, configured = case
    made = decide(it, configured)
    by_id = {r.id: r for r in it.resources}
    left = {
        (by_id[retire.id].queue, by_id[retire.id].backend, by_id[retire.id].offering)
        for retire in made.retirements
        if retire.verb is not Verb.UNDRAIN
    }
    assert not left & {(one.queue, one.backend, one.offering.name) for one in made.creates}


@patient
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_given_does_not_matter(case: tuple[World, Settings], luck: random.Random) -> None:
    it, configured = case
    shuffled = list(it.resources)
    luck.shuffle(shuffled)
    names = list(configured.queues)
    luck.shuffle(names)
    again = decide(
        replace(it, resources=iter(shuffled), backends={name: it.backends[name] for name in reversed(BACKENDS)}),
        replace(configured, queues={name: configured.queues[name] for name in names}),
    )
    assert again == decide(it, configured) == decide(it, configured)


def room_of(one: Resource) -> Any:
    """The bins that one resource makes, judged alone."""
    fleet: Fleet = index([one])[one.queue]
    stage = Stage.COMING if one.state in ON_ITS_WAY else Stage.IDLE
    lots = _Rooms([7200, 90000], NOW).lots(fleet.kinds[0], stage, [one])
    return [bins_of_lot(lot) for lot in lots]


@patient
@given(cases())
def test_nothing_is_retired_while_demand_that_fits_it_waits(case: tuple[World, Settings]) -> None:
    it, configured = case
    made = decide(it, configured)
    by_id = {r.id: r for r in it.resources}
    for one in made.decisions:
        if configured.queues[one.queue].chain:
            continue
        unserved = [Need(row.shape, 1, 1) for row in one.accounts if row.waiting > row.covered]
        for retire in made.retirements:
            gone = by_id[retire.id]
            if gone.queue == one.queue and retire.verb is not Verb.UNDRAIN:
                assert not any(bins.holds(need) for bins in room_of(gone) for need in unserved)


@patient
@given(cases())
def test_max_per_factory_holds_in_total(case: tuple[World, Settings]) -> None:
    it, configured = case
    chain = CHAINS[3]
    configured = replace(configured, queues={n: replace(q, chain=chain) for n, q in configured.queues.items()})
    made = decide(it, configured)
    there = sum(r.state not in (State.DRAINING, State.REMOVING) for r in it.resources)
    back = sum(retire.verb is Verb.UNDRAIN for retire in made.retirements)
    assert not made.creates or there + back + total(made) <= 12


@patient
@given(cases())
def test_jobs_that_have_not_waited_long_enough_do_not_burst(case: tuple[World, Settings]) -> None:
    it, configured = case
    made = decide(it, configured)
    for name, one in configured.queues.items():
        demand = it.demand[name]
        if one.chain or not isinstance(demand, Seen):
            continue
        burst = {use.backend for use in one.backends if use.burst_after_s}
        mature = sum(group.waiting_since(600) for group in demand.value.groups)
        assert (
            sum(create.count for create in made.creates if create.queue == name and create.backend in burst) <= mature
        )


def test_a_world_without_anything_makes_an_empty_plan() -> None:
    assert decide(World(NOW, {}, {}, {}, []), Settings("f", {}, {})) == Plan()


def test_the_inputs_are_left_as_they_were() -> None:
    it, one = world([jobs(5)], [*some(2), *some(2, State.READY, first=5)]), queue()
    before = repr((it, one))
    plan(it, one)
    assert repr((it, one)) == before


def test_an_unknown_reason_is_never_empty() -> None:
    it = replace(world([]), demand={"q": Unknown("", NOW)})
    assert decision(plan(it)).hold == "the demand is unknown: no answer"


def carried_out(it: World, configured: Settings, made: Plan) -> World:
    """The world a moment later: what was created is intended, what was retired leaves."""
    verbs = {retire.id: retire.verb for retire in made.retirements}
    states = {Verb.CANCEL: State.REMOVING, Verb.DRAIN: State.DRAINING, Verb.UNDRAIN: State.READY}
    there = [replace(r, state=states[verbs[r.id]]) if r.id in verbs else r for r in it.resources]
    new = [
        Resource(
            f"new-{create.queue}-{at}-{turn}",
            create.queue,
            create.backend,
            create.offering.name,
            create.offering.shape,
            State.INTENDED,
            NOW,
            NOW,
            pool=configured.queues[create.queue].pool,
        )
        for at, create in enumerate(made.creates)
        for turn in range(create.count)
    ]
    return replace(it, resources=[*there, *new])


@patient
@given(cases())
def test_what_was_granted_is_covered_in_the_next_cycle(case: tuple[World, Settings]) -> None:
    it, configured = case
    made = decide(it, configured)
    again = decide(carried_out(it, configured, made), configured)
    for before, after in zip(made.decisions, again.decisions, strict=True):
        if not configured.queues[before.queue].chain and not before.hold:
            for one, two in zip(before.accounts, after.accounts, strict=True):
                assert two.covered >= one.covered + one.granted, (one, two)


@patient
@given(cases())
def test_a_chain_does_not_ask_again_for_what_it_gave_back(case: tuple[World, Settings]) -> None:
    it, configured = case
    made = decide(it, configured)
    again = decide(carried_out(it, configured, made), configured)
    for one in made.decisions:
        chain = [step.name for step in configured.queues[one.queue].chain]
        if chain and "MaxPerFactory" not in chain and not one.hold and one.steps[-1].n <= 0:
            assert total(again, queue=one.queue) == 0

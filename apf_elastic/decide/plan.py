"""Put a plan together: what one cycle does, and a reason for every unit granted or withheld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from apf_elastic.decide import chain as chains
from apf_elastic.decide.allocate import Endless, Room, Want, allocate, bid, want, whole, why_not
from apf_elastic.decide.caps import Caps, why_unknown
from apf_elastic.decide.fit import Need, bins_of_lot, close_lots, fits, needs_of, pack
from apf_elastic.decide.fleet import ENDLESS, Fleet, Lot, Stage, draining_lots, index, lots
from apf_elastic.decide.retire import Leaving, newest, orphans, take_back, undrain
from apf_elastic.decide.steps import PolicyError, View
from apf_elastic.model import (
    Account,
    Create,
    Decision,
    Demand,
    Observation,
    Offering,
    Plan,
    QueueHistory,
    Retire,
    Seen,
    StepResult,
    World,
)
from apf_elastic.settings import QueueSettings, Settings

#: Idle resources that fit waiting jobs and still get none after so long are worth a word.
STUCK_S = 300.0


def decide(world: World, settings: Settings) -> Plan:
    """What to create and to retire now, and why. Pure: the same world and settings give the same plan."""
    fleets = index(world.resources)
    caps = Caps(world, settings, fleets)
    pools = {name for name, pool in world.pools.items() if not why_unknown(pool, world.now, settings.max_age_s)}
    cases = [_open(queue, world, settings, fleets.get(name), pools) for name, queue in settings.queues.items()]
    there = sum(fleet.pending + fleet.started for fleet in fleets.values())
    promised = 0
    for case in sorted(cases, key=_turn):
        caps.add_queue(case.queue, case.fleet)
        promised += _consider(case, caps, pools, there - case.fleet.pending - case.fleet.started + promised)
    allocate((case.want for case in cases if case.want is not None), caps)
    cases.sort(key=lambda case: case.queue.name)
    creates = [create for case in cases for create in _creates(case, caps)]
    retirements = [retire for case in cases for retire in _retirements(case, caps, pools)]
    for name, fleet in fleets.items():
        if name not in settings.queues:
            retirements += orphans(name, fleet, caps, pools)
    decisions = [_decision(case, caps) for case in cases]
    return Plan(tuple(creates), tuple(retirements), tuple(decisions))


@dataclass(slots=True)
class Case:
    """Everything about one queue in one cycle. A `hold` says why nothing may change."""

    queue: QueueSettings
    fleet: Fleet
    history: QueueHistory
    hold: str = ""
    demand: Demand = field(default_factory=Demand)
    chain: chains.Chain = ()
    view: View = field(default_factory=View)
    outcome: chains.Outcome | None = None
    needs: list[Need] = field(default_factory=list)
    lots: list[Lot] = field(default_factory=list)
    taken_back: list[Retire] = field(default_factory=list)
    want: Want | None = None

    @property
    def fits_itself(self) -> bool:
        return any(link.step.name == "Fit" for link in self.chain)


def _turn(case: Case) -> tuple[float, float, float, str]:
    """Chains are asked in this order: a higher priority first, then who has least for its weight."""
    stock = case.fleet.total / max(case.queue.weight, 1e-9)
    last = max(case.history.last_created.values(), default=float("-inf"))
    return (-case.queue.priority, stock, last, case.queue.name)


# ------------------------------------------------------------------------------------------- what holds, what is known


def _open(queue: QueueSettings, world: World, settings: Settings, fleet: Fleet | None, pools: set[str]) -> Case:
    case = Case(queue, fleet or Fleet(), world.history.get(queue.name) or QueueHistory())
    demand = world.demand.get(queue.name)
    unknown = why_unknown(demand, world.now, settings.max_age_s)
    if unknown or not isinstance(demand, Seen):
        case.hold = f"the demand is unknown: {unknown}"
        return case
    case.demand = demand.value
    if queue.pool is not None and queue.pool not in pools:
        case.hold = f"pool {queue.pool} is unknown: {_why(world.pools.get(queue.pool), world, settings)}"
    elif queue.backends and (reasons := _unknown_backends(queue, world, settings)):
        case.hold = "; ".join(reasons)
    else:
        try:
            case.chain = chains.compile_chain(queue.chain)
        except PolicyError as error:
            case.hold = str(error)
    return case


def _why(observation: Observation[None] | None, world: World, settings: Settings) -> str:
    return why_unknown(observation, world.now, settings.max_age_s)


def _unknown_backends(queue: QueueSettings, world: World, settings: Settings) -> list[str]:
    """Why every backend of a queue is unknown; nothing if any is known: the others hold alone."""
    reasons = []
    for use in queue.backends:
        view = world.backends.get(use.backend)
        unknown = "not asked yet"
        if view is not None:
            unknown = why_unknown(view.listing, world.now, settings.max_age_s)
            unknown = unknown or why_unknown(view.offerings, world.now, settings.max_age_s)
        if not unknown:
            return []
        reasons.append(f"{use.backend} is unknown: {unknown}")
    return reasons


# ---------------------------------------------------------------------------------------------------- what is wanted


def _consider(case: Case, caps: Caps, pools: set[str], other: int) -> int:
    """Pack the jobs, ask the chain, and note what is wanted. Returns how many resources that may add at most."""
    if case.hold:
        return 0
    offered = [offering for use in case.queue.backends for offering in caps.offered(use)]
    case.needs = needs_of(case.demand.groups, offered)
    walltimes = sorted({int(need.walltime_s) for need in case.needs if need.walltime_s})
    case.lots = lots(case.fleet, walltimes, caps.now)
    bins = [bins_of_lot(lot) for lot in case.lots]
    pack(case.needs, bins)
    close_lots(bins)
    back = draining_lots(case.fleet, walltimes, caps.now, pools) if case.fleet.draining else []
    back = [lot for lot in back if lot.kind.backend in caps.offerings]
    if case.queue.chain and not case.fits_itself:
        return _consider_chain(case, caps, offered, back, other)
    if back:
        bins = [bins_of_lot(lot) for lot in back]
        pack(case.needs, bins)
        close_lots(bins)
        case.taken_back = take_back(back)
    for need in case.needs:
        need.covered = need.waiting - need.left
    case.want = want(case.queue, case.needs, case.fleet, case.history, caps)
    if case.queue.chain:
        return _consider_fit_chain(case, caps, other)
    case.want.alone = bid(case.want, Room(caps))
    return case.want.alone.total + len(case.taken_back)


def _ask(case: Case, other: int, deficit: int = 0) -> int:
    """Run the chain; a step that fails holds the queue. Returns its number."""
    history = case.history
    case.view = View(
        ready=sum(need.waiting for need in case.needs),
        pending=case.fleet.pending,
        running=case.fleet.started,
        retiring=case.fleet.draining,
        status=case.demand.status,
        other=other,
        submitted=history.submitted,
        recent_started=history.recent_started,
        recent_short=history.recent_short,
        deficit=deficit,
    )
    try:
        case.outcome = chains.run(case.chain, case.view)
    except PolicyError as error:
        case.hold = str(error)
        return 0
    return case.outcome.n


def _consider_chain(case: Case, caps: Caps, offered: Sequence[Offering], back: Sequence[Lot], other: int) -> int:
    n = _ask(case, other)
    if n <= 0:
        return 0
    useful = [lot for lot in back if _useful(lot, case.needs)]
    draining = newest(resource for lot in useful for resource in lot.members)[:n]
    case.taken_back = undrain(draining)
    n -= len(draining)
    if n > 0:
        asked = _asked(n, case.needs, offered)
        case.want = want(case.queue, asked, case.fleet, case.history, caps)
        case.want.alone = bid(case.want, Room(caps))
    return len(draining) + (case.want.alone.total if case.want and case.want.alone else 0)


def _useful(lot: Lot, needs: Sequence[Need]) -> bool:
    """Whether a waiting job fits; with no waiting job to judge by, the chain's word is enough."""
    one = bins_of_lot(lot)
    waiting = [need for need in needs if need.waiting]
    return not waiting or any(one.holds(need) for need in waiting)


def _asked(n: int, needs: Sequence[Need], offered: Sequence[Offering]) -> list[Need]:
    """The `n` resources of a chain, spread over the shapes of the waiting jobs that have no place yet."""
    waiting = [need for need in needs if need.waiting]
    fitting = [need for need in waiting if any(fits(offering, need) for offering in offered)]
    if not waiting:
        return [Need(None, n, n, alone=True)]
    if not fitting:
        largest = max(waiting, key=lambda need: need.waiting)
        return [Need(largest.shape, n, n, dict(largest.waited), alone=True)]
    counts = [need.left for need in fitting]
    if not any(counts):
        counts = [need.waiting for need in fitting]
    total = sum(counts)
    return [
        Need(need.shape, part, part, {s: need.since(s) for s in need.waited}, alone=True)
        for need, part in zip(fitting, whole([n * count / total for count in counts], n), strict=True)
        if part
    ]


def _consider_fit_chain(case: Case, caps: Caps, other: int) -> int:
    assert case.want is not None
    deficit = bid(case.want, Endless(caps)).total
    n = _ask(case, other, deficit + len(case.taken_back))
    case.taken_back = case.taken_back[: max(0, n)]
    n -= len(case.taken_back)
    if n <= 0:
        case.want = None
        return len(case.taken_back)
    extra = [Need(None, n - deficit, n - deficit, alone=True)] if n > deficit else []
    case.want = want(case.queue, case.needs + extra, case.fleet, case.history, caps, most=n)
    case.want.alone = bid(case.want, Room(caps))
    return case.want.alone.total + len(case.taken_back)


# ------------------------------------------------------------------------------------------------- what comes of it


def _creates(case: Case, caps: Caps) -> list[Create]:
    if case.want is None:
        return []
    found = []
    for at, count in sorted(case.want.creates.items()):
        offer = case.want.offers[at]
        canary = ("backend", offer.backend) in caps.canaries or (
            "offering",
            offer.backend,
            offer.offering.name,
        ) in caps.canaries
        reason = f"{_jobs(case.want.served[at])} no place yet"
        if case.outcome is not None:
            reason = f"the chain asks for {case.outcome.n}"
        if canary:
            reason = f"one canary: {reason}"
        found.append(Create(case.queue.name, offer.backend, offer.offering, count, reason, canary))
    return found


def _jobs(count: int) -> str:
    return "1 waiting job has" if count == 1 else f"{count} waiting jobs have"


def _retirements(case: Case, caps: Caps, pools: set[str]) -> list[Retire]:
    if case.hold:
        return []
    creating = set()
    if case.want is not None:
        offers = (case.want.offers[at] for at in case.want.creates)
        creating = {(offer.backend, offer.offering.name) for offer in offers}
    leaving = Leaving(case.queue, case.fleet, case.lots, case.history, caps, pools, creating)
    if case.outcome is None:
        return case.taken_back + leaving.by_fit()
    if case.outcome.n > 0:
        return case.taken_back

    def asks(pending: int, running: int) -> int:
        view = replace(case.view, pending=case.view.pending - pending, running=case.view.running - running)
        try:
            return chains.run(case.chain, view).n
        except PolicyError:
            return 1

    if case.outcome.n < 0:
        return case.taken_back + leaving.by_order(asks, -case.outcome.n, case.outcome.pending_only)
    idle = sum(len(kind.idle) for kind in case.fleet.kinds)
    spare = None if case.fits_itself else max(0, case.fleet.on_its_way + idle - case.view.ready)
    return case.taken_back + leaving.by_chain(asks, spare)


def _decision(case: Case, caps: Caps) -> Decision:
    name = case.queue.name
    if case.hold:
        steps = chains.held([step.name for step in case.queue.chain], case.hold)
        return Decision(name, case.hold, steps, _held_accounts(case))
    notes = _notes(case, caps)
    if case.outcome is not None:
        return Decision(name, "", case.outcome.steps, (_chain_account(case, caps),), notes)
    accounts = tuple(_fit_account(case, place, caps) for place in range(len(case.needs)))
    return Decision(name, "", (_fit_step(case, accounts),), accounts, notes)


def _held_accounts(case: Case) -> tuple[Account, ...]:
    if case.queue.chain:
        return ()
    needs = needs_of(case.demand.groups, ())
    return tuple(
        Account(case.queue.name, need.shape, need.waiting, 0, 0, {case.hold: need.waiting} if need.waiting else {})
        for need in needs
    )


def _fit_account(case: Case, place: int, caps: Caps) -> Account:
    need = case.needs[place]
    assert case.want is not None
    withheld = {why_not(case.want, place, caps): need.left} if need.left else {}
    return Account(case.queue.name, need.shape, need.waiting, need.covered, need.granted, withheld)


def _fit_step(case: Case, accounts: Sequence[Account]) -> StepResult:
    assert case.want is not None
    waiting = sum(account.waiting for account in accounts)
    covered = sum(account.covered for account in accounts)
    granted = sum(account.granted for account in accounts)
    made = sum(case.want.creates.values())
    words = f"{waiting} waiting: {covered} have a place, {granted} get one on {made} new {_resources(made)}"
    if waiting - covered - granted:
        words += f", {waiting - covered - granted} withheld"
    return StepResult("Fit", made, words)


def _chain_account(case: Case, caps: Caps) -> Account:
    assert case.outcome is not None
    n = max(0, case.outcome.n)
    covered = len(case.taken_back)
    granted = sum(case.want.creates.values()) if case.want else 0
    withheld: dict[str, int] = {}
    missing = n - covered - granted
    if case.want is not None and missing > 0:
        unplaced = [(place, need.left) for place, need in enumerate(case.want.needs) if need.left]
        for place, left in unplaced:
            some = min(missing, left)
            if some:
                reason = why_not(case.want, place, caps)
                withheld[reason] = withheld.get(reason, 0) + some
                missing -= some
    if missing > 0:
        withheld["fewer resources are enough for the waiting jobs"] = missing
    return Account(case.queue.name, None, n, covered, granted, withheld)


# ------------------------------------------------------------------------------------------------------------- notes


def _notes(case: Case, caps: Caps) -> tuple[str, ...]:
    notes = []
    stuck, since_s = _stuck(case, caps.now)
    if stuck:
        notes.append(
            f"{stuck} idle {_resources(stuck)} fit these jobs but no job has started on them for {since_s:.0f} s: "
            "check the jobs' requirements"
        )
    unseen = sum(len(kind.unseen) for kind in case.fleet.kinds)
    if unseen:
        notes.append(f"{unseen} joined {_resources(unseen)}: the pool shows no slot there that takes jobs")
    for use in case.queue.backends:
        if use.backend not in caps.offerings:
            unknown = caps.unknown.get(use.backend, "not asked yet")
            notes.append(f"nothing is created or retired at {use.backend}, which is unknown: {unknown}")
    return tuple(notes)


def _resources(count: int) -> str:
    return "resource" if count == 1 else "resources"


def _stuck(case: Case, now: float) -> tuple[int, float]:
    """How many idle resources had jobs packed on for long, and for how long at least (in whole 100 s)."""
    waits = [need.oldest_wait_s for need in case.needs if need.waiting]
    longest = max((ENDLESS if wait is None else wait for wait in waits), default=0.0)
    if longest < STUCK_S:
        return 0, 0.0
    count, shortest = 0, longest
    for lot in case.lots:
        if lot.stage is Stage.IDLE and lot.untouched < len(lot.members):
            ages = sorted((now - r.idle_since for r in lot.members if r.idle_since is not None), reverse=True)
            stuck = [age for age in ages if age >= STUCK_S]
            some = len(stuck) - lot.untouched
            if some > 0:
                count += some
                shortest = min(shortest, stuck[some - 1])
    return count, shortest // 100 * 100

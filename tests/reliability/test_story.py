"""Stories: whatever happens in whatever order, nothing is killed, doubled, forgotten, or beyond a limit."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apf_elastic.settings import BackendSettings, Limits
from apf_elastic.testing.faults import VERBS, Empty, Fault, Hang, Lose, Others, SlowToShow, Stale, Truncate, menu
from tests.reliability.stage import Stage
from tests.site import queue_settings

LIMIT = 12
#: After faults, so many honest cycles (of 5 s) until the ledger and the cloud must agree.
HONEST = 40
#: A lie is told for so many cycles at most: see "What is believed in the end" in docs/reliability.md.
LONGEST_LIE = 20
#: With these on its list or its calls a backend may hold more than the ledger knows.
HIDING = (Empty, Truncate, Stale, SlowToShow, Lose, Hang, Others)
PLUGINS = {"source jobs": "source", "pool home": "pool", "backend cloud": "backend", "backend spare": "backend"}
TARGETS = [(key, verb, fault) for key, kind in PLUGINS.items() for verb in VERBS[kind] for fault in menu(verb)]


class Story(RuleBasedStateMachine):
    """A factory with two backends, one queue, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        limits = Limits(total=LIMIT)
        backends = {name: BackendSettings(name, limits=limits, join_s=300) for name in ("cloud", "spare")}
        queue = replace(queue_settings("cloud", "spare"), limits=limits)
        self.site = Stage(Path(self.directory.name), queue=queue, backends=backends)
        self.honest = HONEST
        self.lied = 0
        self.hidden = False

    def _let_pass(self, cycles: int) -> None:
        for _ in range(cycles):
            if all(script.quiet for script in self.site.scripts.values()):
                self.honest += 1
            else:
                self.lied += 1
                if self.lied > LONGEST_LIE:
                    self._clear()
            self.site.step()

    def _clear(self) -> None:
        self.lied = 0
        self.site.clear()

    # --------------------------------------------------------------------------------------- what can happen

    @rule(count=st.integers(1, 8), run_s=st.sampled_from([10.0, 60.0, 400.0]))
    def submit(self, count: int, run_s: float) -> None:
        self.site.submit(count, run_s=run_s)

    @precondition(lambda self: self.site.jobs)
    @rule(count=st.integers(1, 8))
    def remove_jobs(self, count: int) -> None:
        self.site.remove_jobs(count)

    @rule(cycles=st.integers(1, 12))
    def time_passes(self, cycles: int) -> None:
        self._let_pass(cycles)

    @rule(where=st.sampled_from(TARGETS), calls=st.sampled_from([1, 2, 5, None]))
    def strike(self, where: tuple[str, str, Fault], calls: int | None) -> None:
        key, verb, fault = where
        self.site.scripts[key].on(verb, fault if calls is None else [fault] * calls)
        self.honest = 0
        self.hidden |= key.startswith("backend") and isinstance(fault, HIDING)

    @rule()
    def faults_end(self) -> None:
        self._clear()

    @rule()
    def the_factory_is_restarted(self) -> None:
        self.site.restart()

    @rule()
    def the_ledger_is_lost(self) -> None:
        self.site.lose_ledger()
        self.honest = 0
        self.hidden = True

    # ------------------------------------------------------------------------------------------ what must hold

    @invariant()
    def no_job_is_evicted(self) -> None:
        assert self.site.evicted == 0

    @invariant()
    def no_id_has_two_machines(self) -> None:
        assert self.site.doubled == 0

    @invariant()
    def limits_hold(self) -> None:
        if not self.hidden:
            assert len(self.site.machines) <= LIMIT
            assert len(self.site.live) <= LIMIT

    @invariant()
    def every_machine_is_in_the_ledger(self) -> None:
        if not self.hidden or self.honest > HONEST:
            assert self.site.machines <= {resource.id for resource in self.site.live}

    @invariant()
    def every_record_has_its_machine(self) -> None:
        if self.honest > HONEST:
            self.hidden &= len(self.site.live) > LIMIT
            settled = {r.id for r in self.site.live if self.site.clock() - r.changed_at > 5 * HONEST}
            assert settled <= self.site.machines

    def teardown(self) -> None:
        self._clear()
        self.site.jobs = [job for job in self.site.jobs if job.on is not None]
        self.site.settle()
        try:
            assert self.site.evicted == 0
            assert (self.site.states(), self.site.machines) == ({}, set())
        finally:
            self.site.stop()
            self.directory.cleanup()


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=min(30, settings().max_examples),
    stateful_step_count=min(30, settings().stateful_step_count),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

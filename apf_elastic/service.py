"""The service: a cycle that runs until it is told to stop, and takes a new configuration while it runs.

SIGTERM and SIGINT finish the cycle and leave the resources running; SIGHUP reads the configuration again, and a
wrong one is refused while the old one stays.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from apf_elastic.act import Actor
from apf_elastic.config import Config, ConfigError, PluginSpec
from apf_elastic.contracts import Context
from apf_elastic.cycle import Cycle
from apf_elastic.health import Healths
from apf_elastic.ledger import Ledger, LedgerError
from apf_elastic.model import State
from apf_elastic.observe import Endpoint, Observer
from apf_elastic.workers import Inbox, InlineLane, Lane, Schedule, ThreadLane

log = logging.getLogger(__name__)

#: How long a stop waits for calls under way; what is not answered by then is found in the backends' lists later.
LAST_CALLS_S = 15.0

#: One call of a plugin may make several requests to its server, each of which may take the configured timeout.
REQUESTS_PER_CALL = 3

MakeLane = Callable[[str, Inbox, Callable[[], float]], Lane]


def thread_lane(key: str, inbox: Inbox, clock: Callable[[], float]) -> Lane:
    return ThreadLane(key, inbox, clock)


def inline_lane(key: str, inbox: Inbox, clock: Callable[[], float]) -> Lane:
    return InlineLane(key, inbox, clock)


# ------------------------------------------------------------------------------------------------- assembling


class StartError(Exception):
    """A source, pool or backend cannot be made from its options: says which, and why."""


def make_plugin(spec: PluginSpec, config: Config) -> Any:
    """Make a source, pool or backend with a directory of its own. Raises StartError."""
    context = Context(config.factory.name, Path(config.factory.state_dir) / f"{spec.kind}.{spec.name}")
    try:
        if spec.kind == "source":
            return spec.cls(spec.name, spec.options, context, config.selections.get(spec.name, {}))
        return spec.cls(spec.name, spec.options, context)
    except Exception as error:
        raise StartError(f"{spec.kind} {spec.name}: {error or type(error).__name__}") from error


def make_endpoint(
    spec: PluginSpec, config: Config, inbox: Inbox, clock: Callable[[], float], make_lane: MakeLane
) -> Endpoint:
    key = f"{spec.kind} {spec.name}"
    return Endpoint(
        kind=spec.kind,
        name=spec.name,
        plugin=make_plugin(spec, config),
        watch=make_lane(key, inbox, clock),
        act=make_lane(key, inbox, clock),
        schedule=Schedule(spec.every_s),
        timeout_s=REQUESTS_PER_CALL * spec.timeout_s,
    )


def queues_of(config: Config) -> dict[str, tuple[str, ...]]:
    """The queues of each source."""
    queues: dict[str, tuple[str, ...]] = dict.fromkeys(config.sources, ())
    for queue in config.settings.queues.values():
        queues[queue.source] = (*queues[queue.source], queue.name)
    return queues


def specs(config: Config) -> Iterator[PluginSpec]:
    for group in (config.sources, config.pools, config.backends):
        yield from group.values()


def make_cycle(
    config: Config, ledger: Ledger, clock: Callable[[], float] = time.time, make_lane: MakeLane = thread_lane
) -> Cycle:
    """Everything one factory needs, wired."""
    inbox = Inbox()
    endpoints = [make_endpoint(spec, config, inbox, clock, make_lane) for spec in specs(config)]
    leaving = _Leaving(ledger)
    observer = Observer(endpoints, queues_of(config), inbox, clock, leaving)
    healths = Healths()
    healths.load(ledger.meta_get("breakers") or [])
    actor = Actor(ledger, observer, healths, config.settings, clock)
    return Cycle(ledger, observer, actor, healths, config.settings, clock, config.factory.cycle_s)


class _Leaving:
    """The resources whose disappearance from an endpoint's answers is expected."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, key: str) -> frozenset[str]:
        leaving = (State.DRAINING, State.REMOVING)
        return frozenset(r.id for r in self._ledger.resources().values() if r.state in leaving)


def reconfigure(cycle: Cycle, old: Config, new: Config, make_lane: MakeLane = thread_lane) -> None:
    """Take a new configuration without losing what is known: endpoints that did not change stay as they are.

    Raises whatever making a plugin raises; nothing has changed then.
    """
    observer = cycle.observer
    before = {f"{spec.kind} {spec.name}": spec for spec in specs(old)}
    endpoints: dict[str, Endpoint] = {}
    for spec in specs(new):
        key = f"{spec.kind} {spec.name}"
        same = before.get(key) == spec and old.selections.get(spec.name) == new.selections.get(spec.name)
        endpoints[key] = (
            observer.endpoints[key] if same else make_endpoint(spec, new, observer.inbox, observer.clock, make_lane)
        )
    replaced = [e for key, e in observer.endpoints.items() if endpoints.get(key) is not e]
    observer.take_over(endpoints, queues_of(new))
    cycle.settings = cycle.actor.settings = new.settings
    cycle.every_s = new.factory.cycle_s
    for endpoint in replaced:
        endpoint.close()


# ---------------------------------------------------------------------------------------------------- running


class Service:
    """Runs a cycle until stopped."""

    def __init__(self, config: Config, ledger: Ledger, load: Callable[[], Config]) -> None:
        self.config = config
        self.ledger = ledger
        self.load = load
        self.cycle = make_cycle(config, ledger)
        self._stop = threading.Event()
        self._reload = threading.Event()

    def run(self) -> None:
        """Run until `stop`; then finish the cycle and leave everything running."""
        log.info(
            "factory %s: %d queues, %d backends, %d resources in the ledger",
            self.config.factory.name,
            len(self.config.settings.queues),
            len(self.config.settings.backends),
            len(self.ledger.resources()),
        )
        while not self._stop.is_set():
            if self._reload.is_set():
                self._reload.clear()
                self._take_new_configuration()
            self.cycle.observer.inbox.wait(self.cycle.tick())
        self._last_calls()
        self.cycle.observer.close()
        log.info("stopped; %d resources go on", len(self.ledger.resources()))

    def stop(self) -> None:
        self._stop.set()
        self.cycle.observer.inbox.wake()

    def reload(self) -> None:
        self._reload.set()
        self.cycle.observer.inbox.wake()

    def _take_new_configuration(self) -> None:
        try:
            new = self.load()
            if (new.factory.name, new.factory.ledger) != (self.config.factory.name, self.config.factory.ledger):
                raise ValueError("the factory's name and ledger cannot change while it runs: restart the service")
            reconfigure(self.cycle, self.config, new)
        except ConfigError as error:
            log.error("the new configuration is wrong and was not taken:\n%s", error)
        except Exception as error:
            log.error("the new configuration was not taken: %s", error)
        else:
            self.config = new
            log.info("new configuration taken: %s", ", ".join(str(file) for file in new.files))

    def _last_calls(self) -> None:
        """File the answers of calls under way, for a while."""
        deadline = time.monotonic() + LAST_CALLS_S
        cycle = self.cycle
        while cycle.actor.in_flight and time.monotonic() < deadline:
            for endpoint in cycle.observer.endpoints.values():
                endpoint.act.expire()
            cycle.file(cycle.observer.inbox.take())
            cycle.observer.inbox.wait(0.2)


@contextmanager
def signals(service: Service) -> Iterator[None]:
    """SIGTERM and SIGINT stop the service, SIGHUP reloads its configuration."""

    def stop(number: int, frame: FrameType | None) -> None:
        service.stop()

    def reload(number: int, frame: FrameType | None) -> None:
        service.reload()

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def look(cycle: Cycle, patience_s: float) -> None:
    """Ask every endpoint once and wait for the answers, at most `patience_s` seconds."""
    observer = cycle.observer
    observer.ask_all()
    deadline = time.monotonic() + patience_s
    while True:
        cycle.file(observer.inbox.take())
        if all(e.watch.idle for e in observer.endpoints.values()) or time.monotonic() > deadline:
            break
        for endpoint in observer.endpoints.values():
            endpoint.watch.expire()
        observer.inbox.wait(0.05)
    cycle.file(observer.inbox.take())


def run_once(cycle: Cycle, patience_s: float = 120.0) -> None:
    """One cycle: renew the leases, look, decide, act, and wait for the answers of its calls."""
    cycle.renew_leases()
    look(cycle, patience_s)
    cycle.run()
    deadline = time.monotonic() + patience_s
    while _under_way(cycle) and time.monotonic() < deadline:
        for endpoint in cycle.observer.endpoints.values():
            endpoint.act.expire()
        cycle.file(cycle.observer.inbox.take())
        cycle.observer.inbox.wait(0.05)
    try:
        cycle.report()
    except LedgerError as error:
        cycle.trouble = str(error)


def _under_way(cycle: Cycle) -> bool:
    return bool(cycle.actor.in_flight) or not all(e.act.idle for e in cycle.observer.endpoints.values())

"""From files to `Config`: everything checked at once, before anything starts.

`load` changes nothing and keeps nothing, so a service calls it again on SIGHUP: a wrong configuration raises, and the
old one stays in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from apf_elastic.config.checks import KINDS, Queue, Specs, check_all
from apf_elastic.config.files import Document, find, merge, read
from apf_elastic.config.plugins import PluginError, PluginSpec, plugin_class
from apf_elastic.config.policy import read_chain
from apf_elastic.config.problems import ConfigError, Key, Problem, suggestion
from apf_elastic.config.report import Report, refuse_hostile
from apf_elastic.config.schema import BackendTable, FactoryTable, File, PluginTable, QueueTable, is_name
from apf_elastic.config.tables import read_table, recommended, spellings
from apf_elastic.contracts import Selection
from apf_elastic.settings import BackendSettings, QueueSettings, Settings

#: How often an endpoint is asked unless it says otherwise: a new job is to be answered within 5 s.
EVERY_S = {"source": 3.0, "pool": 5.0, "backend": 5.0}

NAME_HOW = "use 1 to 60 letters, digits, dots, underscores and hyphens"


@dataclass(frozen=True, slots=True)
class FactoryConfig:
    """The service itself. Paths are absolute."""

    name: str
    state_dir: Path
    ledger: Path
    cycle_s: float
    max_age_s: float
    log: str


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration that has been checked. `selections` maps source -> queue -> its part of the source."""

    settings: Settings
    sources: Mapping[str, PluginSpec]
    pools: Mapping[str, PluginSpec]
    backends: Mapping[str, PluginSpec]
    selections: Mapping[str, Mapping[str, Selection]]
    factory: FactoryConfig
    files: tuple[Path, ...]
    warnings: tuple[Problem, ...]


def load(file: Path | None = None) -> Config:
    """Read `file`, or the one of the current directory, or the system's. Raises ConfigError with all problems."""
    return build(read(find(file)))


def build(documents: Sequence[Document]) -> Config:
    """Merge and check documents that have been read."""
    merged = merge(documents)
    tree = merged.tree
    report = Report(merged)
    if not tree:
        report.refuse((), "the configuration is empty", "start from one of the examples in configs/")
    refuse_hostile(tree, report)
    _check_top(tree, report)
    factory = _factory(tree, report)
    backends: dict[str, BackendSettings] = {}
    specs: Specs = {kind: {} for kind in KINDS}
    for kind, table in KINDS.items():
        for name, raw in _tables(tree, table, report):
            common, spec = _plugin(kind, name, raw, (table, name), report)
            if spec is not None:
                specs[kind][name] = spec
            if isinstance(common, BackendTable):
                backends[name] = common.frozen(name)
    queues = dict(_queues(tree, report))
    check_all(tree, factory, specs, queues, documents, report)
    if report.problems or factory is None:
        raise ConfigError(report.sorted_problems())
    return Config(
        settings=_settings(factory, queues, backends),
        sources=specs["source"],
        pools=specs["pool"],
        backends=specs["backend"],
        selections=_selections(queues),
        factory=_factory_config(factory),
        files=tuple(document.path for document in documents),
        warnings=tuple(report.warnings),
    )


# ------------------------------------------------------------------------------------------------- the tables


def _check_top(tree: Mapping[str, Any], report: Report) -> None:
    for word, value in tree.items():
        if word not in File.model_fields:
            report.problem((word,), "is not a known table", suggestion(word, File.model_fields, "tables"))
        elif not isinstance(value, dict):
            report.refuse(
                (word,), "must be a table", "write [factory]" if word == "factory" else f"write [{word}.NAME]"
            )


def _factory(tree: Mapping[str, Any], report: Report) -> FactoryTable | None:
    raw = tree.get("factory")
    if raw is None:
        report.problem(("factory",), "is missing", 'write [factory] and in it name = "campus"')
    if not isinstance(raw, dict):
        return None
    table = read_table(FactoryTable, raw, ("factory",), report)
    if table is not None and not is_name(table.name):
        report.problem(("factory", "name"), "is not a usable name", NAME_HOW)
    if table is not None:
        try:
            _factory_config(table)
        except (OSError, RuntimeError) as error:  # no home directory, or no current one
            report.problem(("factory",), f"its paths cannot be made absolute: {error}", "write absolute paths")
            return None
    return table


def _tables(tree: Mapping[str, Any], table: str, report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables of one kind by their names."""
    group = tree.get(table, {})
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, raw in group.items() if isinstance(group, dict) else ():
        key = (table, name)
        if not is_name(name):
            report.problem(key, "is not a usable name", NAME_HOW)
        if isinstance(raw, dict):
            found.append((name, raw))
        else:
            report.refuse(key, "must be a table", f"write [{table}.NAME]")
    return found


def _plugin(
    kind: str, name: str, raw: Mapping[str, Any], key: Key, report: Report
) -> tuple[PluginTable | None, PluginSpec | None]:
    """What every plugin understands, and the plugin with its own options."""
    model = BackendTable if kind == "backend" else PluginTable
    ours = spellings(model)
    common = read_table(model, {word: value for word, value in raw.items() if word in ours}, key, report)
    wanted = raw.get("type")
    if not isinstance(wanted, str):
        return common, None
    try:
        cls = plugin_class(kind, wanted)
    except PluginError as error:
        report.problem((*key, "type"), str(error), error.cure)
        return common, None
    rest = {word: value for word, value in raw.items() if word not in ours}
    if common is not None and "timeout" in common.model_fields_set and "timeout_s" in cls.Options.model_fields:
        rest["timeout_s"] = common.timeout
    options: BaseModel | None = read_table(cls.Options, rest, key, report, set(recommended(model).values()))
    if common is None or options is None:
        return common, None
    every_s = EVERY_S[kind] if common.every is None else common.every
    return common, PluginSpec(name, kind, wanted, cls, options, every_s, common.timeout)


def _queues(tree: Mapping[str, Any], report: Report) -> list[tuple[str, Queue]]:
    found = []
    for name, raw in _tables(tree, "queues", report):
        key = ("queues", name)
        queue = read_table(QueueTable, raw, key, report)
        policy = raw.get("policy")
        chain = read_chain(policy, (*key, "policy"), report) if isinstance(policy, dict) else ()
        if queue is not None:
            found.append((name, (queue, chain)))
    return found


# ------------------------------------------------------------------------------------------------- the result


def _factory_config(table: FactoryTable) -> FactoryConfig:
    state_dir = table.state_dir.expanduser().absolute()
    ledger = (table.ledger or state_dir / "ledger.sqlite").expanduser().absolute()
    return FactoryConfig(table.name, state_dir, ledger, table.cycle, table.max_age, table.log)


def _settings(factory: FactoryTable, queues: Mapping[str, Queue], backends: Mapping[str, BackendSettings]) -> Settings:
    return Settings(
        factory=factory.name,
        queues={name: _queue_settings(name, queue) for name, queue in queues.items()},
        backends=backends,
        limits=factory.limits.frozen(),
        max_age_s=factory.max_age,
    )


def _queue_settings(name: str, queue: Queue) -> QueueSettings:
    table, chain = queue
    return QueueSettings(
        name=name,
        source=table.source,
        backends=tuple(use.frozen() for use in table.backends),
        pool=table.pool,
        chain=chain,
        allocation=table.allocation,
        limits=table.limits.frozen(),
        priority=table.priority,
        weight=table.weight,
        retirement=table.retirement.frozen(),
        default_shape=table.default_shape.frozen(),
    )


def _selections(queues: Mapping[str, Queue]) -> Mapping[str, Mapping[str, Selection]]:
    found: dict[str, dict[str, Selection]] = {}
    for name, (queue, _) in queues.items():
        thresholds = sorted({use.burst_after for use in queue.backends if use.burst_after > 0})
        found.setdefault(queue.source, {})[name] = Selection(queue.select, tuple(thresholds))
    return found

"""What may stand in apf-elastic.toml, apart from the plugins' own options.

The reference (docs/configuration.md) is generated from these models: every field says what it means.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from apf_elastic import settings
from apf_elastic.config.units import Duration, Share, Size
from apf_elastic.model import Shape
from apf_elastic.settings import Allocation, Order

#: Names travel as marks through batch systems, file names and metrics.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")

Count = Annotated[int, Field(ge=0)]


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


class Table(BaseModel):
    """A table of the file: nothing unknown in it, and every value of the type that is written there."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LimitsTable(Table):
    """Upper bounds, held against what was asked for and not only against what was answered. Absent: no limit."""

    total: Count | None = Field(None, description="all resources that are not gone")
    pending: Count | None = Field(None, description="resources on their way: not joined, not running")
    per_cycle: Count | None = Field(None, description="what one cycle creates")
    per_minute: Count | None = Field(None, description="what is created within any 60 s")

    def frozen(self) -> settings.Limits:
        return settings.Limits(self.total, self.pending, self.per_cycle, self.per_minute)


class FactoryTable(Table):
    """The service itself."""

    name: str = Field(
        description="the mark carried by everything this factory creates; choose one per factory and never change it",
        examples=["campus"],
    )
    state_dir: Path = Field(
        Path("apf-elastic-state"), strict=False, description="where the ledger and the plugins keep their files"
    )
    ledger: Path | None = Field(
        None, strict=False, description="the ledger's file; absent: `ledger.sqlite` in `state_dir`"
    )
    cycle: Duration = Field(5.0, gt=0, description="the longest time between two cycles; news start one at once")
    max_age: Duration = Field(120.0, gt=0, description="an answer older than this counts as unknown")
    log: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    limits: LimitsTable = Field(LimitsTable(), description="bounds on everything together")


class PluginTable(Table):
    """What every source, pool and backend understands; the rest of its table belongs to the plugin."""

    type: str = Field(description="which plugin", examples=["htcondor"])
    every: Duration | None = Field(
        None,
        gt=0,
        description="how often it is asked; absent: 3 s for a source, 5 s for a pool or a backend (where"
        " nothing is on its way or leaving, four times as long)",
    )
    timeout: Duration = Field(30.0, gt=0, description="how long one answer may take; later it is none")


class DeadlinesTable(Table):
    """How long a resource may stay in a state."""

    uncertain: Duration = Field(
        60.0, description="how long a create call without an answer may still show up in the backend's list"
    )
    pending: Duration | None = Field(None, description="from accepted to running; absent: for ever")
    join: Duration = Field(900.0, description="from running to joined; then it is removed, and counts as a failure")
    drain: Duration | None = Field(None, description="from the drain to the end; absent: for ever")
    gone_lists: int = Field(2, ge=1, description="complete lists in a row without it before a resource is gone")


class BackendTable(PluginTable):
    """A backend has limits and deadlines of its own as well."""

    limits: LimitsTable = Field(LimitsTable(), description="bounds on this backend, for all queues together")
    deadlines: DeadlinesTable = Field(DeadlinesTable(), description="how long its resources may stay in a state")

    def frozen(self, name: str) -> settings.BackendSettings:
        it = self.deadlines
        return settings.BackendSettings(
            name, self.limits.frozen(), it.uncertain, it.pending, it.join, it.drain, it.gone_lists
        )


class UseTable(Table):
    """How a queue uses a backend. In `backends`, the name alone stands for a table with only `name`."""

    name: str = Field(description="which backend")
    weight: float = Field(1.0, gt=0, description='its part, for `allocation = "weighted"`')
    burst_after: Duration = Field(0.0, description="only jobs that waited so long reach this backend")
    idle: Duration | None = Field(None, description="its own idle limit, in place of that of `retirement`")
    offerings: list[str] = Field([], description="only these of its offerings; absent: all")

    def frozen(self) -> settings.BackendUse:
        return settings.BackendUse(self.name, self.weight, self.burst_after, self.idle, tuple(self.offerings))


class ShapeTable(Table):
    """What one job needs."""

    cores: int = Field(1, ge=1, description="processor cores")
    memory: Size = Field(0, description="main memory")
    disk: Size = Field(0, description="scratch space")
    gpus: Count = Field(0, description="GPUs")
    walltime: Duration | None = Field(None, description="how long it may run; absent: it does not say")
    arch: str = Field("", description="architecture, e.g. x86_64; empty: any")

    def frozen(self) -> Shape:
        walltime_s = None if self.walltime is None else round(self.walltime)
        return Shape(self.cores, self.memory, self.disk, self.gpus, walltime_s, self.arch)


class RetirementTable(Table):
    """When and how resources that joined a pool are given back. Busy ones are never killed."""

    idle: Duration | None = Field(
        None, description="idle for so long; absent: the offering's start delay, at least 90 s, 5 min if unknown"
    )
    order: Order = Field(Order.NEWEST, strict=False, description="which of the idle ones leaves first")
    budget: Share = Field(0.5, description="share of the joined resources that one cycle may drain, at least one")
    hysteresis: Duration = Field(
        60.0, description="no retirement so soon after a create of the same offering, nor the other way round"
    )
    drain_busy: bool = Field(
        False, description="a chain that asks for fewer drains busy resources too; their jobs finish"
    )

    def frozen(self) -> settings.Retirement:
        return settings.Retirement(self.idle, self.order, self.budget, self.hysteresis, self.drain_busy)


class PolicyTable(Table):
    """How demand becomes a number. Each step has its options in a sub-table named like the step in lower case."""

    model_config = ConfigDict(extra="allow")

    chain: list[str] = Field(
        [], description="the steps in their order; absent: jobs are fitted to offerings by what they ask for"
    )


def _as_use(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class QueueTable(Table):
    """A workflow: a source and a selection of it, a policy, and the backends that may serve it."""

    source: str = Field(description="which source counts its waiting jobs", examples=["home"])
    select: str = Field("", description="its part of the source, in the source's own language; empty: everything")
    pool: str | None = Field(None, description="which pool its resources join; absent: they join none of ours")
    backends: list[Annotated[UseTable, BeforeValidator(_as_use)]] = Field(
        description="the backends that may serve it, by name or as tables", min_length=1, examples=[["here"]]
    )
    allocation: Allocation = Field(
        Allocation.FILL, strict=False, description="how its resources are spread over its backends"
    )
    priority: int = Field(0, description="queues of higher priority are served first")
    weight: float = Field(1.0, gt=0, description="its part among queues of one priority")
    default_shape: ShapeTable = Field(ShapeTable(), description="what a job that does not say is taken to need")
    limits: LimitsTable = Field(LimitsTable(), description="bounds on this queue")
    policy: PolicyTable = Field(PolicyTable(), description="how its demand becomes a number")
    retirement: RetirementTable = Field(RetirementTable(), description="when its resources are given back")


class File(Table):
    """The whole file. The tables of sources, pools and backends are checked with their plugins."""

    factory: FactoryTable = Field(description="the service itself")
    sources: dict[str, dict[str, Any]] = Field({}, description="where waiting work is counted, by name")
    pools: dict[str, dict[str, Any]] = Field({}, description="what resources join, by name")
    backends: dict[str, dict[str, Any]] = Field({}, description="what supplies resources, by name")
    queues: dict[str, QueueTable] = Field({}, description="the workflows, by name")

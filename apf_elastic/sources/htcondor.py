"""Waiting work in HTCondor: the idle jobs of one or more schedds.

Each schedd is asked once for all queues, and groups the jobs itself (``QueryOpts.GroupBy``): what comes back is one
ad per distinct tuple of the attributes that matter, so that a million idle jobs cost some kilobytes here. Two facts
about that query shape this file:

* The schedd applies the constraint to the *groups*: an attribute that is not grouped by is undefined there, whatever
  the jobs say. Everything that the constraint and the queues' selections mention is therefore grouped by.
* Requests may be expressions. An expression is grouped by its text, so what it refers to must be grouped by as well.

Counted are jobs of the vanilla universe (containers included) and of the parallel universe. Not counted are pilots of
ours, that is jobs with a factory's mark, and what late materialisation has not yet put into the queue. Waiting is
JobStatus 1, running 2, 6 (transferring output) and 7 (suspended), held 5. How long a job has waited is the time since
its submission (QDate), by the schedd's own clock: time spent held or running before counts too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from apf_elastic.condor.classads import both, check_expression
from apf_elastic.condor.link import CondorLink
from apf_elastic.condor.options import CondorOptions, ping_schedd, schedd_label
from apf_elastic.condor.shapes import Odd, order, shape_of
from apf_elastic.contracts import CallError, Context, Selection
from apf_elastic.model import Demand, JobGroup, Shape

WAITING, RUNNING, HELD = frozenset({1}), frozenset({2, 6, 7}), frozenset({5})
_COUNTED = (
    "(JobUniverse == 5 || JobUniverse == 11) && JobStatus != 3 && JobStatus != 4 && ApfElasticFactory =?= undefined"
)
_ROUNDS = 3  # an expression that refers to an expression that ... is followed so far
_CONFIRMATIONS = 3  # so many lists in a row must agree that a schedd has gone
_COARSE_FOR_S = 1800.0
_MOST_AGES = 200
_MOST_NOTES = 20


class ShapeExpressions(BaseModel):
    """ClassAd expressions over a job's ad. Amounts in the unit of the name; undefined: the default shape's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cores: str = "RequestCpus"
    memory_mb: str = "RequestMemory"
    disk_mb: str = "RequestDisk / 1024.0"
    gpus: str = "RequestGPUs"
    walltime_s: str = "AllowedJobDuration ?: AllowedExecuteDuration"
    arch: str = ""

    @field_validator("*")
    @classmethod
    def _an_expression(cls, value: str) -> str:
        return check_expression(value) if value else value


class DefaultShape(BaseModel):
    """What a job is taken to need in a dimension of which it says nothing, or nonsense."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cores: int = Field(default=1, ge=1)
    memory_mb: int = Field(default=0, ge=0)
    disk_mb: int = Field(default=0, ge=0)
    gpus: int = Field(default=0, ge=0)
    walltime_s: int | None = Field(default=None, ge=1)
    arch: str = ""


class HTCondorSourceOptions(CondorOptions):
    """
    schedds: names or addresses (``<host:port?sock=...>``); empty: the local one, or the only one of
        `collector`; ``*``: all of `collector`.
    constraint: a ClassAd expression; only jobs for which it is true are counted. It should use attributes
        that many jobs share.
    shape: expressions for what a job needs.
    default_shape: what is taken where they are undefined.
    timeout_s: for one schedd; the whole answer may take three times as long.
    max_groups: a schedd that answers with more groups is asked again more coarsely.
    """

    schedds: tuple[str, ...] = ()
    constraint: str = ""
    shape: ShapeExpressions = ShapeExpressions()
    default_shape: DefaultShape = DefaultShape()
    max_groups: int = Field(default=20_000, ge=100)

    @field_validator("constraint")
    @classmethod
    def _an_expression(cls, value: str) -> str:
        return check_expression(value) if value.strip() else ""


class HTCondorSource:
    """Counts the jobs of HTCondor schedds. See the module's head for what is counted."""

    Options: ClassVar[type[BaseModel]] = HTCondorSourceOptions

    def __init__(
        self, name: str, options: HTCondorSourceOptions, context: Context, queues: Mapping[str, Selection]
    ) -> None:
        self.name = name
        self.unclaimed = 0
        """Waiting jobs, at the last answer, that no queue selects."""
        self._options = options
        self._queues = dict(queues)
        self._link = CondorLink(options.endpoint())
        self._selects = [self._checked_select(queue, selection) for queue, selection in queues.items()]
        self._question = _Question(self._expressions(), self._selects, options.constraint)
        self._parse()
        self._known = _Known(set())
        self._born: dict[tuple[str, int, int], float] = {}

    def demand(self) -> Mapping[str, Demand]:
        """Raises CallError when any schedd does not answer: a partial count is unknown."""
        deadline = time.monotonic() + 3 * self._options.timeout_s
        tallies = {queue: _Tally() for queue in self._queues}
        unclaimed = 0
        for schedd in self._schedds(deadline):
            unclaimed += self._count(schedd, tallies, deadline)
            for threshold in sorted({t for s in self._queues.values() for t in s.burst_after_s if t > 0}):
                self._count_patient(schedd, threshold, tallies, deadline)
        self._find_ages(tallies, deadline)
        self.unclaimed = unclaimed
        return {queue: self._demand_of(queue, tally) for queue, tally in tallies.items()}

    def ping(self) -> str:
        """One sentence about every schedd. Raises CallError."""
        deadline = time.monotonic() + 3 * self._options.timeout_s
        return "; ".join(
            ping_schedd(self._link, schedd, self._time_for(schedd, deadline)) for schedd in self._schedds(deadline)
        )

    def close(self) -> None:
        self._link.close()

    # ------------------------------------------------------------------------------------------ construction

    def _checked_select(self, queue: str, selection: Selection) -> str:
        if not selection.select.strip():
            return "true"
        try:
            return check_expression(selection.select)
        except ValueError as error:
            raise ValueError(f"source {self.name}: select of queue {queue}: {error}") from None

    def _expressions(self) -> dict[str, str]:
        return {name: text for name, text in self._options.shape if text}

    def _parse(self) -> None:
        """HTCondor's own parser has the last word, and tells the attributes."""
        question = self._question
        texts = [*question.expressions.values(), *question.selects, question.constraint or "true"]
        answers = self._link.call("parse", {"expressions": texts}, self._options.timeout_s)
        for text, names in zip(texts, answers, strict=True):
            if names is None:
                raise ValueError(f"source {self.name}: not a ClassAd expression: {text}")
        question.references.update(zip(texts, answers, strict=True))

    # ------------------------------------------------------------------------------------------------ asking

    def _schedds(self, deadline: float) -> Sequence[str]:
        wanted = self._options.schedds
        if "*" not in wanted:
            return wanted or ("",)
        asked = {"kind": "Schedd", "constraint": "true", "projection": ["Name"]}
        timeout = self._time_for("", deadline)
        names = {str(ad["Name"]) for ad in self._link.call("ads", asked, timeout) if "Name" in ad}
        return sorted(self._known.update(names, str(self._link.endpoint)))

    def _time_for(self, schedd: str, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left < 0.5:
            raise CallError(f"{schedd_label(self._link, schedd)}: no time left to ask: raise timeout_s")
        return min(self._options.timeout_s, left)

    def _ask(self, schedd: str, deadline: float, extra: str = "", also: Iterable[str] = ()) -> dict[str, Any]:
        """Grouped rows, with everything resolved that the requests refer to."""
        for _ in range(_ROUNDS + len(self._question.expressions)):
            arguments = self._question.arguments(extra, also) | {
                "schedd": schedd,
                "limit": self._options.max_groups,
            }
            timeout = self._time_for(schedd, deadline)
            answer: dict[str, Any] = self._link.call("groups", arguments, timeout, schedd_label(self._link, schedd))
            if answer["full"] and not extra:
                self._question.coarsen(answer["distinct"], schedd_label(self._link, schedd))
            elif not self._question.learn(answer["missing"]):
                break
        return answer

    # ---------------------------------------------------------------------------------------------- counting

    def _count(self, schedd: str, tallies: Mapping[str, _Tally], deadline: float) -> int:
        unclaimed = 0
        label = schedd_label(self._link, schedd)
        for row in self._ask(schedd, deadline)["rows"]:
            if row["chosen"] is None:
                unclaimed += row["count"] if row["status"] in WAITING else 0
                continue
            shape, odd = self._shape(row)
            tallies[self._queue(row)].add(schedd, row, shape)
            self._note_odd(tallies[self._queue(row)], label, row, odd)
        for tally in tallies.values():
            tally.notes.update(dict.fromkeys(self._question.notes(), 0))
        return unclaimed

    def _count_patient(self, schedd: str, threshold: float, tallies: Mapping[str, _Tally], deadline: float) -> None:
        """Count the jobs that have waited at least `threshold` seconds; QDate makes a group of every submission."""
        patient = f"JobStatus == 1 && time() - QDate >= {threshold!r}"
        answer = self._ask(schedd, deadline, patient, ("QDate",))
        for row in answer["rows"]:
            if row["chosen"] is not None and threshold in self._queues[self._queue(row)].burst_after_s:
                tallies[self._queue(row)].add_patient(threshold, self._shape(row)[0], row["count"])
        if answer["full"]:
            text = f"{schedd_label(self._link, schedd)}: more than {self._options.max_groups} submissions wait"
            for queue, tally in tallies.items():
                if threshold in self._queues[queue].burst_after_s:
                    tally.notes[f"{text} longer than {threshold:g} s: the count is a lower bound"] = 0

    def _shape(self, row: Mapping[str, Any]) -> tuple[Shape, list[Odd]]:
        return shape_of(row["values"], Shape(**dict(self._options.default_shape)))

    def _queue(self, row: Mapping[str, Any]) -> str:
        chosen: int = row["chosen"]
        return list(self._queues)[chosen]

    def _note_odd(self, tally: _Tally, label: str, row: Mapping[str, Any], odd: Iterable[Odd]) -> None:
        job = "{}.{}".format(*row["first"])
        for one in odd:
            text = getattr(self._options.shape, one.dimension)
            note = (
                f"{label}: {one.dimension} ({text}) is {one.said}, for example in job {job}:"
                f" taken as {one.default}; jobs"
            )
            tally.notes[note] = tally.notes.get(note, 0) + row["count"]
        if row["status"] not in WAITING | RUNNING | HELD:
            note = f"{label}: JobStatus {row['status']} is unknown, for example in job {job}: counted as held"
            tally.notes[note] = tally.notes.get(note, 0) + row["count"]

    def _find_ages(self, tallies: Mapping[str, _Tally], deadline: float) -> None:
        """Look up when the first job of each group was submitted, once per job."""
        wanted = {job for tally in tallies.values() for count in tally.groups.values() for job in count.first}
        self._born = {job: born for job, born in self._born.items() if job in wanted}
        new = sorted(wanted - set(self._born), key=lambda job: job[1:])[:_MOST_AGES]
        for schedd in sorted({job[0] for job in new}):
            ids = [job[1:] for job in new if job[0] == schedd]
            timeout, label = self._time_for(schedd, deadline), schedd_label(self._link, schedd)
            ages = self._link.call("ages", {"schedd": schedd, "ids": ids}, timeout, label)
            now = time.time()
            found = {(schedd, *id_): now - age for id_, age in zip(ids, ages, strict=True) if age is not None}
            self._born.update(found)

    def _demand_of(self, queue: str, tally: _Tally) -> Demand:
        now, thresholds = time.time(), [t for t in self._queues[queue].burst_after_s if t > 0]
        groups = []
        for shape, count in sorted(tally.groups.items(), key=lambda item: order(item[0])):
            born = [self._born[job] for job in count.first if job in self._born]
            waited = tuple((t, min(count.waiting, count.patient.get(t, 0))) for t in thresholds)
            oldest = max(0.0, now - min(born)) if born else None
            groups.append(JobGroup(shape, count.waiting, count.running, count.held, oldest, waited))
        return Demand(tuple(groups), notes=tally.told())


@dataclass
class _Question:
    """What every schedd is asked: the expressions, and all attributes that must be grouped by for them."""

    expressions: dict[str, str]
    selects: Sequence[str]
    constraint: str
    references: dict[str, list[str]] = field(default_factory=dict)
    _learnt: dict[str, set[str]] = field(default_factory=dict)
    _coarse: dict[str, float] = field(default_factory=dict)

    def arguments(self, extra: str, also: Iterable[str]) -> dict[str, Any]:
        now = time.monotonic()
        self._coarse = {name: until for name, until in self._coarse.items() if until > now}
        kept = {name: text for name, text in self.expressions.items() if name not in self._coarse}
        names = ["JobStatus", "JobUniverse", "ApfElasticFactory", *also]
        for text in (*kept.values(), *self.selects, self.constraint):
            names += self.references.get(text, ())
        for name in kept:
            names += sorted(self._learnt.get(name, ()))
        return {
            "constraint": both(_COUNTED, self.constraint, extra),
            "projection": list({name.lower(): name for name in names}.values()),
            "expressions": kept,
            "selects": self.selects,
        }

    def learn(self, missing: Mapping[str, Sequence[str]]) -> bool:
        """Remember attributes that requests refer to; whether there was a new one."""
        new = False
        for name, attributes in missing.items():
            known = self._learnt.setdefault(name, set())
            new = new or not known.issuperset(attributes)
            known.update(attributes)
        return new

    def coarsen(self, distinct: Mapping[str, int], label: str) -> None:
        """Stop telling apart what has the most values. Raises CallError when nothing is left to give up."""
        worst = max(distinct, key=lambda name: distinct[name], default="")
        if not worst or distinct[worst] < 50:
            raise CallError(
                f"{label} answers with too many groups of jobs: `constraint` or `select` uses an attribute that"
                " differs from job to job, such as ClusterId: use attributes that many jobs share"
            )
        self._coarse[worst] = time.monotonic() + _COARSE_FOR_S

    def notes(self) -> list[str]:
        return [
            f"{name} ({self.expressions[name]}) differs in too many jobs: the default is taken for all"
            for name in self._coarse
        ]


@dataclass
class _Count:
    waiting: int = 0
    running: int = 0
    held: int = 0
    first: set[tuple[str, int, int]] = field(default_factory=set)
    patient: dict[float, int] = field(default_factory=dict)


@dataclass
class _Tally:
    """The jobs of one queue by shape, over all schedds."""

    groups: dict[Shape, _Count] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, schedd: str, row: Mapping[str, Any], shape: Shape) -> None:
        count = self.groups.setdefault(shape, _Count())
        if row["status"] in WAITING:
            count.waiting += row["count"]
            count.first = _earliest([*count.first, (schedd, *row["first"])])
        elif row["status"] in RUNNING:
            count.running += row["count"]
        else:
            count.held += row["count"]

    def add_patient(self, threshold: float, shape: Shape, jobs: int) -> None:
        if shape in self.groups:  # else they came after the first question
            patient = self.groups[shape].patient
            patient[threshold] = patient.get(threshold, 0) + jobs

    def told(self) -> tuple[str, ...]:
        texts = [f"{note}: {jobs}" if jobs else note for note, jobs in self.notes.items()]
        more = len(texts) - _MOST_NOTES
        return tuple(texts[:_MOST_NOTES]) + ((f"and {more} more notes",) if more > 0 else ())


def _earliest(jobs: Iterable[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
    """The first job of each schedd: ids of different schedds do not compare."""
    first: dict[str, tuple[str, int, int]] = {}
    for job in jobs:
        first[job[0]] = min(job, first.get(job[0], job))
    return set(first.values())


@dataclass
class _Known:
    """Remembers which schedds a collector listed.

    A schedd that drops out of the collector's list has more likely lost its network than its jobs. So its absence
    is an error, until some lists in a row agree.
    """

    names: set[str]
    _gone: frozenset[str] = frozenset()
    _times: int = 0

    def update(self, listed: set[str], collector: str) -> set[str]:
        """The schedds to ask. Raises CallError while the list may be short."""
        if not listed:
            raise CallError(f"{collector} lists no schedd at all")
        gone = frozenset(self.names - listed)
        self._times = self._times + 1 if gone == self._gone else 1
        self._gone = gone
        if gone and self._times < _CONFIRMATIONS:
            self.names |= listed
            raise CallError(f"{collector} no longer lists the schedd {', '.join(sorted(gone))}")
        self.names, self._gone, self._times = set(listed), frozenset(), 0
        return self.names

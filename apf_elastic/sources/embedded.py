"""Waiting work in the embedded work queue: a newcomer's first source, without any server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from apf_elastic.contracts import CallError, Context, Selection
from apf_elastic.embedded.store import Group, Store, StoreError
from apf_elastic.model import Demand, JobGroup, Shape


class EmbeddedSource:
    """Counts the tasks of one work queue. A queue's `select` is the name of the tasks' queue; an empty one takes
    every task that no other queue selects."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        directory: Path = Field(strict=False, description="where the work queue lies, on a local disk")

    def __init__(self, name: str, options: Options, context: Context, queues: Mapping[str, Selection]) -> None:
        self.name = name
        self._directory = options.directory
        self._queues = dict(queues)
        self._thresholds = tuple(sorted({s for selection in queues.values() for s in selection.burst_after_s}))
        self._selected = frozenset(selection.select for selection in queues.values() if selection.select)

    def demand(self) -> dict[str, Demand]:
        """The demand of every queue, as of one moment. Raises CallError when the work queue cannot be read."""
        try:
            with Store(self._directory) as store:
                now = store.clock()
                groups = store.groups(self._thresholds)
        except StoreError as error:
            raise CallError(str(error)) from error
        return {
            queue: Demand(tuple(_job_groups((g for g in groups if self._is_of(g, selection)), selection, now)))
            for queue, selection in self._queues.items()
        }

    def _is_of(self, group: Group, selection: Selection) -> bool:
        return group.queue == selection.select if selection.select else group.queue not in self._selected

    def close(self) -> None:
        """Nothing is kept open."""


def _job_groups(groups: Iterable[Group], selection: Selection, now: float) -> list[JobGroup]:
    """One job group per shape: the tasks of several queues may have the same."""
    by_shape: dict[Shape, list[Group]] = {}
    for group in groups:
        by_shape.setdefault(Shape(cores=group.cores, memory_mb=group.memory_mb), []).append(group)
    return [_job_group(shape, alike, selection, now) for shape, alike in sorted(by_shape.items(), key=_size)]


def _size(item: tuple[Shape, list[Group]]) -> tuple[int, int]:
    return item[0].cores, item[0].memory_mb


def _job_group(shape: Shape, groups: list[Group], selection: Selection, now: float) -> JobGroup:
    oldest = min((g.oldest_submitted_at for g in groups if g.oldest_submitted_at is not None), default=None)
    return JobGroup(
        shape=shape,
        waiting=sum(group.waiting for group in groups),
        running=sum(group.running for group in groups),
        oldest_wait_s=None if oldest is None else max(0.0, now - oldest),
        waited=tuple((s, sum(group.waited[s] for group in groups)) for s in selection.burst_after_s),
    )

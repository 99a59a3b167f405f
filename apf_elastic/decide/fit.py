"""Fitting jobs to resources: groups of equal jobs onto lots of equal resources, never job by job.

First-fit decreasing: the jobs that are hardest to place come first. A resource of several cores is shared by
several jobs, as a partitionable slot is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from apf_elastic.decide.fleet import ENDLESS, UNSTATED, Lot
from apf_elastic.model import JobGroup, Offering, Shape


@dataclass(slots=True)
class Need:
    """Waiting jobs of one shape: `left` of them have no place yet.

    With `alone`, the unit is resources that a chain asked for: each takes one resource; shape None suits any.
    `waited` counts those that have waited at least so long (seconds), see `JobGroup.waited`.
    """

    shape: Shape | None
    waiting: int
    left: int
    waited: dict[float, int] = field(default_factory=dict)
    oldest_wait_s: float | None = None
    alone: bool = False
    covered: int = 0
    granted: int = 0
    cores: int = 1
    memory_mb: int = 0
    disk_mb: int = 0
    gpus: int = 0
    walltime_s: float = 0.0
    arch: str = ""

    def __post_init__(self) -> None:
        if self.shape is not None:
            self.cores = max(1, self.shape.cores)
            self.memory_mb = self.shape.memory_mb
            self.disk_mb = self.shape.disk_mb
            self.gpus = self.shape.gpus
            self.walltime_s = float(self.shape.walltime_s or 0)
            self.arch = self.shape.arch

    def since(self, threshold_s: float) -> int:
        """How many without a place have waited at least so long. The longest waiting ones were placed first."""
        if threshold_s <= 0:
            return self.left
        placed = self.waiting - self.left
        return max(0, min(self.waiting, self.waited.get(threshold_s, 0)) - placed)


def needs_of(groups: Iterable[JobGroup], offerings: Sequence[Offering]) -> list[Need]:
    """One need per shape, the hardest to place first. Sizes are judged against the largest offering."""
    by_shape: dict[Shape, Need] = {}
    for group in groups:
        waiting = max(0, group.waiting)
        need = by_shape.get(group.shape)
        if need is None:
            need = by_shape[group.shape] = Need(group.shape, 0, 0)
        need.waiting += waiting
        need.left += waiting
        for threshold_s, count in group.waited:
            need.waited[threshold_s] = need.waited.get(threshold_s, 0) + max(0, min(waiting, count))
        if group.oldest_wait_s is not None:
            need.oldest_wait_s = max(need.oldest_wait_s or 0.0, group.oldest_wait_s)
    cores = max((o.shape.cores for o in offerings), default=0) or 1
    memory = max((o.shape.memory_mb for o in offerings), default=0) or UNSTATED
    disk = max((o.shape.disk_mb for o in offerings), default=0) or UNSTATED

    def hardest(need: Need) -> tuple[float | int | str, ...]:
        dominant = max(need.cores / cores, need.memory_mb / memory, need.disk_mb / disk)
        sizes = (need.cores, need.memory_mb, need.disk_mb)
        return (-need.gpus, -dominant, -need.walltime_s, *(-size for size in sizes), need.arch, _says(need))

    return sorted(by_shape.values(), key=hardest)


def _says(need: Need) -> int:
    return 0 if need.shape is None or need.shape.walltime_s is None else 1


@dataclass(slots=True)
class Bins:
    """`count` equal resources, each with this much room left. `lot` is set while no job is packed on them."""

    stage: int
    cores: int
    memory_mb: int
    disk_mb: int
    gpus: int
    lifetime_s: float
    arch: str
    count: int
    lot: Lot | None = None

    def holds(self, need: Need) -> int:
        """How many such jobs one of them can take."""
        return _holds(need, self.cores, self.memory_mb, self.disk_mb, self.gpus, self.lifetime_s, self.arch)

    def rest(self, need: Need, jobs: int) -> float:
        """What `jobs` such jobs leave of one of them, in the sizes of such a job, over all dimensions it asks for."""
        rest = self.cores / need.cores - jobs
        if need.memory_mb:
            rest += self.memory_mb / need.memory_mb - jobs
        if need.disk_mb:
            rest += self.disk_mb / need.disk_mb - jobs
        return rest

    def filled(self, need: Need, jobs: int, count: int) -> Bins:
        """`count` of them after `jobs` such jobs were packed on each."""
        return Bins(
            self.stage,
            self.cores - jobs * need.cores,
            self.memory_mb - jobs * need.memory_mb,
            self.disk_mb - jobs * need.disk_mb,
            self.gpus - jobs * need.gpus,
            self.lifetime_s,
            self.arch,
            count,
        )


def _holds(need: Need, cores: int, memory_mb: int, disk_mb: int, gpus: int, lifetime_s: float, arch: str) -> int:
    jobs = cores // need.cores
    if jobs <= 0 or need.walltime_s > lifetime_s or (need.arch and arch and need.arch != arch):
        return 0
    if need.memory_mb:
        jobs = min(jobs, memory_mb // need.memory_mb)
    if need.disk_mb:
        jobs = min(jobs, disk_mb // need.disk_mb)
    if need.gpus:
        jobs = min(jobs, gpus // need.gpus)
    return max(0, jobs)


def bins_of_lot(lot: Lot) -> Bins:
    cores, memory_mb, disk_mb, gpus, arch, lifetime_s = lot.room
    return Bins(lot.stage, cores, memory_mb, disk_mb, gpus, lifetime_s, arch, len(lot.members), lot)


def bins_of_offering(offering: Offering, count: int = 1) -> Bins:
    """`count` new resources. Memory or disk that an offering does not state (0) suits every job."""
    it = offering.shape
    lifetime_s = ENDLESS if it.walltime_s is None else float(it.walltime_s)
    return Bins(0, it.cores, it.memory_mb or UNSTATED, it.disk_mb or UNSTATED, it.gpus, lifetime_s, it.arch, count)


def fits(offering: Offering, need: Need) -> bool:
    """Whether one such job could ever run on such a resource."""
    if need.shape is None:
        return True
    it = offering.shape
    lifetime_s = ENDLESS if it.walltime_s is None else float(it.walltime_s)
    memory_mb, disk_mb = it.memory_mb or UNSTATED, it.disk_mb or UNSTATED
    return _holds(need, it.cores, memory_mb, disk_mb, it.gpus, lifetime_s, it.arch) > 0


def pack(needs: Sequence[Need], bins: list[Bins]) -> list[int]:
    """Place jobs on what there is; returns how many of each need. Takes them off `Need.left`.

    For each need the tightest of the bins that hold it comes first; bins appear in `bins` as they are split.
    """
    placed = []
    for need in needs:
        before = need.left
        if before:
            for one, jobs in _tightest(need, bins):
                _place(need, one, jobs, bins)
                if not need.left:
                    break
        placed.append(before - need.left)
    return placed


def _tightest(need: Need, bins: Sequence[Bins]) -> list[tuple[Bins, int]]:
    """The bins that hold a need, with how many jobs each: those first in which the jobs leave least."""
    fitting = [(one, jobs) for one in bins if one.count and (jobs := one.holds(need))]
    if len(fitting) > 1:
        fitting.sort(
            key=lambda item: (
                item[0].stage,
                item[0].gpus - need.gpus,
                item[0].rest(need, item[1]),
                item[0].cores,
                item[0].memory_mb,
                item[0].lifetime_s,
            )
        )
    return fitting


def _place(need: Need, one: Bins, jobs: int, bins: list[Bins]) -> None:
    whole = min(one.count, need.left // jobs)
    if whole:
        one.count -= whole
        need.left -= whole * jobs
        bins.append(one.filled(need, jobs, whole))
    rest = min(need.left, jobs)
    if rest and one.count:
        one.count -= 1
        need.left -= rest
        bins.append(one.filled(need, rest, 1))


def close_lots(bins: Iterable[Bins]) -> None:
    """Write into each lot how many of its resources had no job packed on."""
    for one in bins:
        if one.lot is not None:
            one.lot.untouched = one.count


# --------------------------------------------------------------------------------------------------- why it does not


def misfit(need: Need, offerings: Sequence[Offering]) -> str:
    """Which dimension keeps a job from every offering, in words."""
    shapes = [offering.shape for offering in offerings]
    largest = max(shape.cores for shape in shapes)
    if need.cores > largest:
        return f"asks for {_cores(need.cores)}; the largest offering here is {_cores(largest)}"
    most = max(shape.memory_mb or UNSTATED for shape in shapes)
    if need.memory_mb > most:
        return f"asks for {need.memory_mb} MB of memory; the largest offering here has {most} MB"
    most = max(shape.disk_mb or UNSTATED for shape in shapes)
    if need.disk_mb > most:
        return f"asks for {need.disk_mb} MB of disk; the largest offering here has {most} MB"
    most = max(shape.gpus for shape in shapes)
    if need.gpus > most:
        return f"asks for {_gpus(need.gpus)}; " + (
            f"the largest offering here has {most}" if most else "none here has any"
        )
    longest = max(ENDLESS if shape.walltime_s is None else shape.walltime_s for shape in shapes)
    if need.walltime_s > longest:
        return f"asks for {need.walltime_s:.0f} s; the longest offering here lives {longest:.0f} s"
    if need.arch and all(shape.arch not in ("", need.arch) for shape in shapes):
        return f"asks for {need.arch}; the offerings here are {', '.join(sorted({s.arch for s in shapes}))}"
    return f"asks for {need.shape}; no single offering here has all of that"


def _cores(count: int) -> str:
    return f"{count} core" + ("" if count == 1 else "s")


def _gpus(count: int) -> str:
    return f"{count} GPU" + ("" if count == 1 else "s")

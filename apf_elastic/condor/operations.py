"""What the helper process can do: small functions over plain data, each around a few bindings calls.

Values of ClassAds become plain: numbers, strings, booleans, lists; undefined is None, and an expression that
evaluates to an error, or to nothing JSON knows, is ``{"error": its text}``. Only the helper process calls these:
nothing here is imported with the bindings, so that the service's own process never loads them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Plain = Any
"""What JSON can say."""


class Failure(Exception):
    """A complete sentence for the user."""


_LITERALS = frozenset({int, float, str, bool})


class Htcondor:
    """The bindings, of either generation, and the collector that is asked."""

    def __init__(self, htcondor: Any, classad: Any, collector: str) -> None:
        self.htcondor, self.classad = htcondor, classad
        self._collector = collector
        self._schedd_type = getattr(htcondor, "DaemonType", None) or htcondor.DaemonTypes
        self.errors: tuple[type[Exception], ...] = (
            getattr(htcondor, "HTCondorException", RuntimeError),
            getattr(classad, "ClassAdException", ValueError),
            *((RuntimeError, ValueError, OSError, SyntaxError) if htcondor.__name__ == "htcondor" else ()),
        )

    def limit_waiting(self, timeout_s: float) -> None:
        """Let the bindings give up by themselves, with a reason, before we are killed without one."""
        seconds = str(max(1, int(timeout_s)))
        for name in ("QUERY_TIMEOUT", "Q_QUERY_TIMEOUT"):
            self.htcondor.param[name] = seconds

    @property
    def collector(self) -> Any:
        return self.htcondor.Collector(self._collector) if self._collector else self.htcondor.Collector()

    def schedd(self, name: str) -> Any:
        """By name, by address (``<...>``), or, empty, the local one or else the only one of the collector."""
        if name.startswith("<"):
            return self.htcondor.Schedd(self._ad_for(name))
        if name:
            found = self.collector.locate(self._schedd_type.Schedd, name)
            if found is None:
                raise Failure(f"collector {self._collector} knows no schedd {name}: is it running?")
            return self.htcondor.Schedd(found)
        if not self._collector:
            return self.htcondor.Schedd()
        ads = list(self.collector.locateAll(self._schedd_type.Schedd))
        if len(ads) != 1:
            names = ", ".join(sorted(str(ad.get("Name")) for ad in ads)) or "none"
            raise Failure(f"collector {self._collector} has {len(ads)} schedds ({names}): name the one to use")
        return self.htcondor.Schedd(ads[0])

    def _ad_for(self, address: str) -> Any:
        ad = self.classad.ClassAd()
        version = self.htcondor.version()
        ad.update({"MyType": "Scheduler", "Name": address, "MyAddress": address, "CondorVersion": version})
        return ad

    def tree(self, text: str) -> Any:
        return self.classad.ExprTree(text)

    def plain(self, ad: Any) -> dict[str, Plain]:
        # Most are literals: those need no evaluation, and a pool has thousands of ads.
        return {name: value if type(value) in _LITERALS else self.value(ad, name) for name, value in ad.items()}

    def value(self, ad: Any, name: str) -> Plain:
        if name not in ad:
            return None
        return self._plain(ad.eval(name), lambda: str(ad.lookup(name)))

    def evaluate(self, tree: Any, ad: Any) -> Plain:
        return self._plain(tree.eval(ad), lambda: str(tree))

    def _plain(self, value: Any, text: Callable[[], str]) -> Plain:
        if value is None:
            return None
        # Before comparing: these are numbers too, and Undefined == 2.
        if isinstance(value, self.classad.Value):
            return None if value is self.classad.Value.Undefined else {"error": " ".join(text().split())[:200]}
        if isinstance(value, bool | str) or type(value) in (int, float):
            return value
        if isinstance(value, self.classad.ExprTree):  # an item of a list
            return self._plain(value.eval(), text)
        if isinstance(value, list | tuple):
            return [self._plain(item, text) for item in value]
        return {"error": " ".join(text().split())[:200]}


def load(collector: str) -> Htcondor:
    """Raises Failure when the bindings are not installed."""
    found = _bindings("htcondor2", "classad2")
    if found is None or _major(found[0]) < 25:
        # The second generation of 24 cannot submit a list of jobs.
        found = _bindings("htcondor", "classad") or found
    if found is None:
        raise Failure("HTCondor's Python bindings are not installed: pip install 'apf-elastic[htcondor]'")
    # Without their log, the bindings' exceptions do not tell a dead collector from a refused token.
    found[0].param["TOOL_DEBUG"] = "D_ERROR"
    found[0].enable_debug()
    return Htcondor(found[0], found[1], collector)


def _bindings(*names: str) -> list[Any] | None:
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError:
        return None


def _major(htcondor: Any) -> int:
    """25 of ``$CondorVersion: 25.14.1 2026-09-24 ...``."""
    words = str(htcondor.version()).split()
    return int(words[1].split(".")[0]) if len(words) > 1 and words[1][:1].isdigit() else 0


# ------------------------------------------------------------------------------------------------ expressions


def parse(pool: Htcondor, expressions: Sequence[str]) -> list[list[str] | None]:
    """The attributes that each expression takes from an ad; None for one that is no ClassAd expression."""
    return [_references(pool, text) for text in expressions]


def _references(pool: Htcondor, text: str) -> list[str] | None:
    try:
        tree = pool.tree(text)
    except pool.errors:
        return None
    return _own_names(pool.classad.ClassAd().externalRefs(tree))


def _own_names(references: Iterable[str]) -> list[str]:
    """Without what belongs to the machine (TARGET) or is a part of a nested ad."""
    names = (reference.removeprefix("MY.").split(".") for reference in references)
    return sorted({parts[0] for parts in names if parts[0].upper() != "TARGET" and parts[0]})


# ----------------------------------------------------------------------------------------------------- demand


def groups(
    pool: Htcondor,
    schedd: str,
    constraint: str,
    projection: Sequence[str],
    expressions: Mapping[str, str],
    selects: Sequence[str],
    limit: int,
) -> dict[str, Plain]:
    """Count jobs by what `expressions` and JobStatus evaluate to, and by the first of `selects` that is true.

    The schedd groups by the raw attributes of `projection` and applies `constraint` to the *groups*: whatever it
    mentions must be in the projection. `missing` names, for each expression, attributes that jobs refer to and the
    answer lacks. `distinct` counts the values of each expression, `full` tells that `limit` groups came: there may
    be more.
    """
    options = pool.htcondor.QueryOpts.GroupBy
    ads = pool.schedd(schedd).query(constraint, list(projection), opts=options, limit=limit)
    trees = {name: pool.tree(text) for name, text in expressions.items()}
    wanted = {name: _own_names(pool.classad.ClassAd().externalRefs(tree)) for name, tree in trees.items()}
    choices = [pool.tree(text) for text in selects]
    asked = {name.lower() for name in projection}
    missing: dict[str, set[str]] = {name: set() for name in trees}
    rows: dict[str, dict[str, Plain]] = {}
    for ad in ads:
        values = {name: pool.evaluate(tree, ad) for name, tree in trees.items()}
        for name, attributes in wanted.items():
            missing[name].update(_unresolved(ad, attributes, asked))
        chosen = next((i for i, tree in enumerate(choices) if pool.evaluate(tree, ad) is True), None)
        _count(rows, ad, values, pool.value(ad, "JobStatus"), chosen)
    kept = list(rows.values())
    return {
        "rows": kept,
        "missing": {name: sorted(found) for name, found in missing.items() if found},
        "distinct": {name: len({repr(row["values"][name]) for row in kept}) for name in trees},
        "full": len(ads) >= limit,
    }


def _unresolved(ad: Any, attributes: Iterable[str], asked: set[str]) -> set[str]:
    """Attributes that the expressions of this ad refer to and that were never asked for."""
    found: set[str] = set()
    for attribute in attributes:
        if attribute in ad:
            found.update(name for name in _own_names(ad.externalRefs(ad.lookup(attribute))))
    return {name for name in found if name.lower() not in asked}


def _count(
    rows: dict[str, dict[str, Plain]], ad: Any, values: dict[str, Plain], status: Plain, chosen: int | None
) -> None:
    status = status if isinstance(status, int) else None
    key = repr((chosen, status, values))
    first = _job_id(str(ad.get("JobIds", "")))
    row = rows.setdefault(key, {"values": values, "status": status, "chosen": chosen, "count": 0, "first": first})
    row["count"] += int(ad.get("JobCount", 0))
    row["first"] = min(row["first"], first)


def _job_id(ids: str) -> list[int]:
    """The smallest id of a group: ids grow with time, and the schedd lists them in order (``3.0 ... 61.999``)."""
    first = ids.split()[0] if ids.split() else "0.0"
    cluster, _, proc = first.partition(".")
    return [int(cluster), int(proc or 0)]


def ages(pool: Htcondor, schedd: str, ids: Sequence[Sequence[int]]) -> list[float | None]:
    """Seconds since each job was submitted, by the schedd's clock; None for one that has left the queue."""
    there, result = pool.schedd(schedd), []
    for cluster, proc in ids:
        # This form the schedd looks up in its index; any other would make it walk through the queue.
        found = there.query(f"ClusterId == {cluster} && ProcId == {proc}", ["QDate", "ServerTime"])
        dates = [(ad.get("QDate"), ad.get("ServerTime")) for ad in found]
        result.append(next((float(now - then) for then, now in dates if then and now), None))
    return result


# ------------------------------------------------------------------------------------------------- collectors


def ads(pool: Htcondor, kind: str, constraint: str, projection: Sequence[str]) -> list[dict[str, Plain]]:
    """Ads of a collector; `kind` is a member of AdTypes."""
    adtype = getattr(pool.htcondor.AdTypes, kind)
    return [pool.plain(ad) for ad in pool.collector.query(adtype, constraint, list(projection))]


def advertise(pool: Htcondor, command: str, ad: Mapping[str, Plain]) -> None:
    made = pool.classad.ClassAd()
    made.update(dict(ad))
    pool.collector.advertise([made], command)


# ------------------------------------------------------------------------------------------------------- jobs


def jobs(
    pool: Htcondor, schedd: str, constraint: str, projection: Sequence[str], limit: int = -1
) -> list[dict[str, Plain]]:
    found = pool.schedd(schedd).query(constraint, list(projection), limit=limit)
    return [pool.plain(ad) for ad in found]


def totals(pool: Htcondor, schedd: str) -> dict[str, Plain]:
    """The schedd's own count of its jobs, by state."""
    return pool.plain(pool.schedd(schedd).query("false", [], opts=pool.htcondor.QueryOpts.SummaryOnly)[0])


def act(pool: Htcondor, schedd: str, action: str, constraint: str, reason: str) -> dict[str, Plain]:
    """Hold, Remove, RemoveX ... every job for which `constraint` is true; returns the schedd's counts."""
    verb = getattr(pool.htcondor.JobAction, action)
    return pool.plain(pool.schedd(schedd).act(verb, constraint, reason))


def history(
    pool: Htcondor, schedd: str, constraint: str, projection: Sequence[str], limit: int
) -> list[dict[str, Plain]]:
    """Jobs that have left the queue, the last ones first."""
    return [pool.plain(ad) for ad in pool.schedd(schedd).history(constraint, list(projection), match=limit)]


def submit(pool: Htcondor, schedd: str, description: str, items: Sequence[Mapping[str, str]]) -> dict[str, Plain]:
    """One cluster with one job per item, in one transaction; an item's values are macros of the description.

    An error does not say whether the transaction was committed: look for the jobs. The schedd serves one client at a
    time, so that what it does not have after that, it never will.
    """
    text = pool.htcondor.Submit(description + "\nqueue\n")
    result = pool.schedd(schedd).submit(text, itemdata=iter([dict(item) for item in items]))
    return {"cluster": result.cluster(), "procs": result.num_procs()}


OPERATIONS: Mapping[str, Callable[..., Plain]] = {
    operation.__name__: operation
    for operation in (parse, groups, ages, ads, advertise, jobs, totals, act, history, submit)
}

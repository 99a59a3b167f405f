"""An HTCondor pool that glideins join: who has joined, who is busy, who is idle; drains; the key to the door.

What a glidein says comes from its slot ads in the collector, one query for all. HTCondor keeps the ad of a glidein
that died until it expires, 15 minutes after its last update. Therefore: an ad that is older than three updates and
a half is *stale*; its glidein is still reported, but offers nothing and is not idle, so that nobody counts on it and
nobody retires it; an ad older than ten updates, and 15 minutes at least, is not reported.

Ages are taken from one machine's clock each: on the node from its own MyCurrentTime, since then from the collector's
LastHeardFrom, and the collector's clock is compared with ours whenever the lease is renewed.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, Field, field_validator

from apf_elastic.condor.classads import both, check_expression, equals
from apf_elastic.condor.link import CondorLink
from apf_elastic.condor.options import CondorOptions, version_number
from apf_elastic.condor.tools import Tools
from apf_elastic.contracts import CallError, Context, Payload
from apf_elastic.glidein import LEASE_NAME, START_SCRIPT
from apf_elastic.model import Resource, Shape, Slot

T = TypeVar("T")

log = logging.getLogger(__name__)

STALE_UPDATES = 3.5
FORGOTTEN_UPDATES = 10
FORGOTTEN_S = 900.0
"""CLASSAD_LIFETIME's default."""

_DRAINS_AT_ONCE = 8
_TOKENS_AT_ONCE = 4
_JITTER_S = 3.0
_ENDLESS_S = 7 * 86400

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+-]{0,255}")
_WORD = re.compile(r"[A-Za-z0-9._@:/+-]{1,200}")
_AUTHORIZATIONS = ("READ", "ADVERTISE_STARTD", "ADVERTISE_MASTER")
_ATTRIBUTES = (
    *("Name", "Machine", "SlotType", "State", "Activity", "Draining", "Cpus", "Memory", "Disk", "GPUs"),
    *("ChildName", "NumDynamicSlots", "NumDynamicSlotsTime", "EnteredCurrentState", "DaemonStartTime"),
    *("MyCurrentTime", "LastHeardFrom", "AuthenticatedIdentity"),
    *("ApfElasticId", "ApfElasticQueue", "ApfElasticBackend", "ApfElasticOffering", "ApfElasticEnds"),
)
_LEAVING_STATES = frozenset({"Drained", "Draining"})
_LEAVING_ACTIVITIES = frozenset({"Retiring", "Vacating"})


class HTCondorPoolOptions(CondorOptions):
    """
    collector: ``host:port``, as glideins reach it too.
    bin_dir: where condor_drain and condor_token_create are; default: PATH.
    signing_key: the name of the pool's key, with which tokens are signed.
    password_dir: the directory with that key, 0700, the key 0600, both of the service's user; default: what the
        configuration says.
    trust_domain: the issuer to write into tokens; default: what the configuration says.
    domain: what follows the @ in identities: the pool's UID_DOMAIN.
    identity: of a resource's token, before the @. The pool's ALLOW_ADVERTISE_STARTD and _MASTER must allow it.
    verify_identity: ignore ads of a glidein that logged in with another one's token. Switch it off when the
        collector maps identities.
    token_lifetime_s: how long a resource may wait to start; its life is added (`walltime_s`, else a week).
    idle_s, lease_s, job_limit_s, hold_s, update_s, start, network, overcommit: see glidein/README.md.
    node_condor: HTCondor's directory on the node; default: found on its PATH.
    checks: an executable of ours, sent along, that tests the node.
    glidein_config: a file of ours, sent along: HTCondor configuration that has the last word.
    """

    bin_dir: Path | None = None
    signing_key: str = Field(default="POOL", pattern=r"^[A-Za-z0-9._-]+$")
    password_dir: Path | None = None
    trust_domain: str = ""
    domain: str = Field(pattern=r"^[A-Za-z0-9.-]+$")
    identity: str = Field(default="glidein-{id}", pattern=r"^([A-Za-z0-9._-]|\{id\})+$")
    verify_identity: bool = True
    token_lifetime_s: int = Field(default=2 * 86400, ge=60)
    idle_s: int = Field(default=300, ge=0)
    lease_s: int = Field(default=3600, ge=60)
    job_limit_s: int = Field(default=86400, ge=0)
    hold_s: int = Field(default=1200, ge=0)
    update_s: int = Field(default=120, ge=1)
    node_condor: str = ""
    network: str = ""
    start: str = "True"
    checks: Path | None = None
    glidein_config: Path | None = None
    overcommit: bool = False

    @field_validator("collector")
    @classmethod
    def _given(cls, value: str) -> str:
        if not value:
            raise ValueError("say where the collector is: glideins must be told")
        return value

    @field_validator("start")
    @classmethod
    def _a_start_expression(cls, value: str) -> str:
        if not value.isprintable() or "$" in value or "\\" in value:
            raise ValueError("one line without $ and backslash")
        return check_expression(value)

    @field_validator("checks", "glidein_config")
    @classmethod
    def _a_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"{value} is not a file")
        return value


class HTCondorPool:
    """Asks the collector, drains with condor_drain, makes each resource a token of its own."""

    Options: ClassVar[type[BaseModel]] = HTCondorPoolOptions

    def __init__(self, name: str, options: HTCondorPoolOptions, context: Context) -> None:
        self.name = name
        self.lease_s = float(options.lease_s)
        self._options = options
        self._factory = context.factory
        self._link = CondorLink(options.endpoint())
        self._tools = Tools(options.bin_dir, self._tool_environment())
        self._clock = _CollectorClock()
        self._startds: dict[str, str] = {}
        self._idle_since: dict[str, float] = {}
        self._impostors: set[tuple[str, str]] = set()

    # ------------------------------------------------------------------------------------------------- slots

    def slots(self) -> Sequence[Slot]:
        """One entry per glidein of this factory in the collector. Raises CallError."""
        ads = self._ads(list(_ATTRIBUTES))
        now = time.time()
        honest = [ad for ad in ads if self._is_honest(ad)]
        seen = [read_glidein(ads, self._clock.to_collector(now)) for ads in _by_id(honest)]
        forgotten = max(FORGOTTEN_S, FORGOTTEN_UPDATES * self._options.update_s)
        alive = [glidein for glidein in seen if glidein.age_s <= forgotten]
        self._check_collector_has_all(set(self._startds) - {glidein.id for glidein in alive})
        self._startds = {glidein.id: glidein.startd for glidein in alive}
        self._idle_since = {id_: since for id_, since in self._idle_since.items() if id_ in self._startds}
        stale_s = STALE_UPDATES * self._options.update_s
        return [glidein.slot(self._steady_idle_since(glidein, now), stale_s) for glidein in alive]

    def _check_collector_has_all(self, missing: set[str]) -> None:
        """A collector that has just started knows only who has updated since. Raises CallError."""
        if not missing:
            return
        asked = {"kind": "Collector", "constraint": "true", "projection": ["StatsLifetime"]}
        for ad in self._link.call("ads", asked, self._options.timeout_s):
            age_s = _number(ad, "StatsLifetime")
            if age_s is not None and age_s < 2 * self._options.update_s:
                raise CallError(
                    f"{self._link.endpoint} started {age_s:.0f} s ago and lacks {len(missing)} glideins: it has not"
                    " heard from all yet"
                )

    def _ads(self, projection: Sequence[str]) -> list[dict[str, Any]]:
        asked = {
            "kind": "Startd",
            "constraint": equals("ApfElasticFactory", self._factory),
            "projection": projection,
        }
        found: list[dict[str, Any]] = self._link.call("ads", asked, self._options.timeout_s)
        return found

    def _is_honest(self, ad: Mapping[str, Any]) -> bool:
        """Whether the glidein that sent this ad may speak for that id: tokens say who they are for."""
        who, id_ = ad.get("AuthenticatedIdentity"), str(ad.get("ApfElasticId", ""))
        if not self._options.verify_identity or who is None or not id_ or who == self._identity(id_):
            return True
        if (str(who), id_) not in self._impostors:
            self._impostors.add((str(who), id_))
            log.warning(
                "pool %s: %s advertises resource %s, which is %s: ignored", self.name, who, id_, self._identity(id_)
            )
        return False

    def _steady_idle_since(self, glidein: Glidein, now: float) -> float | None:
        """On our clock; not moved by the rounding of seconds from one look to the next."""
        if glidein.idle_s is None:
            self._idle_since.pop(glidein.id, None)
            return None
        since = now - glidein.idle_s
        before = self._idle_since.get(glidein.id)
        if before is not None and abs(before - since) < _JITTER_S:
            return before
        self._idle_since[glidein.id] = since
        return since

    # ------------------------------------------------------------------------------------------------- drain

    def drain(self, ids: Sequence[str]) -> Mapping[str, str]:
        """No new job; running jobs finish; then the glidein ends. An idle one ends at once."""
        return self._at_startds(ids, ["-graceful", "-exit-on-completion", "-reason", f"apf-elastic {self._factory}"])

    def undrain(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Take new jobs again. What is not draining stays as it is."""
        return self._at_startds(ids, ["-cancel"])

    def _at_startds(self, ids: Sequence[str], arguments: Sequence[str]) -> Mapping[str, str]:
        if any(id_ not in self._startds for id_ in ids):
            self.slots()
        self._tools.find("condor_drain")  # once and clearly, not once per id

        def one(id_: str) -> str:
            startd = self._startds.get(id_)
            if startd is None:
                return "is not in the pool"
            if not _NAME.fullmatch(startd):
                return f"calls itself {startd!r}, which is no name of a startd"
            try:
                where = ["-pool", self._options.collector]
                self._tools.run("condor_drain", [*where, *arguments, startd], self._options.timeout_s)
            except CallError as error:
                return "" if "already in progress" in str(error) else str(error)
            return ""

        reasons = _in_parallel(one, ids, _DRAINS_AT_ONCE)
        return {id_: reason for id_, reason in zip(ids, reasons, strict=True) if reason}

    # ---------------------------------------------------------------------------------------------- payloads

    def payloads(self, resources: Sequence[Resource]) -> Sequence[Payload]:
        """Start script, settings and a token of its own for each resource. 60 ms each, four at a time."""
        return _in_parallel(self._payload, resources, _TOKENS_AT_ONCE)

    def payload(self, resource: Resource) -> Payload:
        return self.payloads([resource])[0]

    def _payload(self, resource: Resource) -> Payload:
        files = {"checks": self._options.checks, "glidein.conf": self._options.glidein_config}
        return Payload(
            script=START_SCRIPT,
            environment=self._environment(resource),
            files={name: path for name, path in files.items() if path is not None},
            secrets={"token": self._token(resource)},
        )

    def _environment(self, resource: Resource) -> Mapping[str, str]:
        options, shape = self._options, resource.shape
        words = {
            "ID": resource.id,
            "FACTORY": self._factory,
            "QUEUE": resource.queue,
            "BACKEND": resource.backend,
            "OFFERING": resource.offering,
        }
        for name, word in words.items():
            if not _WORD.fullmatch(word):
                raise CallError(f"{name.lower()} {word!r}: only letters, digits and . _ @ : / + - can be published")
        settings = {
            "COLLECTOR": options.collector,
            "TOKEN": "./token",
            "CORES": shape.cores,
            "MEMORY_MB": shape.memory_mb,
            "DISK_MB": shape.disk_mb,
            "GPUS": shape.gpus,
            "IDLE_S": options.idle_s,
            "WALLTIME_S": shape.walltime_s or 0,
            "JOB_LIMIT_S": options.job_limit_s,
            "LEASE_S": options.lease_s,
            "HOLD_S": options.hold_s,
            "UPDATE_S": options.update_s,
            "OVERCOMMIT": int(options.overcommit),
            "CONDOR": options.node_condor,
            "NETWORK": options.network,
            "DOMAIN": options.domain,
            "START": options.start,
            "CHECKS": "./checks" if options.checks else "",
            "CONFIG": "./glidein.conf" if options.glidein_config else "",
        }
        return {f"GLIDEIN_{name}": str(value) for name, value in (words | settings).items() if value != ""}

    def _identity(self, id_: str) -> str:
        return f"{self._options.identity.format(id=id_)}@{self._options.domain}"

    def _token(self, resource: Resource) -> bytes:
        life_s = self._options.token_lifetime_s + (resource.shape.walltime_s or _ENDLESS_S)
        arguments = ["-identity", self._identity(resource.id), "-key", self._options.signing_key]
        for level in _AUTHORIZATIONS:
            arguments += ["-authz", level]
        arguments += ["-lifetime", str(life_s)]
        token = self._tools.run("condor_token_create", arguments, self._options.timeout_s).strip()
        if token.count(".") != 2 or token.split() != [token]:
            raise CallError("condor_token_create did not print a token")
        return token.encode() + b"\n"

    def _tool_environment(self) -> dict[str, str]:
        result = self._options.endpoint().environment()
        directory = self._options.password_dir
        if directory is not None:
            result["_CONDOR_SEC_PASSWORD_DIRECTORY"] = str(directory)
            result["_CONDOR_SEC_TOKEN_POOL_SIGNING_KEY_FILE"] = str(directory / "POOL")
        if self._options.trust_domain:
            result["_CONDOR_TRUST_DOMAIN"] = self._options.trust_domain
        return result

    # ------------------------------------------------------------------------------------------ lease, health

    def renew_lease(self) -> None:
        """Advertise a number that grows. Raises CallError."""
        now = time.time()
        ad = {
            "MyType": "Generic",
            "Name": LEASE_NAME.format(factory=self._factory),
            "ApfElasticLease": self._factory,
            "ApfElasticLeaseSerial": int(now),
            "ClassAdLifetime": 2 * self._options.lease_s + 900,
        }
        timeout = self._options.timeout_s
        self._link.call("advertise", {"command": "UPDATE_AD_GENERIC", "ad": ad}, timeout)
        asked = {
            "kind": "Generic",
            "constraint": both(equals("ApfElasticLease", self._factory), equals("Name", str(ad["Name"]))),
            "projection": ["ApfElasticLeaseSerial", "LastHeardFrom"],
        }
        found = self._link.call("ads", asked, timeout)
        if not any(one.get("ApfElasticLeaseSerial") == int(now) for one in found):
            raise CallError(f"{self._link.endpoint} took our lease and does not show it")
        self._clock.compare(ours=now, theirs=found[0].get("LastHeardFrom"))

    def ping(self) -> str:
        """One sentence about the pool. Raises CallError."""
        asked = {"kind": "Collector", "constraint": "true", "projection": ["CondorVersion"]}
        collectors = self._link.call("ads", asked, self._options.timeout_s)
        version = version_number(collectors[0].get("CondorVersion")) if collectors else "unknown version"
        ids = {ad.get("ApfElasticId") for ad in self._ads(["ApfElasticId"])}
        return f"{self._link.endpoint}, {version}, {len(ids)} glideins of {self._factory}"

    def close(self) -> None:
        self._link.close()


class Glidein:
    """What the ads of one resource say, taken together. Times are durations: no clock but its own is asked."""

    def __init__(self, ads: Sequence[Mapping[str, Any]], collector_now: float) -> None:
        newest = max(ads, key=_heard)
        roots = [ad for ad in ads if ad.get("SlotType") != "Dynamic"]
        self.id = str(newest["ApfElasticId"])
        self.age_s = max(0.0, collector_now - _heard(newest))
        self.claims = count_claims(ads)
        self.draining = any(_is_leaving(ad) for ad in ads)
        self.idle_s = None if self.claims or not roots else min(map(_unclaimed_for, roots)) + self.age_s
        self.startd = str((roots or [newest])[0].get("Name", ""))
        self._ad, self._roots = newest, roots

    def slot(self, idle_since: float | None, stale_s: float) -> Slot:
        stale = self.age_s > stale_s
        free = Shape(cores=0) if stale else self._free()
        return Slot(
            id=self.id,
            free=free,
            jobs=self.claims,
            idle_since=None if stale else idle_since,
            draining=self.draining,
            machine=str(self._ad.get("Machine", "")),
            queue=str(self._ad.get("ApfElasticQueue", "")),
            backend=str(self._ad.get("ApfElasticBackend", "")),
            offering=str(self._ad.get("ApfElasticOffering", "")),
        )

    def _free(self) -> Shape:
        """What no claim has: a partitionable slot shows only what is left of it, a static one is whole or taken."""
        open_ = [ad for ad in self._roots if ad.get("SlotType") == "Partitionable" or not _is_claimed(ad)]
        ends, now = _number(self._ad, "ApfElasticEnds"), _number(self._ad, "MyCurrentTime")
        left = None
        if ends is not None and now is not None:
            left = max(0, int(ends - now - self.age_s)) // 60 * 60  # whole minutes: not news at every look
        return Shape(
            cores=_total(open_, "Cpus"),
            memory_mb=_total(open_, "Memory"),
            disk_mb=_total(open_, "Disk") // 1024,
            gpus=_total(open_, "GPUs"),
            walltime_s=left,
        )


def read_glidein(ads: Sequence[Mapping[str, Any]], collector_now: float) -> Glidein:
    """`collector_now` is the time on the collector's clock."""
    return Glidein(ads, collector_now)


def count_claims(ads: Iterable[Mapping[str, Any]]) -> int:
    """Claims, that is jobs: claimed slots, and dynamic slots in any state.

    A partitionable slot names its children. A dynamic slot that its younger parent does not name has ended, and the
    word of it was lost; one that it names and that has no ad yet has just begun.
    """
    ads = list(ads)
    parents = [ad for ad in ads if ad.get("SlotType") == "Partitionable"]
    named = {str(child) for ad in parents for child in ad.get("ChildName") or () if isinstance(child, str)}
    told = max((_node_time(ad) for ad in parents if isinstance(ad.get("ChildName"), list)), default=-1.0)
    dynamic = {
        str(ad.get("Name"))
        for ad in ads
        if ad.get("SlotType") == "Dynamic" and (str(ad.get("Name")) in named or _node_time(ad) >= told)
    }
    others = [ad for ad in ads if ad.get("SlotType") not in ("Dynamic", "Partitionable") and _is_claimed(ad)]
    counted = max((int(_number(ad, "NumDynamicSlots") or 0) for ad in parents), default=0) if told < 0 else 0
    return max(len(dynamic | named), counted) + len(others)


def _by_id(ads: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for ad in ads:
        if isinstance(ad.get("ApfElasticId"), str):
            found.setdefault(ad["ApfElasticId"], []).append(ad)
    return [found[id_] for id_ in sorted(found)]


def _is_claimed(ad: Mapping[str, Any]) -> bool:
    # A state we do not know is no proof that nobody works there.
    return ad.get("State") not in ("Unclaimed", "Owner", "Drained", "Backfill", "Delete")


def _is_leaving(ad: Mapping[str, Any]) -> bool:
    return ad.get("Draining") is True or ad.get("State") in _LEAVING_STATES or ad.get("Activity") in _LEAVING_ACTIVITIES


def _unclaimed_for(ad: Mapping[str, Any]) -> float:
    """Seconds, on the node's clock, since its last claim ended or it started."""
    times = ["EnteredCurrentState", "DaemonStartTime"]
    if ad.get("SlotType") == "Partitionable":  # its own state never changes: its children come and go
        times = ["NumDynamicSlotsTime", "DaemonStartTime"]
    since = next((found for name in times if (found := _number(ad, name))), None)
    return max(0.0, _node_time(ad) - since) if since is not None else 0.0


def _node_time(ad: Mapping[str, Any]) -> float:
    return _number(ad, "MyCurrentTime") or 0.0


def _heard(ad: Mapping[str, Any]) -> float:
    return _number(ad, "LastHeardFrom") or 0.0


def _number(ad: Mapping[str, Any], name: str) -> float | None:
    value = ad.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _total(ads: Iterable[Mapping[str, Any]], name: str) -> int:
    return max(0, int(sum(_number(ad, name) or 0.0 for ad in ads)))


class _CollectorClock:
    """How far the collector's clock is from ours. Whole seconds are all that ads have: less is not corrected."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def compare(self, ours: float, theirs: object) -> None:
        if isinstance(theirs, int | float):
            self._ahead_s = theirs - ours if abs(theirs - ours) > 2.0 else 0.0

    def to_collector(self, ours: float) -> float:
        return ours + self._ahead_s


_S = TypeVar("_S")


def _in_parallel(do: Callable[[_S], T], things: Sequence[_S], at_once: int) -> list[T]:
    if len(things) < 2:
        return [do(thing) for thing in things]
    with ThreadPoolExecutor(min(at_once, len(things))) as workers:
        return list(workers.map(do, things))

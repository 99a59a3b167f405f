"""Resources as HTCondor jobs: to any CE through the grid universe, or to a pool as vanilla jobs.

Every job carries our marks: ApfElasticId, ApfElasticFactory, ApfElasticBackend, ApfElasticQueue, ApfElasticOffering.
They are looked up before a submission, listed by, and required for a removal.

Exactly once: creators of one backend exclude each other by a lock file, ask the schedd which of the ids it has, and
submit the others in one transaction. The helper process that submits dies with us, and the schedd serves one client
at a time: whoever asks after that sees all or nothing. Finished jobs stay in the queue for ten minutes.

A removal of a running pilot kills its payload, through Condor-C 20 s later: `delete` removes what it is told to, and
it is the cycle that never tells it to remove a busy one. With `pending_only` the schedd itself checks, in the moment
of the removal, that the job does not run.

The identity of the token is the user who owns the jobs. That user's processes read the files of a job, the token of
a glidein among them: see the options `reader` and `reader_group`.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from apf_elastic.condor.classads import both, equals, quote
from apf_elastic.condor.link import CondorLink, NoAnswer
from apf_elastic.condor.options import CondorOptions, ping_schedd, schedd_label
from apf_elastic.condor.submit import Spool, arguments_line, environment_line, string_attribute
from apf_elastic.contracts import (
    Answer,
    CallError,
    Context,
    Created,
    Deleted,
    Handle,
    Listed,
    NotDeleted,
    Refused,
    Request,
    Status,
    Uncertain,
)
from apf_elastic.model import Offering, Shape

PER_TRANSACTION = 1000
PER_REMOVAL = 500
LEAVE_IN_QUEUE_S = 600

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")
_COMMAND = re.compile(r"\+?[A-Za-z_][A-Za-z0-9_.]*")
_FIXED = frozenset(
    {
        *("executable", "arguments", "environment", "initialdir", "universe", "grid_resource", "queue"),
        *("transfer_input_files", "output", "error", "leave_in_queue", "hold", "noop_job"),
    }
)
_PROJECTION = (
    *("ClusterId", "ProcId", "JobStatus", "JobUniverse", "GridJobStatus", "GridJobId", "HoldReason", "ExitCode"),
    *("ExitBySignal", "ExitSignal", "GridResourceUnavailableTime", "NumJobStarts", "EnteredCurrentStatus"),
    *("ApfElasticId", "ApfElasticQueue", "ApfElasticOffering"),
)
_STATES = {
    1: ("IDLE", Status.PENDING),
    2: ("RUNNING", Status.RUNNING),
    3: ("REMOVED", Status.ENDED),
    4: ("COMPLETED", Status.ENDED),
    5: ("HELD", Status.HELD),
    6: ("TRANSFERRING_OUTPUT", Status.RUNNING),
    7: ("SUSPENDED", Status.RUNNING),
}
_NOT_STARTED = '(JobStatus == 1 || JobStatus == 5) && GridJobStatus =!= "RUNNING"'


def _submit_commands(value: Mapping[str, str]) -> Mapping[str, str]:
    for command, text in value.items():
        if not _COMMAND.fullmatch(command):
            raise ValueError(f"{command!r} is no submit command")
        if command.lower() in _FIXED or command.lower().startswith("+apfelastic"):
            raise ValueError(f"{command} is set by apf-elastic itself")
        if not text.isprintable():
            raise ValueError(f"{command}: must be one line")
    return value


class OfferingOptions(BaseModel):
    """One kind of resource. `submit`: further submit commands for it. `walltime_s`: it is removed an hour later."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cores: int = Field(default=1, ge=1)
    memory_mb: int = Field(default=0, ge=0)
    disk_mb: int = Field(default=0, ge=0)
    gpus: int = Field(default=0, ge=0)
    walltime_s: int | None = Field(default=None, ge=60)
    arch: str = ""
    price_per_hour: float = Field(default=0.0, ge=0)
    limit: int | None = Field(default=None, ge=0)
    start_s: float | None = Field(default=None, ge=0)
    submit: Mapping[str, str] = Field(default_factory=dict)

    _checked = field_validator("submit")(_submit_commands)


class HTCondorBackendOptions(CondorOptions):
    """
    schedd: name or address; empty: the local one, or the only one of `collector`.
    grid_resource: where grid jobs go: ``condor ce.example.org ce.example.org:9619``, ``arc https://...``,
        ``batch slurm``; empty: vanilla jobs of that schedd's own pool.
    submit: further submit commands for all offerings (``batch_queue``, ``use_scitokens``, ``+Queue`` ...).
    spool_dir: for the files of each job; default: below the state directory.
    reader: the user as whom jobs are submitted, if that is not the service's own and the service is root.
    reader_group: a group that this user and the service share, if both are ordinary users.
    keep_logs_s: the files of a job, with its output, are kept so long after it left the queue.
    force_after_s: a removed job of which its CE has not let go for so long is forgotten.
    """

    schedd: str = ""
    grid_resource: str = ""
    offerings: Mapping[str, OfferingOptions] = Field(min_length=1)
    submit: Mapping[str, str] = Field(default_factory=dict)
    spool_dir: Path | None = None
    reader: str = ""
    reader_group: str = ""
    keep_logs_s: float = Field(default=3600.0, ge=0)
    force_after_s: float = Field(default=1800.0, ge=60)

    _checked = field_validator("submit")(_submit_commands)

    @field_validator("grid_resource")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable() or "$" in value:
            raise ValueError("one line without $")
        return value.strip()

    @model_validator(mode="after")
    def _one_reader(self) -> HTCondorBackendOptions:
        if self.reader and self.reader_group:
            raise ValueError("give reader or reader_group, not both")
        return self


class HTCondorBackend:
    """Submits, lists and removes jobs of one schedd."""

    Options: ClassVar[type[BaseModel]] = HTCondorBackendOptions

    def __init__(self, name: str, options: HTCondorBackendOptions, context: Context) -> None:
        self.name = name
        self._options = options
        self._factory = context.factory
        self._ours = both(equals("ApfElasticFactory", context.factory), equals("ApfElasticBackend", name))
        self._link = CondorLink(options.endpoint())
        context.state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = context.state_dir / "submit.lock"
        self._told: frozenset[str] = frozenset()
        self._spool = Spool(options.spool_dir or context.state_dir / "jobs", options.reader, options.reader_group)

    def offerings(self) -> Sequence[Offering]:
        """As configured."""
        return [
            Offering(
                name=name,
                shape=Shape(it.cores, it.memory_mb, it.disk_mb, it.gpus, it.walltime_s, it.arch),
                price_per_hour=it.price_per_hour,
                limit=it.limit,
                start_s=it.start_s,
            )
            for name, it in self._options.offerings.items()
        ]

    def ping(self) -> str:
        """One sentence about the schedd. Raises CallError."""
        where = f" -> {self._options.grid_resource}" if self._options.grid_resource else ""
        return ping_schedd(self._link, self._options.schedd, self._options.timeout_s) + where

    def close(self) -> None:
        self._link.close()

    # ------------------------------------------------------------------------------------------------ create

    def create(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """One transaction per offering and thousand. A job that exists, waiting to ended, is answered as created."""
        answers: dict[str, Answer] = {}
        fine: dict[str, Request] = {}
        for request in requests:
            reason = self._objection(request)
            if reason:
                answers[request.id] = Refused(request.id, reason)
            else:
                fine[request.id] = request
        if fine:
            try:
                with _held(self._lock, self._options.timeout_s):
                    answers |= self._create(fine)
            except CallError as error:
                # Nothing was submitted now; but an earlier call may have been, that we now cannot see.
                answers |= {id_: Uncertain(id_, str(error)) for id_ in fine if id_ not in answers}
        return [answers[request.id] for request in requests]

    def _objection(self, request: Request) -> str:
        if not _ID.fullmatch(request.id):
            return f"id {request.id[:50]!r}: only letters, digits and . _ - are carried"
        if request.offering.name not in self._options.offerings:
            return f"backend {self.name} offers no {request.offering.name[:50]!r}"
        return ""

    def _create(self, requests: Mapping[str, Request]) -> dict[str, Answer]:
        answers: dict[str, Answer] = {
            id_: Created(id_, remote) for id_, remote in self._existing(list(requests)).items()
        }
        batches: dict[tuple[str, Path], list[dict[str, str]]] = {}
        for id_, request in requests.items():
            if id_ in answers:
                continue
            try:
                item = self._item(request)
                batches.setdefault((request.offering.name, self._spool.script(request.payload.script)), []).append(item)
            except (OSError, ValueError) as error:
                self._spool.forget(id_)
                answers[id_] = Refused(id_, str(error))
        for (offering, script), items in batches.items():
            for start in range(0, len(items), PER_TRANSACTION):
                answers |= self._submit(offering, script, items[start : start + PER_TRANSACTION])
        return answers

    def _existing(self, ids: Sequence[str]) -> dict[str, str]:
        """Which of these were submitted before: in the queue now, or gone from it again."""
        jobs = self._jobs(_among(ids), ("ClusterId", "ProcId", "ApfElasticId"))
        found = {str(job["ApfElasticId"]): self._remote_id(job) for job in jobs}
        for id_ in ids:
            if id_ not in found and self._spool.has(id_):
                remote = self._spool.submitted(id_) or self._from_history(id_)
                if remote:
                    found[id_] = remote
        return found

    def _from_history(self, id_: str) -> str:
        """For an id whose files are there and whose submission was never noted: we were killed in between."""
        constraint = both(self._ours, equals("ApfElasticId", id_))
        asked = {
            "schedd": self._options.schedd,
            "constraint": constraint,
            "projection": ["ClusterId", "ProcId"],
            "limit": 1,
        }
        jobs = self._link.call("history", asked, self._options.timeout_s, self._about())
        return self._remote_id(jobs[0]) if jobs else ""

    def _item(self, request: Request) -> dict[str, str]:
        """What differs from job to job. Raises OSError, ValueError."""
        item = {
            "apf_id": string_attribute(request.id),
            "apf_queue": string_attribute(request.queue),
            "apf_arguments": arguments_line(request.payload.arguments),
            "apf_environment": environment_line(request.payload.environment),
            "apf_directory": str(self._spool.directory(request.id)),
        }
        if not request.payload.script.is_file():
            raise FileNotFoundError(f"{request.payload.script}: there is no such script")
        files = self._spool.lay_out(request.id, request.payload)
        return item | {"apf_files": ",".join(map(str, files))}

    def _submit(self, offering: str, script: Path, items: Sequence[dict[str, str]]) -> dict[str, Answer]:
        ids = [item["apf_id"].strip('"') for item in items]
        description = describe(self._options, self._factory, self.name, offering, script)
        asked = {"schedd": self._options.schedd, "description": description, "items": items}
        try:
            done = self._link.call("submit", asked, self._options.timeout_s, self._about())
        except NoAnswer as error:
            return {id_: Uncertain(id_, str(error)) for id_ in ids}
        except CallError as error:
            return self._after_error(ids, str(error))
        if done["procs"] != len(ids):
            return self._after_error(ids, f"the schedd took {done['procs']} of {len(ids)} jobs")
        answers: dict[str, Answer] = {}
        for proc, id_ in enumerate(ids):
            remote = self._remote_id({"ClusterId": done["cluster"], "ProcId": proc})
            self._spool.note_submitted(id_, remote)
            answers[id_] = Created(id_, remote)
        return answers

    def _after_error(self, ids: Sequence[str], reason: str) -> dict[str, Answer]:
        """The connection may have broken before or after the commit: what the schedd has now, decides."""
        try:
            there = self._existing(ids)
        except CallError as error:
            return {id_: Uncertain(id_, f"{reason}; and then: {error}") for id_ in ids}
        for id_ in set(ids) - set(there):
            self._spool.forget(id_)
        return {id_: Created(id_, there[id_]) if id_ in there else Refused(id_, reason, 60.0) for id_ in ids}

    # -------------------------------------------------------------------------------------------------- list

    def list(self) -> Sequence[Listed]:
        """All jobs of this factory and backend. Raises CallError."""
        jobs = self._jobs("", _PROJECTION)
        listed = [read_job(job, self._remote_id(job)) for job in jobs if isinstance(job.get("ApfElasticId"), str)]
        self._dismiss(frozenset(entry.id for entry in listed if entry.native.startswith("COMPLETED")))
        # The files of what is just being created belong to nothing that is listed.
        self._spool.prune([entry.id for entry in listed], max(self._options.keep_logs_s, 3 * self._options.timeout_s))
        return listed

    def _dismiss(self, completed: frozenset[str]) -> None:
        """Let completed jobs leave the queue once an earlier list told their outcome."""
        told = sorted(completed & self._told)
        for start in range(0, len(told), PER_REMOVAL):
            self._act("Remove", both(self._ours, "JobStatus == 4", _among(told[start : start + PER_REMOVAL])), "done")
        self._told = completed

    def _jobs(self, constraint: str, projection: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        asked = {
            "schedd": self._options.schedd,
            "constraint": both(self._ours, constraint),
            "projection": projection,
        }
        found: Sequence[Mapping[str, Any]] = self._link.call("jobs", asked, self._options.timeout_s, self._about())
        return found

    def _remote_id(self, job: Mapping[str, Any]) -> str:
        return f"{self._options.schedd or 'local'}#{job['ClusterId']}.{job['ProcId']}"

    def _about(self) -> str:
        return schedd_label(self._link, self._options.schedd)

    # ------------------------------------------------------------------------------------------------ delete

    def delete(self, handles: Sequence[Handle]) -> Sequence[Deleted | NotDeleted]:
        """Remove by id and mark. What is still on its way out is not yet deleted: ask again. Raises CallError."""
        ours = [handle for handle in handles if _ID.fullmatch(handle.id)]
        for pending_only in (False, True):
            ids = [handle.id for handle in ours if handle.pending_only is pending_only]
            for start in range(0, len(ids), PER_REMOVAL):
                self._remove(ids[start : start + PER_REMOVAL], pending_only)
        left = self._left([handle.id for handle in ours])
        return [self._answer(handle, left.get(handle.id)) for handle in handles]

    def _remove(self, ids: Sequence[str], pending_only: bool) -> None:
        # Completed ones too: nothing else ends their time in the queue early.
        which = _NOT_STARTED if pending_only else "JobStatus != 3"
        self._act("Remove", both(self._ours, which, _among(ids)), "given back by apf-elastic")
        stuck = f"JobStatus == 3 && time() - EnteredCurrentStatus > {self._options.force_after_s!r}"
        self._act("RemoveX", both(self._ours, stuck, _among(ids)), "its CE does not let go of it")

    def _act(self, action: str, constraint: str, reason: str) -> None:
        asked = {
            "schedd": self._options.schedd,
            "action": action,
            "constraint": constraint,
            "reason": reason,
        }
        done = self._link.call("act", asked, self._options.timeout_s, self._about())
        if done.get("TotalPermissionDenied"):
            raise CallError(
                f"{self._about()} does not let our token's identity remove {done['TotalPermissionDenied']} jobs of"
                f" factory {self._factory}: were they submitted as another user?"
            )

    def _left(self, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(ids), PER_REMOVAL):
            jobs = self._jobs(_among(ids[start : start + PER_REMOVAL]), _PROJECTION)
            found.update((str(job["ApfElasticId"]), job) for job in jobs)
        return found

    def _answer(self, handle: Handle, job: Mapping[str, Any] | None) -> Deleted | NotDeleted:
        if job is None or read_job(job, "").status is Status.ENDED:
            return Deleted(handle.id)
        if job.get("JobStatus") == 3:
            return NotDeleted(handle.id, "is being removed")
        if handle.pending_only:
            return NotDeleted(handle.id, "has started")
        return NotDeleted(handle.id, f"is still {read_job(job, '').native}")


# --------------------------------------------------------------------------------------------- descriptions


def describe(options: HTCondorBackendOptions, factory: str, backend: str, offering: str, script: Path) -> str:
    """The submit description of one offering; what differs from job to job is ``$(apf_...)``."""
    it = options.offerings[offering]
    lines = {
        "universe": "grid" if options.grid_resource else "vanilla",
        "executable": str(script),
        "arguments": "$(apf_arguments)",
        "environment": "$(apf_environment)",
        "initialdir": "$(apf_directory)",
        "transfer_input_files": "$(apf_files)",
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "transfer_output_files": '""',
        "output": "out",
        "error": "err",
        "notification": "never",
        "request_cpus": str(it.cores),
        "leave_in_queue": f"JobStatus == 4 && time() - EnteredCurrentStatus < {LEAVE_IN_QUEUE_S}",
        "periodic_remove": _periodic_remove(it, bool(options.grid_resource)),
        "+ApfElasticId": "$(apf_id)",
        "+ApfElasticQueue": "$(apf_queue)",
        "+ApfElasticFactory": string_attribute(factory),
        "+ApfElasticBackend": string_attribute(backend),
        "+ApfElasticOffering": string_attribute(offering),
    }
    lines |= _requests(it)
    if options.grid_resource:
        lines["grid_resource"] = options.grid_resource
    kind = options.grid_resource.split(" ")[0].lower()
    if kind == "condor":
        lines |= _for_remote_schedd(it)
        lines |= {"+remote_ApfElasticId": "$(apf_id)", "+remote_ApfElasticFactory": string_attribute(factory)}
    elif kind == "batch" and it.walltime_s is not None:
        lines["batch_runtime"] = str(it.walltime_s)
    return "\n".join(f"{command} = {value}" for command, value in {**lines, **options.submit, **it.submit}.items())


def _requests(it: OfferingOptions) -> dict[str, str]:
    wanted = {"request_memory": it.memory_mb, "request_disk": it.disk_mb * 1024, "request_gpus": it.gpus}
    return {command: str(value) for command, value in wanted.items() if value}


def _for_remote_schedd(it: OfferingOptions) -> dict[str, str]:
    """For a plain schedd the requests themselves; for an HTCondor-CE the words that its job router reads."""
    remote = {"RequestCpus": it.cores, "RequestMemory": it.memory_mb, "RequestDisk": it.disk_mb * 1024}
    router = {"xcount": it.cores, "maxMemory": it.memory_mb, "maxWallTime": (it.walltime_s or 0) // 60}
    lines = {f"+remote_{name}": str(value) for name, value in remote.items() if value}
    if it.gpus:
        lines["+remote_RequestGPUs"] = str(it.gpus)
    return lines | {f"+{name}": str(value) for name, value in router.items() if value}


def _periodic_remove(it: OfferingOptions, grid: bool) -> str:
    """The safety net for when nobody looks: held for a day, running an hour past what was bought, run a second time."""
    reasons = ["(JobStatus == 5 && time() - EnteredCurrentStatus > 86400)"]
    if it.walltime_s is not None:
        late = it.walltime_s + 3600
        reasons.append(f"(JobStatus == 2 && time() - (JobCurrentStartDate ?: time()) > {late})")
    if not grid:  # a glidein that lost its node has been replaced when the schedd starts it again
        reasons.append("(JobStatus == 1 && NumJobStarts > 0)")
    return " || ".join(reasons)


# ---------------------------------------------------------------------------------------------------- states


def read_job(job: Mapping[str, Any], remote_id: str) -> Listed:
    """One entry of the list. A state that HTCondor does not have is pending, and its number is the reason."""
    number = job.get("JobStatus")
    word, status = f"JobStatus {number}", Status.PENDING
    if isinstance(number, int) and number in _STATES:
        word, status = _STATES[number]
    at_ce = job.get("GridJobStatus")
    if status is Status.PENDING and isinstance(at_ce, str) and at_ce.upper() == "RUNNING":
        status = Status.RUNNING
    if word == "REMOVED" and job.get("GridJobId") is not None:
        # The CE has not confirmed: what runs there still runs.
        status = Status.RUNNING if isinstance(at_ce, str) and at_ce.upper() == "RUNNING" else Status.PENDING
    return Listed(
        id=str(job.get("ApfElasticId")),
        remote_id=remote_id,
        status=status,
        native=f"{word}/{at_ce}" if isinstance(at_ce, str) else word,
        reason=_reason(job, word),
        queue=_text(job.get("ApfElasticQueue")),
        offering=_text(job.get("ApfElasticOffering")),
    )


def _reason(job: Mapping[str, Any], word: str) -> str:
    if word == "HELD":
        return _text(job.get("HoldReason"))
    if word == "COMPLETED":
        if job.get("ExitBySignal") is True:
            return f"signal {job.get('ExitSignal')}"
        return f"exit code {job.get('ExitCode')}" if job.get("ExitCode") is not None else ""
    if word == "REMOVED":
        return "being removed"
    if word.startswith("JobStatus"):
        return f"unknown {word}"
    if job.get("GridResourceUnavailableTime") is not None:
        return "HTCondor cannot reach the CE, or the CE refuses our credential"
    return ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _among(ids: Iterable[str]) -> str:
    return "identicalMember(ApfElasticId, {" + ", ".join(quote(id_) for id_ in ids) + "})"


@contextmanager
def _held(lock: Path, timeout_s: float) -> Iterator[None]:
    """Exclude other creators, in this process or another. Raises CallError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CallError(f"another process has been submitting for {timeout_s:g} s ({lock})") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)

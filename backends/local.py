"""Processes of this machine as resources: a laptop's pool, a single big node, every demonstration and test.

A resource is a directory named by our id and, for as long as it lives, a launcher: a shell of a few hundred kB that
holds a lock on the directory, records who it is, runs the payload and writes down how it ended::

    <directory>/<id>/record    factory, queue, offering: there from the directory's first moment
                     launch    the launcher's script
                     lock      held by whoever is starting it, then by the launcher until it dies
                     launcher  the launcher's line of /proc/PID/stat, written before the payload runs
                     exit      "exit 0", "killed", "never started": written once, last
                     stop      when SIGTERM was sent (CLOCK_MONOTONIC)
                     log       standard output and error, bounded
                     work/     the payload's directory and HOME, 0700, the resource's user's

Exactly once. The directory appears by one rename, complete with record and held lock, so of two creators one wins.
Whoever wants to start it must hold the lock and find neither `launcher` nor `exit`. The launcher inherits the lock's
open file description as its stdin: there is no moment at which a started resource is not locked, a creator killed
between any two steps leaves either an unlocked directory (which a second create starts, or `list` buries) or a
launcher, and the kernel lets go of the lock whenever the launcher goes, reboot included. Locks are tested without
being taken (F_OFD_GETLK), so looking disturbs nobody. A pid is believed only while the lock is held and the start
time agrees, and is signalled through a pidfd.

The resource survives the service: own session, no descriptors of ours. Under systemd the service's unit must say
``KillMode=process``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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

#: In the foreground, because a shell starts what it runs in the background with SIGINT and SIGQUIT ignored, for
#: good. The traps let it outlive a signal to its group, and are the default again in the payload. The end is that
#: of a batch job: what the script leaves in its process group goes with it.
_LAUNCHER = """\
read -r me < /proc/$$/stat && printf '%s\\n' "$me" > "${0%/*}/launcher" || exit 125
trap : HUP INT QUIT TERM
umask 022
"$@" < /dev/null
printf 'exit %s\\n' $? > "${0%/*}/exit"
kill -KILL 0
"""

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Variables that shells keep for themselves: the launcher could not hand them on as they are.
_OF_THE_SHELL = re.compile(
    r"_|BASH|BASHOPTS|BASHPID|DIRSTACK|EPOCH\w*|EUID|FUNCNAME|GROUPS|HISTCMD|IFS|LINENO|OLDPWD|OPTARG|OPTIND|PPID"
    r"|PS[124]|PWD|RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|UID"
)
#: Marks every process of a resource, in its environment.
_MARK = "APF_ELASTIC_LOCAL"

#: A directory without launcher for so long will never have one. A creator at work holds the lock, so this only
#: needs to outlast a restart of the service that asks again for what it had intended.
_YOUNG_S = 5.0
#: How long `delete` waits for all that it stops, together.
_WAIT_S = 0.5
#: How often logs are bounded and debris is removed.
_TIDY_S = 30.0
#: How long a second create of the same id waits to see the first one's launcher.
_LAUNCH_S = 0.1
_TERM_PASSES = 5
_KILL_PASSES = 10
_TRIES = 100
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def _carriable(environment: Mapping[str, str]) -> Mapping[str, str]:
    for name in environment:
        if not _VARIABLE.fullmatch(name) or _OF_THE_SHELL.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of an environment variable here")
    return environment


class LocalOffering(BaseModel):
    """One kind of local resource. `walltime_s` is enforced: SIGTERM then, SIGKILL after the stop grace.
    `start_s` is how long one usually takes to join."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cores: int = Field(1, ge=1)
    memory_mb: int = Field(0, ge=0)
    disk_mb: int = Field(0, ge=0)
    gpus: int = Field(0, ge=0)
    walltime_s: int | None = Field(None, ge=1)
    price_per_hour: float = Field(0.0, ge=0)
    limit: int | None = Field(None, ge=0)
    start_s: float = Field(5.0, ge=0)


class LocalOptions(BaseModel):
    """Its part of the configuration.

    Without `offerings` there is one, "core": a core with its share of memory, as many as the machine has.
    `directory` (default: below the state directory) holds the resources of this backend and of no other of the
    same factory. `user` runs them as that user, which only root can. `stop_grace_s` lies between SIGTERM and
    SIGKILL. `environment` is every payload's, beneath its own. What has ended stays listed, with its log, for
    `retention_s`. Of a log longer than `log_limit_mb` the second half is kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    offerings: dict[str, LocalOffering] = Field(default_factory=dict)
    directory: Path | None = None
    user: str | None = None
    stop_grace_s: float = Field(10.0, ge=0)
    environment: Annotated[dict[str, str], AfterValidator(_carriable)] = Field(default_factory=dict)
    retention_s: float = Field(600.0, ge=0)
    log_limit_mb: int = Field(10, ge=1)


class LocalBackend:
    """Runs resources as processes of this machine, also across restarts of the service."""

    Options: ClassVar[type[BaseModel]] = LocalOptions

    def __init__(self, name: str, options: LocalOptions, context: Context) -> None:
        if not os.path.exists("/proc/self/stat"):
            raise CallError(f"backend {name}: needs Linux with /proc mounted")
        self.name = name
        self._options = options
        self._factory = context.factory
        self._root = (options.directory or context.state_dir / "resources").absolute()
        self._known: dict[str, _Known] = {}
        self._stopping: dict[str, float] = {}
        self._tidied_at = 0.0
        self._way_in_checked = False
        # Made here only, so that a directory that vanishes later (unmounted?) is an error, never an empty list.
        # What is wrong with it is said when it is used.
        with suppress(OSError):
            if options.directory is None:
                os.makedirs(context.state_dir, 0o700, exist_ok=True)
            os.mkdir(self._root, 0o700 if options.user is None else 0o711)

    # ---------------------------------------------------------------------------------------------- offerings

    def offerings(self) -> Sequence[Offering]:
        configured = self._options.offerings or {"core": _core()}
        return [
            Offering(
                name=name,
                shape=Shape(it.cores, it.memory_mb, it.disk_mb, it.gpus, it.walltime_s, os.uname().machine),
                price_per_hour=it.price_per_hour,
                limit=it.limit,
                start_s=it.start_s,
            )
            for name, it in configured.items()
        ]

    # ------------------------------------------------------------------------------------------------- create

    def create(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Start each; what exists already, running or ended, is answered as created and left alone."""
        _reap()
        return [self._create(request) for request in requests]

    def _create(self, request: Request) -> Answer:
        try:
            _check(request)
            self._check_user()
            return self._make(request)
        except _Refusal as refusal:
            return Refused(request.id, str(refusal))
        except OSError as error:
            return Refused(request.id, _explain(error, self._root), 60.0 if error.errno in _DISK_FULL else None)
        except ValueError as error:  # a NUL or a lone surrogate, which no argument or variable can hold
            return Refused(request.id, f"cannot be passed to a process: {error}")

    def _make(self, request: Request) -> Answer:
        place = self._root / request.id
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):  # it was cleaned away under our eyes
                lock = self._publish(request, place)
                if lock is None:
                    self._check_mark(place)
                    lock = _take(place)
                break
        else:
            raise _Refusal(f"{place} keeps vanishing, or has lost its lock: is the disk in order?")
        if lock is None:
            if _launched(place):
                return Created(request.id, str(place))
            return Uncertain(request.id, "is being started by another process")
        try:
            if _read(place, "exit") == "never started":
                raise _Refusal("was given up before it could be started; use a new id")
            if not _read(place, "launcher"):
                self._start(request, place, lock)
        finally:
            os.close(lock)
        return Created(request.id, str(place))

    def _publish(self, request: Request, place: Path) -> int | None:
        """Make the directory, with our mark and a lock that we hold. None if it exists."""
        if os.path.lexists(place):
            return None
        if not self._root.is_dir():
            raise _Refusal(f"{self._root} is not a directory; it is made only when the service starts")
        draft = tempfile.mkdtemp(prefix=".new-", dir=self._root)
        lock = None
        try:
            lock = os.open(f"{draft}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _WHOLE_FILE)
            record = {
                "factory": self._factory,
                "queue": request.queue,
                "offering": request.offering.name,
                "secrets": [*request.payload.secrets],
            }
            _write(f"{draft}/record", json.dumps(record).encode())
            if self._options.user is not None:
                os.chmod(draft, 0o711)
            os.rename(draft, place)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            raise
        return lock

    def _check_mark(self, place: Path) -> None:
        record = _record(place)
        if record is None:
            raise _Refusal(f"{place} exists and is not a resource's directory")
        if record.factory != self._factory:
            raise _Refusal(f"is a resource of factory {record.factory!r}, which uses the same directory")

    def _start(self, request: Request, place: Path, lock: int) -> None:
        """Run the launcher. Our caller holds the lock. After an error nothing has run, and the directory is gone."""
        try:
            command = self._command(request, place)
            self._fill(request, place / "work")
            _write(f"{place}/launch", _LAUNCHER.encode())
            _spawn(command, self._environment(request, place), place, lock)
        except Exception:  # not an interrupt: that may come when the launcher is already on its way
            _discard(place)
            raise

    def _command(self, request: Request, place: Path) -> Sequence[str]:
        command = [str(place / "work" / request.payload.script.name), *request.payload.arguments]
        walltime_s = request.offering.shape.walltime_s
        if walltime_s is not None:
            grace = f"--kill-after={self._options.stop_grace_s or 0.1}"
            command = [_tool("timeout"), "--foreground", grace, str(walltime_s), *command]
        user = self._user()
        if user is not None:
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
            command = [_tool("setpriv"), *ids, "--", *command]
        return ["/bin/sh", str(place / "launch"), *command]

    def _environment(self, request: Request, place: Path) -> Mapping[str, str]:
        clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        clean |= {key: os.environ[key] for key in ("PATH", "LANG", "TZ") if key in os.environ}
        clean |= {"HOME": f"{place}/work", "TMPDIR": f"{place}/work/tmp"}
        user = self._user()
        if user is not None:
            clean |= {"USER": user.pw_name, "LOGNAME": user.pw_name}
        return {**clean, **self._options.environment, **request.payload.environment, _MARK: str(place)}

    def _fill(self, request: Request, work: Path) -> None:
        """Lay out the payload's directory, anew if a creator was killed while it did."""
        payload = request.payload
        if os.path.lexists(work):
            shutil.rmtree(work)
        os.mkdir(work, 0o700)
        os.mkdir(work / "tmp", 0o700)
        _copy(payload.script, work / payload.script.name)
        for name, source in payload.files.items():
            _copy(source, work / name)
        for name, secret in payload.secrets.items():
            _write(str(work / name), secret)
        user = self._user()
        if user is not None:
            for path in (*work.iterdir(), work):
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)

    def _user(self) -> pwd.struct_passwd | None:
        if self._options.user is None:
            return None
        try:
            return pwd.getpwnam(self._options.user)
        except KeyError:
            raise _Refusal(f"user {self._options.user!r} is unknown on this machine") from None

    def _check_user(self) -> None:
        """The user exists, we may become it, and it can reach the directory (asked of the system, once)."""
        user = self._user()
        if user is None or self._way_in_checked:
            return
        if os.geteuid() != 0:
            raise _Refusal(f"only root can run resources as user {user.pw_name!r}; leave `user` out")
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--"]
        probe = [_tool("setpriv"), *ids, "/bin/sh", "-c", 'cd "$1"', "probe", str(self._root)]
        if subprocess.run(probe, capture_output=True, stdin=subprocess.DEVNULL, cwd="/").returncode:
            raise _Refusal(
                f"user {user.pw_name!r} may not enter {self._root}: give it x on every directory of that path, "
                "or set `directory`"
            )
        self._way_in_checked = True

    # --------------------------------------------------------------------------------------------------- list

    def list(self) -> Sequence[Listed]:
        """What lives, and what ended less than `retention_s` ago. Raises CallError when it cannot see all."""
        _reap()
        try:
            with os.scandir(self._root) as entries:
                found = [(entry.name, entry.inode()) for entry in entries if _ID.fullmatch(entry.name)]
            looks = [look for name, inode in found if (look := self._look(name, inode))]
            looks = [*self._find_survivors(looks)]
        except OSError as error:
            raise CallError(f"backend {self.name}: {_explain(error, self._root)}") from error
        self._known = {look.name: look.known for look in looks}
        with suppress(OSError):
            self._tidy(looks)
        return [look.listed(self._root) for look in looks]

    def _look(self, name: str, inode: int) -> _Look | None:
        """One directory's state; None if it is not a resource of ours, or no more."""
        place = self._root / name
        try:
            known = self._known.get(name)
            if known is None or known.inode != inode:
                record = _record(place)
                if record is None or record.factory != self._factory:
                    return None
                known = _Known(inode, record)
            if _held(place):
                known.started = known.started or bool(_read(place, "launcher"))
                return _Look(name, known, Status.RUNNING if known.started else Status.PENDING)
            return self._look_at_unlocked(place, known)
        except (FileNotFoundError, NotADirectoryError):
            os.stat(self._root)  # ours was cleaned away; that all of them vanished is an error
            return None

    def _look_at_unlocked(self, place: Path, known: _Known) -> _Look:
        native = _read(place, "exit")
        if native:
            return _Look(place.name, known, Status.ENDED, native)
        if _read(place, "launcher"):
            return _Look(place.name, known, Status.ENDED)  # its launcher was killed; the payload may live
        age_s = abs(time.time() - os.stat(place / "record").st_mtime)
        if age_s > _YOUNG_S and _bury(place, "never started"):
            return _Look(place.name, known, Status.ENDED, "never started")
        return _Look(place.name, known, Status.PENDING)

    def _find_survivors(self, looks: Sequence[_Look]) -> Sequence[_Look]:
        """Say of those that lost their launcher whether they still run, and of the others nothing."""
        lost = {str(self._root / look.name) for look in looks if look.status is Status.ENDED and not look.native}
        if not lost:
            return looks
        alive = {process.place for process in _processes(lost)}
        return [self._judge(look, alive) if str(self._root / look.name) in lost else look for look in looks]

    def _judge(self, look: _Look, alive: Iterable[str]) -> _Look:
        place = self._root / look.name
        if str(place) in alive:
            return _Look(look.name, look.known, Status.RUNNING, "launcher lost")
        native = "ended without exit status"
        _bury(place, native)
        return _Look(look.name, look.known, Status.ENDED, native)

    # ------------------------------------------------------------------------------------------------- delete

    def delete(self, handles: Sequence[Handle]) -> Sequence[Deleted | NotDeleted]:
        """SIGTERM to the process group; SIGKILL to all that is left in a call after the grace.

        All are stopped together, and waited for half a second; what is still dying is answered
        ``NotDeleted("still stopping ...")``, and the next call goes on where this one ended.
        """
        _reap()
        answers: dict[str, Deleted | NotDeleted] = {}
        stopping: set[str] = set()
        for handle in handles:
            try:
                answer = self._before_stopping(handle)
            except OSError as error:
                answer = NotDeleted(handle.id, _explain(error, self._root / handle.id))
            if answer is None:
                stopping.add(handle.id)
            else:
                answers[handle.id] = answer
        if stopping:
            answers |= self._stop(stopping)
        _reap()
        return [answers[id] for id in dict.fromkeys(handle.id for handle in handles)]

    def _before_stopping(self, handle: Handle) -> Deleted | NotDeleted | None:
        """The answer, if there is no process to stop."""
        place = self._root / handle.id
        if not _ID.fullmatch(handle.id):
            return Deleted(handle.id)  # never was ours
        if not os.path.lexists(place):
            os.stat(self._root)
            return Deleted(handle.id)
        record = _record(place)
        if record is None or record.factory != self._factory:
            return NotDeleted(handle.id, "is not a resource of this factory")
        if _read(place, "exit"):
            return Deleted(handle.id)
        if _read(place, "launcher"):
            return NotDeleted(handle.id, "has started") if handle.pending_only else None
        if not os.path.lexists(place) or _bury(place, "never started"):
            return Deleted(handle.id)
        return NotDeleted(handle.id, "is being started")

    def _stop(self, ids: Iterable[str]) -> Mapping[str, Deleted | NotDeleted]:
        dying = {id: str(self._root / id) for id in ids}
        since = {id: self._stopping_since(id) for id in dying}
        now = time.monotonic()
        gentle = {dying[id] for id, at in since.items() if at is None}
        overdue = {dying[id] for id, at in since.items() if now - (at or now) >= self._options.stop_grace_s}
        if gentle - overdue:
            _terminate(gentle - overdue)
        for id, at in since.items():
            if at is None:
                self._note_stopping(id, now)
        if overdue:
            _kill(overdue)
        left = self._await_end(dying)
        return {
            id: NotDeleted(id, self._still_stopping(id, place in overdue)) if id in left else Deleted(id)
            for id, place in dying.items()
        }

    def _await_end(self, dying: Mapping[str, str]) -> set[str]:
        """Those that have not ended when the time is up. A launcher that was killed is written an end."""
        deadline = time.monotonic() + _WAIT_S
        left = set(dying)
        while True:
            left = {id for id in left if _held(dying[id])}
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        silent = {dying[id]: id for id in dying if id not in left and not _read(dying[id], "exit")}
        alive = {process.place for process in _processes(silent)} if silent else set()
        for place, id in silent.items():
            if place in alive:
                left.add(id)
            else:
                _bury(place, "killed")
        for id in dying.keys() - left:
            self._stopping.pop(id, None)
        return left

    def _stopping_since(self, id: str) -> float | None:
        try:
            return float(_read(self._root / id, "stop"))
        except ValueError:
            return self._stopping.get(id)

    def _note_stopping(self, id: str, now: float) -> None:
        self._stopping[id] = now
        with suppress(OSError):  # a full disk must not keep anything alive; what memory knows will do
            _write(f"{self._root}/{id}/stop", f"{now}\n".encode())

    def _still_stopping(self, id: str, killed: bool) -> str:
        since_s = time.monotonic() - self._stopping.get(id, self._stopping_since(id) or time.monotonic())
        if killed:
            return f"still stopping: SIGKILL sent, SIGTERM {since_s:.0f} s ago"
        return f"still stopping: SIGTERM {since_s:.0f} s ago, SIGKILL after {self._options.stop_grace_s:g} s"

    # --------------------------------------------------------------------------------------------------- tidy

    def close(self) -> None:
        """Nothing to let go of; resources stay."""
        _reap()

    def _tidy(self, looks: Sequence[_Look]) -> None:
        """Of what has ended take secrets and leftovers, and forget it in time; bound the logs. Best effort."""
        now = time.time()
        leftovers = set()
        trash = []
        for look in looks:
            if look.status is not Status.ENDED:
                continue
            place, known = self._root / look.name, look.known
            ended_s = now - _ended_at(place)
            if not known.swept and ended_s >= min(self._options.stop_grace_s, self._options.retention_s):
                known.swept = True
                leftovers.add(str(place))
                _shred(place, known.record)
            if ended_s > self._options.retention_s and (gone := _put_away(place)):
                trash.append(gone)
        if leftovers:
            _kill(leftovers)
        if now - self._tidied_at > _TIDY_S:
            self._tidied_at = now
            self._bound_logs(looks)
            trash += _debris(self._root, now)
        if trash:
            _remove(trash)

    def _bound_logs(self, looks: Iterable[_Look]) -> None:
        limit = self._options.log_limit_mb * 2**20
        for look in looks:
            try:
                if os.stat(log := f"{self._root}/{look.name}/log").st_size > limit:
                    _keep_tail(log, limit // 2)
            except OSError:
                continue


@dataclass(frozen=True, slots=True)
class _Record:
    """What was written when the directory was made."""

    factory: str
    queue: str
    offering: str
    secrets: tuple[str, ...]


@dataclass(slots=True)
class _Known:
    """What need not be read again. `swept`: secrets and leftover processes are gone."""

    inode: int
    record: _Record
    started: bool = False
    swept: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    """One directory as `list` found it."""

    name: str
    known: _Known
    status: Status
    native: str = ""

    def listed(self, root: Path) -> Listed:
        record = self.known.record
        native = self.native or self.status.value
        return Listed(
            self.name,
            f"{root}/{self.name}",
            self.status,
            native,
            queue=record.queue,
            offering=record.offering,
        )


class _Refusal(Exception):
    """Why a request is certainly not created."""


# ------------------------------------------------------------------------------------------------------ checks


def _check(request: Request) -> None:
    """Refuse what cannot be carried as it is, before anything exists."""
    payload = request.payload
    if not _ID.fullmatch(request.id):
        raise _Refusal("an id is 1 to 120 of A-Z a-z 0-9 . _ -, and does not begin with a dot")
    try:
        _carriable(payload.environment)
    except ValueError as error:
        raise _Refusal(str(error)) from None
    names = [payload.script.name, *payload.files, *payload.secrets]
    for name in names:
        if not name or name in (".", "..", "tmp") or "/" in name or "\0" in name:
            raise _Refusal(f"{name!r} cannot be the name of a file beside the script")
    if len(set(names)) < len(names):
        raise _Refusal(f"two files have the same name: {', '.join(sorted(names))}")
    if not payload.script.is_file():
        raise _Refusal(f"script {payload.script} is missing")
    if not os.access(payload.script, os.X_OK):
        raise _Refusal(f"script {payload.script} is not executable: chmod +x it")
    for source in payload.files.values():
        if not source.is_file():
            raise _Refusal(f"file {source} is missing")


def _explain(error: OSError, root: Path) -> str:
    where = error.filename or root
    if error.errno in _DISK_FULL:
        return f"{where}: disk full; free some space, or set `directory` to where there is some"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}: {error.strerror}; the service's user must be able to read and write {root}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"{where}: {error.strerror}; {root} must be a directory, and is made only when the service starts"
    if error.errno == errno.E2BIG:
        return "arguments and environment are larger than this system passes to a process"
    return f"{where}: {error.strerror or error}"


def _tool(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if path is None:
        raise _Refusal(f"needs the program {name}, which is not on this machine")
    return path


def _core() -> LocalOffering:
    cores = len(os.sched_getaffinity(0))
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return LocalOffering(memory_mb=memory_mb // cores, limit=cores)


# ------------------------------------------------------------------------------------------------------- files


def _read(place: Path | str, name: str) -> str:
    """A small file's text; empty if it does not exist (or is still empty)."""
    try:
        file = os.open(f"{place}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(file, 65536).decode(errors="replace").strip()
    finally:
        os.close(file)


def _write(path: str, content: bytes) -> None:
    """A new file, 0600, complete or an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    os.chmod(target, 0o700 if os.access(source, os.X_OK) else 0o600)


def _record(place: Path) -> _Record | None:
    """None where there is none that we wrote."""
    try:
        with open(f"{place}/record", "rb") as file:
            it: Any = json.loads(file.read())
        return _Record(it["factory"], it["queue"], it["offering"], tuple(it["secrets"]))
    except (ValueError, TypeError, KeyError, FileNotFoundError, NotADirectoryError):
        return None


def _ended_at(place: Path) -> float:
    for name in ("exit", "record"):
        try:
            return os.stat(place / name).st_mtime
        except OSError:
            continue
    return time.time()


def _shred(place: Path, record: _Record) -> None:
    for name in record.secrets:
        try:
            os.unlink(place / "work" / name)
        except OSError:
            continue


def _put_away(place: Path) -> str | None:
    """Take the directory out of sight, in one step; the caller removes what this returns."""
    gone = f"{place.parent}/.gone-{place.name}-{time.monotonic_ns()}"
    try:
        os.rename(place, gone)
    except OSError:
        return None
    return gone


def _discard(place: Path) -> None:
    if gone := _put_away(place):
        shutil.rmtree(gone, ignore_errors=True)


def _debris(root: Path, now: float) -> Sequence[str]:
    """What creators and cleaners left that were killed at work. Drafts are renamed first: none comes alive then."""
    debris = []
    for name in os.listdir(root):
        with suppress(OSError):
            path = root / name
            if name.startswith((".new-", ".gone-")) and now - os.stat(path).st_mtime > _TIDY_S:
                debris.append(str(path) if name.startswith(".gone-") else _put_away(path))
    return [path for path in debris if path]


def _keep_tail(log: str, length: int) -> None:
    """Shorten a log in place: its writers append, so they go on at the new end."""
    with open(log, "r+b") as file:
        file.seek(-length, os.SEEK_END)
        tail = file.read()
        file.truncate(0)
    with open(log, "ab") as file:
        file.write(tail)


def _launched(place: Path) -> bool:
    """Whether the launcher has recorded itself; one that was started just now is given the time to."""
    deadline = time.monotonic() + _LAUNCH_S
    while not _read(place, "launcher"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# ------------------------------------------------------------------------------------------------------- locks

_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _held(place: Path | str) -> bool:
    """Whether anyone holds the lock. Does not take it."""
    try:
        file = os.open(f"{place}/lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    finally:
        os.close(file)
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def _take(place: Path | str) -> int | None:
    """The lock, None if somebody holds it. FileNotFoundError if the directory is gone, also just now."""
    file = os.open(f"{place}/lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        if os.stat(f"{place}/lock").st_ino != os.fstat(file).st_ino:
            raise FileNotFoundError(errno.ENOENT, "was replaced", str(place))
    except (BlockingIOError, PermissionError):
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def _bury(place: Path | str, words: str) -> bool:
    """Write how it ended, for good: no creator can start it afterwards. False if somebody holds it."""
    try:
        lock = _take(place)
        if lock is None:
            return False
        try:
            if words == "never started" and _read(place, "launcher"):
                return False
            if not _read(place, "exit"):
                _write(f"{place}/exit", words.encode())
            return True
        finally:
            os.close(lock)
    except OSError as error:
        if error.errno in _DISK_FULL or error.errno in (errno.EROFS, errno.ENOENT):
            return False
        raise


# --------------------------------------------------------------------------------------------------- processes

#: Launchers and removers that this process started and has not reaped. Per process, not per backend: they must
#: be reaped also after a backend was closed and made again.
_children: set[int] = set()
_children_lock = threading.Lock()


def _spawn(command: Sequence[str], environment: Mapping[str, str], place: Path, lock: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.open(place / "log", flags, 0o600)
    try:
        _run(command, stdin=lock, stdout=log, cwd=place / "work", env=environment)
    finally:
        os.close(log)


def _run(command: Sequence[str], **options: Any) -> None:
    """Start it in a session of its own, to be reaped by `_reap`."""
    child = subprocess.Popen(command, stderr=subprocess.STDOUT, start_new_session=True, **options)
    with _children_lock:
        _children.add(child.pid)
    child.returncode = 0  # from here on it is not Popen's to wait for


def _reap() -> None:
    with _children_lock:
        for pid in tuple(_children):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # not ours (we are a fork), or reaped by a SIGCHLD handler
                ended = pid
            if ended:
                _children.discard(pid)


def _remove(paths: Sequence[str]) -> None:
    """In a process of its own: a work directory may hold more files than a list call has time for."""
    with suppress(OSError):  # they are debris now, and found again
        _run(["rm", "-rf", "--", *paths], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/")


@dataclass(slots=True)
class _Process:
    """One line of /proc. (pid, start) names it for good; `place` is the resource that it belongs to, or empty."""

    pid: int
    parent: int
    group: int
    session: int
    start: int
    place: str = ""


def _parse(stat: str) -> _Process | None:
    try:
        fields = stat[stat.rindex(")") + 2 :].split()
        return _Process(int(stat.split()[0]), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
    except (ValueError, IndexError):
        return None


def _process(pid: int) -> _Process | None:
    try:
        return _parse(_read("/proc", f"{pid}/stat"))
    except OSError:
        return None


def _mark(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read()
    except OSError:
        return ""
    _, found, rest = (b"\0" + variables).partition(f"\0{_MARK}=".encode())
    return os.fsdecode(rest.partition(b"\0")[0]) if found else ""


def _processes(places: Iterable[str]) -> Sequence[_Process]:
    """All processes of these resources: marked, or below, in a group or in a session of one that is.

    So neither an own process group, nor an own session, nor a cleared environment hides a process as long as
    one of the others betrays it.
    """
    everything = {process.pid: process for pid in _pids() if (process := _process(pid))}
    for process in everything.values():
        process.place = _mark(process.pid)
    settled = False
    while not settled:
        settled = True
        for process in sorted(everything.values(), key=lambda it: it.start):
            for pid in (process.parent, process.group, process.session):
                elder = everything.get(pid)
                if not process.place and elder and elder.place and elder.start <= process.start:
                    process.place = elder.place
                    settled = False
    wanted = set(places)
    return [it for it in everything.values() if it.place in wanted and it.pid != os.getpid()]


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _signal(process: _Process, number: int) -> None:
    """Signal this very process or none: the pidfd holds on to it while its start time is compared."""
    handle = None
    try:
        handle = _hold(process.pid)
        now = _process(process.pid)
        if now is None or now.start != process.start:
            return
        if handle is not None:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        if handle is not None:
            os.close(handle)


def _hold(pid: int) -> int | None:
    """None where there are no pidfds: kernels before 5.3 (EL 8), some container runtimes."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise


def _terminate(places: Iterable[str]) -> None:
    """SIGTERM to the process groups. A launcher that has not come to its payload yet is given a moment."""
    left = set(places)
    for _ in range(_TERM_PASSES):
        left -= _terminate_once(left)
        left = {place for place in left if _held(place)}
        if not left:
            return
        time.sleep(0.01)


def _terminate_once(places: set[str]) -> set[str]:
    """SIGTERM to each launcher's group but not to itself, to all processes where it is lost. Returns the reached."""
    launchers = {place: _parse(_read(place, "launcher")) for place in places}
    processes = _processes(places)
    running = {(process.pid, process.start) for process in processes}
    reached = set()
    for process in processes:
        launcher = launchers[process.place]
        lost = launcher is None or (launcher.pid, launcher.start) not in running
        if lost or (launcher and process.group == launcher.pid != process.pid):
            _signal(process, signal.SIGTERM)
            reached.add(process.place)
    return reached


def _kill(places: Iterable[str]) -> None:
    """SIGKILL to every process of these resources. All are stopped first, so that none forks or orphans another."""
    wanted = set(places)
    stopped: dict[tuple[int, int], _Process] = {}
    for _ in range(_KILL_PASSES):
        new = {(it.pid, it.start): it for it in _processes(wanted) if (it.pid, it.start) not in stopped}
        if not new:
            break
        for process in new.values():
            _signal(process, signal.SIGSTOP)
        stopped |= new
    for process in stopped.values():
        _signal(process, signal.SIGKILL)

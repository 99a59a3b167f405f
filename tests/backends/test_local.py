"""Resources as processes: the contract, and what only processes can get wrong."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from apf_elastic.backends import local
from apf_elastic.backends.local import LocalBackend, LocalOffering, LocalOptions
from apf_elastic.contracts import (
    Backend,
    CallError,
    Context,
    Created,
    Deleted,
    Handle,
    Listed,
    NotDeleted,
    Payload,
    Refused,
    Request,
    Status,
    Uncertain,
)
from apf_elastic.model import Offering, Shape
from apf_elastic.testing.backend_contract import BackendContract, living, poll

ROOT = os.geteuid() == 0
SOON_S = 20.0


class LocalKit:
    """One directory, shared by two factories and by what is nobody's resource."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "resources"
        self.options = LocalOptions(directory=self.root, stop_grace_s=1.0)
        self._ids = count()

    def make(self) -> LocalBackend:
        return self.made_with()

    def made_with(self, factory: str = "ours", **options: object) -> LocalBackend:
        context = Context(factory, self.base / "state")
        return LocalBackend("local", self.options.model_copy(update=options), context)

    def make_other_factory(self) -> Backend:
        return self.made_with("theirs")

    def request(self, id: str | None = None) -> Request:
        return self.running("exec sleep 600", id)

    def running(self, script: str, id: str | None = None, walltime_s: int | None = None) -> Request:
        """A request for a resource that runs these lines of shell."""
        id = f"r{next(self._ids)}" if id is None else id
        path = self.base / "scripts" / f"{next(self._ids)}.sh"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return Request(id, "queue", Offering("core", Shape(walltime_s=walltime_s)), Payload(path))

    def wait_until(self, predicate: Callable[[], bool], deadline_s: float) -> None:
        poll(predicate, deadline_s)

    def foreign(self) -> AbstractContextManager[object] | None:
        return self._foreign()

    @contextmanager
    def _foreign(self) -> Iterator[None]:
        (self.root / "notes.txt").write_text("not a resource")
        (self.root / "r777").mkdir()
        (self.root / "r778").mkdir()
        (self.root / "r778" / "record").write_text("{}")
        yield


class TestLocalBackend(BackendContract):
    @pytest.fixture
    def backend_kit(self, tmp_path: Path) -> LocalKit:
        return LocalKit(tmp_path)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[LocalKit]:
    """Whatever a test made is killed and removed."""
    kit = LocalKit(tmp_path)
    yield kit
    backend = kit.made_with(stop_grace_s=0.0)

    def emptied() -> bool:
        backend.delete([Handle(id, None) for id in living(backend)])
        return not living(backend)

    if kit.root.is_dir():
        poll(emptied, SOON_S)


def entry(backend: LocalBackend, id: str) -> Listed:
    return {entry.id: entry for entry in backend.list()}[id]


def start(backend: LocalBackend, request: Request) -> str:
    """Create it and wait until its script runs."""
    assert backend.create([request]) == [Created(request.id, str(backend._root / request.id))]
    poll(lambda: entry(backend, request.id).status is not Status.PENDING, SOON_S)
    return request.id


def finished(backend: LocalBackend, id: str) -> Listed:
    poll(lambda: entry(backend, id).status is Status.ENDED, SOON_S)
    return entry(backend, id)


def text(path: Path) -> str:
    """What a script has written to the file, once it has."""
    poll(lambda: path.exists() and path.read_text().endswith("\n"), SOON_S)
    return path.read_text()


def is_running(pid: int) -> bool:
    process = Path(f"/proc/{pid}/stat")
    return process.exists() and process.read_text().rpartition(")")[2].split()[0] != "Z"


def launcher_of(kit: LocalKit, id: str) -> int:
    return int((kit.root / id / "launcher").read_text().split()[0])


# ------------------------------------------------------------------------------------------------ exactly once


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that kills itself at its step-th line of the backend or audited call (open, rename,
    fcntl ...), loops being counted once. False if it was done before that.
    """
    left = step
    seen = set()

    def count_down(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith("backends/local.py"):
            return None
        if frame.f_lineno not in seen:
            seen.add(frame.f_lineno)
            count_down()
        return trace

    def die_at_work() -> None:
        sys.addaudithook(count_down)
        sys.settrace(trace)
        work()

    return os.WIFSIGNALED(os.waitpid(fork(die_at_work), 0)[1])


def ran(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


@pytest.mark.slow
def test_a_creator_killed_at_any_step_makes_at_most_one(kit: LocalKit) -> None:
    backend = kit.make()
    record = kit.base / "ran"
    requests = kill_creators(kit, record, every=1)
    assert len(requests) > 100, "the creator was to be killed at every step"
    ids = [request.id for request in requests]
    answers = backend.create(requests)
    assert not [answer for answer in answers if isinstance(answer, Refused)]
    poll(lambda: set(ids) <= living(backend).keys() and set(ids) <= ran(record).keys(), SOON_S)
    assert {entry.native for entry in living(backend).values()} == {"running"}
    assert set(ran(record).values()) == {1}


@pytest.mark.slow
def test_a_creator_killed_at_any_step_leaves_nothing_unlisted(kit: LocalKit) -> None:
    backend = kit.make()
    record = kit.base / "ran"
    requests = kill_creators(kit, record, every=5)
    poll(lambda: Status.RUNNING in {entry.status for entry in backend.list()}, SOON_S)
    grow_old(kit)
    poll(lambda: all(it.status is not Status.PENDING for it in backend.list()), SOON_S)
    listed = {it.id: it for it in backend.list()}
    running = {id for id, it in listed.items() if it.status is Status.RUNNING}
    poll(lambda: ran(record).keys() == running, SOON_S)
    assert {listed[id].native for id in listed.keys() - running} == {"never started"}
    assert len(running) > 1
    assert listed.keys() <= {request.id for request in requests}


def kill_creators(kit: LocalKit, record: Path, every: int) -> list[Request]:
    """One request for each step at which a creator of it was killed, and a last one that succeeded.

    Each writes its id to `record` when it runs.
    """
    template = kit.running(f"echo $1 >> {record}\nexec sleep 600")
    payload = replace(template.payload, secrets={"token": b"x"}, files={"beside": template.payload.script})
    requests = []
    for step in count(1, every):
        id = f"s{step}"
        requests.append(replace(template, id=id, payload=replace(payload, arguments=(id,))))
        if not killed_at(step, lambda: kit.make().create(requests[-1:])):
            break
    return requests


def test_a_deleter_killed_at_any_step_can_be_followed_by_another(kit: LocalKit) -> None:
    backend = kit.made_with(stop_grace_s=0.0)
    requests = [kit.request() for _ in range(100)]
    backend.create(requests)
    poll(lambda: {it.status for it in backend.list()} == {Status.RUNNING}, SOON_S)
    handles = [Handle(request.id, None) for request in requests]
    for step, handle in zip(count(1, 3), handles, strict=False):
        killed_at(step, lambda handle=handle: backend.delete([handle]))  # type: ignore[misc]
    poll(lambda: all(isinstance(answer, Deleted) for answer in backend.delete(handles)), SOON_S)
    assert not living(backend)


def test_a_launcher_killed_at_any_time_leaves_at_most_one(kit: LocalKit) -> None:
    backend = kit.make()
    record = kit.base / "ran"
    template = kit.running(f"echo $1 >> {record}")
    for n in range(50):
        id = f"k{n}"
        request = replace(template, id=id, payload=replace(template.payload, arguments=(id,)))
        before = set(local._children)
        backend.create([request])
        (launcher,) = set(local._children) - before
        until = time.perf_counter() + n * 0.0001
        while time.perf_counter() < until:
            pass
        os.kill(launcher, signal.SIGKILL)
        poll(lambda id=id: not local._held(kit.root / id), SOON_S)  # type: ignore[misc]
        assert not isinstance(backend.create([request])[0], Refused)
    poll(lambda: not living(backend), SOON_S)
    assert set(ran(record).values()) == {1}


def grow_old(kit: LocalKit) -> None:
    for record in kit.root.glob("*/record"):
        os.utime(record, (0, 0))


def test_two_processes_at_once_make_one_of_each(kit: LocalKit) -> None:
    backend = kit.make()
    record = kit.base / "ran"
    script = f"echo $1 >> {record}\nexec sleep 600"
    requests = [kit.running(script, f"c{n}") for n in range(40)]
    requests = [replace(it, payload=replace(it.payload, arguments=(it.id,))) for it in requests]
    children = [fork(lambda: kit.make().create(requests)) for _ in range(3)]
    backend.create(requests)
    for child in children:
        os.waitpid(child, 0)
    poll(lambda: len(ran(record)) == 40, SOON_S)
    assert set(ran(record).values()) == {1}
    assert living(backend).keys() == {request.id for request in requests}


def fork(work: Callable[[], object]) -> int:
    """Run it in a child that does nothing else."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_what_was_never_started_is_pending_then_ended_and_never_starts(kit: LocalKit) -> None:
    backend = kit.make()
    request = kit.request()
    lock = backend._publish(request, kit.root / request.id)
    assert lock is not None
    assert entry(backend, request.id).status is Status.PENDING
    assert isinstance(kit.make().create([request])[0], Uncertain)
    os.close(lock)
    assert entry(backend, request.id).status is Status.PENDING
    grow_old(kit)
    assert entry(backend, request.id).native == "never started"
    assert isinstance(kit.make().create([request])[0], Refused)
    assert entry(backend, request.id).status is Status.ENDED


def test_what_was_never_started_can_be_cancelled(kit: LocalKit) -> None:
    backend = kit.make()
    request = kit.request()
    lock = backend._publish(request, kit.root / request.id)
    handle = Handle(request.id, None, pending_only=True)
    assert backend.delete([handle]) == [NotDeleted(request.id, "is being started")]
    assert lock is not None
    os.close(lock)
    assert backend.delete([handle]) == [Deleted(request.id)]
    assert isinstance(backend.create([request])[0], Refused)


def test_a_launcher_that_cannot_record_itself_runs_nothing(kit: LocalKit) -> None:
    backend = kit.make()
    canary = kit.base / "canary"
    request = kit.running(f"touch {canary}")
    lock = backend._publish(request, kit.root / request.id)
    assert lock is not None
    os.close(lock)
    (kit.root / request.id / "launcher").symlink_to("/dev/full")
    (kit.root / request.id / "launch").write_text(local._LAUNCHER)
    backend._fill(request, kit.root / request.id / "work")
    command = backend._command(request, kit.root / request.id)
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 125
    assert not canary.exists()


def test_what_has_ended_is_not_made_again(kit: LocalKit) -> None:
    backend = kit.make()
    record = kit.base / "ran"
    request = kit.running(f"echo once >> {record}")
    finished(backend, start(backend, request))
    assert isinstance(kit.make().create([request])[0], Created)
    assert ran(record)["once"] == 1


# ------------------------------------------------------------------------------------------------ life and end


def test_resources_survive_the_death_of_the_service(kit: LocalKit) -> None:
    request = kit.request()

    def serve_and_die() -> None:
        kit.make().create([request])
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(serve_and_die), 0)
    backend = kit.make()
    poll(lambda: entry(backend, request.id).native == "running", SOON_S)
    launcher = launcher_of(kit, request.id)
    assert os.getsid(launcher) == os.getpgid(launcher) == launcher


def test_how_it_ended_is_told_for_a_while_and_then_forgotten(kit: LocalKit) -> None:
    backend = kit.make()
    id = start(backend, kit.running("exit 7"))
    assert finished(backend, id).native == "exit 7"
    assert finished(kit.make(), id).native == "exit 7"
    forgetful = kit.made_with(retention_s=0.0)
    poll(lambda: not forgetful.list(), SOON_S)
    poll(lambda: not os.listdir(kit.root), SOON_S)


def test_leaves_no_zombies(kit: LocalKit) -> None:
    backend = kit.make()
    ids = [request.id for request in (kit.running("exit 0") for _ in range(5))]
    for id in ids:
        start(backend, kit.running("exit 0", id))
    poll(lambda: {it.status for it in backend.list()} == {Status.ENDED}, SOON_S)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    poll(lambda: not [it for it in backend.list() if it.status is not Status.ENDED], SOON_S)
    poll(lambda: backend.list() is not None and not children.read_text().split(), SOON_S)


def test_a_payload_outlives_the_loss_of_its_launcher_and_can_still_be_deleted(kit: LocalKit) -> None:
    backend = kit.make()
    id = start(backend, kit.request())
    os.kill(launcher_of(kit, id), signal.SIGKILL)
    poll(lambda: entry(backend, id).native == "launcher lost", SOON_S)
    assert entry(backend, id).status is Status.RUNNING
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)
    assert entry(backend, id).status is Status.ENDED


def test_a_launcher_that_dies_with_its_payload_has_ended(kit: LocalKit) -> None:
    backend = kit.make()
    id = start(backend, kit.request())
    os.killpg(launcher_of(kit, id), signal.SIGKILL)
    assert finished(backend, id).native == "ended without exit status"


def test_a_walltime_is_enforced(kit: LocalKit) -> None:
    backend = kit.make()
    id = start(backend, kit.running("sleep 600", walltime_s=1))
    assert finished(backend, id).native == "exit 124"


def test_what_an_ended_script_left_behind_is_killed(kit: LocalKit) -> None:
    backend = kit.made_with(stop_grace_s=0.2)
    pids = kit.base / "pids"
    script = f"sleep 600 & echo $! > {pids}\nsetsid sleep 600 & echo $! >> {pids}\nsleep 0.1"
    id = start(backend, kit.running(script))
    finished(backend, id)
    left = [int(pid) for pid in text(pids).split()]
    assert len(left) == 2
    poll(lambda: bool(backend.list()) and not any(map(is_running, left)), SOON_S)


def test_a_log_keeps_its_tail_only(kit: LocalKit) -> None:
    backend = kit.made_with(log_limit_mb=1)
    lines = "yes line | head -c 3000000; echo the end; touch $HOME/done; sleep 0.5; echo after; exec sleep 600"
    id = start(backend, kit.running(lines))
    poll((kit.root / id / "work" / "done").exists, SOON_S)
    backend._tidied_at = 0.0
    backend.list()
    log = kit.root / id / "log"
    poll(lambda: log.read_text().endswith("after\n"), SOON_S)
    assert log.stat().st_size < 2**20
    assert log.read_text().startswith("line")
    assert "the end\n" in log.read_text()


def test_debris_of_killed_creators_and_cleaners_goes(kit: LocalKit) -> None:
    backend = kit.make()
    for name in (".new-abc", ".gone-r1-1"):
        (kit.root / name).mkdir()
        os.utime(kit.root / name, (0, 0))
    (kit.root / ".new-young").mkdir()
    assert backend.list() == []
    poll(lambda: os.listdir(kit.root) == [".new-young"], SOON_S)


# ------------------------------------------------------------------------------------------------------ delete


def test_a_graceful_stop_tells_its_own_exit_status(kit: LocalKit) -> None:
    backend = kit.make()
    ready = kit.base / "ready"
    script = f"trap 'exit 7' TERM\necho > {ready}\nwhile :; do sleep 0.05; done"
    id = start(backend, kit.running(script))
    text(ready)
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)
    assert entry(backend, id).native == "exit 7"


STUBBORN = """
trap '' TERM
sleep 600 & echo $! >> {0}
setsid sleep 600 & echo $! >> {0}
env -i setsid sleep 600 & echo $! >> {0}
sh -c 'setsid sh -c "sleep 600 & echo \\$! >> {0}; wait" &'
echo $$ >> {0}
wait
"""


def test_delete_escalates_to_all_that_ignores_sigterm_without_blocking(kit: LocalKit) -> None:
    backend = kit.made_with(stop_grace_s=1.0)
    pids = kit.base / "pids"
    id = start(backend, kit.running(STUBBORN.format(pids)))
    poll(lambda: len(text(pids).split()) == 5, SOON_S)
    asked_at = time.monotonic()
    first = backend.delete([Handle(id, None)])[0]
    assert time.monotonic() - asked_at < 1.0
    assert isinstance(first, NotDeleted)
    assert first.reason.startswith("still stopping")
    stubborn = [int(pid) for pid in text(pids).split()]
    assert all(map(is_running, stubborn))
    backend = kit.made_with(stop_grace_s=1.0)  # as after a restart: it knows since when
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)
    poll(lambda: not any(map(is_running, stubborn)), SOON_S)
    assert entry(backend, id).native == "killed"


def test_what_forks_faster_than_one_can_look_is_killed_too(kit: LocalKit) -> None:
    backend = kit.made_with(stop_grace_s=0.0)
    pids = kit.base / "pids"
    forker = kit.base / "forker"
    forker.write_text(f"while :; do sleep 600 & echo $! >> {pids}; sleep 0.005; done")
    script = f"for n in 1 2 3; do env -i setsid sh {forker} & done; wait"
    id = start(backend, kit.running(script))
    poll(lambda: len(text(pids).split()) > 10, SOON_S)
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)
    poll(lambda: not [pid for pid in text(pids).split() if is_running(int(pid))], 1.0)


def test_a_signal_needs_the_start_time_to_agree() -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        process = local._process(bystander.pid)
        assert process is not None
        local._signal(replace(process, start=process.start - 1), signal.SIGKILL)
        local._signal(process, signal.SIGTERM)
        assert bystander.wait(SOON_S) == -signal.SIGTERM
    finally:
        bystander.kill()
        bystander.wait()


def test_kernels_without_pidfds_will_do(kit: LocalKit, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", unknown)
    backend = kit.make()
    id = start(backend, kit.request())
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)


def test_many_are_stopped_together(kit: LocalKit) -> None:
    backend = kit.make()
    ids = [start(backend, kit.running("trap '' TERM; sleep 600 & wait; sleep 600")) for _ in range(10)]
    asked_at = time.monotonic()
    backend.delete([Handle(id, None) for id in ids])
    assert time.monotonic() - asked_at < 3.0


def test_a_recycled_pid_is_never_signalled(kit: LocalKit) -> None:
    backend = kit.make()
    request = kit.request()
    lock = backend._publish(request, kit.root / request.id)
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        forged = Path(f"/proc/{bystander.pid}/stat").read_text().split()
        forged[21] = "1"
        (kit.root / request.id / "launcher").write_text(" ".join(forged))
        impatient = kit.made_with(stop_grace_s=0.0)
        impatient.delete([Handle(request.id, None)])  # locked, so it seems to live
        assert lock is not None
        os.close(lock)
        assert impatient.delete([Handle(request.id, None)]) == [Deleted(request.id)]
        assert entry(backend, request.id).status is Status.ENDED
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_reboot_ends_everything(kit: LocalKit) -> None:
    backend = kit.make()
    request = kit.request()
    lock = backend._publish(request, kit.root / request.id)
    assert lock is not None
    os.close(lock)
    own = Path(f"/proc/{os.getpid()}/stat").read_text()  # the pid of somebody else by now
    (kit.root / request.id / "launcher").write_text(own)
    assert entry(backend, request.id).native == "ended without exit status"
    assert backend.delete([Handle(request.id, None)]) == [Deleted(request.id)]


# --------------------------------------------------------------------------------------- what the payload sees


def test_the_payload_gets_a_clean_environment_and_its_own_verbatim(
    kit: LocalKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_SECRET", "x")
    nasty = "two\nlines; $(id) `id` 'q\" \\ \x1b[2J snö☃"
    backend = kit.made_with(environment={"SITE": "here", "BOTH": "options"})
    request = kit.running('env -0 > env\nprintf "%s\\0" "$@" > arguments\nmv arguments done\nexec sleep 600')
    payload = replace(request.payload, arguments=(nasty, "", "-x"), environment={"NASTY": nasty, "BOTH": "payload"})
    id = start(backend, replace(request, payload=payload))
    work = kit.root / id / "work"
    poll((work / "done").exists, SOON_S)
    assert (work / "done").read_text().split("\0")[:-1] == [nasty, "", "-x"]
    seen = dict(line.split("=", 1) for line in (work / "env").read_text().split("\0")[:-1])
    assert (seen["NASTY"], seen["BOTH"], seen["SITE"]) == (nasty, "payload", "here")
    assert (seen["HOME"], seen["TMPDIR"]) == (str(work), str(work / "tmp"))
    ours = {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "NASTY", "BOTH", "SITE", "APF_ELASTIC_LOCAL"}
    of_the_shell = {"PWD", "SHLVL", "OLDPWD", "_"}
    assert seen.keys() - of_the_shell <= ours


def test_the_payload_inherits_no_descriptor_and_no_input(kit: LocalKit) -> None:
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    backend = kit.make()
    id = start(backend, kit.running("for fd in /proc/$$/fd/*; do echo ${fd##*/} $(readlink $fd); done > fds"))
    finished(backend, id)
    os.close(leak)
    fds = dict(line.split() for line in (kit.root / id / "work" / "fds").read_text().splitlines())
    assert fds["0"] == "/dev/null"
    assert fds["2"] == str(kit.root / id / "log")
    assert str(leak) not in fds
    assert str(kit.root / id / "lock") not in fds.values()


def test_the_payload_may_trap_every_signal(kit: LocalKit) -> None:
    backend = kit.make()
    id = start(backend, kit.running("grep -E '^Sig(Ign|Blk)' /proc/self/status"))
    finished(backend, id)
    masks = [int(line.split()[1], 16) for line in (kit.root / id / "log").read_text().splitlines()]
    wanted = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
    assert not [number for number in wanted for mask in masks if mask >> (number - 1) & 1]


def test_files_lie_beside_the_script_and_secrets_are_for_its_user_only(kit: LocalKit) -> None:
    backend = kit.made_with(stop_grace_s=0.0)
    beside = kit.base / "beside.txt"
    beside.write_text("content")
    go = kit.base / "go"
    request = kit.running(f"until test -e {go}; do sleep 0.02; done")
    payload = replace(request.payload, files={"data": beside}, secrets={"token": b"hunter2"})
    id = start(backend, replace(request, payload=payload))
    work = kit.root / id / "work"
    assert (work / "data").read_text() == "content"
    assert stat.S_IMODE((work / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(work.stat().st_mode) == stat.S_IMODE((kit.root / id).stat().st_mode) == 0o700
    launcher = Path(f"/proc/{launcher_of(kit, id)}")
    assert b"hunter2" not in (launcher / "cmdline").read_bytes() + (launcher / "environ").read_bytes()
    go.touch()
    finished(backend, id)
    poll(lambda: bool(backend.list()) and not (work / "token").exists(), SOON_S)


# ------------------------------------------------------------------------------------------------ another user


@pytest.fixture
def open_kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKit]:
    """A kit in a directory that every user may enter."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    kit = LocalKit(base)
    yield kit
    killer = kit.made_with(stop_grace_s=0.0)
    if kit.root.is_dir():
        kit.root.chmod(0o755)
        poll(lambda: not killer.delete([Handle(i, None) for i in living(killer)]) or not living(killer), SOON_S)
    shutil.rmtree(base)


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_a_resource_runs_as_the_user_that_is_configured(open_kit: LocalKit) -> None:
    nobody = pwd.getpwnam("nobody")
    backend = open_kit.made_with(user="nobody")
    request = open_kit.running("id -u; cat token; cat $HOME/token; ls ..; exec sleep 600")
    payload = replace(request.payload, secrets={"token": b"hunter2\n"})
    id = start(backend, replace(request, payload=payload))
    place = open_kit.root / id
    poll(lambda: "cannot open" in (log := (place / "log").read_text()) and "ls" in log, SOON_S)
    assert (place / "log").read_text().splitlines()[:3] == [str(nobody.pw_uid), "hunter2", "hunter2"]
    assert (place / "work" / "token").stat().st_uid == nobody.pw_uid
    assert (place / "record").stat().st_uid == 0
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_a_directory_that_the_user_cannot_enter_is_refused_with_advice(open_kit: LocalKit) -> None:
    open_kit.base.chmod(0o700)
    answer = open_kit.made_with(user="nobody").create([open_kit.request()])[0]
    assert isinstance(answer, Refused)
    assert "may not enter" in answer.reason


def test_an_unknown_user_is_refused_by_name(kit: LocalKit) -> None:
    answer = kit.made_with(user="no-such-user").create([kit.request()])[0]
    assert isinstance(answer, Refused)
    assert "'no-such-user' is unknown" in answer.reason


# ------------------------------------------------------------------------------------------------------ errors


def reason(kit: LocalKit, request: Request) -> str:
    backend = kit.make()
    answer = backend.create([request])[0]
    assert isinstance(answer, Refused)
    assert backend.list() == []
    assert os.listdir(kit.root) == []
    return answer.reason


def test_a_script_that_is_missing_or_not_executable_is_refused(kit: LocalKit) -> None:
    request = kit.request()
    request.payload.script.chmod(0o644)
    assert "chmod +x" in reason(kit, request)
    request.payload.script.unlink()
    assert "is missing" in reason(kit, request)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "tmp", ".."])
def test_a_file_can_only_lie_beside_the_script(kit: LocalKit, name: str) -> None:
    request = kit.request()
    assert "file beside" in reason(kit, replace(request, payload=replace(request.payload, secrets={name: b""})))


@pytest.mark.parametrize("name", ["A B", "A=B", "", "IFS", "PWD", "BASH_FUNC_x%%"])
def test_a_variable_that_a_shell_would_not_carry_is_refused(kit: LocalKit, name: str) -> None:
    request = kit.request()
    payload = replace(request.payload, environment={name: "x"})
    assert "environment variable" in reason(kit, replace(request, payload=payload))


def test_arguments_too_large_for_the_system_are_refused(kit: LocalKit) -> None:
    request = kit.request()
    payload = replace(request.payload, arguments=("x" * 5_000_000,))
    assert "larger than" in reason(kit, replace(request, payload=payload))


def test_a_full_disk_is_refused_for_a_while_and_leaves_nothing(kit: LocalKit, monkeypatch: pytest.MonkeyPatch) -> None:
    write = local._write

    def full(path: str, content: bytes) -> None:
        if path.endswith("token"):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        write(path, content)

    monkeypatch.setattr(local, "_write", full)
    backend = kit.make()
    request = kit.request()
    request = replace(request, payload=replace(request.payload, secrets={"token": b""}))
    answer = backend.create([request])[0]
    assert isinstance(answer, Refused)
    assert "disk full" in answer.reason
    assert answer.retry_after_s
    assert os.listdir(kit.root) == []
    monkeypatch.undo()
    assert isinstance(backend.create([request])[0], Created)


def test_a_full_disk_does_not_keep_delete_from_escalating(kit: LocalKit, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = kit.made_with(stop_grace_s=0.1)
    ready = kit.base / "ready"
    id = start(backend, kit.running(f"trap '' TERM; echo > {ready}; sleep 600; sleep 600"))
    text(ready)

    def full(path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(local, "_write", full)
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)
    assert entry(backend, id).status is Status.ENDED


def as_ordinary_user(check: Callable[[], bool]) -> bool:
    """Whether `check` holds for a process without root's powers."""

    def checked() -> None:
        if ROOT:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        assert check()

    return os.waitstatus_to_exitcode(os.waitpid(fork(checked), 0)[1]) == 0


def test_a_directory_that_is_not_writable_is_refused(open_kit: LocalKit) -> None:
    open_kit.root.mkdir(mode=0o555)
    request = open_kit.request()

    def refused() -> bool:
        answer = open_kit.make().create([request])[0]
        return isinstance(answer, Refused) and "must be able to read and write" in answer.reason

    assert as_ordinary_user(refused)


def test_an_unreadable_directory_is_an_error_never_an_empty_list(open_kit: LocalKit) -> None:
    open_kit.root.mkdir(mode=0o300)

    def raises() -> bool:
        with pytest.raises(CallError, match="read and write"):
            open_kit.make().list()
        return True

    assert as_ordinary_user(raises)


def test_an_unreadable_resource_is_an_error_never_left_out(open_kit: LocalKit) -> None:
    open_kit.root.mkdir(mode=0o755)
    (open_kit.root / "r1").mkdir(mode=0o000)

    def raises() -> bool:
        with pytest.raises(CallError):
            open_kit.make().list()
        return True

    try:
        assert as_ordinary_user(raises)
    finally:
        (open_kit.root / "r1").rmdir()


def test_a_directory_that_vanished_is_an_error_never_an_empty_list(kit: LocalKit) -> None:
    backend = kit.make()
    kit.root.rmdir()
    with pytest.raises(CallError, match="No such file"):
        backend.list()
    assert isinstance(backend.create([kit.request()])[0], Refused)
    assert isinstance(backend.delete([Handle("r1", None)])[0], NotDeleted)
    kit.root.mkdir()


def test_lost_control_files_do_not_hide_a_living_resource(kit: LocalKit) -> None:
    backend = kit.make()
    id = start(backend, kit.request())
    (kit.root / id / "lock").unlink()
    assert entry(backend, id).status is Status.RUNNING
    assert isinstance(backend.create([kit.request(id)])[0], Refused)
    poll(lambda: isinstance(backend.delete([Handle(id, None)])[0], Deleted), SOON_S)


# ---------------------------------------------------------------------------------------------- offers and cost


def test_without_offerings_every_core_of_the_machine_is_one(kit: LocalKit) -> None:
    (core,) = kit.make().offerings()
    assert (core.name, core.shape.cores, core.limit) == ("core", 1, len(os.sched_getaffinity(0)))
    assert core.shape.memory_mb > 0


def test_configured_offerings_are_offered(kit: LocalKit) -> None:
    big = LocalOffering(cores=8, memory_mb=16000, walltime_s=3600, price_per_hour=0.5, limit=3)
    (offering,) = kit.made_with(offerings={"big": big}).offerings()
    assert (offering.shape.cores, offering.shape.walltime_s, offering.limit) == (8, 3600, 3)


def test_looking_at_many_is_cheap(kit: LocalKit) -> None:
    backend = kit.make()
    backend.create([kit.request() for _ in range(100)])
    poll(lambda: {it.status for it in backend.list()} == {Status.RUNNING}, SOON_S)
    spent: Mapping[int, float] = {n: cpu_of(backend.list) for n in range(5)}
    assert min(spent.values()) < 0.010


def cpu_of(call: Callable[[], object]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before

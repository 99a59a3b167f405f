"""The HTCondor backend against real schedds: vanilla jobs on a pool with a startd, Condor-C to a second pool."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from apf_elastic.backends.htcondor import HTCondorBackend, HTCondorBackendOptions
from apf_elastic.contracts import (
    CallError,
    Context,
    Created,
    Deleted,
    Handle,
    NotDeleted,
    Payload,
    Refused,
    Request,
    Status,
    Uncertain,
)
from apf_elastic.model import Offering, Shape
from apf_elastic.testing.backend_contract import BackendContract, living, poll
from apf_elastic.testing.htcondor_install import Installation
from apf_elastic.testing.htcondor_pool import PrivatePool

pytestmark = pytest.mark.real

NOBODY = "nobody" if os.geteuid() == 0 else ""
SLEEP = "#!/bin/sh\nsleep 600 &\ntrap 'kill $!; exit 0' TERM\nwait $!\n"
SHOW = """\
#!/bin/sh
printf '%s\\n' "$@" | od -An -tx1 -v
printf %s "$VALUE" | od -An -tx1 -v
echo --
cat token extra
stat -c %a token
"""
ARRIVING = (
    *("a b", "it's", 'say "x"', "$(id) $ENV(HOME) $ `x`", "back\\slash\\", "snö☃ 𝕏", " ", "", "a,b;c|d", "#%s"),
)
OFFERING = Offering("small", Shape())
_numbers = itertools.count()


class Kit:
    """Makes backends for one pool, and requests for a job that sleeps until it is removed."""

    def __init__(self, pool: PrivatePool, base: Path, name: str, grid_resource: str = "") -> None:
        self.pool = pool
        self.base = base / f"{name}-{next(_numbers)}"
        self.base.mkdir()
        self.base.chmod(0o755)
        self.script = self.base / "payload.sh"
        self.script.write_text(SLEEP)
        self.grid_resource = grid_resource

    def options(self, **changes: object) -> HTCondorBackendOptions:
        given = {
            "collector": self.pool.collector,
            "schedd": self.pool.schedd_name,
            "config": self.pool.client_config,
            "token_dir": self.pool.token_dir("apf"),
            "offerings": {"small": {"cores": 1, "memory_mb": 64, "disk_mb": 10}},
            "grid_resource": self.grid_resource,
            "spool_dir": self.base / "jobs",
            "reader": NOBODY,
            "timeout_s": 20,
        }
        return HTCondorBackendOptions.model_validate(given | changes)

    def make(self, factory: str = "ours", **changes: object) -> HTCondorBackend:
        return HTCondorBackend("ce", self.options(**changes), Context(factory, self.base / "state" / factory))

    def make_other_factory(self) -> HTCondorBackend:
        return self.make("theirs")

    def request(self, id: str | None = None) -> Request:
        id = f"r{next(_numbers)}-{os.getpid()}" if id is None else id
        offering = replace(OFFERING, name="small")
        payload = Payload(self.script, secrets={"token": b"a secret"})
        return Request(id, "q1", offering, payload)

    def wait_until(self, predicate: Callable[[], bool], deadline_s: float) -> None:
        poll(predicate, deadline_s, pause_s=0.1)

    def foreign(self) -> AbstractContextManager[object] | None:
        return self._other_users_job()

    @contextmanager
    def _other_users_job(self) -> Iterator[None]:
        text = "executable = /bin/sleep\narguments = 600\ntransfer_executable = false\nqueue 3\n"
        done = self.pool.tool("condor_submit", "-terse", "-", identity="user", text_input=text)
        yield
        self.pool.tool("condor_rm", done.stdout.split(".")[0], identity="user")


@pytest.fixture(scope="module")
def wide_pool(condor: Installation, pool_base: Path) -> Iterator[PrivatePool]:
    """A pool with many cores, so that every small job starts."""
    pool = PrivatePool(
        "wide", installation=condor, directory=pool_base / "W", cores=64, memory_mb=8192, extra="CLAIM_WORKLIFE = 0\n"
    )
    with pool as started:
        yield started


class TestVanillaJobs(BackendContract):
    @pytest.fixture
    def backend_kit(self, wide_pool: PrivatePool, pool_base: Path) -> Iterator[Kit]:
        kit = Kit(wide_pool, pool_base, "vanilla")
        yield kit
        shutil.rmtree(kit.base)

    @pytest.mark.parametrize("value", ARRIVING)
    def test_values_and_files_arrive_at_the_payload_as_they_left(self, backend_kit: Kit, value: str) -> None:
        backend_kit.script.write_text(SHOW)
        extra = backend_kit.base / "an extra file"
        extra.write_text("extra")
        backend, request = backend_kit.make(), backend_kit.request()
        payload = replace(
            request.payload, arguments=(value, "last"), environment={"VALUE": value}, files={"extra": extra}
        )
        assert isinstance(backend.create([replace(request, payload=payload)])[0], Created)
        backend_kit.wait_until(lambda: status(backend, request.id) is Status.ENDED, 30)
        shown, files = (backend_kit.base / "jobs" / request.id / "out").read_text().split("--")
        assert bytes.fromhex(shown) == f"{value}\nlast\n{value}".encode()
        assert files.split("\n") == ["", "a secretextra600", ""]
        backend.delete([Handle(request.id, None)])
        backend.close()

    def test_an_ended_job_tells_its_exit_code(self, backend_kit: Kit) -> None:
        backend_kit.script.write_text("#!/bin/sh\nexit 3\n")
        backend, request = backend_kit.make(), backend_kit.request()
        backend.create([request])
        backend_kit.wait_until(lambda: status(backend, request.id) is Status.ENDED, 30)
        assert [entry.reason for entry in backend.list()] == ["exit code 3"]
        backend.delete([Handle(request.id, None)])
        assert backend.list() == []
        backend.close()

    def test_an_id_that_has_ended_and_left_the_queue_is_not_made_again(self, backend_kit: Kit) -> None:
        backend_kit.script.write_text("#!/bin/sh\n")
        backend, request = backend_kit.make(), backend_kit.request()
        first = backend.create([request])
        backend_kit.wait_until(lambda: status(backend, request.id) is Status.ENDED, 30)
        backend.delete([Handle(request.id, None)])
        assert backend.create([request]) == first
        # As if we had been killed between the submission and the note of it.
        (backend_kit.base / "jobs" / request.id / "submitted").unlink()
        backend_kit.wait_until(lambda: backend.create([request]) == first, 10)
        assert backend.list() == []
        backend.close()

    def test_a_job_that_the_schedd_holds_is_held_with_its_reason(self, backend_kit: Kit) -> None:
        backend, request = backend_kit.make(submit={"requirements": "false"}), backend_kit.request()
        backend.create([request])
        tool = backend_kit.pool.tool
        tool("condor_hold", "-constraint", f'ApfElasticId == "{request.id}"', "-reason", "by the test")
        entry = backend.list()[0]
        assert (entry.status, entry.native) == (Status.HELD, "HELD")
        assert "by the test" in entry.reason
        assert backend.delete([Handle(request.id, None, pending_only=True)]) == [Deleted(request.id)]
        backend.close()

    def test_two_backends_of_a_factory_share_a_schedd(self, backend_kit: Kit) -> None:
        context = Context("ours", backend_kit.base / "state" / "second")
        second = HTCondorBackend("second", backend_kit.options(spool_dir=backend_kit.base / "jobs2"), context)
        first, request = backend_kit.make(), backend_kit.request()
        first.create([request])
        assert second.list() == []
        assert second.delete([Handle(request.id, None)]) == [Deleted(request.id)]
        assert living(first).keys() == {request.id}
        first.delete([Handle(request.id, None)])
        first.close()
        second.close()


class TestCreatorsThatAreKilled:
    """kill -9 at any moment: the next creator makes what is missing, and nothing twice."""

    def test_every_id_is_made_once(self, pool: PrivatePool, pool_base: Path) -> None:
        kit = Kit(pool, pool_base, "killed")
        rng = random.Random(5)
        ids = [f"k{n}" for n in range(60)]
        for _ in range(12):
            process = multiprocessing.get_context("fork").Process(target=_create_one_by_one, args=(kit, ids))
            process.start()
            time.sleep(rng.uniform(0.1, 0.7))  # the moment of the kill, not a wait for anything
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            process.close()
        backend = kit.make()
        answers = backend.create([kit.request(id_) for id_ in ids])
        listed = backend.list()  # fails in `living` if any came twice
        assert len(listed) == len(ids)
        assert {entry.id: entry.remote_id for entry in listed} == {
            answer.id: answer.remote_id for answer in answers if isinstance(answer, Created)
        }
        backend.delete([Handle(id_, None) for id_ in ids])
        assert backend.list() == []
        backend.close()


def _create_one_by_one(kit: Kit, ids: list[str]) -> None:
    backend = kit.make()
    for start in range(0, len(ids), 3):
        backend.create([kit.request(id_) for id_ in ids[start : start + 3]])


class TestTrouble:
    @pytest.fixture
    def kit(self, pool: PrivatePool, pool_base: Path) -> Kit:
        return Kit(pool, pool_base, "trouble")

    def test_a_dead_schedd_leaves_a_create_uncertain_and_the_list_unknown(self, kit: Kit) -> None:
        backend, request = kit.make(schedd="<127.0.0.1:1?sock=schedd>"), kit.request()
        answer = backend.create([request])[0]
        assert isinstance(answer, Uncertain)
        assert "nothing answers there" in answer.reason
        with pytest.raises(CallError, match="nothing answers there"):
            backend.list()
        backend.close()

    def test_a_schedd_that_hangs_costs_the_timeout(self, kit: Kit) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"<127.0.0.1:{silent.getsockname()[1]}>"
            backend = kit.make(schedd=address, timeout_s=1.5)
            began = time.monotonic()
            answers = backend.create([kit.request(), kit.request()])
            assert time.monotonic() - began < 4
            assert all(isinstance(answer, Uncertain) for answer in answers)
            backend.close()

    def test_what_a_frozen_schedd_was_asked_for_is_made_once(self, kit: Kit) -> None:
        backend, requests = kit.make(timeout_s=1.5), [kit.request() for _ in range(20)]
        living(backend)
        with frozen_schedd(kit.pool):
            answers = backend.create(requests)
            assert all(isinstance(answer, Uncertain) for answer in answers)
            with pytest.raises(CallError):
                backend.list()
        patient = kit.make()
        assert all(isinstance(answer, Created) for answer in patient.create(requests))
        assert living(patient).keys() == {request.id for request in requests}
        patient.delete([Handle(request.id, None) for request in requests])
        patient.close()
        backend.close()

    def test_what_the_schedd_refuses_is_refused_with_its_reason(self, kit: Kit) -> None:
        offering = {"small": {"submit": {"request_memory": "no ( expression"}}}
        backend, request = kit.make(offerings=offering), kit.request()
        answer = backend.create([request])[0]
        assert isinstance(answer, Refused)
        assert "RequestMemory = no ( expression" in answer.reason
        assert not (kit.base / "jobs" / request.id).exists()
        backend.close()

    def test_a_token_that_the_pool_did_not_sign_is_explained(self, kit: Kit, tmp_path: Path) -> None:
        backend = kit.make(token_dir=tmp_path, config=None)
        with pytest.raises(CallError, match=r"refused our token.*token_dir .* is empty"):
            backend.list()
        backend.close()

    def test_jobs_of_another_user_are_not_said_to_be_deleted(self, kit: Kit) -> None:
        backend, request = kit.make(), kit.request()
        backend.create([request])
        stranger = kit.make(token_dir=kit.pool.token_dir("user"))
        with pytest.raises(CallError, match="does not let our token's identity remove"):
            stranger.delete([Handle(request.id, None)])
        assert living(backend).keys() == {request.id}
        backend.delete([Handle(request.id, None)])
        backend.close()
        stranger.close()

    def test_a_thousand_are_submitted_and_removed_in_seconds(self, kit: Kit) -> None:
        backend = kit.make()
        requests = [kit.request() for _ in range(1000)]
        began = time.monotonic()
        answers = backend.create(requests)
        assert all(isinstance(answer, Created) for answer in answers)
        assert len(living(backend)) == 1000
        deleted = backend.delete([Handle(request.id, None) for request in requests])
        assert all(isinstance(answer, Deleted) for answer in deleted)
        assert time.monotonic() - began < 30
        backend.close()

    def test_ping_says_who_answers(self, kit: Kit) -> None:
        backend = kit.make()
        assert backend.ping().startswith(f"schedd {kit.pool.schedd_name}, ")
        backend.close()


def test_a_grid_job_goes_to_the_ce_with_our_mark_and_comes_back(
    pool: PrivatePool, ce_pool: PrivatePool, pool_base: Path
) -> None:
    kit = Kit(pool, pool_base, "grid", f"condor {ce_pool.schedd_name} {ce_pool.collector}")
    backend, requests = kit.make(), [kit.request(), kit.request()]
    ids = {request.id for request in requests}
    assert all(isinstance(answer, Created) for answer in backend.create(requests))
    kit.wait_until(lambda: {status(backend, id_) for id_ in ids} == {Status.RUNNING}, 60)
    shown = ce_pool.tool("condor_q", "-all", "-af", "ApfElasticId", "RequestMemory", "xcount").stdout.split("\n")
    assert {f"{id_} 64 1" for id_ in ids} <= set(shown)
    started = backend.delete([Handle(id_, None, pending_only=True) for id_ in ids])
    assert all(isinstance(answer, NotDeleted) for answer in started)
    kit.wait_until(lambda: all(isinstance(a, Deleted) for a in backend.delete([Handle(id_, None) for id_ in ids])), 60)
    assert backend.list() == []
    kit.wait_until(lambda: not ids & set(ce_pool.tool("condor_q", "-all", "-af", "ApfElasticId").stdout.split()), 60)
    backend.close()


@contextmanager
def frozen_schedd(pool: PrivatePool) -> Iterator[None]:
    """The schedd takes connections and does nothing while the context lasts."""
    pids = [pid for pid in pool.processes() if "condor_schedd" in Path(f"/proc/{pid}/cmdline").read_text()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def status(backend: HTCondorBackend, id_: str) -> Status | None:
    return next((entry.status for entry in backend.list() if entry.id == id_), None)

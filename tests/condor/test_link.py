"""The helper process: deadlines, deaths, and the words of errors. No HTCondor server is needed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apf_elastic.condor.errors import explain
from apf_elastic.condor.link import CondorLink, Endpoint, NoAnswer
from apf_elastic.contracts import CallError

pytest.importorskip("htcondor2")

LIST = {"kind": "Schedd", "constraint": "true", "projection": ["Name"]}

IN_A_HANGING_CALL = """\
import sys
from apf_elastic.condor.link import CondorLink, Endpoint
link = CondorLink(Endpoint(sys.argv[1]))
link.call("parse", {"expressions": ["1"]}, 20)
print(link._helper._process.pid, flush=True)
link.call("ads", {"kind": "Schedd", "constraint": "true", "projection": []}, 60)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def link_to(collector: str, token_dir: Path | None = None) -> Iterator[CondorLink]:
    link = CondorLink(Endpoint(collector, token_dir=token_dir))
    try:
        yield link
    finally:
        link.close()


def test_a_collector_that_hangs_costs_the_timeout_and_the_next_call_works(silent: str) -> None:
    with link_to(silent) as link:
        began = time.monotonic()
        with pytest.raises(CallError, match=f"collector {silent}"):
            link.call("ads", LIST, 0.7)
        assert time.monotonic() - began < 2
        assert link.call("parse", {"expressions": ["a + 1"]}, 20) == [["a"]]


def test_a_deadline_that_passes_in_mid_call_is_no_answer(silent: str) -> None:
    with link_to(silent) as link, pytest.raises(NoAnswer, match=r"no answer from collector .* within 0\.3 s"):
        link.call("ads", LIST, 0.3)


def test_the_helper_dies_with_its_parent_also_in_a_call_that_hangs(silent: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", IN_A_HANGING_CALL, silent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as service:
        assert service.stdout is not None
        helper = os.pidfd_open(int(service.stdout.readline()))
        try:
            _await_connection(silent)
            service.kill()
            ended, _, _ = select.select([helper], [], [], 2)
            assert ended, "the helper lives on"
        finally:
            os.close(helper)
            service.kill()


def _await_connection(address: str) -> None:
    port = f"{int(address.split(':')[1]):04X}"
    deadline = time.monotonic() + 20
    while f":{port} 0100007F" not in _established() and time.monotonic() < deadline:
        time.sleep(0.02)


def _established() -> str:
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return "\n".join(f":{line.split()[2].split(':')[1]} 0100007F" for line in lines[1:] if line.split()[3] == "01")


def test_a_helper_that_is_killed_is_replaced() -> None:
    with link_to("127.0.0.1:1") as link:
        link.call("parse", {"expressions": ["1"]}, 20)
        assert link._helper is not None
        os.kill(link._helper._process.pid, signal.SIGKILL)
        link._helper._process.wait()
        with pytest.raises(NoAnswer, match="ended in mid-call: status -9"):
            link.call("parse", {"expressions": ["1"]}, 20)
        assert link.call("parse", {"expressions": ["1"]}, 20) == [[]]


def test_large_requests_and_answers_pass() -> None:
    with link_to("127.0.0.1:1") as link:
        expressions = [f"a{n} + {'1' * 1000}.0" for n in range(2000)]
        assert link.call("parse", {"expressions": expressions}, 60) == [[f"a{n}"] for n in range(2000)]


def test_a_collector_that_is_not_there_is_told_from_one_that_refuses(tmp_path: Path) -> None:
    with link_to("127.0.0.1:1") as link, pytest.raises(CallError, match=r"127\.0\.0\.1:1: nothing answers there"):
        link.call("ads", LIST, 10)
    with link_to("no.such.host.invalid:9618") as link, pytest.raises(CallError, match="no such host"):
        link.call("ads", LIST, 10)


def test_a_mistake_of_ours_is_called_a_bug() -> None:
    with link_to("127.0.0.1:1") as link, pytest.raises(CallError, match=r"bug in apf-elastic.*KeyError"):
        link.call("no such operation", {}, 20)


def test_without_the_bindings_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("htcondor2", "htcondor"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with link_to("127.0.0.1:1") as link, pytest.raises(CallError, match=r"pip install 'apf-elastic\[htcondor\]'"):
        link.call("parse", {"expressions": []}, 20)


def test_numbers_are_not_taken_for_undefined_or_error() -> None:
    """classad2's Value.Error is 1 and Value.Undefined is 2."""
    import classad2
    import htcondor2

    from apf_elastic.condor.operations import Htcondor

    pool = Htcondor(htcondor2, classad2, "")
    ad = classad2.ClassAd({"One": 1, "Two": 2})
    ad["Wrong"] = classad2.ExprTree("1 / 0")
    ad["Nothing"] = classad2.ExprTree("NoSuch + 1")
    ad["Some"] = classad2.ExprTree("{ 1, NoSuch, 2 }")
    assert pool.plain(ad) == {"One": 1, "Two": 2, "Wrong": {"error": "1 / 0"}, "Nothing": None, "Some": [1, None, 2]}


REFUSED = "AUTHENTICATE:1004:Failed to authenticate using IDTOKENS"


def test_a_refused_token_says_what_is_wrong_with_the_directory(tmp_path: Path) -> None:
    assert explain("schedd a", tmp_path, REFUSED, "").endswith(f"token_dir {tmp_path} is empty")
    assert "cannot be read (No such file" in explain("schedd a", tmp_path / "no", REFUSED, "")
    (tmp_path / "token").write_text("x")
    assert "holds a valid token signed by that pool" in explain("schedd a", tmp_path, REFUSED, "")
    assert "set token_dir" in explain("schedd a", None, REFUSED, "")


def test_what_the_bindings_log_is_added_once_and_without_stamps() -> None:
    log = "11/21/26 07:09:09 attempt to connect failed: Connection refused\n" * 2
    said = explain("collector a:1", None, "Failed communication.", log)
    assert said.count("attempt to connect") == 1
    assert "07:09" not in said

"""HTCondor's Python bindings, at arm's length.

The bindings read their configuration once per process, hold Python's global lock while they wait for a daemon
(a collector that hangs stops every thread, for up to a minute), and may crash. So they run in a helper process:
`CondorLink.call` sends it one request, waits for the answer at most so long, and replaces it when none comes.

The helper must not outlive us: after a kill -9 of the service it would go on submitting. It holds the reading end
of a pipe that nobody writes to; see `apf_elastic.condor.child` for what happens when the writing end closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from apf_elastic.condor.child import HEADER
from apf_elastic.condor.errors import explain
from apf_elastic.contracts import CallError

_USUAL_CONFIGS = (Path("/etc/condor/condor_config"), Path("/usr/local/etc/condor_config"))


class NoAnswer(CallError):
    """The request was sent and not answered: it may have taken effect."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which HTCondor is asked, with which configuration and credential.

    `collector` is ``host:port`` (empty: what the configuration says), `config` a CONDOR_CONFIG file (None: the
    machine's own, if it has one), `token_dir` the directory of our IDTOKENS (None: what the configuration says).
    """

    collector: str = ""
    config: Path | None = None
    token_dir: Path | None = None

    def __str__(self) -> str:
        return f"collector {self.collector}" if self.collector else "the local HTCondor"

    def environment(self) -> dict[str, str]:
        """The environment of programs that speak to it."""
        result = dict(os.environ)
        if self.config is not None:
            result["CONDOR_CONFIG"] = str(self.config)
        elif "CONDOR_CONFIG" not in result and not any(path.exists() for path in _USUAL_CONFIGS):
            result["CONDOR_CONFIG"] = "ONLY_ENV"
            # Glideins call tools back (CCB); the shared port for that has a directory only in a configuration.
            result.setdefault("_CONDOR_USE_SHARED_PORT", "False")
            if os.geteuid() == 0 and not _is_user("condor"):
                result.setdefault("CONDOR_IDS", "0.0")  # else root's tools refuse to run at all
        if self.token_dir is not None:
            # Root's programs look into the second one.
            result["_CONDOR_SEC_TOKEN_DIRECTORY"] = str(self.token_dir)
            result["_CONDOR_SEC_TOKEN_SYSTEM_DIRECTORY"] = str(self.token_dir)
        return result


class CondorLink:
    """One helper process for one endpoint: started by the first call, one request at a time, in any thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._turn = threading.Lock()
        self._helper: _Helper | None = None

    def call(self, op: str, arguments: Mapping[str, object], timeout_s: float, about: str = "") -> Any:
        """Do `op` of `apf_elastic.condor.operations` there; `about` names who is asked, for messages.

        Raises NoAnswer when it was sent and no answer came within `timeout_s`, else CallError: not done.
        """
        about = about or str(self.endpoint)
        deadline = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            raise CallError(f"{about}: the call before this one is still waiting after {timeout_s:g} s")
        try:
            answer = self._exchange(op, arguments, timeout_s, deadline, about)
        finally:
            self._turn.release()
        if "error" in answer:
            raise CallError(explain(about, self.endpoint.token_dir, answer["error"], answer.get("log", "")))
        return answer["result"]

    def _exchange(self, op: str, arguments: Mapping[str, object], timeout_s: float, deadline: float, about: str) -> Any:
        if self._helper is None:
            self._helper = _Helper(self.endpoint)
        request = {
            "op": op,
            "collector": self.endpoint.collector,
            "timeout_s": deadline - time.monotonic(),
            "arguments": arguments,
        }
        try:
            return self._helper.exchange(json.dumps(request).encode(), deadline)
        except TimeoutError:
            self._end()
            raise NoAnswer(f"no answer from {about} within {timeout_s:g} s") from None
        except (EOFError, BrokenPipeError):
            last_words = self._helper.last_words()
            self._end()
            raise NoAnswer(f"{about}: the helper process ended in mid-call: {last_words}") from None

    def close(self) -> None:
        """End the helper process; a later call starts another."""
        with self._turn:
            self._end()

    def _end(self) -> None:
        if self._helper is not None:
            self._helper.end()
            self._helper = None


class _Helper:
    """The helper process and its pipes."""

    def __init__(self, endpoint: Endpoint) -> None:
        life, our_life = os.pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "apf_elastic.condor.child", str(life)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=_with_our_package(endpoint.environment()),
                pass_fds=(life,),
                start_new_session=True,  # a Ctrl-C at the terminal is for us to handle
            )
        except BaseException:
            os.close(our_life)
            log.close()
            raise
        finally:
            os.close(life)
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._log = process, log
        self._into, self._out = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._into, False)
        os.set_blocking(self._out, False)
        self.end = weakref.finalize(self, _end_process, process, our_life, log)

    def exchange(self, request: bytes, deadline: float) -> Any:
        """Raises TimeoutError at `deadline` (monotonic), EOFError or BrokenPipeError if the process has ended."""
        self._write(HEADER.pack(len(request)) + request, deadline)
        (size,) = HEADER.unpack(self._read(HEADER.size, deadline))
        return json.loads(self._read(size, deadline))

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _wait([], [self._into], deadline)
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self._into, view) :]

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait([self._out], [], deadline)
            with contextlib.suppress(BlockingIOError):
                piece = os.read(self._out, min(size - len(data), 1 << 20))
                if not piece:
                    raise EOFError
                data += piece
        return bytes(data)

    def last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split())[-500:]
        return f"status {self._process.poll()}" + (f", {text}" if text else "")


def _wait(readable: list[int], writable: list[int], deadline: float) -> None:
    poll = select.poll()  # select() fails for descriptors above 1023
    for descriptor in readable:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poll.register(descriptor, select.POLLOUT)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _end_process(process: subprocess.Popen[bytes], our_life: int, log: IO[bytes]) -> None:
    """Kill, not ask: a helper that hangs in the bindings hears nothing else."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
    os.close(our_life)
    log.close()


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _with_our_package(environment: dict[str, str]) -> dict[str, str]:
    """So that `python -m` finds us although we may be on sys.path only."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = environment.get("PYTHONPATH", "")
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, [root, inherited]))}

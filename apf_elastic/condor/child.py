"""The helper process of `CondorLink`: reads requests, runs operations, writes answers.

    python -m apf_elastic.condor.child LIFE_PIPE

It must end when its parent ends, also while a bindings call blocks with Python's global lock held, when no thread
and no Python signal handler can run. So the kernel does it: LIFE_PIPE is set up to raise SIGKILL in this process
(F_SETSIG, O_ASYNC) as soon as its last writer, the parent, is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import sys
import threading
import traceback
from typing import Any, BinaryIO

from apf_elastic.condor import operations

HEADER = struct.Struct("!I")
"""Before each message, either way: its length in bytes. The message is JSON."""

_F_SETSIG = 10  # Linux; Python 3.11's fcntl does not have it


def main() -> None:
    _die_with(int(sys.argv[1]))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the bindings print must not get between the answers
    pool: operations.Htcondor | None = None
    while header := requests.read(HEADER.size):
        (size,) = HEADER.unpack(header)
        request = json.loads(requests.read(size))
        _forget_log()
        try:
            pool = pool or operations.load(request["collector"])
            pool.limit_waiting(request["timeout_s"])
            operation = operations.OPERATIONS[request["op"]]
            answer: dict[str, Any] = {"result": operation(pool, **request["arguments"])}
        except operations.Failure as failure:
            answer = {"error": str(failure)}
        except Exception as error:
            answer = {"error": _text(error, pool), "log": _log()}
        _send(answers, answer)


def _die_with(life: int) -> None:
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    # For the moment before that, and for kernels without it: the reading end sees the end of file.
    threading.Thread(target=_watch, args=(life,), daemon=True).start()


def _watch(life: int) -> None:
    with contextlib.suppress(OSError):
        os.read(life, 1)
    os._exit(0)


def _text(error: Exception, pool: operations.Htcondor | None) -> str:
    if pool is not None and isinstance(error, pool.errors):
        return str(error) or type(error).__name__
    return f"this is a bug in apf-elastic: {traceback.format_exc(limit=-3)}"


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    answers.write(HEADER.pack(len(data)) + data)
    answers.flush()


def _forget_log() -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)


def _log() -> str:
    """What the bindings wrote since the request came: the reason that their exceptions leave out."""
    with contextlib.suppress(OSError):
        return os.pread(2, 1 << 16, 0).decode(errors="replace")[-4000:]
    return ""


if __name__ == "__main__":
    main()

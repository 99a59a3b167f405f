"""Ends what a factory's local backend still runs, for shows and tests that are over."""

from __future__ import annotations

import time
from pathlib import Path

from apf_elastic.backends.local import LocalBackend, LocalOptions
from apf_elastic.contracts import Context, Handle, Status

PATIENCE_S = 20.0


def end_local_resources(directory: Path, factory: str, backend: str = "here") -> int:
    """Stop every process of a local backend whose files are in `directory`; returns how many are left after 20 s."""
    local = LocalBackend(backend, LocalOptions(stop_grace_s=0), Context(factory, directory))
    end = time.monotonic() + PATIENCE_S
    while (alive := [e for e in local.list() if e.status is not Status.ENDED]) and time.monotonic() < end:
        local.delete([Handle(entry.id, entry.remote_id) for entry in alive])
        time.sleep(0.2)
    local.close()
    return len(alive)

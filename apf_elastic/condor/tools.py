"""HTCondor's command-line tools, for what its bindings cannot do: draining a glidein, making a token."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from apf_elastic.contracts import CallError


class Tools:
    """Runs tools of `bin_dir`, or of PATH. Arguments never pass a shell, and their output is never logged here."""

    def __init__(self, bin_dir: Path | None, environment: Mapping[str, str]) -> None:
        self._bin_dir = bin_dir
        self._environment = dict(environment)

    def find(self, name: str) -> str:
        """Raises CallError when it is not there."""
        search = self._environment.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
        if self._bin_dir is not None:
            # Some packagings put the administrator's tools beside bin.
            search = os.pathsep.join([str(self._bin_dir), str(self._bin_dir.parent / "sbin")])
        found = shutil.which(name, path=search)
        if found is None:
            raise CallError(f"{name} is not in {search}: install HTCondor's tools, or set bin_dir")
        return found

    def run(self, name: str, arguments: Sequence[str], timeout_s: float) -> str:
        """Its standard output. Raises CallError with its last words when it fails or takes too long."""
        command = [self.find(name), *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            raise CallError(f"{name}: no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise CallError(f"{command[0]}: {error.strerror}") from None
        if done.returncode:
            words = " ".join(done.stderr.split())[-400:]
            raise CallError(f"{name}: status {done.returncode}: {words or 'no reason given'}")
        return done.stdout

"""Real servers for the tests in this directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apf_elastic.testing.htcondor_install import Installation, InstallError, ensure
from apf_elastic.testing.htcondor_pool import SERVICE_DAEMONS, PrivatePool


@pytest.fixture(scope="session")
def condor() -> Installation:
    """HTCondor, installed without root if need be. Without one, tests are skipped, and fail when CI=true."""
    try:
        return ensure(print)
    except InstallError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs an HTCondor: {error}")
        pytest.skip(f"no HTCondor: {error}")


@pytest.fixture(scope="session")
def pool_base() -> Iterator[Path]:
    """A short directory, open to all: pytest's own are closed to the daemons' user and too long for sockets."""
    base = Path(tempfile.mkdtemp(prefix="apf-real-"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def pool(condor: Installation, pool_base: Path) -> Iterator[PrivatePool]:
    """poolA, with a schedd but no startd: glideins are to join it."""
    with PrivatePool("poolA", installation=condor, directory=pool_base / "A", daemons=SERVICE_DAEMONS) as started:
        yield started


@pytest.fixture(scope="session")
def ce_pool(condor: Installation, pool_base: Path, pool: PrivatePool) -> Iterator[PrivatePool]:
    """poolB, with a startd of 4 cores: plays the CE to which `pool` submits pilots by Condor-C."""
    with PrivatePool("poolB", installation=condor, directory=pool_base / "B") as started:
        pool.trust(started)
        yield started

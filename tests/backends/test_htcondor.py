"""States, descriptions and constraints. Real schedds are in tests/real/test_htcondor_backend.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from apf_elastic.backends.htcondor import HTCondorBackendOptions, describe, read_job
from apf_elastic.contracts import Status


@pytest.mark.parametrize(
    ("native", "status"),
    [
        ({"JobStatus": 1}, Status.PENDING),
        ({"JobStatus": 2}, Status.RUNNING),
        ({"JobStatus": 3}, Status.ENDED),
        ({"JobStatus": 4}, Status.ENDED),
        ({"JobStatus": 5}, Status.HELD),
        ({"JobStatus": 6}, Status.RUNNING),
        ({"JobStatus": 7}, Status.RUNNING),
        ({"JobStatus": 8}, Status.PENDING),
        ({"JobStatus": None}, Status.PENDING),
        ({"JobStatus": "x"}, Status.PENDING),
        ({"JobStatus": {"error": "y"}}, Status.PENDING),
        ({}, Status.PENDING),
        ({"JobStatus": 1, "GridJobStatus": "IDLE"}, Status.PENDING),
        ({"JobStatus": 1, "GridJobStatus": "RUNNING"}, Status.RUNNING),
        ({"JobStatus": 1, "GridJobStatus": "INLRMS: Q"}, Status.PENDING),
        ({"JobStatus": 2, "GridJobStatus": "IDLE"}, Status.RUNNING),
        ({"JobStatus": 3, "GridJobId": "condor b 1.0", "GridJobStatus": "RUNNING"}, Status.RUNNING),
        ({"JobStatus": 3, "GridJobId": "condor b 1.0", "GridJobStatus": "IDLE"}, Status.PENDING),
    ],
)
def test_every_native_state_maps(native: Mapping[str, Any], status: Status) -> None:
    assert read_job({"ApfElasticId": "a", **native}, "s#1.0").status is status


def test_an_invented_state_is_told() -> None:
    entry = read_job({"ApfElasticId": "a", "JobStatus": 9}, "s#1.0")
    assert (entry.native, entry.reason) == ("JobStatus 9", "unknown JobStatus 9")


def test_reasons_come_along() -> None:
    def reason(**job: Any) -> str:
        return read_job({"ApfElasticId": "a", **job}, "").reason

    assert reason(JobStatus=5, HoldReason="no such queue") == "no such queue"
    assert reason(JobStatus=4, ExitCode=81) == "exit code 81"
    assert reason(JobStatus=4, ExitBySignal=True, ExitSignal=9) == "signal 9"
    assert "cannot reach the CE" in reason(JobStatus=1, GridResourceUnavailableTime=5)


def options(**changes: Any) -> HTCondorBackendOptions:
    small = {"cores": 2, "memory_mb": 1000, "disk_mb": 10, "gpus": 1, "walltime_s": 7200}
    return HTCondorBackendOptions.model_validate({"offerings": {"small": small}, **changes})


def lines(given: HTCondorBackendOptions) -> dict[str, str]:
    text = describe(given, "fac", "be", "small", Path("/spool/start.sh"))
    return dict(line.split(" = ", 1) for line in text.splitlines())


def test_a_vanilla_job_asks_for_its_shape_and_carries_our_marks() -> None:
    found = lines(options())
    assert found["universe"] == "vanilla"
    asked = [found[f"request_{what}"] for what in ("cpus", "memory", "disk", "gpus")]
    assert asked == ["2", "1000", "10240", "1"]
    marks = [found[f"+ApfElastic{what}"] for what in ("Factory", "Backend", "Offering")]
    assert marks == ['"fac"', '"be"', '"small"']
    assert not any(name.startswith("+remote_") for name in found)


def test_a_job_for_another_schedd_takes_its_shape_and_marks_along() -> None:
    found = lines(options(grid_resource="condor ce ce:9619"))
    assert (found["universe"], found["grid_resource"]) == ("grid", "condor ce ce:9619")
    assert found["+remote_ApfElasticId"] == "$(apf_id)"
    assert [found[f"+remote_Request{what}"] for what in ("Cpus", "Memory", "GPUs")] == ["2", "1000", "1"]
    assert [found[f"+{what}"] for what in ("xcount", "maxMemory", "maxWallTime")] == ["2", "1000", "120"]


def test_a_batch_system_is_told_the_walltime() -> None:
    assert lines(options(grid_resource="batch slurm"))["batch_runtime"] == "7200"


def test_an_offering_has_the_last_word_on_submit_commands() -> None:
    offering = {"cores": 1, "submit": {"batch_queue": "fast"}}
    given = options(submit={"batch_queue": "slow", "+X": "1"}, offerings={"small": offering})
    found = lines(given)
    assert (found["batch_queue"], found["+X"]) == ("fast", "1")


def test_a_job_cannot_run_on_for_ever() -> None:
    expression = lines(options())["periodic_remove"]
    assert "> 10800" in expression
    assert "EnteredCurrentStatus > 86400" in expression
    assert "JobStatus == 1 && NumJobStarts > 0" in expression
    assert "NumJobStarts" not in lines(options(grid_resource="batch pbs"))["periodic_remove"]


@pytest.mark.parametrize(
    "changes",
    [
        *({"offerings": {}}, {"submit": {"queue": "5"}}, {"submit": {"a b": "1"}}, {"submit": {"x": "1\nqueue 5"}}),
        *({"submit": {"+ApfElasticId": '"x"'}}, {"grid_resource": "condor a\nqueue"}, {"grid_resource": "$(x)"}),
        *({"reader": "a", "reader_group": "b"}, {"timeout_s": -1}, {"unknown": 1}),
    ],
)
def test_options_that_cannot_work_are_refused(changes: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**changes)

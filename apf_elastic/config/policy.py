"""The chain of a queue: known steps, with options that they know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apf_elastic.config.problems import Key
from apf_elastic.config.report import Report
from apf_elastic.settings import StepSettings


def read_chain(policy: Mapping[str, Any], key: Key, report: Report) -> tuple[StepSettings, ...]:
    chain = policy.get("chain", [])
    if not isinstance(chain, list):
        return ()
    return tuple(StepSettings(name, policy.get(str(name).lower(), {})) for name in chain if isinstance(name, str))

"""Options that everything which speaks to HTCondor has, and questions that all ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from apf_elastic.condor.link import CondorLink, Endpoint
from apf_elastic.contracts import CallError


class CondorOptions(BaseModel):
    """Where HTCondor is and how we log in.

    collector: ``host:port``; empty: what the configuration says.
    config: a CONDOR_CONFIG file; default: this machine's.
    token_dir: a directory with our IDTOKENS, each owned by the service's user with mode 0600.
    timeout_s: longest wait for one daemon's answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    collector: str = ""
    config: Path | None = None
    token_dir: Path | None = None
    timeout_s: float = Field(default=30.0, gt=0)

    def endpoint(self) -> Endpoint:
        return Endpoint(self.collector, self.config, self.token_dir)


def ping_schedd(link: CondorLink, schedd: str, timeout_s: float) -> str:
    """Ask one schedd for its totals and its collector for its version: ``schedd a@b, 23.9.6, 120 jobs``."""
    about = schedd_label(link, schedd)
    totals = link.call("totals", {"schedd": schedd}, timeout_s, about)
    version = ""
    if schedd and not schedd.startswith("<"):
        version = ", " + schedd_version(link, schedd, timeout_s)
    return f"{about}{version}, {totals.get('AllusersJobs', 0)} jobs"


def schedd_version(link: CondorLink, schedd: str, timeout_s: float) -> str:
    asked: dict[str, Any] = {"kind": "Schedd", "constraint": "true", "projection": ["Name", "CondorVersion"]}
    ads = link.call("ads", asked, timeout_s)
    versions = [ad.get("CondorVersion") for ad in ads if ad.get("Name") == schedd]
    if not versions:
        raise CallError(f"{link.endpoint} has no ad of schedd {schedd}")
    return version_number(versions[0])


def version_number(text: object) -> str:
    """``23.9.6`` from ``$CondorVersion: 23.9.6 2026-07-12 ... $``."""
    words = str(text).split()
    return words[1] if len(words) > 1 else "unknown version"


def schedd_label(link: CondorLink, schedd: str) -> str:
    return f"schedd {schedd}" if schedd else f"the schedd of {link.endpoint}"

"""What the bindings' terse words mean, and what to do about them."""

from __future__ import annotations

import os
import re
from pathlib import Path

_STAMP = re.compile(r"^\d\d/\d\d/\d\d \d\d:\d\d:\d\d(\.\d+)? (\([^)]*\) ?)*")


def explain(about: str, token_dir: Path | None, error: str, log: str) -> str:
    """One sentence: who (`about`), the bindings' own text, what they logged meanwhile, and the cure."""
    error = " ".join(error.split())
    logged = "; ".join(dict.fromkeys(_STAMP.sub("", line).strip() for line in log.splitlines() if line.strip()))
    whole = f"{error} {logged}"
    said = error if not logged or logged in error else f"{error} ({logged[:600]})"
    if "Can't resolve" in whole:
        return f"{about}: no such host: {said}: check the address"
    if "Connection refused" in whole or "Failed to connect" in whole or "No route" in whole:
        return f"{about}: nothing answers there: {said}: check the address, and that HTCondor runs"
    if "DENIED" in whole or "not authorized" in whole:
        return f"{about}: our token's identity may not do this: {said}: see the ALLOW_ settings there"
    if "AUTHENTICATE" in whole or "authentication" in whole:
        return f"{about} refused our token: {said}: {_token_cure(token_dir)}"
    if "Failed to advertise" in whole:
        return f"{about}: our token's identity may not do this: {said}: see the ALLOW_ settings there"
    return f"{about}: {said}"


def _token_cure(token_dir: Path | None) -> str:
    if token_dir is None:
        return "set token_dir to a directory with a token signed by that pool"
    try:
        files = [entry for entry in token_dir.iterdir() if entry.is_file()]
    except OSError as error:
        return f"token_dir {token_dir} cannot be read ({error.strerror})"
    if not files:
        return f"token_dir {token_dir} is empty"
    foreign = [file.name for file in files if file.stat().st_uid != os.geteuid()]
    if foreign:
        return f"in token_dir {token_dir}, {', '.join(foreign)} belongs to another user, so HTCondor skips it"
    return f"check that token_dir {token_dir} holds a valid token signed by that pool"

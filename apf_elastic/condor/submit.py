"""Submit descriptions: values that arrive as they left, and the files of each job.

HTCondor's submit language expands ``$(name)`` wherever it appears, takes a line as the unit, and has its own quotes
for arguments and environment. What cannot pass unharmed is refused with a ValueError.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from grp import getgrnam
from pathlib import Path

from apf_elastic.contracts import Payload

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@:+=~-]*")
_LONGEST = 20_000
_OURS = frozenset({"out", "err", "submitted"})


def literal(text: str) -> str:
    """`text` for the right side of a submit line, so that nothing in it is expanded. Raises ValueError."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise ValueError(f"{text[:50]!r}: contains a control character, which HTCondor cannot carry")
    if "$$" in text:  # also two escaped ones would grow together
        raise ValueError(f"{text[:50]!r}: contains $$, with which HTCondor's own replacements begin")
    if len(text) > _LONGEST:
        raise ValueError(f"{text[:50]!r}...: longer than {_LONGEST} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text[:50]!r}: is not text") from None
    return text.replace("$", "$(DOLLAR)")


def string_attribute(text: str) -> str:
    """`text` as the value of a ``+Attribute`` line. Raises ValueError also for quotes and backslashes.

    Submit lines are in the old ClassAd syntax, in which a backslash before a quote is ambiguous.
    """
    if '"' in text or "\\" in text:
        raise ValueError(f"{text[:50]!r}: contains a quote or a backslash")
    return f'"{literal(text)}"'


def arguments_line(arguments: Iterable[str]) -> str:
    """The value of ``arguments =``, in HTCondor's new syntax."""
    return literal('"' + " ".join(map(_word, arguments)) + '"')


def environment_line(environment: Mapping[str, str]) -> str:
    """The value of ``environment =``, in HTCondor's new syntax."""
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name[:50]!r} is no name of an environment variable")
    return literal('"' + " ".join(f"{name}={_word(value)}" for name, value in environment.items()) + '"')


def _word(text: str) -> str:
    """In single quotes, in which they are doubled; double quotes are doubled everywhere."""
    return "'" + text.replace("'", "''").replace('"', '""') + "'"


class Spool:
    """A directory with the files of each job: ``<spool>/<id>/``, and of scripts, which jobs share.

    The submitting user's processes read them (the shadow, or the grid manager's helper), and write the job's output
    there. `reader` is that user if it is another than ours: files are given to it, which only root can.
    `reader_group`, for the others, is a group that it and we share. Secrets are 0600, or 0640 with a group.
    """

    def __init__(self, directory: Path, reader: str = "", reader_group: str = "") -> None:
        """Raises ValueError when it cannot work: an unknown user, a path that the reader cannot enter."""
        self._root = directory.absolute()
        if not _PLAIN_PATH.fullmatch(str(self._root)):
            raise ValueError(f"{self._root}: submit files take paths of letters, digits and _ . / @ : + = ~ - only")
        self._uid, self._gid = _ids(reader, reader_group)
        self._grouped = bool(reader_group)
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o711)
        if self._gid is not None:
            closed = [path for path in self._root.parents if not path.stat().st_mode & 0o011]
            if closed:
                who = reader or reader_group
                raise ValueError(f"{closed[0]}: {who} may not enter it: set spool_dir to a directory that is open")
        self._missing: dict[str, float] = {}
        self._scripts = self._root / ".scripts"
        self._scripts.mkdir(exist_ok=True)
        self._scripts.chmod(0o755)

    def directory(self, id_: str) -> Path:
        return self._root / id_

    def script(self, source: Path) -> Path:
        """A copy of `source` under a name that changes with its content. Raises OSError."""
        content = source.read_bytes()
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", source.name)
        target = self._scripts / f"{hashlib.sha256(content).hexdigest()[:16]}-{name}"
        if not target.exists():
            draft = target.with_name(f".{target.name}.{os.getpid()}")
            draft.write_bytes(content)
            draft.chmod(0o755)
            draft.replace(target)
        return target

    def lay_out(self, id_: str, payload: Payload) -> Sequence[Path]:
        """Write the files of one job; returns what is to be sent along. Raises OSError, ValueError."""
        names = [*payload.files, *payload.secrets]
        for name in names:
            if not _FILE_NAME.fullmatch(name) or name in _OURS:
                raise ValueError(f"{name!r}: not the name of a file that can be sent along")
        place = self.directory(id_)
        place.mkdir(mode=0o700, exist_ok=True)
        for name, source in payload.files.items():
            shutil.copy(source, place / name)
            self._give(place / name, place.joinpath(name).stat().st_mode & 0o700 | 0o600)
        for name, secret in payload.secrets.items():
            _write_private(place / name, secret)
            self._give(place / name, 0o600)
        self._give(place, 0o700)
        return [place / name for name in names]

    def _give(self, path: Path, mode: int) -> None:
        if self._gid is not None:
            os.chown(path, -1 if self._uid is None else self._uid, self._gid)
        path.chmod(mode | (mode & 0o700) >> 3 if self._grouped else mode)

    def note_submitted(self, id_: str, remote_id: str) -> None:
        """Remembers it for as long as the directory lasts, which is longer than the job stays in the queue."""
        path = self.directory(id_) / "submitted"
        path.write_text(remote_id)

    def submitted(self, id_: str) -> str:
        """The remote id of a job that was submitted, or nothing."""
        try:
            return (self.directory(id_) / "submitted").read_text()
        except OSError:
            return ""

    def has(self, id_: str) -> bool:
        return self.directory(id_).exists()

    def forget(self, id_: str) -> None:
        shutil.rmtree(self.directory(id_), ignore_errors=True)

    def prune(self, living: Iterable[str], keep_s: float) -> None:
        """Remove what has belonged to none of `living` for `keep_s`."""
        now, kept = time.time(), set(living)
        missing: dict[str, float] = {}
        for entry in os.scandir(self._root):
            if entry.name in kept or entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            missing[entry.name] = self._missing.get(entry.name, now)
            if missing[entry.name] <= now - keep_s:
                shutil.rmtree(entry.path, ignore_errors=True)
        self._missing = missing


def _ids(reader: str, group: str) -> tuple[int | None, int | None]:
    """uid and gid that files are given to; None: they stay ours."""
    if group:
        try:
            return None, getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"reader_group: there is no group {group}") from None
    if not reader:
        return None, None
    try:
        user = pwd.getpwnam(reader)
    except KeyError:
        raise ValueError(f"reader: there is no user {reader}") from None
    if user.pw_uid == os.geteuid():
        return None, None
    if os.geteuid() != 0:
        raise ValueError(f"reader: only root can give files to {reader}; use reader_group")
    return user.pw_uid, user.pw_gid


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from apf_elastic.condor.submit import Spool, arguments_line, environment_line, literal, string_attribute
from apf_elastic.contracts import Payload


def test_macros_are_carried_as_text() -> None:
    assert literal("$(id) $ENV(X)") == "$(DOLLAR)(id) $(DOLLAR)ENV(X)"


@pytest.mark.parametrize("text", ["a\nqueue 5", "a\0b", "\x1f", "$$(x)", "$$", "\udcff", "x" * 30_000])
def test_what_would_not_arrive_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        literal(text)


@pytest.mark.parametrize("text", ['say "x"', "back\\slash"])
def test_marks_with_quotes_or_backslashes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quote or a backslash"):
        string_attribute(text)


def test_arguments_and_environment_are_in_the_new_syntax() -> None:
    assert arguments_line(["a b", "it's", 'say "x"', ""]) == "\"'a b' 'it''s' 'say \"\"x\"\"' ''\""
    assert environment_line({"A": "1 2", "B": ""}) == "\"A='1 2' B=''\""
    with pytest.raises(ValueError, match="no name of an environment variable"):
        environment_line({"A=B;": "1"})


def test_secrets_are_readable_for_one_user_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "jobs")
    extra = tmp_path / "source"
    extra.write_text("x")
    extra.chmod(0o755)
    payload = Payload(extra, files={"checks": extra}, secrets={"token": b"secret"})
    assert [path.name for path in spool.lay_out("a", payload)] == ["checks", "token"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in spool.directory("a").iterdir()}
    assert modes == {"checks": 0o700, "token": 0o600}
    assert stat.S_IMODE(spool.directory("a").stat().st_mode) == 0o700
    spool.lay_out("a", payload)  # again, after a crash


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a,b", "a b", "out", "submitted"])
def test_files_with_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a file"):
        Spool(tmp_path).lay_out("a", Payload(tmp_path, secrets={name: b""}))


def test_only_what_nobody_has_needed_for_long_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    script = spool.script(Path(__file__))
    for id_ in ("living", "dead"):
        spool.lay_out(id_, Payload(script))

    def there_at(now: float) -> list[bool]:
        monkeypatch.setattr("time.time", lambda: now)
        spool.prune(["living"], keep_s=500)
        return [spool.has(id_) for id_ in ("living", "dead")]

    assert there_at(1000) == there_at(1499) == [True, True]
    assert there_at(1500) == [True, False]
    assert script.exists()


def test_a_script_that_changes_is_another_file(tmp_path: Path) -> None:
    source, spool = tmp_path / "start.sh", Spool(tmp_path / "jobs")
    source.write_text("one")
    first = spool.script(source)
    source.write_text("two")
    assert (first.read_text(), spool.script(source).read_text()) == ("one", "two")
    assert stat.S_IMODE(first.stat().st_mode) == 0o755


def test_users_and_paths_that_cannot_work_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no user"):
        Spool(tmp_path / "a", reader="no-such-user")
    with pytest.raises(ValueError, match="no group"):
        Spool(tmp_path / "a", reader_group="no-such-group")
    with pytest.raises(ValueError, match="submit files take paths"):
        Spool(tmp_path / "with space")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_directory_closed_to_the_reader_is_refused_at_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(ValueError, match=r"may not enter it: set spool_dir"):
        Spool(tmp_path / "jobs", reader="nobody")

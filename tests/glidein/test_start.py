"""start.sh by itself: a fake HTCondor stands where the real one would, so that every path is quick to reach."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apf_elastic import glidein
from apf_elastic.glidein import BAD_SETTINGS, BROKEN_NODE, CONDOR_FAILED, DONE, NOT_JOINED, STOPPED

pytestmark = pytest.mark.slow

FAKE_MASTER = """\
#!/bin/bash
trap 'echo TERM >> "$FAKE/signals"; [ -e "$FAKE/stubborn" ] || exit 0' TERM
trap 'echo QUIT >> "$FAKE/signals"; exit 0' QUIT
cp "$CONDOR_CONFIG" "$FAKE/config"
grep SigIgn /proc/$$/status > "$FAKE/ignored"
tr '\\0' '\\n' < /proc/$$/environ > "$FAKE/environment"
stat -c '%a %n' ../tokens.d ../tokens.d/token > "$FAKE/modes"
[ ! -e "$FAKE/startd.pid" ] || cp "$FAKE/startd.pid" ../run/
echo $$ > "$FAKE/pid.new" && mv "$FAKE/pid.new" "$FAKE/pid"
while [ ! -e "$FAKE/end" ]; do sleep 0.05; done
cp "$FAKE"/StartLog ../log/ 2>/dev/null
exit "$(cat "$FAKE/end")"
"""

FAKE_STATUS = """\
#!/bin/bash
case "$*" in
    *ApfElasticLease*) echo >> "$FAKE/lease.asked"; [ ! -e "$FAKE/lease.hangs" ] || sleep 600; exec cat "$FAKE/lease" ;;
    *) echo >> "$FAKE/slot.asked"; exec cat "$FAKE/slot" ;;
esac
"""

EVIL = [
    'q"; true',
    "q\nSTART = False",
    "q\r",
    "$(SHELL)",
    "$ENV(HOME)",
    "back\\",
    "café",
    "two words",
    "`id`",
    "q'",
    "x" * 201,
]


def token(**claims: object) -> str:
    """A token as HTCondor writes it; nobody checks this signature."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'kid': 'POOL'})}.{part({'sub': 'glidein-7@apf.test', **claims})}.c2lnbmF0dXJl\n"


def eventually(condition: Callable[[], object], within_s: float = 10, what: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what()}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Node:
    """A node on which glideins are started: a fake HTCondor, a collector's port, and a place to work."""

    def __init__(self, base: Path, collector: str) -> None:
        self.base = base
        self.fake = base / "fake"
        self.condor = base / "condor"
        self.work = base / "work"
        self.token = base / "token"
        for directory, mode in ((self.fake, 0o777), (self.work, 0o755), (self.condor, 0o755)):
            directory.mkdir()
            directory.chmod(mode)
        for name, text in (
            ("sbin/condor_master", FAKE_MASTER),
            ("bin/condor_status", FAKE_STATUS),
            ("sbin/condor_startd", ""),
            ("sbin/condor_starter", ""),
        ):
            program = self.condor / name
            program.parent.mkdir(mode=0o755, exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)
        self.token.write_text(token())
        self.say("slot", "slot1@g-7@node\n")
        self.running: list[subprocess.Popen[str]] = []
        self.settings = {
            "PATH": os.environ["PATH"],
            "FAKE": str(self.fake),
            "GLIDEIN_ID": "g-7",
            "GLIDEIN_FACTORY": "factory",
            "GLIDEIN_QUEUE": "queue",
            "GLIDEIN_BACKEND": "backend",
            "GLIDEIN_OFFERING": "small",
            "GLIDEIN_COLLECTOR": collector,
            "GLIDEIN_TOKEN": str(self.token),
            "GLIDEIN_CORES": "1",
            "GLIDEIN_MEMORY_MB": "100",
            "GLIDEIN_DISK_MB": "1",
            "GLIDEIN_CONDOR": str(self.condor),
            "GLIDEIN_WORK": str(self.work),
            "GLIDEIN_HOLD_S": "0",
        }

    def say(self, name: str, text: str) -> None:
        """Lay a file before the fake HTCondor, in one step."""
        new = self.fake / f"{name}.test"
        new.write_text(text)
        new.chmod(0o644)
        new.rename(self.fake / name)

    def heard(self, name: str) -> str:
        """What the fake HTCondor wrote."""
        path = self.fake / name
        return path.read_text() if path.exists() else ""

    def start(self, **settings: str) -> subprocess.Popen[str]:
        log = self.base / f"log.{len(self.running)}"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", str(glidein.START_SCRIPT)],
                env=self.settings | settings,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def started(self, **settings: str) -> subprocess.Popen[str]:
        """Start it and wait until the fake condor_master runs."""
        process = self.start(**settings)
        eventually(lambda: self.heard("pid") or process.poll() is not None, what=self.log)
        assert process.poll() is None, self.log()
        return process

    def wait_for_polls(self, times: int) -> None:
        """Wait until the lease has been looked at `times` more, or the glidein is gone."""
        asked = len(self.heard("lease.asked")) + times
        eventually(lambda: len(self.heard("lease.asked")) >= asked or self.running[-1].poll() is not None)

    def run(self, **settings: str) -> int:
        return self.start(**settings).wait(30)

    def log(self) -> str:
        return (self.base / f"log.{len(self.running) - 1}").read_text()

    def master(self) -> int:
        return int(self.heard("pid"))

    def directories(self) -> list[Path]:
        return sorted(self.work.iterdir())


@pytest.fixture
def collector() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def node(collector: str) -> Iterator[Node]:
    base = Path(tempfile.mkdtemp(prefix="apf-start-"))  # pytest's own are closed to the user that root becomes
    base.chmod(0o755)
    made = Node(base, collector)
    yield made
    for process in made.running:
        process.kill()
        process.wait()
    eventually(lambda: not any((d / "log").exists() for d in made.directories()), what=made.log)
    shutil.rmtree(base, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("name", ["ID", "FACTORY", "QUEUE", "BACKEND", "OFFERING"])
@pytest.mark.parametrize("value", ["", *EVIL])
def test_a_word_that_could_break_out_of_a_classad_string_is_refused(node: Node, name: str, value: str) -> None:
    assert node.run(**{f"GLIDEIN_{name}": value}) == BAD_SETTINGS
    assert len(node.log().splitlines()) == 1
    assert f"bad setting: GLIDEIN_{name} " in node.log()
    assert value not in node.log() or not value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COLLECTOR", ""),
        ("COLLECTOR", "host:9618;id"),
        ("COLLECTOR", "host:9618\nALLOW_DAEMON = *"),
        ("COLLECTOR", "host:port"),
        ("COLLECTOR", "host:9618,"),
        ("CORES", ""),
        ("CORES", "0"),
        ("CORES", "a[$(touch /tmp/x)]"),
        ("MEMORY_MB", "-1"),
        ("DISK_MB", "1e3"),
        ("GPUS", "one"),
        ("IDLE_S", "1 2"),
        ("WALLTIME_S", "99999999999"),
        ("LEASE_S", "60s"),
        ("LEASE_CHECK_S", "0"),
        ("START", "True\nALLOW_DAEMON = *"),
        ("START", "$(x)"),
        ("START", "True \\"),
        ("NETWORK", "127.0.0.1\nx"),
        ("DOMAIN", "apf.test x"),
        ("WORK", "relative"),
        ("WORK", "/tmp/a b"),
        ("CONFIG", "/no/such/file"),
        ("CHECKS", "/no/such/file"),
    ],
)
def test_a_bad_setting_ends_it_at_once_and_is_named(node: Node, name: str, value: str) -> None:
    assert node.run(**{f"GLIDEIN_{name}": value, "GLIDEIN_HOLD_S": "600"}) == BAD_SETTINGS
    assert f"bad setting: GLIDEIN_{name} " in node.log()
    assert node.directories() == []
    assert not node.heard("pid")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
@pytest.mark.parametrize("user", ["root", "no-such-user", "-x"])
def test_root_runs_jobs_neither_as_root_nor_as_nobody_knows_whom(node: Node, user: str) -> None:
    assert node.run(GLIDEIN_USER=user) == BAD_SETTINGS


def test_leading_zeros_do_not_make_a_number_octal(node: Node) -> None:
    node.started(GLIDEIN_IDLE_S="0100")
    assert "STARTD_NOCLAIM_SHUTDOWN = 100\n" in node.heard("config")


# --------------------------------------------------------------------------------------------- node checks


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"GLIDEIN_CORES": "4096"}, "cores are usable, 4096 were bought"),
        ({"GLIDEIN_MEMORY_MB": "99999999"}, "MB of memory are usable, 99999999 were bought"),
        ({"GLIDEIN_DISK_MB": "9999999999"}, "MB of disk are free, 9999999999 were bought"),
        ({"GLIDEIN_COLLECTOR": "127.0.0.1:1,127.0.0.1:2"}, "no collector can be reached"),
        ({"GLIDEIN_TOKEN": "elsewhere"}, "the token file is missing"),
        ({"GLIDEIN_WORK": "/proc"}, "no directory to work in"),
        ({"GLIDEIN_GPUS": "1"}, "0 GPUs are usable, 1 were bought"),
    ],
)
def test_a_node_that_is_less_than_what_was_bought_does_not_join(
    node: Node, settings: dict[str, str], reason: str
) -> None:
    assert node.run(**settings) == BROKEN_NODE
    assert reason in node.log()
    assert not node.heard("pid")
    assert node.directories() == []


@pytest.mark.parametrize(
    ("said", "found"), [("DetectedGPUs=0", 0), ('DetectedGPUs="GPU-c4a646d7, GPU-6a96bd13"\nGPU_c4a646d7_x=1', 2)]
)
def test_gpus_are_counted_as_htcondor_finds_them(node: Node, said: str, found: int) -> None:
    discovery = node.condor / "libexec" / "condor" / "condor_gpu_discovery"
    discovery.parent.mkdir(parents=True)
    discovery.write_text(f"#!/bin/sh\necho '{said}'\n")
    discovery.chmod(0o755)
    assert node.run(GLIDEIN_GPUS="3") == BROKEN_NODE
    assert f"{found} GPUs are usable, 3 were bought" in node.log()
    if found:
        node.token.write_text(token())
        node.started(GLIDEIN_GPUS=str(found))
        assert f"SLOT_TYPE_1 = 100%, GPUs={found}\n" in node.heard("config")


def test_overcommitted_nodes_are_not_measured_by_cores_and_memory(node: Node) -> None:
    node.started(GLIDEIN_CORES="4096", GLIDEIN_MEMORY_MB="99999999", GLIDEIN_OVERCOMMIT="1")
    assert "NUM_CPUS = 4096\nMEMORY = 99999999\n" in node.heard("config")


def test_unstated_memory_and_disk_are_the_share_of_the_node(node: Node) -> None:
    cores = os.cpu_count() or 1
    node.started(GLIDEIN_MEMORY_MB="0", GLIDEIN_DISK_MB="0")
    found = re.search(r"^MEMORY = (\d+)$", node.heard("config"), re.MULTILINE)
    assert found
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    assert 0 < int(found[1]) <= total // cores + 1
    assert not re.search(r"^DISK = 0$", node.heard("config"), re.MULTILINE)


@pytest.mark.parametrize("program", ["condor_master", "condor_startd", "condor_starter", "condor_status"])
def test_a_program_of_htcondor_that_cannot_be_executed_is_named(node: Node, program: str) -> None:
    next(node.condor.glob(f"*/{program}")).chmod(0o644)
    assert node.run() == BROKEN_NODE
    assert f"{program} is missing or cannot be executed" in node.log()


def test_htcondor_is_found_on_the_path(node: Node) -> None:
    node.started(GLIDEIN_CONDOR="", PATH=f"{node.condor}/sbin:{os.environ['PATH']}")
    assert f"RELEASE_DIR = {node.condor}\n" in node.heard("config")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the token file is empty"),
        ("# a comment\n\n", "the token file is empty"),
        (token(exp=int(time.time()) - 100), "the token expired"),
    ],
)
def test_a_token_that_cannot_work_is_seen_before_joining(node: Node, text: str, reason: str) -> None:
    node.token.write_text(text)
    assert node.run() == BROKEN_NODE
    assert reason in node.log()


@pytest.mark.parametrize(
    "text", [token(), token(exp=int(time.time()) + 1000), token(filler="ÿÿÿ?>"), "no JWT at all\n"]
)
def test_other_tokens_are_left_to_the_pool_to_judge(node: Node, text: str) -> None:
    node.token.write_text(text)
    node.started()


def test_the_operators_check_gives_the_reason(node: Node) -> None:
    check = node.base / "check"
    check.write_text("#!/bin/sh\necho first\nprintf 'no \\033[31mCVMFS here\\n'\nexit 3\n")
    check.chmod(0o755)
    assert node.run(GLIDEIN_CHECKS=str(check)) == BROKEN_NODE
    assert "the operator's check failed: no ?[31mCVMFS here" in node.log()
    check.write_text("#!/bin/sh\nexit 0\n")
    node.token.write_text(token())
    node.started(GLIDEIN_CHECKS="./check")


def test_a_broken_node_is_held_back_without_its_token_until_a_signal_comes(node: Node) -> None:
    process = node.start(GLIDEIN_CORES="4096", GLIDEIN_HOLD_S="600")
    eventually(lambda: "holding the node back for 600 s" in node.log())
    assert node.directories() == []
    assert not node.token.exists()
    assert process.poll() is None
    process.terminate()
    assert process.wait(5) == BROKEN_NODE


def test_a_broken_node_is_held_back_for_its_time(node: Node) -> None:
    before = time.monotonic()
    assert node.run(GLIDEIN_CORES="4096", GLIDEIN_HOLD_S="2") == BROKEN_NODE
    assert 1.9 < time.monotonic() - before < 10


def test_a_broken_node_is_not_held_beyond_the_bought_time(node: Node) -> None:
    node.start(GLIDEIN_CORES="4096", GLIDEIN_HOLD_S="600", GLIDEIN_WALLTIME_S="100")
    eventually(lambda: re.search("holding the node back for (100|99) s", node.log()))


# ------------------------------------------------------------------------------------------- configuration


def test_what_was_bought_and_who_it_is_for_is_configured(node: Node) -> None:
    before = int(time.time())
    more = node.base / "more"
    more.write_text("SITE = test\n")
    node.started(
        GLIDEIN_ID="f/q@1:a+b_c-d.e",
        GLIDEIN_IDLE_S="77",
        GLIDEIN_WALLTIME_S="5000",
        GLIDEIN_JOB_LIMIT_S="900",
        GLIDEIN_UPDATE_S="33",
        GLIDEIN_START='TARGET.Owner == "me"',
        GLIDEIN_CONFIG=str(more),
        GLIDEIN_DISK_MB="3",
        GLIDEIN_NETWORK="127.0.0.1",
    )
    config = node.heard("config")
    for line in (
        'ApfElasticId = "f/q@1:a+b_c-d.e"',
        "STARTD_NAME = f_q_1_a_b_c-d.e",
        'ApfElasticFactory = "factory"',
        'ApfElasticQueue = "queue"',
        'ApfElasticBackend = "backend"',
        'ApfElasticOffering = "small"',
        "NUM_CPUS = 1",
        "MEMORY = 100",
        "DISK = 3072",
        "STARTD_NOCLAIM_SHUTDOWN = 77",
        "MAXJOBRETIREMENTTIME = 900",
        "UPDATE_INTERVAL = 33",
        "MASTER_UPDATE_INTERVAL = 33",
        'START = (TARGET.Owner == "me")',
        f"COLLECTOR_HOST = {node.settings['GLIDEIN_COLLECTOR']}",
        "CONDOR_HOST = 127.0.0.1",
        "NETWORK_INTERFACE = 127.0.0.1",
    ):
        assert f"\n{line}\n" in config
    assert config.endswith("SITE = test\n")
    ends = re.search(r"^ApfElasticEnds = (\d+)$", config, re.MULTILINE)
    assert ends
    assert before + 4998 <= int(ends[1]) <= time.time() + 5000


def test_the_token_moves_to_a_private_place_and_shows_up_nowhere_else(node: Node) -> None:
    node.started()
    assert not node.token.exists()
    assert node.heard("modes").splitlines() == ["700 ../tokens.d", "600 ../tokens.d/token"]
    secret = token().strip()
    arguments = "".join(
        p.read_bytes().decode(errors="replace") for p in Path("/proc").glob("[0-9]*/cmdline") if alive(int(p.parts[2]))
    )
    for text in (node.log(), node.heard("config"), node.heard("environment"), arguments):
        assert secret.split(".")[1] not in text


def test_the_environment_of_the_job_around_it_does_not_reach_htcondor(node: Node) -> None:
    foreign = {
        "_CONDOR_SCRATCH_DIR": "/nowhere",
        "_condor_START": "False",
        "CONDOR_INHERIT": "1",
        "CONDOR_PRIVATE_INHERIT": "secret",
        "CONDOR_PARENT_ID": "1",
        "LD_LIBRARY_PATH": "/nowhere",
        "X509_USER_PROXY": "/proxy",
        "BEARER_TOKEN": "secret",
    }
    node.started(**foreign, LANG="C.UTF-8")
    environment = dict(line.partition("=")[::2] for line in node.heard("environment").splitlines())
    assert not environment.keys() & (foreign.keys() | {"CONDOR_IDS"})
    assert environment["PATH"].startswith("/usr/local/bin:/usr/bin")
    assert environment["CONDOR_CONFIG"].startswith(f"{node.work}/apf-glidein.")


def test_the_first_scratch_directory_that_can_be_written_is_used(node: Node) -> None:
    scratch = node.base / "scratch"
    scratch.mkdir()
    scratch.chmod(0o755)
    node.started(GLIDEIN_WORK="", _CONDOR_SCRATCH_DIR="/nowhere", OSG_WN_TMP=str(scratch), TMPDIR=str(node.work))
    assert [d.name.partition(".")[0] for d in scratch.iterdir()] == ["apf-glidein"]
    node.running[-1].terminate()
    assert node.running[-1].wait(10) == DONE
    assert list(scratch.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- life


def test_condor_master_has_a_session_of_its_own_and_its_end_is_seen_at_once(node: Node) -> None:
    process = node.started()
    assert os.getsid(node.master()) == node.master() != os.getsid(process.pid)
    node.say("StartLog", "07:00 No resources have been claimed for 600 seconds\n")
    eventually(lambda: "joined the pool as slot1@g-7@node" in node.log())
    before = time.monotonic()
    node.say("end", "0")
    assert process.wait(10) == DONE
    assert time.monotonic() - before < 3
    assert "left: no job for 600 s; jobs run: 0, failed: 0; exit code 0" in node.log()
    assert node.directories() == []


def test_htcondor_and_its_jobs_ignore_no_signal(node: Node) -> None:
    node.started()
    standard = (1 << 31) - 1  # what lies above are signals of the C library and of whoever started the tests
    assert int(node.heard("ignored").split()[1], 16) & standard == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
def test_root_gives_itself_up(node: Node) -> None:
    node.started()
    assert Path(f"/proc/{node.master()}").stat().st_uid != 0
    config = node.directories()[0] / "condor_config"
    assert config.stat().st_uid == 0
    assert stat.S_IMODE(config.stat().st_mode) == 0o644


@pytest.mark.parametrize("status", ["0", "99"])
def test_a_clean_end_that_an_administrator_asked_for_is_done(node: Node, status: str) -> None:
    node.say("StartLog", f"**** condor_startd (condor_STARTD) pid 7 EXITING WITH STATUS {status}\n")
    process = node.started()
    node.say("end", status)
    assert process.wait(10) == DONE
    assert "sent away by an administrator" in node.log()


def test_a_failure_of_htcondor_is_reported_with_the_lines_that_tell_it(node: Node) -> None:
    node.say("StartLog", "07:00 fine\n07:01 ERROR: cannot bind\n")
    process = node.started()
    node.say("end", "44")
    assert process.wait(10) == CONDOR_FAILED
    assert "| StartLog: 07:01 ERROR: cannot bind" in node.log()
    assert "fine" not in node.log()
    assert "HTCondor failed, condor_master with status 44" in node.log()


def test_sigterm_lets_running_jobs_finish_and_a_second_one_does_not(node: Node) -> None:
    node.say("stubborn", "")
    process = node.started()
    process.terminate()
    eventually(lambda: node.heard("signals") == "TERM\n")
    assert "retiring: TERM received" in node.log()
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == STOPPED
    assert node.heard("signals") == "TERM\nQUIT\n"


def test_sigterm_that_ends_everything_is_done(node: Node) -> None:
    process = node.started()
    process.terminate()
    assert process.wait(10) == DONE
    assert node.heard("signals") == "TERM\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_stop_at_once(node: Node, number: signal.Signals) -> None:
    process = node.started()
    process.send_signal(number)
    assert process.wait(10) == STOPPED
    assert node.heard("signals") == "QUIT\n"
    assert node.directories() == []


def test_a_signal_before_joining_ends_it_at_once(node: Node) -> None:
    check = node.base / "check"
    check.write_text("#!/bin/sh\necho $$ > $FAKE/checking\nexec sleep 600\n")
    check.chmod(0o755)
    process = node.start(GLIDEIN_CHECKS=str(check))
    eventually(lambda: node.heard("checking").endswith("\n"))
    process.terminate()
    assert process.wait(5) == STOPPED
    eventually(lambda: not alive(int(node.heard("checking"))))
    assert node.directories() == []
    assert not node.heard("pid")


def test_a_collector_that_hangs_does_not_delay_a_signal(node: Node) -> None:
    node.say("lease.hangs", "")
    process = node.started(GLIDEIN_LEASE_S="600")
    eventually(lambda: node.heard("lease.asked"))
    process.terminate()
    eventually(lambda: node.heard("signals") == "TERM\n", 3)


def test_kill_9_of_the_script_ends_htcondor_and_removes_the_directory(node: Node) -> None:
    process = node.started()
    os.killpg(process.pid, signal.SIGKILL)
    eventually(lambda: not alive(node.master()))
    eventually(lambda: node.directories() == [])
    assert node.heard("signals") == "QUIT\n"


def test_processes_that_htcondor_leaves_behind_are_ended(node: Node) -> None:
    process = node.started()
    work = node.directories()[0]
    left = subprocess.Popen(
        ["sleep", "600"], env={"_CONDOR_SCRATCH_DIR": f"{work}/execute/dir_1"}, start_new_session=True
    )
    process.terminate()
    assert process.wait(10) == DONE
    assert left.wait(5) == -signal.SIGKILL


def test_files_that_a_job_made_unremovable_are_removed(node: Node) -> None:
    process = node.started()
    trap = node.directories()[0] / "execute" / "dir_1" / "deep"
    trap.mkdir(parents=True)
    (trap / "file").touch()
    trap.chmod(0)
    process.terminate()
    assert process.wait(10) == DONE
    assert node.directories() == []


def undertaker(node: Node) -> int:
    work = str(node.directories()[0]).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0") if alive(int(path.parts[2])) else []
        if words[3:5] == [b"undertaker", work]:
            return int(path.parts[2])
    raise AssertionError("no undertaker")


def test_the_next_glidein_removes_what_a_killed_one_left_but_nothing_that_may_be_in_use(node: Node) -> None:
    process = node.started()
    dead = node.directories()[0]
    for pid in (undertaker(node), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    master = node.master()
    other = node.work / "apf-glidein.ofanotherhost"
    other.mkdir()
    (other / "owner").write_text("another boot\n")

    (node.fake / "pid").unlink()
    node.token.write_text(token())
    node.started()
    assert dead.exists(), "its condor_master still lives"
    assert alive(master)

    os.kill(master, signal.SIGKILL)
    free = ["flock", "-n", str(dead / "owner"), "true"]
    eventually(lambda: subprocess.run(free).returncode == 0)
    node.running[-1].terminate()
    node.running[-1].wait(10)
    (node.fake / "pid").unlink()
    node.token.write_text(token())
    node.started()
    assert not dead.exists()
    assert other.exists()
    assert f"removed {dead}" in node.log()


def test_a_startd_that_is_gone_takes_the_master_along(node: Node) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    node.say("startd.pid", f"{gone.pid}\n")
    node.say("StartLog", "07:00 As specified in draining request, exiting after completion of draining.\n")
    process = node.start()
    eventually(lambda: "QUIT" in node.heard("signals"))
    assert process.wait(10) == CONDOR_FAILED  # the fake brings its StartLog only when it ends by itself


# ---------------------------------------------------------------------------------------- joining and lease


def test_a_glidein_that_the_collector_never_shows_gives_up(node: Node) -> None:
    node.say("slot", "")
    assert node.run(GLIDEIN_JOIN_S="2") == NOT_JOINED
    assert "could not join the pool within 2 s" in node.log()
    assert node.heard("signals") == "QUIT\n"


def test_a_glidein_that_runs_a_job_has_joined_whatever_the_collector_says(node: Node) -> None:
    node.say("slot", "")
    process = node.started(GLIDEIN_JOIN_S="3")
    (node.directories()[0] / "log" / "StarterLog.slot1_1").touch()
    eventually(lambda: "joined the pool: a job came" in node.log())
    assert process.poll() is None


def test_the_slot_is_looked_for_until_it_is_seen_and_no_longer(node: Node) -> None:
    node.started(GLIDEIN_LEASE_S="600", GLIDEIN_LEASE_CHECK_S="1")
    eventually(lambda: "joined" in node.log())
    asked = node.heard("slot.asked")
    node.wait_for_polls(2)
    assert node.heard("slot.asked") == asked


def test_without_a_renewal_the_glidein_retires_and_says_so(node: Node) -> None:
    node.say("lease", "41\n")
    before = time.monotonic()
    assert node.run(GLIDEIN_LEASE_S="1", GLIDEIN_LEASE_CHECK_S="1") == DONE
    assert 1 <= time.monotonic() - before < 12
    assert "the factory has not renewed its lease for" in node.log()
    assert node.heard("signals") == "TERM\n"


def test_a_lease_that_grows_keeps_the_glidein(node: Node) -> None:
    node.say("lease", "1\n")
    process = node.started(GLIDEIN_LEASE_S="2", GLIDEIN_LEASE_CHECK_S="1")
    for serial in range(2, 6):
        node.say("lease", f"{serial}\n")
        node.wait_for_polls(1)
    assert process.poll() is None
    assert node.heard("signals") == ""
    assert node.log().count("lease") == 1  # it can be read; nothing else to say


def test_a_lease_that_jumps_back_and_forth_is_not_renewed(node: Node) -> None:
    node.say("lease", "7\n")
    process = node.started(GLIDEIN_LEASE_S="2", GLIDEIN_LEASE_CHECK_S="1")
    serial = 7
    while process.poll() is None:
        serial = 12 - serial
        node.say("lease", f"{serial}\n")
        node.wait_for_polls(1)
    assert process.returncode == DONE


def test_a_collector_that_cannot_be_read_is_noted_once_and_is_neither_renewal_nor_end(node: Node) -> None:
    node.say("lease", "1\n")
    process = node.started(GLIDEIN_LEASE_S="4", GLIDEIN_LEASE_CHECK_S="1")
    eventually(lambda: "lease: the factory's can be read" in node.log())
    (node.fake / "lease").unlink()
    node.wait_for_polls(2)
    assert process.poll() is None
    assert node.log().count("lease: the collector does not answer") == 1
    node.say("lease", "2\n")
    eventually(lambda: node.log().count("lease: the factory's can be read") == 2)
    (node.fake / "lease").unlink()
    assert process.wait(20) == DONE
    assert node.log().count("lease: the collector does not answer") == 2


# ------------------------------------------------------------------------------------------- time and jobs


def test_the_glidein_stops_taking_jobs_before_its_time_is_over_and_ends_in_it(node: Node) -> None:
    node.say("stubborn", "")
    before = time.monotonic()
    assert node.run(GLIDEIN_WALLTIME_S="5", GLIDEIN_JOB_LIMIT_S="2") == DONE
    assert 4 <= time.monotonic() - before < 12
    assert node.heard("signals") == "TERM\nQUIT\n"
    assert "retiring: the bought time ends in" in node.log()
    assert "left: the bought time is over" in node.log()


def test_glideins_of_a_batch_do_not_retire_together(node: Node) -> None:
    spread = set()
    for _ in range(4):
        node.token.write_text(token())
        node.started(GLIDEIN_WALLTIME_S="100000", GLIDEIN_JOB_LIMIT_S="10000")
        found = re.search(r"takes jobs for (\d+) s, ends in (\d+) s", node.log())
        assert found
        assert 99930 <= int(found[2]) <= 99940
        assert 80900 <= int(found[1]) <= 89940
        spread.add(found[1])
        node.running[-1].terminate()
        node.running[-1].wait(10)
        (node.fake / "pid").unlink()
    assert len(spread) > 1


def job(how: str, took_s: float = 1) -> str:
    """A record of the startd's history, as HTCondor writes it."""
    body = {
        "good": 'ExitCode = 0\nToE = [ How = "OF_ITS_OWN_ACCORD"; ExitCode = 0 ]\n',
        "bad": 'ExitCode = 1\nToE = [ How = "OF_ITS_OWN_ACCORD"; ExitCode = 1 ]\n',
        "removed": 'ExitSignal = 15\nToE = [ How = "DEACTIVATE_CLAIM"; HowCode = 1 ]\n',
        "not started": "",
    }[how]
    duration = "" if how == "not started" else f"JobDuration = {took_s}\n"
    return f'Cmd = "/bin/x"\n{body}{duration}*** Offset = 0 ClusterId = 1 ProcId = 0 Owner = "u" CompletionDate = 1\n'


def history(node: Node, *records: str) -> None:
    path = node.directories()[0] / "log" / "startd_history"
    with path.open("a") as file:
        for record in records:  # in pieces, as a reader may meet them
            file.write(record[: len(record) // 2])
            file.flush()
            file.write(record[len(record) // 2 :])


@pytest.mark.parametrize("how", ["bad", "not started"])
def test_a_black_hole_retires_and_is_held_back(node: Node, how: str) -> None:
    process = node.started(GLIDEIN_MAX_QUICK_FAILURES="3", GLIDEIN_HOLD_S="600")
    history(node, job("good"), job(how), job(how), job(how))
    eventually(lambda: "holding the node back" in node.log(), 15, node.log)
    assert "retiring: black hole: 3 jobs in a row failed within 20 s" in node.log()
    process.terminate()
    assert process.wait(5) == BROKEN_NODE
    assert "jobs run: 4, failed: 3; exit code 81" in node.log()


def test_failures_that_are_slow_or_rare_and_removed_jobs_make_no_black_hole(node: Node) -> None:
    process = node.started(GLIDEIN_MAX_QUICK_FAILURES="2", GLIDEIN_LEASE_S="600", GLIDEIN_LEASE_CHECK_S="1")
    history(node, job("bad"), job("good"), job("bad"), job("bad", 21.5), job("removed"), job("removed"), job("bad"))
    node.wait_for_polls(2)
    process.terminate()
    assert process.wait(10) == DONE
    assert "jobs run: 7, failed: 4; exit code 0" in node.log()


def test_the_loop_costs_nearly_nothing(node: Node) -> None:
    process = node.started()
    eventually(lambda: "joined" in node.log())

    def ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15])  # its own and its children's

    before, start = ticks(), time.monotonic()
    eventually(lambda: time.monotonic() - start > 3)
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") < 0.1

"""A private HTCondor pool on this machine's loopback address, for tests, benchmarks and demonstrations.

    with PrivatePool("demo", cores=2) as pool:
        pool.tool("condor_submit", "job.sub", identity="user")
        print(pool.tool("condor_q", "-totals").stdout)

Everything lives in one directory and behind one port. Authentication is by tokens that the pool's own key signs:

    condor        the daemons; cannot submit jobs
    user          submits jobs
    apf           the service: submits, queries, advertises, administers (condor_off, condor_drain), and may act
                  on everybody's jobs
    any other     what its token allows; one limited to GLIDEIN_AUTHZ joins the pool as a glidein, and no more

    caller ── keeper ── condor_master ── condor_collector, condor_schedd, ...

The keeper is a small process that ends the pool when the caller asks or is gone, however it went. HTCondor
refuses to run jobs of root: when root starts a pool, the daemons run as `nobody`, and the directory must be
enterable for that user.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypedDict

from apf_elastic.testing.htcondor_install import Installation, ensure, open_to_others

DOMAIN = "apf.test"
"""UID_DOMAIN of every private pool: identities are like user@apf.test."""

SERVICE_DAEMONS = ("MASTER", "COLLECTOR", "NEGOTIATOR", "SCHEDD", "SHARED_PORT")
ALL_DAEMONS = (*SERVICE_DAEMONS, "STARTD")

GLIDEIN_AUTHZ = ("READ", "ADVERTISE_STARTD", "ADVERTISE_MASTER")
"""What the token of a glidein must allow, and the most that it should."""

_DAEMON_USER = "nobody"
_IDENTITIES = ("apf", "user")
_AD_TYPES = {"COLLECTOR": "Collector", "NEGOTIATOR": "Negotiator", "SCHEDD": "Scheduler", "STARTD": "Machine"}
_PORT_TRIES = 5
_LONGEST_SOCKET_DIRECTORY = 70  # a socket's path has 108 bytes, and HTCondor's file names up to 35

Identity = str
Daemon = Literal["COLLECTOR", "NEGOTIATOR", "SCHEDD", "STARTD"]


class PoolError(Exception):
    """The pool, or a tool that talks to it, failed: the message says what and where to look."""


class _PortTakenError(Exception):
    """Another program bound the chosen port first."""


class PrivatePool:
    """A private pool; a context manager that starts and stops it.

    `name`: of the schedd and the directory; letters, digits, _ and -. `directory`: absent or empty, kept after
    the end; by default one below the temporary directory, removed at the end. `cores`, `memory_mb`: of the one
    partitionable slot if there is a STARTD; both may exceed the machine. `extra`: configuration text that has the
    last word. `trust_domain`: issuer of the tokens, `NAME.apf.test` by default; pools that trust each other need
    different ones. `quick`: cycles of seconds, for tests; otherwise HTCondor's own intervals. `master_env`: added
    to the environment of condor_master, which is otherwise clean because the jobs of batch systems inherit it.

    The pool ends with the process that started it. Not for use by several threads at once.
    """

    def __init__(
        self,
        name: str = "pool",
        *,
        installation: Installation | None = None,
        directory: Path | None = None,
        daemons: Sequence[str] = ALL_DAEMONS,
        cores: int = 4,
        memory_mb: int = 4096,
        extra: str = "",
        trust_domain: str | None = None,
        quick: bool = True,
        master_env: Mapping[str, str] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"pool name {name!r}: letters, digits, _ and - only")
        required = {"MASTER", "COLLECTOR", "SHARED_PORT"} - set(daemons)
        if required:
            raise ValueError(f"a private pool always has {', '.join(sorted(required))}")
        self.name = name
        self.daemons = tuple(daemons)
        self.cores = cores
        self.memory_mb = memory_mb
        self.extra = extra
        self.trust_domain = trust_domain or f"{name}.{DOMAIN}"
        self.quick = quick
        self.master_env = dict(master_env or {})
        self._installation = installation
        self._wanted_directory = directory
        self._directory: Path | None = None
        self._socket_directory: Path | None = None
        self._port: int | None = None
        self._keeper: subprocess.Popen[str] | None = None
        self._master: _Process | None = None

    # ------------------------------------------------------------------------------------ what clients need

    @property
    def installation(self) -> Installation:
        """The HTCondor in use. The first access may install it and raise InstallError."""
        if self._installation is None:
            self._installation = ensure()
        return self._installation

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise PoolError(f"pool {self.name} has not been started")
        return self._directory

    @property
    def log_dir(self) -> Path:
        """The daemons' logs: MasterLog, SchedLog, CollectorLog, GridmanagerLog ..."""
        return self.directory / "log"

    @property
    def work_dir(self) -> Path:
        """A directory that jobs and daemons may write to: for the logs and output of jobs."""
        return self.directory / "work"

    @property
    def collector(self) -> str:
        """The collector's address, "127.0.0.1:PORT"."""
        if self._port is None:
            raise PoolError(f"pool {self.name} has not been started")
        return f"127.0.0.1:{self._port}"

    @property
    def schedd_name(self) -> str:
        return f"{self.name}@{DOMAIN}"

    @property
    def client_config(self) -> Path:
        """The CONDOR_CONFIG for tools and bindings."""
        return self.directory / "client" / "condor_config"

    @property
    def signing_key(self) -> Path:
        """The caller's copy of the key that signs this pool's tokens, named POOL."""
        return self.directory / "client" / "passwords.d" / "POOL"

    def token_dir(self, identity: Identity = "apf") -> Path:
        """A token directory of the caller, with one token: without limits, unless `add_client` gave another."""
        directory = self.directory / "client" / "tokens" / identity
        if not directory.exists():
            self.add_client(identity, self.token(identity))
        return directory

    def add_client(self, name: str, token: str) -> None:
        """Let `env(name)` and `tool(..., identity=name)` present `token`, for instance a limited one."""
        directory = self.directory / "client" / "tokens" / name
        directory.mkdir(mode=0o700, exist_ok=True)
        _write_secret(directory / self.trust_domain, token)

    def env(self, identity: Identity = "apf", base: Mapping[str, str] | None = None) -> dict[str, str]:
        """A copy of `base` (default: this process's environment) for clients that are `identity`.

        The bindings read it once, when they are imported.
        """
        outside = os.environ if base is None else base
        # Any of these would change the configuration of the tools.
        kept = {k: v for k, v in outside.items() if not k.upper().startswith(("CONDOR_", "_CONDOR_"))}
        return self.installation.env(kept) | self._client_variables(self.token_dir(identity))

    def _client_variables(self, token_dir: Path) -> dict[str, str]:
        return {
            "CONDOR_CONFIG": str(self.client_config),
            "_CONDOR_SEC_TOKEN_DIRECTORY": str(token_dir),
            "_CONDOR_SEC_TOKEN_SYSTEM_DIRECTORY": str(token_dir),  # where root's tools look
        }

    def token(self, identity: Identity, *, authz: Sequence[str] = (), lifetime_s: int | None = None) -> str:
        """A new token for `identity`@apf.test, limited to `authz` (none: not limited) and `lifetime_s`."""
        arguments = ["-identity", f"{identity}@{DOMAIN}", "-key", "POOL"]
        for level in authz:
            arguments += ["-authz", level]
        if lifetime_s is not None:
            arguments += ["-lifetime", str(lifetime_s)]
        env = self.installation.env() | self._client_variables(self.directory / "client" / "tokens")
        return self._run("condor_token_create", arguments, env=env).stdout.strip()

    def tool(
        self,
        name: str,
        *arguments: str,
        identity: Identity = "apf",
        timeout_s: float = 30,
        check: bool = True,
        text_input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run an HTCondor tool as `identity`, in `work_dir`.

        Raises PoolError when it does not end within `timeout_s` or, with `check`, when it fails.
        """
        return self._run(
            name,
            arguments,
            env=self.env(identity),
            timeout_s=timeout_s,
            check=check,
            text_input=text_input,
        )

    def _run(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout_s: float = 30,
        check: bool = True,
        text_input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        command = [str(self.installation.program(name)), *arguments]
        try:
            done = subprocess.run(
                command,
                env=dict(env),
                cwd=self.work_dir,
                input=text_input,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise PoolError(f"{name} did not end within {timeout_s} s; logs: {self.log_dir}") from error
        if check and done.returncode:
            said = (done.stderr + done.stdout).strip()
            raise PoolError(f"{name} {' '.join(arguments)}: status {done.returncode}: {said}")
        return done

    def trust(self, other: PrivatePool) -> None:
        """Let this pool's grid manager submit to `other`'s schedd (Condor-C), as `user`.

        Use `grid_resource = condor SCHEDD_NAME COLLECTOR` of `other`.
        """
        if other.trust_domain == self.trust_domain:
            # The C-GAHP chooses among the tokens by issuer.
            raise ValueError(f"both pools have the trust domain {self.trust_domain}: give them different ones")
        self._give_to_daemons(self.directory / "tokens.d" / other.trust_domain, other.token("user"))

    # -------------------------------------------------------------------------------------- start and stop

    def __enter__(self) -> PrivatePool:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, timeout_s: float = 60) -> PrivatePool:
        """Start the daemons and wait until all have advertised themselves: 1 to 2 s. Raises PoolError."""
        if self._keeper is not None:
            raise PoolError(f"pool {self.name} is running in {self.directory}")
        given = self._wanted_directory
        if given and given.exists() and any(given.iterdir()):
            # Daemons of a pool before, ending late, would remove the files of this one.
            raise PoolError(f"{given}: not empty: give every pool a new directory")
        for _ in range(_PORT_TRIES):
            try:
                self._make_directories()
                self._write_keys()
                self._start_on_free_port(time.monotonic() + timeout_s)
                return self
            except _PortTakenError:
                self.stop(timeout_s=1)  # daemons that talk to a stranger's port end slowly
                _clean(list(given.iterdir()) if given else [])
            except BaseException:
                self.stop(timeout_s=5)
                raise
        raise PoolError(f"pool {self.name}: {_PORT_TRIES} times another program bound the chosen port first")

    def stop(self, timeout_s: float = 30) -> None:
        """End the daemons and all that they started, and wait for that; no effect when not running.

        What has not ended after `timeout_s` is killed.
        """
        self._end_processes(timeout_s)
        _clean(self._to_remove())
        if self._wanted_directory is None:
            self._directory = None
        self._port = None

    def _end_processes(self, timeout_s: float = 30) -> None:
        keeper, self._keeper = self._keeper, None
        master, self._master = self._master, None
        if keeper is None:
            return
        # The keeper sees to it; this list is for the case that it was itself killed.
        family = _descendants(keeper.pid)
        if master and master.alive():
            family |= {master} | _descendants(master.pid)
        keeper.terminate()  # Popen never signals a pid that it has reaped
        try:
            keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            keeper.terminate()  # now it kills
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(10)
        _await(lambda: not any(p.alive() for p in family), 5)
        for process in family:
            process.send(signal.SIGKILL)
        keeper.kill()
        keeper.wait()
        if not _await(lambda: not any(p.alive() for p in family), 10):
            left = [p.pid for p in family if p.alive()]
            raise PoolError(f"pool {self.name}: processes {left} do not end")

    def _to_remove(self) -> list[Path]:
        paths = [self._socket_directory, None if self._wanted_directory else self._directory]
        return [path for path in paths if path is not None]

    def processes(self) -> list[int]:
        """The pids of the pool's whole family: keeper, daemons, and what these started."""
        if self._keeper is None:
            return []
        return sorted([self._keeper.pid, *(p.pid for p in _descendants(self._keeper.pid))])

    def _make_directories(self) -> None:
        if self._wanted_directory is None:
            directory = Path(tempfile.mkdtemp(prefix=f"apf-{self.name}-")).resolve()
        else:
            directory = self._wanted_directory.absolute()
            directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        directory.chmod(0o755)
        if _daemon_ids() and not open_to_others(directory):
            raise PoolError(
                f"{directory}: user {_DAEMON_USER}, as which root's daemons run, cannot enter it:"
                " give a directory that is open to all, or set TMPDIR to one"
            )
        self._socket_directory = directory / "sock"
        if len(str(self._socket_directory)) > _LONGEST_SOCKET_DIRECTORY:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="apf-sock-")).resolve()
        for name in ("config.d", "log", "run", "lock", "spool", "execute", "cred", "tmp", "work"):
            self._make_for_daemons(directory / name, 0o755)
        for name in ("passwords.d", "tokens.d"):
            self._make_for_daemons(directory / name, 0o700)
        self._make_for_daemons(self._socket_directory, 0o755)
        (directory / "client").mkdir()
        (directory / "client").chmod(0o755)  # condor_off and others, run by root, want the daemons' user to read this
        for name in ("client/passwords.d", "client/tokens"):
            (directory / name).mkdir(mode=0o700)

    def _make_for_daemons(self, path: Path, mode: int) -> None:
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        _chown(path)

    def _give_to_daemons(self, path: Path, text: str) -> None:
        """HTCondor reads keys and tokens only when they belong to the reader and to nobody else."""
        _write_secret(path, text)
        _chown(path)

    def _write_keys(self) -> None:
        # Hexadecimal: HTCondor ends a key at a null byte, before or after descrambling it.
        key = secrets.token_hex(32)
        self._give_to_daemons(self.directory / "passwords.d" / "POOL", key)
        _write_secret(self.signing_key, key)

    def _write_configuration(self, port: int) -> None:
        client = self.directory / "client"
        text = _configuration(self, port, self.directory, self._socket_directory)
        _write_public(self.directory / "condor_config", text)
        _write_public(
            client / "condor_config",
            f"{text}\n"
            f"SEC_PASSWORD_DIRECTORY = {client}/passwords.d\n"
            f"SEC_TOKEN_POOL_SIGNING_KEY_FILE = {client}/passwords.d/POOL\n"
            f"SEC_TOKEN_DIRECTORY = {client}/tokens/apf\n"
            f"SEC_TOKEN_SYSTEM_DIRECTORY = {client}/tokens/apf\n",
        )

    def _start_on_free_port(self, deadline: float) -> None:
        with _reserved_port() as port:
            self._write_configuration(port)
            self._port = port
            tokens = self.directory / "tokens.d"
            self._give_to_daemons(tokens / self.trust_domain, self.token("condor"))
            for identity in _IDENTITIES:
                self.token_dir(identity)
            self._start_keeper()
            self._wait_until_up(deadline)
        if "SCHEDD" in self.daemons:
            self._introduce_service()

    def _introduce_service(self) -> None:
        """Let the service submit a job, and remove it; leaves one removed job in the history.

        A schedd of HTCondor 23 lets nobody act on other people's jobs, super user or not, who has never submitted.
        """
        job = "executable = /bin/true\nhold = True\nqueue\n"
        cluster = self.tool("condor_submit", "-terse", text_input=job).stdout.split(".")[0]
        self.tool("condor_rm", cluster)
        if not _await(lambda: not self.tool("condor_q", cluster, "-af", "ClusterId").stdout, 10):
            raise PoolError(f"job {cluster} of the service stays in the queue; {self._last_errors()}")

    def _start_keeper(self) -> None:
        assert self._socket_directory is not None
        order: _Order = {
            "caller": asdict(_Process.current()),
            "command": [str(self.installation.program("condor_master")), "-f"],
            "env": self._master_environment(),
            "directory": str(self.directory),
            "ids": _daemon_ids(),
            "remove": [str(path) for path in self._to_remove()],
        }
        errors = self.directory / "keeper.err"
        with errors.open("w") as stderr:
            self._keeper = subprocess.Popen(
                [sys.executable, "-c", f"from {_keep.__module__} import _keep; _keep()"],
                env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.defpath},
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # Ctrl-C in the caller's terminal is not for the pool
            )
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with self._keeper.stdin as stdin, self._keeper.stdout as stdout:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
            answer = stdout.readline()
        if not answer:
            raise PoolError(f"the pool's keeper failed: {errors.read_text()}")
        self._master = _Process(**json.loads(answer))

    def _master_environment(self) -> dict[str, str]:
        env = {
            "PATH": self.installation.path(),
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "CONDOR_CONFIG": str(self.directory / "condor_config"),
        }
        # The scripts that talk to batch systems look below /usr and /etc unless told otherwise.
        settings = self.installation.prefix.parent / "etc/blah.config"
        if (self.installation.prefix / "libexec/blahp").is_dir() and settings.is_file():
            shutil.copy(settings, self.directory / "blah.config")
            env["BLAHPD_LOCATION"] = str(self.installation.prefix)
            env["BLAHPD_CONFIG_LOCATION"] = str(self.directory / "blah.config")
        return env | self.master_env

    def _wait_until_up(self, deadline: float) -> None:
        wanted = {_AD_TYPES[name] for name in self.daemons if name in _AD_TYPES}
        while not wanted <= self._advertised():
            self._raise_if_failed()
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(wanted - self._advertised()))
                raise PoolError(f"pool {self.name}: no ad of {missing}; {self._last_errors()}")
            time.sleep(0.05)

    def _advertised(self) -> set[str]:
        """The types of ad in the collector; empty when it does not answer."""
        # Before this file is there, the port may be somebody else's.
        if not (self.directory / "lock" / "shared_port_ad").exists():
            return set()
        try:
            done = self.tool("condor_status", "-any", "-af", "MyType", check=False, timeout_s=5)
        except PoolError:
            return set()
        return set(done.stdout.split())

    def _raise_if_failed(self) -> None:
        log = self.log_dir / "MasterLog"
        if log.exists() and "Address already in use" in log.read_text(errors="replace"):
            raise _PortTakenError
        if self._master is None or not self._master.alive():
            raise PoolError(f"condor_master ended; {self._last_errors()}")

    def _last_errors(self) -> str:
        lines = []
        for log in (self.directory / "master.out", *sorted(self.log_dir.glob("*Log"))):
            if log.exists():
                found = re.findall(r".*(?:ERROR|[Ff]ailed|DENIED|denied).*", log.read_text(errors="replace"))
                lines += [f"{log.name}: {line}" for line in found[-2:]]
        return "\n".join([f"logs in {self.log_dir}", *lines])

    # ------------------------------------------------------------------------- disturbing the pool in tests

    def daemon_pid(self, daemon: Daemon) -> int | None:
        """The pid of a daemon, None when it does not run."""
        process = self._daemon(daemon)
        return process.pid if process else None

    def _daemon(self, daemon: str) -> _Process | None:
        if self._master is None:
            raise PoolError(f"pool {self.name} is not running")
        for process in _children(self._master.pid):
            if process.program() == f"condor_{daemon.lower()}":
                return process
        return None

    def stop_daemon(self, daemon: Daemon, *, hang: bool = False, timeout_s: float = 30) -> None:
        """Stop a daemon until `start_daemon`. With `hang` it stays, accepts connections, and never answers."""
        process = self._running(daemon)
        if hang:
            process.send(signal.SIGSTOP)
            return
        self.tool("condor_off", "-fast", "-daemon", daemon.lower())
        if not _await(lambda: not process.alive(), timeout_s):
            raise PoolError(f"{daemon} did not stop within {timeout_s} s; {self._last_errors()}")

    def kill_daemon(self, daemon: Daemon) -> None:
        """Kill a daemon without warning. The master starts it again, after 1 s if the pool is quick."""
        process = self._running(daemon)
        process.send(signal.SIGKILL)
        _await(lambda: not process.alive(), 10)

    def start_daemon(self, daemon: Daemon, *, timeout_s: float = 30) -> None:
        """Start, or wake, a daemon that `stop_daemon` stopped; wait until the collector knows it."""
        process = self._daemon(daemon)
        if process:
            process.send(signal.SIGCONT)
        else:
            self.tool("condor_on", "-daemon", daemon.lower())
        if not _await(lambda: _AD_TYPES[daemon] in self._advertised(), timeout_s, every_s=0.2):
            raise PoolError(f"{daemon} did not return within {timeout_s} s; {self._last_errors()}")

    def _running(self, daemon: str) -> _Process:
        process = self._daemon(daemon)
        if process is None:
            raise PoolError(f"{daemon} of pool {self.name} does not run")
        return process

    def reconfig(self, extra: str) -> None:
        """Let the daemons read their configuration again, with `extra` added; replaces an earlier `extra`.

        Returns before all have done so. HTCondor takes some settings, such as ports, only at a restart.
        """
        _write_public(self.directory / "config.d" / "90-reconfig", extra + "\n")
        self.tool("condor_reconfig")


# ---------------------------------------------------------------------------------------- the configuration


def _configuration(pool: PrivatePool, port: int, directory: Path, sockets: Path | None) -> str:
    """The complete configuration of a pool: nothing of the machine's own /etc/condor is read."""
    parts = [
        _places(pool.installation, directory, sockets),
        _network(port),
        _names(pool),
        _security(directory, pool.trust_domain),
        _slot(pool.cores, pool.memory_mb),
        _LIMITS,
        _QUICK if pool.quick else "",
    ]
    ids = _daemon_ids()
    if ids:  # else root's tools look for a user called condor
        parts.append(f"CONDOR_IDS = {ids[0]}.{ids[1]}\n")
    parts.append(pool.extra + "\n")
    return "\n".join(parts)


def _places(installation: Installation, directory: Path, sockets: Path | None) -> str:
    return f"""\
RELEASE_DIR = {installation.prefix}
BIN = {installation.bin}
SBIN = {installation.sbin}
LIB = {installation.lib}
LIBEXEC = {installation.libexec}
SHARE = {installation.prefix}/share/condor

LOCAL_DIR = {directory}
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR = {directory}/config.d
USER_CONFIG_FILE =
ETC = {directory}
LOG = {directory}/log
RUN = {directory}/run
LOCK = {directory}/lock
SPOOL = {directory}/spool
EXECUTE = {directory}/execute
CRED_STORE_DIR = {directory}/cred
TMP_DIR = {directory}/tmp
MASTER_ADDRESS_FILE = $(LOG)/.master_address
DAEMON_SOCKET_DIR = {sockets}

# these would be below /tmp, where pools of other users have left files of the same name
CREATE_LOCKS_ON_LOCAL_DISK = False
GRIDMANAGER_LOG = $(LOG)/GridmanagerLog
C_GAHP_LOG = $(LOG)/CGAHPLog
C_GAHP_WORKER_THREAD_LOG = $(LOG)/CGAHPWorkerLog

MAIL = /bin/true
CONDOR_ADMIN =
PREEN =
"""


def _network(port: int) -> str:
    return f"""\
# loopback only, one port for all daemons, and no name service
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
NO_DNS = True
DEFAULT_DOMAIN_NAME = {DOMAIN}
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:{port}
USE_SHARED_PORT = True
SHARED_PORT_PORT = {port}
"""


def _names(pool: PrivatePool) -> str:
    return f"""\
DAEMON_LIST = {" ".join(pool.daemons)}
MASTER_NAME = {pool.name}@{DOMAIN}
SCHEDD_NAME = {pool.name}@{DOMAIN}
STARTD_NAME = {pool.name}
UID_DOMAIN = {DOMAIN}
FILESYSTEM_DOMAIN = {DOMAIN}
TRUST_UID_DOMAIN = True
"""


def _security(directory: Path, trust_domain: str) -> str:
    everybody = f"*@{DOMAIN}/*"
    return f"""\
TRUST_DOMAIN = {trust_domain}
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_CLIENT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = IDTOKENS
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
SEC_DEFAULT_INTEGRITY = REQUIRED
SEC_DEFAULT_ENCRYPTION = OPTIONAL
SEC_PASSWORD_DIRECTORY = {directory}/passwords.d
SEC_TOKEN_POOL_SIGNING_KEY_FILE = {directory}/passwords.d/POOL
SEC_TOKEN_DIRECTORY = {directory}/tokens.d
SEC_TOKEN_SYSTEM_DIRECTORY = {directory}/tokens.d

# who holds a token may do what the token allows; glideins advertise, all but the daemons submit
ALLOW_READ = {everybody}
ALLOW_WRITE = {everybody}
ALLOW_ADVERTISE_STARTD = {everybody}
ALLOW_ADVERTISE_MASTER = {everybody}
ALLOW_ADVERTISE_SCHEDD = condor@{DOMAIN}/*
ALLOW_NEGOTIATOR = condor@{DOMAIN}/*
ALLOW_CONFIG = condor@{DOMAIN}/*
# DAEMON is also what it takes to advertise generic ads, which the service uses for its leases
ALLOW_DAEMON = condor@{DOMAIN}/* apf@{DOMAIN}/*
ALLOW_ADMINISTRATOR = condor@{DOMAIN}/* apf@{DOMAIN}/*
QUEUE_SUPER_USERS = condor, apf
QUEUE_ALL_USERS_TRUSTED = False
"""


def _slot(cores: int, memory_mb: int) -> str:
    return f"""\
# one partitionable slot; 20 GB of disk per core, whatever the machine has
NUM_CPUS = {cores}
MEMORY = {memory_mb}
DISK = {cores * 20_000_000}
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
SUSPEND = False
PREEMPT = False
KILL = False
RANK = 0
RUNBENCHMARKS = False
STARTD_CRON_JOBLIST =
STARTD_DETECT_GPUS = false
# without the process daemon, startd and starter of 23.9.6 crash
USE_PROCD = True
"""


_LIMITS = """\
# room for queues of 100 000 jobs; the query timeout of 20 s is too short for those
MAX_JOBS_SUBMITTED = 1000000
MAX_JOBS_PER_OWNER = 1000000
MAX_JOBS_PER_SUBMISSION = 1000000
GRIDMANAGER_MAX_SUBMITTED_JOBS_PER_RESOURCE = 20000
Q_QUERY_TIMEOUT = 120
"""

_QUICK = """\
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_UPDATE_INTERVAL = 5
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
JOB_START_DELAY = 0
UPDATE_INTERVAL = 5
MASTER_UPDATE_INTERVAL = 5
COLLECTOR_UPDATE_INTERVAL = 5
STARTER_UPDATE_INTERVAL = 5
SHADOW_QUEUE_UPDATE_INTERVAL = 5
MASTER_BACKOFF_CONSTANT = 1
SHUTDOWN_GRACEFUL_TIMEOUT = 20
GRIDMANAGER_JOB_PROBE_INTERVAL = 5
GRIDMANAGER_EMPTY_RESOURCE_DELAY = 5
GRIDMANAGER_GAHP_RESPONSE_TIMEOUT = 20
GRIDMANAGER_GAHP_CALL_TIMEOUT = 30
# a Condor-C job: its state is asked for every 300 s by default, and when done the CE drops it after 60 s
CONDOR_JOB_POLL_INTERVAL = 5
PERIODIC_EXPR_INTERVAL = 5
C_GAHP_CONTACT_SCHEDD_DELAY = 1
"""


# --------------------------------------------------------------------------------------- users, files, ports


def _daemon_ids() -> list[int]:
    """[uid, gid] that the daemons change to; empty when they run as the caller."""
    if os.geteuid():
        return []
    user = pwd.getpwnam(_DAEMON_USER)
    return [user.pw_uid, user.pw_gid]


def _chown(path: Path) -> None:
    ids = _daemon_ids()
    if ids:
        os.chown(path, ids[0], ids[1])


def _write_secret(path: Path, text: str) -> None:
    """Write a file that was never readable by others; replaces one that exists."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text + "\n")


def _write_public(path: Path, text: str) -> None:
    """Write a file that the daemons can read whatever the caller's umask is."""
    path.write_text(text)
    path.chmod(0o644)


def _clean(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port, which the kernel gives to nobody else who asks for any free port.

    HTCondor can still listen on it: both sockets allow the address to be reused, and this one never listens. A
    program that asks for this very port can take it nevertheless.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def _await(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
    """Poll until `condition` holds; False when it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


# ------------------------------------------------------------------------------------------------ processes


@dataclass(frozen=True, slots=True)
class _Process:
    """A process that cannot be mistaken for a later one with the same pid: `started` is in ticks since boot."""

    pid: int
    started: int

    @classmethod
    def current(cls) -> _Process:
        return cls.find(os.getpid()) or cls(os.getpid(), 0)

    @classmethod
    def find(cls, pid: int) -> _Process | None:
        """The living process with this pid; a zombie does not live."""
        status = _status(pid)
        return status.process if status else None

    def alive(self) -> bool:
        return _Process.find(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Send a signal; no effect when the process is gone."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def program(self) -> str:
        """The name it was started by; empty when it is gone."""
        try:
            return os.path.basename(Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[0].decode())
        except OSError:
            return ""


@dataclass(frozen=True, slots=True)
class _Status:
    process: _Process
    parent: int


def _status(pid: int) -> _Status | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, parent, *fields = text.rpartition(")")[2].split()  # the name before it may contain anything
    return None if state in "ZX" else _Status(_Process(pid, int(fields[17])), int(parent))


def _children(pid: int) -> set[_Process]:
    return _families().get(pid, set())


def _descendants(pid: int) -> set[_Process]:
    """All processes that descend from `pid`, without itself."""
    families = _families()
    found: set[_Process] = set()
    parents = [pid]
    while parents:
        children = families.get(parents.pop(), set())
        parents += [child.pid for child in children - found]
        found |= children
    return found


def _families() -> dict[int, set[_Process]]:
    """All processes of the machine by the pid of their parent."""
    result: dict[int, set[_Process]] = {}
    for name in os.listdir("/proc"):
        status = _status(int(name)) if name.isdigit() else None
        if status:
            result.setdefault(status.parent, set()).add(status.process)
    return result


# --------------------------------------------------------------------------------------------- the keeper


class _Order(TypedDict):
    """What the keeper reads from its standard input."""

    caller: dict[str, int]
    command: list[str]
    env: dict[str, str]
    directory: str
    ids: list[int]
    remove: list[str]


_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _keep() -> None:
    """Run condor_master until it ends, SIGTERM comes, or the caller is gone; then end its whole family.

    A second SIGTERM ends the patience with which it waits for the family.

    The caller's end is seen through a file descriptor of its process, which no fork and no thread can fool: a
    pipe would stay open in the caller's children, and a parent-death signal is sent when a thread ends.
    """
    order: _Order = json.loads(sys.stdin.readline())
    caller = _Process(**order["caller"])
    caller_ended = os.pidfd_open(caller.pid)
    if not caller.alive():
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the daemons orphan becomes our child, and cannot be lost
    woken = _wake_on(signal.SIGTERM, signal.SIGCHLD)
    master = _start_master(order)
    print(json.dumps(asdict(master)), flush=True)
    while master.alive() and not _terminated:
        ready, _, _ = select.select([caller_ended, woken], [], [])
        if caller_ended in ready:
            break
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        _reap()
    _end_children(master, patience_s=30)
    _clean([Path(path) for path in order["remove"]])


_terminated: list[bool] = []


def _wake_on(*numbers: signal.Signals) -> int:
    """A file descriptor that becomes readable when one of the signals came; SIGTERM is also remembered."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in numbers:
        signal.signal(number, lambda came, frame: _terminated.append(True) if came == signal.SIGTERM else None)
    return readable


def _start_master(order: _Order) -> _Process:
    libc = ctypes.CDLL(None)

    def quit_without_keeper() -> None:
        # The second line: should the keeper be killed, the master gets SIGQUIT. Works here because it is set
        # after the change of user, which would clear it, and because the keeper has one thread only.
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT), 0, 0, 0)

    user = order["ids"]
    with open(f"{order['directory']}/master.out", "ab") as out:
        started = subprocess.Popen(
            order["command"],
            env=order["env"],
            cwd=order["directory"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            umask=0o022,
            user=user[0] if user else None,
            group=user[1] if user else None,
            extra_groups=[] if user else None,
            preexec_fn=quit_without_keeper,
        )
    return _Process.find(started.pid) or _Process(started.pid, 0)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _end_children(master: _Process, patience_s: float) -> None:
    """End everything that descends from this process, gently for `patience_s`."""
    for process in _descendants(os.getpid()):
        process.send(signal.SIGCONT)  # a stopped daemon would not hear the next signal
    master.send(signal.SIGQUIT)
    _await(lambda: _childless() or len(_terminated) > 1, patience_s)
    for _ in range(100):  # what is killed may just have started another
        if _childless():
            return
        for process in _descendants(os.getpid()):
            process.send(signal.SIGKILL)
        time.sleep(0.05)


def _childless() -> bool:
    _reap()
    return not _descendants(os.getpid())


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass

"""Get a complete HTCondor without root and without changing the machine.

`ensure` takes what it finds first: the HTCondor on PATH, the one in this project's cache, or one that it
unpacks into that cache from Debian's archive. The last step needs apt-get and dpkg-deb and works on older
Debian releases, which have no HTCondor of their own: the packages come with their own C library, and every
program is told to use it.

The cache is `$APF_ELASTIC_CACHE`, else `$XDG_CACHE_HOME/apf-elastic`, else `~/.cache/apf-elastic`; root, and
users without a home, get another place (see `cache_directory`). Delete it to start afresh. About 110 MB.

    python -m apf_elastic.testing.htcondor_install
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "trixie"
"""The Debian release whose package is unpacked: the oldest one that has an HTCondor with all we use."""

MINIMUM_VERSION = (10, 0)
"""IDTOKENS with authorisation limits, and condor_off through the collector, work from here on."""

MIRROR_VARIABLE = "APF_ELASTIC_DEBIAN_MIRROR"
CACHE_VARIABLE = "APF_ELASTIC_CACHE"

# Part of the stamp: raise it when the steps below change, and existing prefixes are built again.
_RECIPE = 1
_SPACE_NEEDED_MB = 400
_LOCK_PATIENCE_S = 900.0

_PROGRAMS = (
    *("condor_master", "condor_procd", "condor_collector", "condor_negotiator", "condor_schedd", "condor_shadow"),
    *("condor_gridmanager", "condor_startd", "condor_starter", "condor_version", "condor_token_create"),
    *("condor_submit", "condor_q", "condor_hold", "condor_rm", "condor_history", "condor_status", "condor_advertise"),
    *("condor_drain", "condor_off", "condor_on", "condor_reconfig"),
)
_PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"

Progress = Callable[[str], None]


class InstallError(Exception):
    """No usable HTCondor: the message says what failed, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An HTCondor on this machine. `prefix` is its RELEASE_DIR; `version` is like (23, 9, 6)."""

    prefix: Path
    bin: Path
    sbin: Path
    libexec: Path
    version: tuple[int, ...]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def lib(self) -> Path:
        """HTCondor's own library directory, wherever this packaging puts it."""
        for name in ("lib/condor", "lib64/condor"):
            if (self.prefix / name).is_dir():
                return self.prefix / name
        return self.prefix / "lib"

    def program(self, name: str) -> Path:
        """Path of a tool or daemon. Raises FileNotFoundError when this HTCondor does not have it."""
        for directory in (self.bin, self.sbin, self.libexec):
            if (directory / name).is_file():
                return directory / name
        raise FileNotFoundError(f"{name}: not part of the HTCondor {self.version_text} in {self.prefix}")

    def path(self, rest: str = _PLAIN_PATH) -> str:
        """A PATH on which this HTCondor comes first."""
        return f"{self.bin}:{self.sbin}:{rest}"

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """A copy of `base` (default: this process's environment) with this HTCondor first on PATH."""
        result = dict(os.environ if base is None else base)
        result["PATH"] = self.path(result.get("PATH") or _PLAIN_PATH)
        return result


def ensure(progress: Progress | None = None) -> Installation:
    """Find or build an HTCondor; `progress` is given one line per step.

    Takes 10 to 30 s the first time, some ms later. Several processes may call it at once. Raises
    InstallError.
    """
    say = progress or (lambda line: None)
    found = _on_path(say)
    if found:
        return found
    site = _Site.below(cache_directory())
    installed = site.installed()  # without the lock: a complete prefix is never touched again
    if installed:
        say(f"HTCondor {installed.version_text} in {site.prefix}")
        return installed
    try:
        with _locked(site.lock, say):
            return site.installed() or _build(site, say)
    except OSError as error:
        raise InstallError(_explain(error, site.root)) from error


# --------------------------------------------------------------------------------------------- what is there


def _on_path(say: Progress) -> Installation | None:
    """The HTCondor on PATH, if it is recent, complete and open to the user that its daemons will run as."""
    # Ordinary users of Debian have no sbin directory on PATH, but condor_master is in one.
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    master = shutil.which("condor_master", path=search)
    if not master:
        return None
    try:
        found = inspect(Path(os.path.realpath(master)).parent.parent)
    except InstallError as error:
        say(f"not using {master}: {error}")
        return None
    say(f"HTCondor {found.version_text} in {found.prefix}")
    return found


def inspect(prefix: Path) -> Installation:
    """Describe the HTCondor below `prefix` (its RELEASE_DIR). Raises InstallError if it cannot serve us."""
    sbin, binary = prefix / "sbin", prefix / "bin"
    places = [prefix / "libexec/condor", prefix / "lib/condor/libexec", prefix / "libexec"]
    libexec = next((p for p in places if (p / "condor_shared_port").is_file()), None)
    missing = [name for name in _PROGRAMS if not ((sbin / name).is_file() or (binary / name).is_file())]
    if missing or libexec is None:
        raise InstallError(f"incomplete, without {', '.join(missing or ['condor_shared_port'])}")
    if os.geteuid() == 0 and not open_to_others(sbin):
        raise InstallError("root's daemons run as another user, who cannot enter that directory")
    version = _version(binary / "condor_version")
    if version < MINIMUM_VERSION:
        raise InstallError(f"version {'.'.join(map(str, version))} is older than 10.0")
    return Installation(prefix, binary, sbin, libexec, version)


def _version(program: Path) -> tuple[int, ...]:
    # ONLY_ENV: a broken or absent configuration of this machine must not matter.
    text = _run([str(program)], env={**os.environ, "CONDOR_CONFIG": "ONLY_ENV"}, timeout_s=30)
    match = re.search(r"CondorVersion: (\d+(?:\.\d+)+)", text)
    if not match:
        raise InstallError(f"{program} does not tell its version, but {text.strip()!r}")
    return tuple(int(part) for part in match[1].split("."))


def open_to_others(path: Path) -> bool:
    """Whether every user may enter `path` and all directories above it."""
    path = path.resolve()
    return all(there.exists() and there.stat().st_mode & stat.S_IXOTH for there in (path, *path.parents))


# ------------------------------------------------------------------------------------------------- the cache


def cache_directory() -> Path:
    """Where this project keeps what it downloads and builds; made if absent. Raises InstallError."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        directory = Path(chosen).absolute()
        try:
            _make_cache(directory)
            _check_cache(directory)
        except InstallError as error:
            raise InstallError(f"{error}: set {CACHE_VARIABLE} to another directory") from error
        return directory
    reasons = []
    for directory in _usual_caches():
        try:
            _make_cache(directory)
            _check_cache(directory)
            return directory
        except InstallError as error:
            reasons.append(str(error))
    raise InstallError(f"no directory to install into ({'; '.join(reasons)}): set {CACHE_VARIABLE} to one")


def _usual_caches() -> Iterator[Path]:
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification: ignore a relative one
        yield Path(xdg) / "apf-elastic"
    home = os.environ.get("HOME") or _home_from_passwd()
    if os.path.isabs(home) and os.path.isdir(home):  # services often have a home that does not exist
        yield Path(home) / ".cache" / "apf-elastic"
    if os.geteuid() == 0:
        # Root's daemons run as `nobody`, and /root is closed to others: programs there could not be started.
        yield Path("/var/cache/apf-elastic")
    yield Path(tempfile.gettempdir()) / f"apf-elastic-{os.geteuid()}"


def _home_from_passwd() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a container with an arbitrary uid
        return ""


def _make_cache(directory: Path) -> None:
    if os.geteuid() == 0 and not _parents_open(directory):
        raise InstallError(f"{directory}: not enterable for other users, as which root's daemons run")
    try:
        missing = [p for p in (directory, *directory.parents) if not p.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        for made in missing:
            made.chmod(0o755)  # whatever the umask is
    except OSError as error:
        raise InstallError(f"{directory}: {error.strerror}") from error


def _parents_open(directory: Path) -> bool:
    return open_to_others(next(p for p in (directory, *directory.parents) if p.exists()))


def _check_cache(directory: Path) -> None:
    """Below /tmp somebody else may have made a directory of that name: programs there are not ours to run."""
    info = directory.lstat()
    if info.st_uid != os.geteuid() and not stat.S_ISLNK(info.st_mode):
        raise InstallError(f"{directory}: belongs to user {info.st_uid}")
    if stat.S_ISLNK(info.st_mode) and directory.parent == Path(tempfile.gettempdir()):
        raise InstallError(f"{directory}: is a symbolic link")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InstallError(f"{directory}: not writable")


@dataclass(frozen=True, slots=True)
class _Site:
    """One HTCondor in the cache. `prefix` is written into the programs: built in place and never moved."""

    root: Path

    @classmethod
    def below(cls, cache: Path) -> _Site:
        return cls(cache / f"htcondor-{SUITE}-{os.uname().machine}")

    @property
    def prefix(self) -> Path:
        return self.root / "prefix"

    @property
    def stamp(self) -> Path:
        return self.root / "complete"

    @property
    def apt(self) -> Path:
        return self.root / "apt"

    @property
    def packages(self) -> Path:
        return self.root / "packages"

    @property
    def manifest(self) -> Path:
        """The names of the package files that belong together, written when all are there."""
        return self.root / "packages.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def seal(self) -> str:
        return f"{self.prefix} {SUITE} recipe {_RECIPE}\n"

    def installed(self) -> Installation | None:
        """The finished prefix, or None when absent, unfinished, moved, damaged or of an older recipe."""
        try:
            if self.stamp.read_text() != self.seal():
                return None
            return inspect(self.prefix / "usr")
        except (OSError, InstallError):
            return None

    def downloaded(self) -> list[Path]:
        """The package files of a complete download, else nothing."""
        try:
            files = [self.packages / name for name in json.loads(self.manifest.read_text())]
        except (OSError, ValueError):
            return []
        return files if all(file.is_file() for file in files) else []


@contextmanager
def _locked(lock: Path, say: Progress) -> Iterator[None]:
    """Hold `lock`; the kernel gives it back when this process dies. Raises InstallError after 15 minutes."""
    lock.parent.mkdir(mode=0o755, exist_ok=True)
    lock.parent.chmod(0o755)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    with lock.open("a+") as handle:
        waiting = False
        while not _try_lock(handle.fileno()):
            if not waiting:
                handle.seek(0)
                say(f"process {handle.read().strip() or '(unknown)'} is installing HTCondor: waiting for it")
                waiting = True
            if time.monotonic() > deadline:
                raise InstallError(f"{lock}: held by another process for {_LOCK_PATIENCE_S:.0f} s: end it")
            time.sleep(0.2)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ---------------------------------------------------------------------------------------------- the building


def _build(site: _Site, say: Progress) -> Installation:
    started = time.monotonic()
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if not shutil.which(tool):
            raise InstallError(
                f"no HTCondor >= 10.0 on PATH and none in {site.root}, and without {tool} (Debian package"
                f" {package}) none can be unpacked: install HTCondor with this system's own package manager"
            )
    _check_space(site)
    packages = _download(site, say)
    site.stamp.unlink(missing_ok=True)
    _remove(site.prefix)
    say(f"unpacking {len(packages)} packages into {site.prefix}")
    tools = site.root / "tools"
    _remove(tools)
    _unpack([p for p in packages if not p.name.startswith("patchelf_")], site.prefix)
    _unpack([p for p in packages if p.name.startswith("patchelf_")], tools)
    _bind_to_own_libraries(site.prefix, tools / "usr/bin/patchelf", say)
    for unused in ("doc", "man", "locale", "lintian", "bug"):
        _remove(site.prefix / "usr/share" / unused)
    _remove(tools)
    result = inspect(site.prefix / "usr")
    _check_libraries(result)
    _write(site.stamp, site.seal())
    say(f"HTCondor {result.version_text} in {site.prefix} ({time.monotonic() - started:.0f} s)")
    return result


def _check_space(site: _Site) -> None:
    free_mb = shutil.disk_usage(site.root).free // 2**20
    if free_mb < _SPACE_NEEDED_MB:
        raise InstallError(
            f"{site.root}: {free_mb} MB free, HTCondor needs {_SPACE_NEEDED_MB} MB while it is unpacked:"
            f" make room, or set {CACHE_VARIABLE} to a directory elsewhere"
        )


def _download(site: _Site, say: Progress) -> list[Path]:
    """The package files, fresh from a mirror; when no mirror answers, those of an earlier download."""
    try:
        return _download_from_first_mirror(site, say)
    except InstallError as error:
        cached = site.downloaded()
        if not cached:
            raise
        say(f"using the packages downloaded before: {error}")
        return cached


def _download_from_first_mirror(site: _Site, say: Progress) -> list[Path]:
    mirrors = _mirrors()
    failures = []
    for mirror in mirrors:
        try:
            return _download_from(mirror, site, say)
        except InstallError as error:
            failures.append(f"{_without_password(mirror)}: {error}")
    where = "; ".join(failures) or "apt's sources name no Debian archive"
    raise InstallError(
        f"no mirror with HTCondor for Debian {SUITE} answered ({where}): check the network and apt's proxy,"
        f" set {MIRROR_VARIABLE} to the URI of a Debian archive, or install HTCondor >= 10.0 on PATH"
    )


def _mirrors() -> list[str]:
    """Debian archives that this machine already trusts its software to, the most likely first."""
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return [chosen]
    form = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    listing = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], timeout_s=60)
    found = [line.split(None, 2) for line in listing.splitlines()]
    # "bookworm", "stable": a whole release. "bookworm-security" and the like are other archives.
    uris = [uri for release, component, uri in found if component == "main" and "-" not in release]
    return sorted(dict.fromkeys(uris), key=lambda uri: not uri.rstrip("/").endswith("/debian"))


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _download_from(mirror: str, site: _Site, say: Progress) -> list[Path]:
    env = {**os.environ, "APT_CONFIG": str(_private_apt(mirror, site)), "LC_ALL": "C"}
    say(f"reading the package list of Debian {SUITE} from {_without_password(mirror)}")
    _run(["apt-get", "-qq", "update"], env=env, timeout_s=300)
    files = _needed(_run(["apt-get", "-qq", "-s", "install", "condor", "patchelf"], env=env, timeout_s=120))
    site.packages.mkdir(exist_ok=True)
    say(f"downloading {len(files)} packages, about 50 MB")
    site.manifest.unlink(missing_ok=True)
    _run(["apt-get", "-qq", "download", *files.values()], env=env, cwd=site.packages, timeout_s=900)
    missing = [name for name in files if not (site.packages / name).is_file()]
    if missing:
        raise InstallError(f"{site.packages}: apt-get did not deliver {', '.join(missing)}")
    for file in site.packages.iterdir():
        if file.name not in files:  # an older version from an earlier try must not be unpacked over this one
            file.unlink()
    _write(site.manifest, json.dumps(sorted(files), indent=1))
    _remove(site.apt)  # 20 MB of lists, useless tomorrow
    return [site.packages / name for name in sorted(files)]


def _private_apt(mirror: str, site: _Site) -> Path:
    """An apt configuration that touches nothing of the machine's; its proxies and passwords still apply.

    The status file is empty, as on a machine without any package, so that the C library is fetched too.
    """
    _remove(site.apt)
    for part in ("lists/partial", "cache/archives/partial"):
        (site.apt / part).mkdir(parents=True)
    (site.apt / "status").touch()
    keyrings = [Path(f"/usr/share/keyrings/debian-archive-keyring.{end}") for end in ("gpg", "pgp")]
    signed = next((f"[signed-by={keyring}] " for keyring in keyrings if keyring.is_file()), "")
    (site.apt / "sources.list").write_text(f"deb {signed}{mirror} {SUITE} main\n")
    settings = {
        "Dir::Etc::sourcelist": site.apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": site.apt,
        "Dir::State::Lists": site.apt / "lists",
        "Dir::State::status": site.apt / "status",
        "Dir::Cache": site.apt / "cache",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",  # as root apt would become _apt, which cannot write here
        "APT::Update::Error-Mode": "any",  # otherwise an unreachable mirror is a warning and exit status 0
        "APT::Update::Post-Invoke-Success": "",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "true",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
        "Debug::NoLocking": "true",  # our own lock is held
    }
    config = site.apt / "apt.conf"
    config.write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    return config


# HTCondor depends on half a Debian (perl, python, adduser). Its programs need libraries only; its scripts use
# the machine's perl and python, and the libraries of those are left out too.
_NEEDED = re.compile(r"condor|patchelf|zlib1g|lib.+")
_NOT_NEEDED = re.compile(
    r"lib(js-|perl|python|boost-python|date-manip|pam-|debconf|semanage|sepol|systemd|ncurses|audit-common).*"
    r"|lib.*-perl"
)
_SIMULATED = re.compile(r"^Inst (?P<name>\S+) \((?P<version>\S+) .*?\[(?P<arch>\w+)\]\)", re.MULTILINE)


def _needed(simulation: str) -> dict[str, str]:
    """Package files to fetch, {file name: what to ask apt for}, from the output of `apt-get -s install`."""
    files = {}
    for name, version, architecture in _SIMULATED.findall(simulation):
        if _NEEDED.fullmatch(name) and not _NOT_NEEDED.fullmatch(name):
            files[f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"] = f"{name}={version}"
    if not any(file.startswith("condor_") for file in files):
        raise InstallError(f"this mirror's Debian {SUITE} has no package condor for this architecture")
    return files


def _unpack(packages: Sequence[Path], target: Path) -> None:
    target.mkdir(mode=0o755)
    target.chmod(0o755)
    for package in packages:
        try:
            _run(["dpkg-deb", "-x", str(package), str(target)], timeout_s=120)
        except InstallError as error:
            raise InstallError(f"{error} (if {package} is damaged, remove {package.parent})") from error


def _bind_to_own_libraries(prefix: Path, patchelf: Path, say: Progress) -> None:
    """Make every program below `prefix` use the C library and the other libraries unpacked with it.

    DT_RPATH rather than RUNPATH, because it also serves libraries of libraries; and not LD_LIBRARY_PATH,
    which would leak into the jobs and make the machine's own programs load a C library not built for them.
    """
    loader = _loader(prefix)
    libraries = loader.parent
    rpath = f"{libraries}:{prefix}/usr/lib"
    # patchelf itself is from the newer release, so the new loader must run it.
    tool = [str(loader), "--library-path", str(libraries), str(patchelf)]
    commands = []
    for file in _elf_files(prefix / "usr", skip=libraries):
        program = _names_interpreter(file, loader.name)
        if not program and ".so" not in file.name:
            continue  # linked statically
        interpreter = ["--set-interpreter", str(loader)] if program else []
        commands.append([*tool, *interpreter, "--force-rpath", "--set-rpath", rpath, str(file)])
    say(f"binding {len(commands)} programs and libraries to {libraries}")
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for _ in workers.map(_run, commands):
            pass


def _loader(prefix: Path) -> Path:
    loaders = sorted((prefix / "usr/lib").glob("*/ld-linux*.so.*"))
    if not loaders:
        raise InstallError(f"{prefix}: the C library's package brought no dynamic loader")
    return loaders[0]


def _elf_files(top: Path, skip: Path) -> Iterator[Path]:
    for where, directories, names in os.walk(top):
        directories[:] = [name for name in directories if Path(where, name) != skip]
        for file in (Path(where, name) for name in names):
            if file.is_file() and not file.is_symlink() and _head(file, 4) == b"\x7fELF":
                yield file


def _names_interpreter(file: Path, loader: str) -> bool:
    """Whether `file` is a dynamic program; patchelf refuses to give an interpreter to anything else."""
    return loader.encode() in _head(file, 4096)


def _head(file: Path, size: int) -> bytes:
    with file.open("rb") as handle:
        return handle.read(size)


def _check_libraries(found: Installation) -> None:
    """A library missing from the packages would show only when a daemon is started: find it now."""
    loader = _loader(found.prefix.parent)
    for name in (*_PROGRAMS, "condor_shared_port"):
        text = _run([str(loader), "--list", str(found.program(name))])
        missing = re.findall(r"(\S+) => not found", text)
        if missing:
            raise InstallError(f"{name} lacks {', '.join(missing)}: Debian {SUITE} changed; report this")


# ---------------------------------------------------------------------------------------------- small things


def _run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 60,
) -> str:
    """Standard output of `command`. Raises InstallError with its last words."""
    what = f"{Path(command[0]).name} {command[-1]}"
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=cwd or "/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            umask=0o022,  # a private umask would lock the daemons' user out
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{what}: did not end within {timeout_s:.0f} s") from error
    except OSError as error:
        raise InstallError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        if "No space left" in done.stderr:
            raise InstallError(f"{what}: {_NO_SPACE}")
        last = " ".join(done.stderr.split())[-600:] or f"exit status {done.returncode}"
        raise InstallError(f"{what}: {last}")
    return done.stdout


def _write(file: Path, text: str) -> None:
    """Write all of `file` or nothing."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


_NO_SPACE = f"no space left: make room, or set {CACHE_VARIABLE} to a directory elsewhere"


def _explain(error: OSError, root: Path) -> str:
    where = error.filename or root
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: {_NO_SPACE}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}: {error.strerror}: set {CACHE_VARIABLE} to a directory that you may write"
    return f"{where}: {error.strerror}: remove {root} and try again"


def main() -> int:
    """Install, show progress, and print where HTCondor is; exit status 1 with the reason otherwise."""
    started = time.monotonic()

    def show(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)

    try:
        found = ensure(show)
    except InstallError as error:
        print(f"htcondor_install: {error}", file=sys.stderr)
        return 1
    print(f"version  {found.version_text}")
    for name in ("bin", "sbin", "libexec"):
        print(f"{name:8} {getattr(found, name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

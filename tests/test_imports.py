"""Who may import whom: the direction of imports, read from the sources themselves."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import apf_elastic

PACKAGE = Path(apf_elastic.__path__[0])
REPOSITORY = PACKAGE.parent

#: What a part of the package may import, besides itself. A part is what follows `apf_elastic` in the name of a module:
#: a module or a package. Those that are not named here are the service, see below.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "model": frozenset(),
    "settings": frozenset({"model"}),
    "contracts": frozenset({"model"}),
    "decide": frozenset({"model", "settings", "contracts"}),
    # what plugins of one kind share with those of another
    "condor": frozenset({"model", "contracts", "glidein"}),
    "embedded": frozenset({"model", "contracts"}),
    "glidein": frozenset(),
    "sources": frozenset({"model", "contracts", "condor", "embedded", "glidein"}),
    "pools": frozenset({"model", "contracts", "condor", "embedded", "glidein"}),
    "backends": frozenset({"model", "contracts", "condor", "embedded", "glidein"}),
}
#: The plugins of one kind do not import each other either: a backend is one file.
APART = frozenset({"sources", "pools", "backends"})
#: What is imported by the few named here only. Everything else of the service may import everything else of it.
ONLY_FOR: Mapping[str, frozenset[str]] = {
    "cli": frozenset({"tests"}),
    "testing": frozenset({"testing", "demo", "demo_embedded", "demo_htcondor", "tests", "benchmarks"}),
    "commands": frozenset({"commands", "cli", "demo", "demo_embedded", "demo_htcondor", "testing", "tests"}),
    "demo": frozenset({"demo", "demo_embedded", "demo_htcondor", "tests", "benchmarks"}),
    # found through entry points, so nothing of the service knows them
    "sources": frozenset({"sources", "demo_embedded", "demo_htcondor", "testing", "tests", "benchmarks"}),
    "pools": frozenset({"pools", "demo_embedded", "demo_htcondor", "testing", "tests", "benchmarks"}),
    "backends": frozenset({"backends", "demo_embedded", "demo_htcondor", "testing", "tests", "benchmarks"}),
}


@dataclass(frozen=True, slots=True)
class Import:
    """One import of ours: who imports what, and where that is written."""

    importer: str
    imported: str
    line: int


def imports_of(module: str, source: str, known: frozenset[str]) -> Iterator[Import]:
    """Every module of ours that a source text imports, wherever in it that stands. `known` are all modules of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base_of(module, node, known)
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "apf_elastic":
                yield Import(module, name, node.lineno)


def _base_of(module: str, node: ast.ImportFrom, known: frozenset[str]) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{module}.") for other in known)
    above = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
    return ".".join([*above, *([node.module] if node.module else [])])


def part(module: str) -> str:
    """``decide`` of ``apf_elastic.decide.plan``; ``tests`` of ``tests.test_cycle``; empty for the package itself."""
    words = module.split(".")
    return words[1] if words[0] == "apf_elastic" and len(words) > 1 else words[0].replace("apf_elastic", "")


def wrong(one: Import) -> str:
    """Why an import may not be, or nothing."""
    importer, imported = part(one.importer), part(one.imported)
    if not imported:  # the package's own file has a version and nothing else
        return ""
    if importer == imported and not (importer in APART and _other_plugin(one)):
        return ""
    if importer in APART and imported == importer:
        return "plugins do not import each other"
    if importer in MAY_IMPORT and imported not in MAY_IMPORT[importer]:
        return f"{importer} may import {', '.join(sorted(MAY_IMPORT[importer])) or 'nothing of ours'}"
    if imported in ONLY_FOR and importer not in ONLY_FOR[imported]:
        return f"{imported} is for {', '.join(sorted(ONLY_FOR[imported])) or 'nobody'}"
    return ""


def _other_plugin(one: Import) -> bool:
    """Whether it leads to a module of the same kind that is not a part of the importer's own."""
    return not one.imported.startswith(one.importer) and one.imported.count(".") > 1


def modules(root: Path, name: str) -> Mapping[str, Path]:
    """The modules below a directory. Links are followed: a part of the package may lie beside it."""
    found = {}
    for directory, _, files in os.walk(root, followlinks=True):
        for file in files:
            if file.endswith(".py"):
                path = Path(directory, file)
                words = [name, *path.relative_to(root).with_suffix("").parts]
                found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return found


def everything() -> Mapping[str, Path]:
    found = dict(modules(PACKAGE, "apf_elastic"))
    for name in ("tests", "benchmarks"):
        found |= modules(REPOSITORY / name, name)
    return found


def complaints(sources: Mapping[str, str]) -> list[str]:
    """What is wrong in these modules, one sentence each."""
    known = frozenset(sources)
    return [
        f"{module}, line {one.line}, imports {one.imported}: {why}"
        for module, source in sorted(sources.items())
        for one in imports_of(module, source, known)
        if (why := wrong(one))
    ]


def test_every_import_goes_the_way_it_may() -> None:
    assert complaints({module: path.read_text() for module, path in everything().items()}) == []


def test_every_part_that_has_a_rule_exists() -> None:
    parts = {part(module) for module in everything()}
    assert {*MAY_IMPORT, *ONLY_FOR, *(name for few in ONLY_FOR.values() for name in few)} <= parts


def test_every_kind_of_wrong_import_is_found() -> None:
    planted = {
        "apf_elastic.model": "from apf_elastic.settings import Settings",
        "apf_elastic.settings": "import apf_elastic.contracts",
        "apf_elastic.contracts": "from . import settings",
        "apf_elastic.decide.plan": "from apf_elastic import ledger",
        "apf_elastic.decide": "",
        "apf_elastic.ledger": "def f():\n    from apf_elastic.backends.local import LocalBackend",
        "apf_elastic.sources.htcondor": "from apf_elastic.pools.htcondor import HTCondorPool",
        "apf_elastic.sources": "",
        "apf_elastic.pools.htcondor": "from ..cycle import Cycle",
        "apf_elastic.pools": "",
        "apf_elastic.backends.local": "from apf_elastic.backends import htcondor",
        "apf_elastic.backends.htcondor": "from apf_elastic.config import load",
        "apf_elastic.backends": "",
        "apf_elastic.condor.link": "if TYPE_CHECKING:\n    from apf_elastic.sources.htcondor import HTCondorSource",
        "apf_elastic.commands.run": "from apf_elastic import cli",
        "apf_elastic.cycle": "from apf_elastic.testing.fakes import FakeClock",
        "apf_elastic.service": "from apf_elastic.commands.words import clean",
        "apf_elastic.observe": "import apf_elastic.demo as show",
        "apf_elastic.cli": "",
        "benchmarks.bench_service": "from apf_elastic.cli import app",
    }
    found = {line.partition(",")[0] for line in complaints(planted)}
    assert found == {module for module, source in planted.items() if source}


def test_what_may_be_imported_is_not_complained_about() -> None:
    fine = {
        "apf_elastic.model": "import json\nfrom dataclasses import dataclass",
        "apf_elastic.decide.plan": "from apf_elastic.model import Plan\nfrom .caps import Caps",
        "apf_elastic.decide.caps": "from apf_elastic.settings import Settings",
        "apf_elastic.pools.embedded": "import apf_elastic\nfrom apf_elastic.embedded.store import Store",
        "apf_elastic.backends.cloud": "from apf_elastic.backends.cloud_api import Api",
        "apf_elastic.backends.cloud_api": "from apf_elastic.contracts import CallError",
        "apf_elastic.commands.watch": "from apf_elastic.ledger import Reader",
        "apf_elastic.demo": "from apf_elastic.testing.fakes import FakeClock",
        "tests.test_cycle": "from apf_elastic.testing.fakes import FakeClock\nfrom apf_elastic.cli import app",
        "apf_elastic.cli": "",
        "apf_elastic.configuration": "",
    }
    assert complaints(fine) == []

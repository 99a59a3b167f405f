"""Sources, pools, backends, steps and monitors by their name, from entry points.

The built-in ones are found without installed metadata too, in a plain checkout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel

from apf_elastic.config.problems import escaped, suggestion

GROUPS = {
    "source": "apf_elastic.sources",
    "pool": "apf_elastic.pools",
    "backend": "apf_elastic.backends",
    "step": "apf_elastic.steps",
    "monitor": "apf_elastic.monitors",
}

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "source": {
        "embedded": "apf_elastic.sources.embedded:EmbeddedSource",
        "htcondor": "apf_elastic.sources.htcondor:HTCondorSource",
    },
    "pool": {
        "embedded": "apf_elastic.pools.embedded:EmbeddedPool",
        "htcondor": "apf_elastic.pools.htcondor:HTCondorPool",
    },
    "backend": {
        "local": "apf_elastic.backends.local:LocalBackend",
        "htcondor": "apf_elastic.backends.htcondor:HTCondorBackend",
    },
    "step": {},
    "monitor": {},
}

#: The extra of apf-elastic that brings a module.
EXTRAS = {
    "htcondor": "htcondor",
    "htcondor2": "htcondor",
    "classad": "htcondor",
    "classad2": "htcondor",
}


class PluginError(Exception):
    """No such plugin, or one that cannot be used. `cure` says what to do."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """One configured source, pool or backend: what is needed to make it. `kind` is source, pool or backend."""

    name: str
    kind: str
    type: str
    cls: Any
    options: BaseModel
    every_s: float
    timeout_s: float


def available(kind: str) -> dict[str, EntryPoint]:
    """Every plugin of a kind, by the name that `type` selects. A built-in one is not replaced by a package."""
    group = GROUPS[kind]
    found = {entry.name: entry for entry in sorted(entry_points(group=group), key=_package, reverse=True)}
    return found | {name: EntryPoint(name, value, group) for name, value in BUILT_IN[kind].items()}


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else ""


def load_plugin(kind: str, name: str) -> Any:
    """What the entry point names. Raises PluginError."""
    known = available(kind)
    if name not in known:
        message = f'there is no {kind} of type "{escaped(name, 60)}"'
        raise PluginError(message, suggestion(name, known, f"types of {kind}s"))
    entry = known[name]
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        raise _missing(kind, entry, error) from error
    except Exception as error:
        what = escaped(f"{type(error).__name__}: {error}")
        raise PluginError(f'the {kind} "{name}" does not load: {what}', f"repair {entry.value}") from error


def _missing(kind: str, entry: EntryPoint, error: ModuleNotFoundError) -> PluginError:
    module = (error.name or "").partition(".")[0]
    message = f'the {kind} "{entry.name}" needs the Python module {error.name}, which is not installed'
    if module in EXTRAS:
        return PluginError(message, f"install it: pip install 'apf-elastic[{EXTRAS[module]}]'")
    if module == "apf_elastic":
        return PluginError(f'the {kind} "{entry.name}" is not part of this installation', "upgrade apf-elastic")
    package = f"the package {entry.dist.name}" if entry.dist is not None else "the package that brings this plugin"
    return PluginError(message, f"install it; {package} should have asked for it")


def plugin_class(kind: str, name: str) -> type[Any]:
    """The class of a source, pool or backend; it has an inner pydantic model `Options`. Raises PluginError."""
    cls = load_plugin(kind, name)
    options = getattr(cls, "Options", None)
    if not isinstance(cls, type) or not isinstance(options, type) or not issubclass(options, BaseModel):
        value = available(kind)[name].value
        raise PluginError(f'the {kind} "{name}" is no plugin', f"give {value} an inner pydantic model `Options`")
    return cls

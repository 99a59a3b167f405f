"""Plugins that exist only here, found as any package's are: through entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from apf_elastic.config import Config, ConfigError, load, plugins


class Source:
    counts_waits = False

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        collector: str = ""
        schedds: list[str] = []
        token_dir: Path | None = None
        password: SecretStr | None = None
        timeout_s: float = 20.0
        constraint: str = ""

        @field_validator("constraint")
        @classmethod
        def _balanced(cls, value: str) -> str:
            if value.count("(") != value.count(")"):
                raise ValueError(f"{value!r} has unbalanced parentheses")
            return value

    @staticmethod
    def check_select(select: str) -> None:
        if select.startswith("="):
            raise ValueError("starts with an operator")


class PatientSource(Source):
    counts_waits = True


class Pool:
    class Options(BaseModel):
        domain: str = Field(description="what follows the @ in identities")


class Offering(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    cores: int = 1
    memory_mb: int = 0
    walltime_s: int | None = None
    price_per_hour: float = 0.0


class Backend:
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        offerings: dict[str, Offering] = {}
        stages: list[Offering] = []
        grace_s: float = 10.0
        environment: dict[str, str] = {}


class Fragile:
    class Options(BaseModel):
        depth: int = 0

        @field_validator("depth")
        @classmethod
        def _falls_over(cls, value: int) -> int:
            raise KeyError("a fault of the plugin")


class NoPlugin:
    pass


FOUND = {
    "apf_elastic.sources": ("fake:Source", "patient:PatientSource", "missing:Nothing"),
    "apf_elastic.pools": ("fake:Pool",),
    "apf_elastic.backends": ("fake:Backend", "fragile:Fragile", "none:NoPlugin"),
}


@pytest.fixture(autouse=True)
def fake_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("apf_elastic_fake_plugins")
    for cls in (Source, PatientSource, Pool, Backend, Fragile, NoPlugin):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def entry_points(group: str) -> list[EntryPoint]:
        words = [entry.split(":") for entry in FOUND.get(group, ())]
        return [EntryPoint(name, f"{module.__name__}:{cls}", group) for name, cls in words]

    monkeypatch.setattr(plugins, "entry_points", entry_points)


GOOD = """\
[factory]
name = "campus"

[sources.home]
type = "fake"

[pools.home]
type = "fake"
domain = "example.org"

[backends.here]
type = "fake"
[backends.here.offerings.small]
cores = 1
memory = "2 GB"
[backends.ce]
type = "fake"

[queues.analysis]
source = "home"
pool = "home"
backends = ["here", "ce"]
"""

Write = Callable[..., Path]


@pytest.fixture
def good() -> str:
    return GOOD


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a main file and files of conf.d; returns the main file."""

    def write(text: str, **more: str) -> Path:
        main = tmp_path / "apf-elastic.toml"
        main.write_text(text)
        if more:
            (tmp_path / "conf.d").mkdir()
        for name, content in more.items():
            (tmp_path / "conf.d" / f"{name}.toml").write_text(content)
        return main

    return write


@pytest.fixture
def loaded(write: Write) -> Callable[..., Config]:
    return lambda text, **more: load(write(text, **more))


@pytest.fixture
def wrong(write: Write) -> Callable[..., list[Any]]:
    """The problems of a configuration that must be refused."""

    def problems(text: str, **more: str) -> list[Any]:
        with pytest.raises(ConfigError) as caught:
            load(write(text, **more))
        return caught.value.problems

    return problems


@pytest.fixture
def message(write: Write, tmp_path: Path) -> Callable[..., str]:
    """What is printed of a configuration that must be refused, with DIR for its directory."""

    def text_of(text: str, **more: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(write(text, **more))
        return str(caught.value).replace(str(tmp_path), "DIR")

    return text_of

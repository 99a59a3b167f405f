"""Finding plugins, and what is said when one cannot be used."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from apf_elastic.config import PluginError, plugins
from apf_elastic.config.plugins import BUILT_IN, available, plugin_class


def test_the_built_in_plugins_are_found_without_installed_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert set(available("source")) == {"embedded", "htcondor"}
    assert set(available("backend")) == {"htcondor", "local"}
    assert plugin_class("backend", "local").__name__ == "LocalBackend"


@pytest.mark.parametrize("kind", ["source", "pool", "backend"])
def test_every_built_in_plugin_loads(kind: str) -> None:
    for name in BUILT_IN[kind]:
        assert plugin_class(kind, name).Options.model_json_schema()


def test_a_package_adds_a_plugin_by_an_entry_point() -> None:
    assert plugin_class("source", "fake").__name__ == "Source"


def test_a_package_does_not_replace_a_built_in_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    other = EntryPoint("local", "apf_elastic_fake_plugins:Backend", "apf_elastic.backends")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [other])
    assert plugin_class("backend", "local").__name__ == "LocalBackend"


def test_an_unknown_type_says_what_there_is_and_what_is_near() -> None:
    with pytest.raises(PluginError, match='no backend of type "locl"') as caught:
        plugin_class("backend", "locl")
    assert caught.value.cure == 'did you mean "local"? types of backends: fake, fragile, htcondor, local, none'


def refusing(*modules: str) -> type:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name in modules:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return Finder


def made_plugin(monkeypatch: pytest.MonkeyPatch, source: str, tmp_path: Any) -> Callable[[], type]:
    (tmp_path / "apf_elastic_made_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("made", "apf_elastic_made_plugin:Made", "apf_elastic.sources")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    monkeypatch.delitem(sys.modules, "apf_elastic_made_plugin", raising=False)
    return lambda: plugin_class("source", "made")


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    make = made_plugin(monkeypatch, "import htcondor2\n", tmp_path)
    monkeypatch.delitem(sys.modules, "htcondor2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [refusing("htcondor2"), *sys.meta_path])
    with pytest.raises(PluginError, match="needs the Python module htcondor2, which is not installed") as caught:
        make()
    assert caught.value.cure == "install it: pip install 'apf-elastic[htcondor]'"


def test_another_missing_module_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    make = made_plugin(monkeypatch, "import apf_elastic_no_such_module\n", tmp_path)
    with pytest.raises(PluginError, match="needs the Python module apf_elastic_no_such_module"):
        make()


def test_a_plugin_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    make = made_plugin(monkeypatch, "raise RuntimeError('half\\x1b done')\n", tmp_path)
    with pytest.raises(PluginError, match=r"does not load: RuntimeError: half\\x1b done") as caught:
        make()
    assert caught.value.cure == "repair apf_elastic_made_plugin:Made"


def test_a_name_that_the_module_does_not_have_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    make = made_plugin(monkeypatch, "", tmp_path)
    with pytest.raises(PluginError, match="does not load: AttributeError"):
        make()


def test_a_class_without_options_is_no_plugin() -> None:
    with pytest.raises(PluginError, match='the backend "none" is no plugin') as caught:
        plugin_class("backend", "none")
    assert "inner pydantic model `Options`" in caught.value.cure


def test_all_of_this_reaches_the_configuration_with_its_line(message: Callable[..., str], good: str) -> None:
    assert 'apf-elastic.toml:5: sources.home.type: the source "missing" does not load' in message(
        good.replace('type = "fake"', 'type = "missing"', 1)
    )

"""The configuration: apf-elastic.toml and conf.d/*.toml, checked whole at start.

`load` reads it, `Config` is the result, `ConfigError` says everything that is wrong.
"""

from apf_elastic.config.load import Config, FactoryConfig, build, load
from apf_elastic.config.plugins import PluginError, PluginSpec
from apf_elastic.config.problems import ConfigError, Problem

__all__ = ["Config", "ConfigError", "FactoryConfig", "PluginError", "PluginSpec", "Problem", "build", "load"]

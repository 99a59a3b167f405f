"""Options that every command shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apf_elastic.commands.words import fail
from apf_elastic.config import Config, ConfigError, load

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="configuration file; default: apf-elastic.toml here, then /etc/apf-elastic/apf-elastic.toml",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def configuration(file: Path | None) -> Config:
    """Load the configuration, or end with everything that is wrong in it."""
    try:
        return load(file)
    except ConfigError as error:
        raise fail(str(error), 2) from None

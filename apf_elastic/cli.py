"""The command line."""

from __future__ import annotations

import typer

from apf_elastic import __version__
from apf_elastic.commands import check, run, status, try_policy, watch

app = typer.Typer(
    name="apf-elastic",
    help="Keeps as many pilots, glideins and VMs alive as the waiting work needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _top(version: bool = typer.Option(False, "--version", help="print the version")) -> None:
    if version:
        typer.echo(f"apf-elastic {__version__}")
        raise typer.Exit


app.command()(run.run)
app.command()(run.once)
app.command()(run.plan)
app.command()(status.status)
app.command()(status.explain)
app.command()(watch.watch)
app.command()(check.check)
app.command("try-policy")(try_policy.try_policy)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

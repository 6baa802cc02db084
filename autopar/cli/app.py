"""The ``autopar`` program: its commands, and what becomes of errors.

Exit codes: 0; 1 where no plan is feasible or a check failed; 2 where the input is wrong. Results go
to standard output, progress and errors to standard error.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autopar.cli.calibrate import calibrate
from autopar.cli.clusters import clusters
from autopar.cli.compare import compare
from autopar.cli.plan import plan
from autopar.cli.train import train
from autopar.cli.verify import verify
from autopar.core.errors import AutoparError, InfeasibleError

NOT_FEASIBLE, WRONG_INPUT, INTERRUPTED = 1, 2, 130


class _Commands(TyperGroup):
    """Commands whose expected errors are a message and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AutoparError as error:
            typer.echo(f"autopar: {error}", err=True)
            infeasible = isinstance(error, InfeasibleError)
            raise typer.Exit(NOT_FEASIBLE if infeasible else WRONG_INPUT) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="autopar",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (plan, train, compare, verify, calibrate, clusters):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"autopar {version('autopar')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Automatic parallelization for JAX: plan a training step for any cluster, and run it."""
    del version


def main() -> None:
    """Runs the program; the console script."""
    app()

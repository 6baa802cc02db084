"""Where things are shown: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from autopar.core.plan_table import to_text


def show(what: RenderableType) -> None:
    """Prints a result: with colour on a terminal, as plain text of fixed width elsewhere."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(what)
    else:
        typer.echo(to_text(what))


def show_json(data: Any) -> None:
    """Prints a result for machines."""
    typer.echo(json.dumps(data, indent=2))


def note(text: str) -> None:
    """Says something that is not the result."""
    typer.echo(text, err=True)


def table(*headers: str, right: int = 0) -> Table:
    """A table without lines; its last ``right`` columns hold numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, header in enumerate(headers):
        made.add_column(header, justify="right" if index >= len(headers) - right else "left")
    return made


@contextmanager
def stages(quiet: bool = False) -> Generator[Callable[[str], None]]:
    """Shows what is being done, on a terminal: yields a function to call as each stage begins."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _ignore
        return
    with console.status("tracing") as status:
        yield lambda line: status.update(Text(line))


@contextmanager
def steps(title: str, count: int, quiet: bool = False) -> Generator[Callable[[str], None]]:
    """A progress bar, on a terminal: yields a function to call with a comment after each step."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _ignore
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[comment]}"),
        console=console,
    )
    with bar:
        task = bar.add_task(title, total=count, comment="")
        yield lambda comment: bar.update(task, advance=1, comment=comment)


def _ignore(text: str) -> None:
    del text

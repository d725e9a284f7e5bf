"""`ifed model …`: list the named language models, and download one before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ifed.cli.console import console, say
from ifed.downloads import cache_folder

app = typer.Typer(help="List named language models, or get one ready.", no_args_is_help=True)
Cache = Annotated[Path | None, typer.Option("--cache", envvar="MODEL_CACHE", help="Folder of downloaded and converted models.")]


@app.command("list")
def list_models() -> None:
    """List the models of the catalogue."""
    from ifed.modeling.catalog import CATALOG  # torch takes seconds to import

    table = Table("name", "model", "licence", "from")
    for name, entry in CATALOG.items():
        table.add_row(name, entry.title, entry.licence, entry.revision)
    console.print(table)


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="Catalogue name, Hugging Face id or folder.")],
    cache: Cache = None,
) -> None:
    """Download, verify and convert a model, unless that is done already."""
    from ifed.modeling.catalog import prepare  # torch takes seconds to import

    folder = prepare(name, cache=cache_folder(cache), announce=say)
    say(f"{name} is ready in {folder}")

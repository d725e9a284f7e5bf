"""`ifed model …`: list the named language models, and download one before it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from ifed.cli.console import AsJson, print_json, say, show
from ifed.cli.tables import Column, FittedTable
from ifed.downloads import cache_folder

app = typer.Typer(help="List named language models, or get one ready.", no_args_is_help=True)
Cache = Annotated[Path | None, typer.Option("--cache", envvar="MODEL_CACHE", help="Folder of downloaded and converted models.")]


class ListedModel(BaseModel):
    """A model of the catalogue, as `ifed model list` prints it."""

    name: str
    title: str
    licence: str
    source: str


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models of the catalogue."""
    from ifed.modeling.catalog import CATALOG  # torch takes seconds to import

    models = [
        ListedModel(name=name, title=entry.title, licence=entry.licence, source=entry.revision) for name, entry in CATALOG.items()
    ]
    print_json(*models) if as_json else show(models_table(models))


def models_table(models: Sequence[ListedModel]) -> FittedTable:
    """Return a table of models, each with its name and version in the package index as its source."""
    table = FittedTable(
        "name", Column("model", wraps=True), Column("licence", optional=1, wraps=True), Column("source", wraps=True)
    )
    for model in models:
        table.add_row(model.name, model.title, model.licence, model.source)
    return table


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="Catalogue name, Hugging Face id or folder.")],
    cache: Cache = None,
) -> None:
    """Download, verify and convert a model, unless that is done already."""
    from ifed.modeling.catalog import prepare  # torch takes seconds to import

    folder = prepare(name, cache=cache_folder(cache), announce=say)
    say(f"{name} is ready in {folder}")

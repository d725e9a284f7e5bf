"""`ifed demo-texts`: write one demo organisation's private file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ifed.cli.console import say
from ifed.cli.demo.corpora import SOURCES, organisations
from ifed.cli.demo.presets import EXAMPLES
from ifed.downloads import cache_folder
from ifed.errors import BadData


def demo_texts(
    name: Annotated[str, typer.Argument(help=f"The organisation: {', '.join(SOURCES)}.")],
    file: Annotated[Path, typer.Argument(help="Where its labelled texts go; a file that is there is left as it is.")],
    examples: Annotated[int, typer.Option(min=10, help="Texts at the most.")] = EXAMPLES,
    cache: Annotated[Path | None, typer.Option(envvar="MODEL_CACHE", help="Folder of downloads.")] = None,
) -> None:
    """Write the private texts of one organisation of the demo."""
    if name not in SOURCES:
        raise BadData(f"the demo has no organisation {name!r}; it has {', '.join(SOURCES)}")
    if file.exists():
        say(f"{file} is there and is left as it is")
        return
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".texts-") as scratch:
        people = organisations(Path(scratch), cache=cache_folder(cache), examples=examples, announce=say)
        organisation = next(candidate for candidate in people if candidate.name == name)
        organisation.file.replace(file)
    say(f"{file} holds {organisation.examples} texts of {name}")

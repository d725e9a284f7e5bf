"""`ifed export`: fold a task into an ordinary checkpoint, or write its adapter as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, Token, call_aggregator, say
from ifed.cli.models import Cache
from ifed.downloads import cache_folder
from ifed.messages.bodies import AdapterBody


def export(
    task: Annotated[str, typer.Option("--task", help="Name of the task.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write into; new or empty for a checkpoint.", file_okay=False)],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    adapter: Annotated[bool, typer.Option("--adapter", help="Write the adapter alone, for ADAPTER_FOLDER of a service.")] = False,
    version: Annotated[int | None, typer.Option("--version", help="This version; the one that is served by default.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name or folder of the model, where it is not the task's.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the weights written; float32 is exact.")
    ] = "float32",
    form: Annotated[
        Literal["auto", "sequence-classification", "lm-head"],
        typer.Option(
            "--format", help="For a label head: auto writes lm-head if every label is one token and the model can carry its bias."
        ),
    ] = "auto",
    cache: Cache = None,
) -> None:
    """Fold a task into a checkpoint that stock transformers loads; with --adapter, write the adapter instead."""

    fetched = call_aggregator(aggregator, token, lambda service: service.adapter(task, version=version))
    assert fetched is not None, "None only answers a known digest"
    digest, body = fetched
    if adapter:
        _write_adapter(task, body, digest, out)
        return
    from ifed.modeling.export import export as write  # torch takes seconds to import
    from ifed.modeling.loading import load

    name = model or body.meta.identity.name
    write(load(name, cache=cache_folder(cache), device="cpu", dtype=dtype, announce=say), body, out, form=form, announce=say)
    say(f"{task}, version {body.meta.version}, is an ordinary checkpoint in {out}; its README.md says how to use it")


def _write_adapter(task: str, body: AdapterBody, digest: str, out: Path) -> None:
    """Write the adapter as `TASK@VERSION` and as `TASK`, which a service with ADAPTER_FOLDER then serves; each file atomically."""
    content = body.to_bytes()
    out.mkdir(parents=True, exist_ok=True)
    for name in (f"{task}@{body.meta.version}", task):
        partial = out / f".{name}.new"
        partial.write_bytes(content)
        partial.replace(out / f"{name}.safetensors")
        say(f"{out / name}.safetensors")
    say(f"version {body.meta.version}, {len(content):,} bytes, sha256 {digest}")

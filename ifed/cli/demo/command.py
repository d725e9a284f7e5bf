"""The `ifed demo` command: its options, its steps in order, and what it prints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ifed.cli.console import console, run, say
from ifed.cli.demo.corpora import Organisation, organisations
from ifed.cli.demo.federation import TASK, Federation
from ifed.cli.demo.presets import DEFAULT_MODEL, Preset, preset_for
from ifed.cli.demo.stack import Stack
from ifed.downloads import cache_folder
from ifed.errors import IFedError

EXAMPLE = "The plot was thin, but I laughed the whole way through."


def demo(
    model: Annotated[str, typer.Option(help="Catalogue name, Hugging Face id or folder of the language model.")] = DEFAULT_MODEL,
    rounds: Annotated[int | None, typer.Option(min=1, help="Calibration rounds at the most.")] = None,
    local_steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps a client takes in a round.")] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Coefficient groups; must divide the hidden size.")] = None,
    layers: Annotated[str | None, typer.Option(help="Injected layers: all, upper_half or upper_third.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-6, help="Learning rate of the first step.")] = None,
    examples: Annotated[int | None, typer.Option(min=10, help="Texts in each organisation's private file at the most.")] = None,
    compare_local: Annotated[bool, typer.Option("--compare-local", help="Also let each organisation calibrate alone.")] = False,
    leave: Annotated[bool, typer.Option("--exit", help="End after the table instead of serving on.")] = False,
    folder: Annotated[Path, typer.Option(help="Where private files, logs, the database and summary.json go.")] = Path(".demo"),
    cache: Annotated[Path | None, typer.Option(envvar="MODEL_CACHE", help="Folder of downloaded and converted models.")] = None,
) -> None:
    """Train one sentiment classifier with four organisations that do not share texts, on this machine."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # a closed terminal ends the services as Ctrl-C does
    preset = preset_for(model).changed(
        rounds=rounds, local_steps=local_steps, groups=groups, layers=layers, learning_rate=learning_rate, examples=examples
    )
    kept = cache_folder(cache)
    _step("The language model")
    _fetch(model, kept)
    _step("The organisations' texts")
    people = organisations(folder / "private", cache=kept, examples=preset.examples, announce=say)
    for organisation in people:
        say(
            f"  {organisation.name}: {organisation.examples} labelled texts of its own, and {len(organisation.test)} set apart for the last table"
        )
    say(f"  the private files are in {folder / 'private'}")
    with Stack(folder / "logs") as stack:
        _federate(stack, preset, people, model=model, cache=kept, folder=folder, compare_local=compare_local, leave=leave)


def _federate(
    stack: Stack,
    preset: Preset,
    people: list[Organisation],
    *,
    model: str,
    cache: Path,
    folder: Path,
    compare_local: bool,
    leave: bool,
) -> None:
    _step("The services")
    federation = Federation(stack, preset, people, model=model, cache=cache, folder=folder)
    federation.start()
    _step("The rounds")
    run(federation.train())
    if compare_local:
        _step("Each organisation alone")
        run(federation.train_alone())
    _step("The outcome")
    outcome, summary = run(federation.measure())
    console.print(outcome.table())
    for conclusion in outcome.conclusions():
        say(conclusion)
    path = folder / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    say(
        f"{summary['rounds']} calibration rounds in {summary['seconds_rounds']:.0f} s; each organisation sent "
        f"{summary['bytes_up_per_client_per_round']:,} bytes a round, after {summary['bytes_context_vector']:,} bytes once "
        f"for its context vector, and no text. Figures in {path}."
    )
    body = json.dumps({"model": TASK, "input": EXAMPLE})
    say("\nWhat it was asked at last, and answered; without --exit the services run on:\n" if leave else "\nAsk it yourself:\n")
    say(f"  curl -s {federation.inference_url}/v1/classify -H 'Content-Type: application/json' -d '{body}'\n", verbatim=True)
    say(f"  {run(federation.ask(EXAMPLE))}\n", verbatim=True)
    if not leave:
        _serve_on(stack, federation)


def _serve_on(stack: Stack, federation: Federation) -> None:
    say("The services run on until Ctrl-C. To look at the rounds as an admin, in another terminal:\n")
    say(f"  export IFED_AGGREGATOR_URL={federation.aggregator_url} IFED_TOKEN={federation.admin_token}", verbatim=True)
    say(f"  {Path(sys.executable).with_name('ifed')} task show {TASK}\n", verbatim=True)
    say(
        f"The aggregator's API is described at {federation.aggregator_url}/docs, the inference service's at {federation.inference_url}/docs."
    )
    try:
        while True:
            stack.check()
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("\nEnding the services …")


def _fetch(model: str, cache: Path) -> None:
    """Download and convert the model in a subprocess, so that its memory is freed before the services start.

    The subprocess prints its progress to this terminal.

    Raises:
        NoModel: the subprocess failed; calling again resumes where it stopped.
    """
    done = subprocess.run(  # noqa: S603  # our own command, with this interpreter
        [sys.executable, "-m", "ifed.cli", "model", "fetch", model, "--cache", str(cache)], check=False
    )
    if done.returncode:
        raise NoModel(
            f"{model} could not be made ready; what it said is above, and run the command again to resume where it stopped"
        )


class NoModel(IFedError):
    """The language model could not be fetched or converted."""


def _step(words: str) -> None:
    console.print(f"\n[bold]{words}[/]")

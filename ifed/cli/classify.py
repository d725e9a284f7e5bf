"""`ifed classify`: label texts from the command line, from standard input or from a file."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ifed.cli.console import DEFAULT_INFERENCE, InferenceUrl, check_address, check_token, console, error_console, run, show
from ifed.cli.files import check_readable
from ifed.cli.tables import Column, FittedTable
from ifed.cli.texts import count_texts, read_texts
from ifed.clients import InferenceClient
from ifed.errors import BadData
from ifed.messages.inference import Classification, ClassifyResponse

BATCH = 32
LONGEST_SHOWN = 80
BEGINNING = b'{"row": '  # of every row written
REFUSED = b', "label": null, "error": '  # of a row without a label; in a text the quotes would be escaped

Token = Annotated[
    str | None, typer.Option("--token", envvar="IFED_TOKEN", help="Your bearer token or key.", show_envvar=True, show_default=False)
]


def classify(
    task: Annotated[str, typer.Argument(help="The task: its name, name@7 for version 7, name@base for the base model.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, each line of standard input is one.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Texts from a .csv, .jsonl or .parquet file, or one per line."),
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Column of the file that holds the texts.")] = "text",
    encoding: Annotated[
        str, typer.Option("--encoding", help="Encoding of the file; Excel on Windows often writes cp1252.")
    ] = "utf-8",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write JSON lines to this file; a second call resumes the first.", dir_okay=False)
    ] = None,
    token: Token = None,
    inference: InferenceUrl = DEFAULT_INFERENCE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text.")] = False,
) -> None:
    """Classify texts."""
    if file is not None and texts:
        raise BadData("give texts or --file, not both")
    check_address(inference, "--inference", DEFAULT_INFERENCE)
    check_token(token)
    if file is not None:
        check_readable(file)
    source = read_texts(file, column, encoding) if file is not None else iter(texts or _standard_input())
    total = count_texts(file, column, encoding) if file is not None else len(texts) if texts else None
    with ExitStack() as parts:
        write = _Rows(parts, out, task) if out is not None or as_json else None
        done = write.done if write is not None else 0
        rows: list[tuple[str, Classification]] = []
        with _progress(shown=out is not None or (file is not None and not (as_json and console.is_terminal))) as progress:
            bar = progress.add_task(task, total=total, completed=done)

            async def work() -> None:
                async with InferenceClient(inference, token) as service:
                    sent = _SentTexts(write.rest_of(source) if write is not None else source)
                    async for result, response in service.classify_all(task, sent, batch=BATCH):
                        text = sent.next_text()
                        write.add(text, result, response) if write is not None else rows.append((text, result))
                        progress.advance(bar)

            run(work())
        if write is not None and not write.count:
            raise BadData("there is no text to classify; give some as arguments, in a file, or one a line on standard input")
    if write is None:
        show(classifications_table(rows))
    elif out is not None:
        done = write.count - write.refused
        error_console.print(f"{done} {'text' if done == 1 else 'texts'} classified, in {out}.", highlight=False)
    refused = write.refused if write is not None else sum(result.error is not None for _, result in rows)
    if refused:
        error_console.print(f"{refused} could not be classified; the rows say why.", highlight=False)
        raise typer.Exit(1)


class _SentTexts(Iterator[str]):
    """Texts that were sent to the service and have no result yet."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self._sent = iter(texts), list[str]()

    def __next__(self) -> str:
        self._sent.append(next(self._texts))
        return self._sent[-1]

    def next_text(self) -> str:
        """Return the text whose result comes next."""
        return self._sent.pop(0)


class _Rows:
    """Writes JSON lines to a file or standard output. An existing file is continued, without an incomplete last line."""

    def __init__(self, parts: ExitStack, out: Path | None, model: str) -> None:
        self._out, self._model = out, model
        self.done, self.refused, self._last = (0, 0, None) if out is None else _whole_lines(out, model)
        self._file: IO[str] = sys.stdout if out is None else parts.enter_context(out.open("a", encoding="utf-8"))
        self.count = self.done

    def rest_of(self, texts: Iterator[str]) -> Iterator[str]:
        """Yield the texts that have no result yet.

        Raises:
            BadData: the last result is of another text.
        """
        if self.done and deque(islice(texts, self.done), maxlen=1) != deque([self._last]):
            raise BadData(f"{self._out} holds answers for other texts than these; name another file, or move this one away")
        return texts

    def add(self, text: str, result: Classification, response: ClassifyResponse) -> None:
        row: dict[str, object] = {"row": self.count, "text": text, "label": result.label}
        self.refused += result.error is not None
        if result.error is None:
            row["probabilities"] = dict(zip(response.labels, result.probs, strict=True))
        else:
            row["error"] = result.error.error
        row |= {"task": response.task, "version": response.adapter_version, "model": self._model}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        self.count += 1


def _whole_lines(out: Path, model: str) -> tuple[int, int, str | None]:
    """Return how many lines an earlier run for the same model name wrote, how many of them without a label, and the last text.

    An incomplete last line is cut off.

    Raises:
        BadData: the file contains something else; it stays unchanged.
    """
    if not out.exists():
        return 0, 0, None
    with out.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        torn, last = content[end:], content[:end].splitlines()[-1:]
        named, text = _model_and_text(last[0]) if last else (model, None)
        if not torn.startswith(BEGINNING[: len(torn)]) or named != model:
            raise BadData(f"{out} does not hold an earlier run for {model!r}; name another file, or move this one away")
        file.truncate(end)
        return content[:end].count(b"\n"), content[:end].count(REFUSED), text


def _model_and_text(line: bytes) -> tuple[str | None, str | None]:
    """Return the model name and the text of a row that `_Rows` wrote."""
    with suppress(ValueError):
        row = json.loads(line)
        return (row.get("model"), row.get("text")) if isinstance(row, dict) else (None, None)
    return None, None


def _standard_input() -> Iterator[str]:
    is_empty = True
    for line in sys.stdin:
        if line.strip():
            is_empty = False
            yield line.rstrip("\n")
    if is_empty:
        raise BadData("there is no text to classify; give some as arguments, in a file, or one a line on standard input")


def _progress(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=error_console, disable=not shown or not error_console.is_terminal)


def classifications_table(rows: Sequence[tuple[str, Classification]]) -> FittedTable:
    """Return a table of texts, of which long ones are cut, with label and probability."""
    table = FittedTable(Column("text", wraps=True), Column("label", wraps=True), "probability")
    for text, result in rows:
        probability = result.error.error if result.error is not None else f"{max(result.probs):.3f}"
        table.add_row(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…", result.label or "–", probability)
    return table

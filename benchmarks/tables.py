"""A benchmark's tables, and their place in a page of the documentation. Measures nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKED = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.S)


class BadPage(ValueError):
    """A page is not there, or has no place for figures."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of figures as they are to be read.

    Attributes:
        note: a sentence between title and table, or nothing.
        wordy: heads of the columns that stand to the left; others hold figures.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    wordy: Sequence[str] = ()

    def markdown(self) -> str:
        """With its title."""
        return "\n".join(
            [f"### {self.title}", "", *([self.note, ""] if self.note else []), grid(self.heads, self.rows, self.wordy)]
        )

    def json(self) -> dict[str, Any]:
        """The same for a program."""
        return {"title": self.title, "note": self.note, "heads": list(self.heads), "rows": [list(row) for row in self.rows]}


def grid(heads: Sequence[str], rows: Iterable[Sequence[object]], wordy: Sequence[str] = ()) -> str:
    """A Markdown table: the columns of the heads `wordy` stand to the left, others, which hold figures, to the right."""
    ways = ["---" if head in wordy else "---:" for head in heads]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (heads, ways, *rows))


def write_into(page: Path, words: str) -> None:
    """Put the tables between the page's two marks.

    Raises:
        BadPage: there is no such page, or it has no such marks.
    """
    before, after = around_figures(page)
    page.write_text(f"{before}{words}\n{after}", encoding="utf-8")


def around_figures(page: Path) -> tuple[str, str]:
    """What stands before the place of the figures, and after it.

    Raises:
        BadPage: there is no such page, or it has no such place.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise BadPage(f"{page} cannot be read: {error.strerror}") from error
    found = MARKED.search(text)
    if found is None:
        raise BadPage(f"{page} has no <!-- figures --> and <!-- end of figures --> with a line between them")
    return text[: found.start()], text[found.end() :]

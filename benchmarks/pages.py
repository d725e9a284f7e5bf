"""A benchmark's tables, and their place in a page of the documentation. Measures nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKED = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.S)
WORDY = ("data", "method", "goal", "found", "")  # columns that stand to the left; others are figures


@dataclass(frozen=True, slots=True)
class Table:
    """One table of figures as they are to be read.

    Attributes:
        note: a sentence between title and table, or nothing.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """With its title; nothing where there are no rows."""
        if not self.rows:
            return ""
        ways = ["---" if head in WORDY else "---:" for head in self.heads]
        lines = [f"| {' | '.join(line)} |" for line in (self.heads, ways, *self.rows)]
        return "\n".join([f"### {self.title}", "", *([self.note, ""] if self.note else []), *lines])

    def json(self) -> dict[str, Any]:
        """The same for a program."""
        return {"title": self.title, "note": self.note, "heads": list(self.heads), "rows": [list(row) for row in self.rows]}


def write_into(page: Path, words: str) -> None:
    """Put the tables between the page's two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    if not MARKED.search(text):
        raise ValueError(f"{page} has no <!-- figures --> and <!-- end of figures -->")
    page.write_text(MARKED.sub(lambda _: f"{words}\n", text), encoding="utf-8")

"""Tables of results, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """One table of results.

    Attributes:
        note: a sentence between the title and the table; may be empty.
        text_columns: headings of the columns that are aligned to the left; all others hold numbers.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text_columns: Sequence[str] = ()

    def markdown(self) -> str:
        """Return the table in Markdown, below its title."""
        lines = [f"### {self.title}", "", *([self.note, ""] if self.note else [])]
        return "\n".join([*lines, markdown_table(self.headings, self.rows, self.text_columns)])

    def json(self) -> dict[str, Any]:
        """Return the table as a JSON-ready mapping."""
        return {"title": self.title, "note": self.note, "heads": list(self.headings), "rows": [list(row) for row in self.rows]}


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]], text_columns: Sequence[str] = ()) -> str:
    """Return a Markdown table, with the columns named in `text_columns` aligned to the left and all others to the right."""
    alignments = ["---" if heading in text_columns else "---:" for heading in headings]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (headings, alignments, *rows))

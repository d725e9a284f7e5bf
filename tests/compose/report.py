"""The table of faults, as Markdown and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.tables import markdown_table

HEADINGS = (
    "fault",
    "open round ended after",
    "whole again after",
    "classifications",
    "refused",
    "wrong",
    "calls to the aggregator",
    "failed",
    "receipts, each counted once",
)


@dataclass(frozen=True)
class Outcome:
    """The effects of one fault. Times are seconds since it happened."""

    fault: str
    round_seconds: float
    whole_seconds: float
    classifications: int
    refused: int
    wrong: int
    calls: int
    failed: int
    receipts: int

    @property
    def row(self) -> tuple[str, ...]:
        """The cells under HEADINGS."""
        return (
            self.fault,
            f"{self.round_seconds:.1f} s",
            f"{self.whole_seconds:.1f} s",
            *(str(value) for value in (self.classifications, self.refused, self.wrong, self.calls, self.failed, self.receipts)),
        )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown."""
    return markdown_table(HEADINGS, (outcome.row for outcome in outcomes), text_columns=HEADINGS[:1])


def save(outcomes: Sequence[Outcome], page: Path, figures: Path) -> None:
    """Replace the table on its page, and write the figures as JSON."""
    document = {"at": datetime.now(UTC).date().isoformat(), "outcomes": [asdict(outcome) for outcome in outcomes]}
    figures.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    replaced = re.sub(r"^\| fault \|.*?(?=^(?!\|))", lambda _: f"{table(outcomes)}\n", text, count=1, flags=re.M | re.S)
    page.write_text(replaced, encoding="utf-8")


def read(figures: Path) -> list[Outcome]:
    """Return the outcomes that `save` wrote."""
    return [Outcome(**outcome) for outcome in json.loads(figures.read_text(encoding="utf-8"))["outcomes"]]

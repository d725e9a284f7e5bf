"""Tables that fit the terminal: columns wrap, and the least important ones are left out."""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

GAP = 2  # characters between two columns, and at both edges together
UNLIMITED = 100_000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its title; may have two lines.
        optional: 0 is always shown; of the others, the highest is left out first.
        wraps: whether long cells continue on the next line; a column that does not is never narrower than its cells.
        least: the characters that a column which wraps keeps, so that names stay readable; others are left out before.
    """

    heading: str
    optional: int = 0
    wraps: bool = False
    least: int = 16


class FittedTable:
    """A table that chooses its columns by the width of the terminal; elsewhere, as in a pipe, every row is one line with all columns."""

    def __init__(self, *columns: Column | str) -> None:
        self._columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self._rows: list[tuple[RenderableType, ...]] = []

    def add_row(self, *cells: RenderableType) -> None:
        """Add a row with a cell for each column. Strings are shown as they are, without markup."""
        assert len(cells) == len(self._columns), "a row has a cell for each column"
        self._rows.append(tuple(Text(cell) if isinstance(cell, str) else cell for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(max_width=UNLIMITED, min_width=0)
        natural = [self._width(place, console, wide) for place in range(len(self._columns))]
        if not console.is_terminal:
            yield from console.render(self._table(range(len(self._columns)), natural), wide)
            return
        least = [min(width, column.least) if column.wraps else width for column, width in zip(self._columns, natural, strict=True)]
        shown = list(range(len(self._columns)))
        by_importance = sorted(
            (place for place in shown if self._columns[place].optional), key=lambda at: self._columns[at].optional
        )
        while by_importance and sum(least[place] for place in shown) + GAP * len(shown) > options.max_width:
            shown.remove(by_importance.pop())
        yield self._table(shown, least)

    def _width(self, place: int, console: Console, options: ConsoleOptions) -> int:
        """Return the width of a column whose cells do not wrap."""
        cells = (Text(self._columns[place].heading), *(row[place] for row in self._rows))
        return max(Measurement.get(console, options, cell).maximum for cell in cells)

    def _table(self, shown: list[int] | range, least: list[int]) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for place in shown:
            column = self._columns[place]
            table.add_column(Text(column.heading), no_wrap=not column.wraps, overflow="fold", min_width=least[place])
        for row in self._rows:
            table.add_row(*(row[place] for place in shown))
        return table

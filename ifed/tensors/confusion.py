"""Confusion counts in a body: the whole table, or the list of its cells that are not 0 where that is smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch
from ifed.tensors.values import TensorBody

Counts = npt.NDArray[np.integer[Any]]
TABLE, CELLS = "confusion", "confusion_cells"
MOST_LABELS = 1000  # of a task
LEAST_SAVED = 64  # bytes; a list saves more than that, or the table is sent


def confusion_tensors(counts: Counts, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
    """Return the tensor that carries confusion counts, (truth, prediction), by name.

    It is the table, or its cells that are not 0 if they are smaller: (n + 1, 3), as the coordinate format of Matrix Market has it: a first
    row with C, C and n, then truth, prediction and count of each cell, row after row. Both are in the smallest unsigned integers.
    """
    table = counts.astype(_smallest(counts))
    if table.dtype == np.int64:
        return {f"{prefix}{TABLE}": table}
    truths, predictions = np.nonzero(table)
    rows = np.stack([truths, predictions, table[truths, predictions]], axis=1).astype(np.int64)
    listed = np.concatenate([[[*table.shape, len(rows)]], rows])
    cells = listed.astype(_smallest(listed))
    return {f"{prefix}{CELLS}": cells} if cells.nbytes + LEAST_SAVED < table.nbytes else {f"{prefix}{TABLE}": table}


def has_confusion(body: TensorBody, prefix: str = "") -> bool:
    """Return whether a body carries confusion counts whose names begin with `prefix`."""
    return f"{prefix}{TABLE}" in body.tensors or f"{prefix}{CELLS}" in body.tensors


def read_confusion(body: TensorBody, prefix: str = "") -> Counts:
    """Read the confusion counts of a body, (truth, prediction), in the integers that they came in.

    Raises:
        LayoutMismatch: they are missing, come twice, have another dtype or shape, or are no counts.
    """
    if f"{prefix}{CELLS}" in body.tensors:
        if f"{prefix}{TABLE}" in body.tensors:
            raise LayoutMismatch(f"confusion counts come as {prefix}{TABLE} or as {prefix}{CELLS}, this body has both")
        return _table_of(body.tensor(f"{prefix}{CELLS}", np.uint8, np.uint16, np.uint32))
    table = body.tensor(f"{prefix}{TABLE}", np.int64, np.uint8, np.uint16, np.uint32)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or (table < 0).any():
        raise LayoutMismatch(f"confusion counts are a square table of numbers from 0, got shape {table.shape}")
    return table


def _table_of(cells: Counts) -> Counts:
    if cells.ndim != 2 or cells.shape[1] != 3 or not len(cells):
        raise LayoutMismatch(f"cells of confusion counts are rows of truth, prediction and count, got shape {cells.shape}")
    labels, columns, count = (int(number) for number in cells[0])
    if labels != columns or not 0 < labels <= MOST_LABELS or count != len(cells) - 1:
        raise LayoutMismatch(
            f"the first row of the cells of confusion counts has C, C and their number for up to {MOST_LABELS} labels; "
            f"it has {labels}, {columns} and {count} before {len(cells) - 1} cells"
        )
    truths, predictions, counts = cells[1:].astype(np.int64).T
    places = truths * labels + predictions
    if (truths >= labels).any() or (predictions >= labels).any() or (np.diff(places) <= 0).any() or (counts == 0).any():
        raise LayoutMismatch(f"the cells of confusion counts are labels below {labels}, row after row, each once and above 0")
    table = np.zeros((labels, labels), dtype=cells.dtype)
    table[truths, predictions] = counts
    return table


def _smallest(values: Counts) -> np.dtype[Any]:
    """Return the smallest unsigned integers of up to 32 bits that hold the values, or int64."""
    if values.size and values.min() < 0:
        return np.dtype(np.int64)
    smallest = np.min_scalar_type(int(values.max(initial=0)))
    return np.dtype(np.int64) if smallest.itemsize > 4 else smallest

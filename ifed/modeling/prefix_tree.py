"""Rows of a batch that begin alike, as a tree: what they have in common is run once, in the same forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ifed.modeling.batching import BatchLayout, Row, group_by_budget

# Rows after others take a slower attention kernel than complete ones. With less saved, as by the single word that begins a short template,
# that costs more than it saves.
MIN_SAVED_SHARE = 0.25


def share_prefixes(rows: Sequence[Row], keys: Sequence[Hashable]) -> list[Row]:
    """Return the rows such that those with a common prefix follow a row that holds it, their `parent`.

    A prefix ends before the first output position, so the last token of a prompt stays with its row. It is shared where that leaves
    a quarter of the tokens out, or more; a prefix may itself follow a shorter one. A row that shares nothing is returned as it is.

    Args:
        rows: of a packed batch.
        keys: of each row; only rows of equal keys share. Rows of different injections before the last token must have different ones.
    """
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    result = list(rows)
    for indices in members.values():
        if len(indices) > 1:
            prefixes = {index: rows[index].ids[: rows[index].prompt_end] for index in indices}
            _share(result, sorted(indices, key=prefixes.__getitem__), prefixes)
    return result


def group_rows(rows: Sequence[Row], budget: int, layout: BatchLayout) -> list[list[int]]:
    """Return the indices of rows in groups as `group_by_budget` does; in a group, what rows follow counts once.

    A group with more than the budget is one long row, or rows after a prefix that with it are at most twice as long as the prefix.
    """
    single = [index for index, row in enumerate(rows) if row.parent is None]
    lengths = [len(rows[index].ids) for index in single]
    groups = [[single[place] for place in group] for group in group_by_budget(lengths, budget, layout)]
    chains = {index: ancestors(row) for index, row in enumerate(rows) if row.parent is not None}
    numbers: dict[int, int] = {}
    for chain in chains.values():
        for row in chain:
            numbers.setdefault(id(row), len(numbers))
    tokens = sum(len(rows[index].ids) for index in groups[-1]) if groups else 0
    present: set[int] = set()
    for index in sorted(chains, key=lambda index: [numbers[id(row)] for row in chains[index]]):
        shared = sum(len(row.ids) for row in chains[index] if id(row) in present)
        added = len(rows[index].ids) + sum(len(row.ids) for row in chains[index]) - shared
        if not groups or tokens + added > max(budget, 2 * shared):
            groups.append([])
            tokens, added, present = 0, added + shared, set()
        groups[-1].append(index)
        tokens += added
        present.update(id(row) for row in chains[index])
    return groups


def ancestors_of(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Return the rows that `rows` follow, each once and before those that follow it, with the index of a row that does."""
    places: dict[int, tuple[Row, int]] = {}
    for index, row in enumerate(rows):
        for ancestor in ancestors(row):
            places.setdefault(id(ancestor), (ancestor, index))
    return list(places.values())


def ancestors(row: Row) -> list[Row]:
    """Return the rows that a row follows, the first one first."""
    chain: list[Row] = []
    while row.parent is not None:
        row = row.parent
        chain.append(row)
    return chain[::-1]


@dataclass(frozen=True, slots=True)
class _Branch:
    """Rows with `length` equal tokens at their start, in the order of their tokens.

    Attributes:
        parent: the row that holds the first `start` of these tokens; None if `start` is 0.
    """

    indices: Sequence[int]
    length: int
    start: int
    parent: Row | None


def _share(rows: list[Row], ordered: Sequence[int], prefixes: dict[int, tuple[int, ...]]) -> None:
    """Replace rows, from the shortest prefixes to the longest; without recursion, since prefixes can be nested a thousand deep."""
    originals = {index: rows[index] for index in ordered}
    branches = [_Branch(ordered, 0, 0, None)]
    while branches:
        branch = branches.pop()
        for run in _runs(branch, prefixes):
            if len(run) == 1:
                continue
            # In this order, what the first and the last have in common all others have too.
            length = _common_length(prefixes[run[0]], prefixes[run[-1]])
            start, parent = branch.start, branch.parent
            tokens = sum(len(originals[index].ids) - start for index in run)
            if (len(run) - 1) * (length - start) >= MIN_SAVED_SHARE * tokens:
                first = originals[run[0]]
                parent = Row(first.ids[start:length], (), kv_cache=first.kv_cache if parent is None else None, parent=parent)
                start = length
                for index in run:
                    rows[index] = originals[index].following(parent, start)
            branches.append(_Branch(run, length, start, parent))


def _runs(branch: _Branch, prefixes: dict[int, tuple[int, ...]]) -> list[list[int]]:
    """Return the rows of a branch in runs with the same next token; rows whose prefix ends here are left out."""
    runs: list[list[int]] = []
    previous = None
    for index in branch.indices:
        prefix = prefixes[index]
        if len(prefix) == branch.length:
            continue
        if prefix[branch.length] != previous:
            runs.append([])
            previous = prefix[branch.length]
        runs[-1].append(index)
    return runs


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (token, other) in pairs if token != other), min(len(first), len(second)))

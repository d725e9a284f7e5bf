"""Rows of tokens into forward passes of bounded size. Knows no labels and no layers.

A batch has one of two layouts. *Packed*: the rows stand end to end in one long row, positions starting again for each, and attention is
kept within a row (see `attention`), or by the mask that transformers derives from such positions; nothing is padded. *Padded*: one row
under the other, filled up on the right. Packed is faster on a CPU; padded suits a GPU, which wants few and large products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ifed.modeling.attention import Prefix
from ifed.modeling.language_model import LanguageModel

Layout = Literal["packed", "padded"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to run.

    Attributes:
        ids: its tokens, at least one.
        wanted: the places in it, in rising order, whose final hidden states are asked for.
        shared: so many tokens at its beginning are the template's own, and may have been run before; none of them is wanted.
        before: what such tokens left, where they are not among `ids`; only for packed batches.
    """

    ids: tuple[int, ...]
    wanted: tuple[int, ...]
    shared: int = 0
    before: Prefix | None = None

    @classmethod
    def ending(cls, ids: tuple[int, ...]) -> Row:
        """A row of which only the last token is asked for."""
        return cls(ids, (len(ids) - 1,))

    def after(self, prefix: Prefix) -> Row:
        """This row without its shared tokens, which are what `prefix` comes from."""
        return Row(self.ids[self.shared :], tuple(at - self.shared for at in self.wanted), before=prefix)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows laid out for one forward pass; B × W is 1 × (sum of lengths) when packed, rows × longest when padded.

    Attributes:
        input_ids: int64, (B, W).
        position_ids: int64, (B, W).
        attention_mask: int64, (B, W), 1 on real tokens; None when packed.
        row_of: int64, (B, W), the row each token belongs to; the last one for what a packed batch is filled up with.
        wanted: int64, (n,), places in the flattened B·W of all wanted positions, row after row.
        lengths: tokens of each row.
        before: what each row follows, if anything.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    row_of: Tensor
    wanted: Tensor
    lengths: tuple[int, ...]
    before: tuple[Prefix | None, ...]

    @classmethod
    def of(
        cls, rows: Sequence[Row], *, layout: Layout, pad: int = 0, device: torch.device | str = "cpu", multiple: int = 1
    ) -> Batch:
        """Lay out `rows` in the given order.

        Args:
            multiple: a packed batch is filled up to a multiple of so many tokens, by a row at the end that asks for nothing; `arrange` and
                `split` then count it too.
        """
        given = len(rows)
        if layout == "packed" and (missing := -sum(len(row.ids) for row in rows) % multiple):
            rows = [*rows, Row((pad,) * missing, ())]
        lengths = tuple(len(row.ids) for row in rows)
        ids = [torch.tensor(row.ids) for row in rows]
        before = tuple(row.before for row in rows)
        positions = [torch.arange(length) + (first.length if first else 0) for length, first in zip(lengths, before, strict=True)]
        if layout == "packed":
            starts = [sum(lengths[:index]) for index in range(len(rows))]
            input_ids, position_ids, mask = torch.cat(ids)[None], torch.cat(positions)[None], None
            row_of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))[None].clamp(max=given - 1)
        else:
            starts = [index * max(lengths) for index in range(len(rows))]
            input_ids, mask = pad_sequence(ids, True, pad), pad_sequence([torch.ones_like(row) for row in ids], True, 0)
            position_ids = torch.arange(max(lengths)).expand_as(input_ids)
            row_of = torch.arange(len(rows))[:, None].expand_as(input_ids)
        wanted = torch.tensor([start + at for start, row in zip(starts, rows, strict=True) for at in row.wanted], dtype=torch.long)
        mask = mask.to(device) if mask is not None else None
        return cls(input_ids.to(device), position_ids.to(device), mask, row_of.to(device), wanted.to(device), lengths, before)

    def arrange(self, parts: Sequence[Tensor]) -> Tensor:
        """Per-row values, each (length, …), in the layout of this batch: (B, W, …), zero on padding."""
        if self.attention_mask is None:
            return torch.cat(list(parts))[None]
        return pad_sequence(list(parts), True)

    def split(self, values: Tensor) -> list[Tensor]:
        """The inverse of `arrange`: (B, W, …) to one (length, …) per row."""
        if self.attention_mask is None:
            return list(values[0].split(self.lengths))
        return [row[:length] for row, length in zip(values, self.lengths, strict=True)]

    def at_wanted(self, values: Tensor) -> Tensor:
        """The entries of `values` (B, W, d) at the wanted positions: (n, d)."""
        return values.reshape(-1, values.shape[-1])[self.wanted]


def layout_for(lm: LanguageModel) -> Layout:
    """The layout that is faster where `lm` is, unless its options say otherwise."""
    return "packed" if lm.device.type == "cpu" and lm.options.packed else "padded"


def within_budget(lengths: Sequence[int], budget: int, layout: Layout) -> list[list[int]]:
    """Indices into `lengths`, shortest first, cut into groups whose batch is at most `budget` tokens, padding included.

    A single row longer than the budget is a group of its own. Equal lengths keep their order, so the result is reproducible.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        grown = tokens + lengths[index] if layout == "packed" else lengths[index] * (len(groups[-1]) + 1 if groups else 1)
        if groups and grown <= budget:
            groups[-1].append(index)
            tokens += lengths[index]
        else:
            groups.append([index])
            tokens = lengths[index]
    return groups


def halving(group: list[int], run: Callable[[list[int]], None]) -> None:
    """Run a group; where the memory does not suffice, run its halves instead.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    try:
        run(group)
        return
    except torch.OutOfMemoryError:
        if len(group) == 1:
            raise
    # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(group) // 2
    halving(group[:middle], run)
    halving(group[middle:], run)

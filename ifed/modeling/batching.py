"""Batches of token rows, packed or padded, of bounded size.

*Packed*: the rows stand end to end in one long row, positions start again for each, and attention stays within a row (`attention`), or
follows the mask that transformers derives from such positions; nothing is padded. *Padded*: one row under the other, filled up on the
right. Packed is faster on a CPU; padded suits a GPU, which prefers few and large products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ifed.modeling.attention import KVCache
from ifed.modeling.language_model import LanguageModel

BatchLayout = Literal["packed", "padded"]


@dataclass(frozen=True, slots=True)
class Row:
    """One token sequence of a forward pass.

    Attributes:
        ids: its tokens, at least one.
        output_positions: the positions in `ids`, in rising order, whose final hidden states are returned.
        prefix_length: the number of leading tokens that belong to the template and may be in a KV cache; none is an output position.
        kv_cache: the keys and values of the prefix, if it is not part of `ids`; only in packed batches.
        parent: the row whose tokens, and those that it follows itself, come before `ids`; it stands earlier in the same packed batch.
    """

    ids: tuple[int, ...]
    output_positions: tuple[int, ...]
    prefix_length: int = 0
    kv_cache: KVCache | None = None
    parent: Row | None = None

    @classmethod
    def for_last_token(cls, ids: tuple[int, ...]) -> Row:
        """Return a row whose only output position is the last token."""
        return cls(ids, (len(ids) - 1,))

    @property
    def prompt_end(self) -> int:
        """The position of the last token of the prompt, which is the first output position; 0 for a row without any."""
        return self.output_positions[0] if self.output_positions else 0

    def after(self, prefix: KVCache) -> Row:
        """Return this row without its prefix, whose keys and values are in `prefix`."""
        positions = tuple(position - self.prefix_length for position in self.output_positions)
        return Row(self.ids[self.prefix_length :], positions, kv_cache=prefix)

    def following(self, parent: Row, start: int) -> Row:
        """Return this row from token `start` on, after `parent`, which holds the tokens before it."""
        return Row(self.ids[start:], tuple(position - start for position in self.output_positions), parent=parent)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows laid out for one forward pass; B × W is 1 × (sum of lengths) if packed, rows × longest if padded.

    Attributes:
        input_ids: int64, (B, W).
        position_ids: int64, (B, W).
        attention_mask: int64, (B, W), 1 on real tokens; None if packed.
        row_of: int64, (B, W), the row of each token; the last row for the tokens that fill up a packed batch.
        output_indices: int64, (n,), the output positions of all rows in the flattened B·W, row after row.
        after_prompt: bool, (B, W), true from the first output position of each row on, where an injection at the last token acts.
        lengths: the tokens of each row.
        kv_caches: the KV cache that each row follows, or None.
        parents: the index of the row that each row follows, or None.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    row_of: Tensor
    output_indices: Tensor
    after_prompt: Tensor
    lengths: tuple[int, ...]
    kv_caches: tuple[KVCache | None, ...]
    parents: tuple[int | None, ...]

    @classmethod
    def of(
        cls, rows: Sequence[Row], *, layout: BatchLayout, pad: int = 0, device: torch.device | str = "cpu", multiple: int = 1
    ) -> Batch:
        """Lay out `rows` in the given order, in which a row stands after its parent.

        Args:
            pad: the padding token.
            multiple: pad a packed batch to a multiple of this number of tokens with one more row, which has no output positions;
                `arrange` and `split` include that row.
        """
        row_count = len(rows)
        if layout == "packed" and (missing := -sum(len(row.ids) for row in rows) % multiple):
            rows = [*rows, Row((pad,) * missing, ())]
        lengths = tuple(len(row.ids) for row in rows)
        ids = [torch.tensor(row.ids) for row in rows]
        after = [torch.arange(len(row.ids)) >= row.prompt_end for row in rows]
        kv_caches = tuple(row.kv_cache for row in rows)
        places = {id(row): place for place, row in enumerate(rows)}
        parents = tuple(None if row.parent is None else places[id(row.parent)] for row in rows)
        offsets: list[int] = []
        for kv_cache, parent in zip(kv_caches, parents, strict=True):
            cached = kv_cache.length if kv_cache else 0
            offsets.append(cached if parent is None else offsets[parent] + lengths[parent])
        positions = [torch.arange(length) + offset for length, offset in zip(lengths, offsets, strict=True)]
        if layout == "packed":
            starts = [sum(lengths[:index]) for index in range(len(rows))]
            input_ids, position_ids, mask = torch.cat(ids)[None], torch.cat(positions)[None], None
            after_prompt = torch.cat(after)[None]
            row_of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))[None].clamp(max=row_count - 1)
        else:
            starts = [index * max(lengths) for index in range(len(rows))]
            input_ids, mask = pad_sequence(ids, True, pad), pad_sequence([torch.ones_like(row) for row in ids], True, 0)
            position_ids = torch.arange(max(lengths)).expand_as(input_ids)
            row_of = torch.arange(len(rows))[:, None].expand_as(input_ids)
            after_prompt = pad_sequence(after, True, True)
        outputs = [start + position for start, row in zip(starts, rows, strict=True) for position in row.output_positions]
        return cls(
            input_ids=input_ids.to(device),
            position_ids=position_ids.to(device),
            attention_mask=mask.to(device) if mask is not None else None,
            row_of=row_of.to(device),
            output_indices=torch.tensor(outputs, dtype=torch.long).to(device),
            after_prompt=after_prompt.to(device),
            lengths=lengths,
            kv_caches=kv_caches,
            parents=parents,
        )

    def arrange(self, values: Sequence[Tensor]) -> Tensor:
        """Return the values of each row, (length, …), in the layout of this batch: (B, W, …), zero on padding."""
        if self.attention_mask is None:
            return torch.cat(list(values))[None]
        return pad_sequence(list(values), True)

    def split(self, values: Tensor) -> list[Tensor]:
        """Return one (length, …) per row from (B, W, …), the inverse of `arrange`."""
        if self.attention_mask is None:
            return list(values[0].split(self.lengths))
        return [row[:length] for row, length in zip(values, self.lengths, strict=True)]

    def select_outputs(self, values: Tensor) -> Tensor:
        """Return the entries of `values`, (B, W, d), at the output positions: (n, d)."""
        return values.reshape(-1, values.shape[-1])[self.output_indices]


def layout_for(lm: LanguageModel) -> BatchLayout:
    """Return the layout that is faster on the device of `lm`, unless its options say otherwise."""
    return "packed" if lm.device.type == "cpu" and lm.options.packed else "padded"


def group_by_budget(lengths: Sequence[int], budget: int, layout: BatchLayout) -> list[list[int]]:
    """Return the indices of `lengths`, shortest first, in groups whose batches hold at most `budget` tokens, padding included.

    A row longer than the budget is a group of its own. Equal lengths keep their order, so the result is reproducible.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        size = tokens + lengths[index] if layout == "packed" else lengths[index] * (len(groups[-1]) + 1 if groups else 1)
        if groups and size <= budget:
            groups[-1].append(index)
            tokens += lengths[index]
        else:
            groups.append([index])
            tokens = lengths[index]
    return groups


def run_with_halving(group: list[int], run: Callable[[list[int]], None]) -> None:
    """Run a group; if it runs out of memory, run its two halves instead, recursively.

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
    run_with_halving(group[:middle], run)
    run_with_halving(group[middle:], run)

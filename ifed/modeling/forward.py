"""Many rows through the injected model, batch by batch. Knows no labels and computes no gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ifed.modeling.batching import Batch, Row, halving, layout_for, within_budget
from ifed.modeling.hooks import entering, inject, replay, wanted_states
from ifed.modeling.injection import Injection, side_by_side
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import Prefixes

FILLED_UP = 16


"""Tokens: batches have a multiple of them. oneDNN makes a kernel for each number of tokens of each product, which takes time the first time
and memory from then on; AMX multiplies 16 tokens at once whether they are there or not."""


class ActivationCache:
    """What enters the first injected layer, for a fixed set of rows: computed once, since no coefficient changes it.

    All rows are computed together at the first use, so that what is kept does not depend on which were asked for first. Kept on the CPU in
    the dtype of the model; nothing is kept if that would take more than `limit` bytes or if nothing lies below the first layer.
    """

    def __init__(
        self, lm: LanguageModel, first_layer: int, rows: Sequence[Row], *, limit: int, token_budget: int | None = None
    ) -> None:
        self._lm, self._first_layer, self._rows, self._token_budget = lm, first_layer, rows, token_budget or lm.token_budget
        size = sum(len(row.ids) for row in rows) * lm.hidden_size * lm.dtype.itemsize
        self.used = bool(rows) and first_layer > 0 and size <= limit
        self._kept: list[Tensor] = []

    @contextlib.contextmanager
    def standing_in(self, batch: Batch, indices: Sequence[int]) -> Iterator[None]:
        """Within the block the lower layers are replayed for `batch`, which holds the rows of these indices; or run, if nothing is kept."""
        if not self.used:
            yield
            return
        if not self._kept:
            self._kept = self._compute()
        hidden = batch.arrange([self._kept[index] for index in indices])
        with replay(self._lm, self._first_layer, hidden.to(self._lm.device)):
            yield

    def _compute(self) -> list[Tensor]:
        kept: dict[int, Tensor] = {}
        layout = layout_for(self._lm)

        def run(group: list[int]) -> None:
            batch = Batch.of([self._rows[index] for index in group], layout=layout, device=self._lm.device)
            parts = batch.split(entering(self._lm, self._first_layer, batch))
            kept.update((index, part.cpu().clone()) for index, part in zip(group, parts, strict=True))

        # Not inference mode, even when called from it: what is kept enters backward passes later.
        with torch.inference_mode(False), torch.no_grad():
            for group in within_budget([len(row.ids) for row in self._rows], self._token_budget, layout):
                halving(group, run)
        return [kept[index] for index in range(len(self._rows))]


def wanted_hidden(
    lm: LanguageModel,
    rows: Sequence[Row],
    injections: Sequence[Injection | None],
    *,
    token_budget: int | None = None,
    lower: ActivationCache | None = None,
    prefixes: Prefixes | None = None,
) -> list[Tensor]:
    """The final hidden states each row wants, under the injection of each row; rows of different injections share batches.

    Args:
        injections: one per row; the same object for rows of one task.
        lower: what is known of these very rows; only for injections at or above its first layer.
        prefixes: where what rows begin with is kept from call to call; within this call alone when not set. Not used where `lower` is.

    Returns:
        one (wanted, d) per row, in the order of the rows, on the model's device.
    """
    layout = layout_for(lm)
    multiple = FILLED_UP if lm.by_rows and lower is None else 1
    found: dict[int, Tensor] = {}

    def run(group: list[int]) -> None:
        batch = Batch.of([cut[index] for index in group], layout=layout, device=lm.device, multiple=multiple)
        replayed = contextlib.nullcontext() if lower is None else lower.standing_in(batch, group)
        with replayed, _injected(lm, batch, [injections[index] for index in group]):
            states = wanted_states(lm, batch)
        found.update(zip(group, states.split([len(rows[index].wanted) for index in group]), strict=True))

    with torch.inference_mode():
        whole = layout == "padded" or (lower is not None and lower.used)
        cut = list(rows) if whole else (prefixes or Prefixes(lm)).cut(rows, injections)
        for group in within_budget([len(row.ids) for row in cut], token_budget or lm.token_budget, layout):
            halving(group, run)
    return [found[index] for index in range(len(rows))]


def _injected(lm: LanguageModel, batch: Batch, injections: Sequence[Injection | None]) -> contextlib.AbstractContextManager[None]:
    """`inject` for a batch whose row i takes `injections[i]`."""
    distinct = list({id(injection): injection for injection in injections}.values())
    if len(distinct) == 1:
        return inject(lm, distinct[0])
    places = {id(injection): place for place, injection in enumerate(distinct)}
    chosen = torch.tensor([places[id(injection)] for injection in injections], device=lm.device)
    return inject(lm, side_by_side(distinct), rows=chosen[batch.row_of])

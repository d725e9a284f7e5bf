"""Forward passes over many rows in batches, and the cache of activations below the first injected layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ifed.modeling.batching import Batch, BatchLayout, Row, group_by_budget, layout_for, run_with_halving
from ifed.modeling.hooks import inject, layer_input, output_states, replay
from ifed.modeling.injection import Injection, batch_injections
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixSharing, before_last_token
from ifed.modeling.prefix_tree import ancestors_of, group_rows, share_prefixes
from ifed.modeling.prompt_cache import PromptCache

# Packed batches have a multiple of this number of tokens. oneDNN builds a kernel for each number of tokens of each product, which takes time
# once and memory from then on; AMX always multiplies 16 tokens at once.
TOKEN_MULTIPLE = 16


class ActivationCache:
    """The hidden states that enter the first injected layer, for a fixed set of rows: computed once, since no coefficient changes them.

    All rows are computed together at the first use, so that the cached values do not depend on which rows are replayed first. They stay
    on the CPU in the dtype of the model.

    Args:
        first_layer: the first injected layer; nothing is cached if it is 0.
        max_bytes: nothing is cached if the hidden states of all rows take more.
        token_budget: tokens of one forward pass; the model's own by default.

    Attributes:
        enabled: whether anything is cached.
    """

    def __init__(
        self, lm: LanguageModel, first_layer: int, rows: Sequence[Row], *, max_bytes: int, token_budget: int | None = None
    ) -> None:
        self._lm, self._first_layer, self._rows, self._token_budget = lm, first_layer, rows, token_budget or lm.token_budget
        size = sum(len(row.ids) for row in rows) * lm.hidden_size * lm.dtype.itemsize
        self.enabled = bool(rows) and first_layer > 0 and size <= max_bytes
        self._hidden: list[Tensor] = []

    @contextlib.contextmanager
    def replayed(self, batch: Batch, indices: Sequence[int]) -> Iterator[None]:
        """Within the block, replay the lower layers for `batch`, which holds the rows of these indices; run them if nothing is cached."""
        if not self.enabled:
            yield
            return
        if not self._hidden:
            self._hidden = self._compute()
        hidden = batch.arrange([self._hidden[index] for index in indices])
        with replay(self._lm, self._first_layer, hidden.to(self._lm.device)):
            yield

    def _compute(self) -> list[Tensor]:
        hidden: dict[int, Tensor] = {}
        layout = layout_for(self._lm)

        def run(group: list[int]) -> None:
            batch = Batch.of([self._rows[index] for index in group], layout=layout, device=self._lm.device)
            rows = batch.split(layer_input(self._lm, self._first_layer, batch))
            hidden.update((index, row.cpu().clone()) for index, row in zip(group, rows, strict=True))

        # Not inference mode, even if called from it: the cached tensors enter backward passes later.
        with torch.inference_mode(False), torch.no_grad():
            for group in group_by_budget([len(row.ids) for row in self._rows], self._token_budget, layout):
                run_with_halving(group, run)
        return [hidden[index] for index in range(len(self._rows))]


def run_rows(
    lm: LanguageModel,
    rows: Sequence[Row],
    injections: Sequence[Injection | None],
    *,
    token_budget: int | None = None,
    activations: ActivationCache | PromptCache | None = None,
    prefixes: PrefixSharing | None = None,
) -> list[Tensor]:
    """Return the final hidden states of each row at its output positions; rows with different injections share batches.

    Rows that begin alike, under the same injection up to there, share that beginning: several tasks on one text whose injections act at the
    last token, and the rows of one text for labels of several tokens.

    Args:
        injections: one per row; the same object for rows of one task.
        token_budget: tokens of one forward pass; the model's own by default.
        activations: the cache of these rows, if no injection reaches below its first layer; a `PromptCache` takes injections at the last
            token alone.
        prefixes: keeps the KV caches of prefixes from call to call; by default they last for this call. Not used with `activations`.

    Returns:
        One (output positions, d) per row, in the order of the rows, on the device of the model.
    """
    prompts = activations if isinstance(activations, PromptCache) and activations.enabled else None
    layout: BatchLayout = "packed" if prompts is not None else layout_for(lm)
    multiple = TOKEN_MULTIPLE if lm.row_attention and activations is None else 1
    hidden: dict[int, Tensor] = {}

    def run(group: list[int]) -> None:
        members = [rows_to_run[index] for index in group]
        shared = ancestors_of(members)
        injected = [before_last_token(injections[group[member]]) for _, member in shared]
        batch_rows = [*(row for row, _ in shared), *members]
        batch = Batch.of(batch_rows, layout=layout, device=lm.device, multiple=multiple)
        replayed = contextlib.nullcontext() if activations is None else activations.replayed(batch, group)
        with replayed, inject_by_row(lm, batch, [*injected, *(injections[index] for index in group)]):
            states = output_states(lm, batch)
        hidden.update(zip(group, states.split([len(rows[index].output_positions) for index in group]), strict=True))

    with torch.inference_mode():
        needs_full_rows = layout == "padded" or (activations is not None and activations.enabled)
        if prompts is not None:
            rows_to_run = [prompts.row(index) for index in range(len(rows))]
        elif needs_full_rows:
            rows_to_run = list(rows)
        else:
            rows_to_run = (prefixes or PrefixSharing(lm)).apply(rows, injections)
            if lm.shares_prefixes:
                before = [id(before_last_token(injection)) for injection in injections]
                rows_to_run = share_prefixes(
                    rows_to_run, [(key, id(row.kv_cache)) for key, row in zip(before, rows_to_run, strict=True)]
                )
        for group in group_rows(rows_to_run, token_budget or lm.token_budget, layout):
            run_with_halving(group, run)
    return [hidden[index] for index in range(len(rows))]


def inject_by_row(
    lm: LanguageModel, batch: Batch, injections: Sequence[Injection | None]
) -> contextlib.AbstractContextManager[None]:
    """Inject `injections[i]` into row i of the batch, at the tokens that its position names."""
    distinct = list({id(injection): injection for injection in injections}.values())
    leaves_prompt = any(injection is not None and injection.position == "last_token" for injection in distinct)
    if leaves_prompt and not bool(batch.after_prompt.all()) and None not in distinct:
        distinct.append(None)
    if len(distinct) == 1:
        return inject(lm, distinct[0])
    places = {id(injection): place for place, injection in enumerate(distinct)}
    place_of_row = torch.tensor([places[id(injection)] for injection in injections], device=lm.device)
    places_by_token = place_of_row[batch.row_of]
    if leaves_prompt:
        last = [injection is not None and injection.position == "last_token" for injection in distinct]
        spared = torch.tensor(last, device=lm.device)[places_by_token] & ~batch.after_prompt
        places_by_token = torch.where(spared, places.get(id(None), 0), places_by_token)
    return inject(lm, batch_injections(distinct), rows=places_by_token)

"""Extraction of a context vector from demonstrations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch

from ifed.errors import Malformed
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Batch, Row, group_by_budget, layout_for, run_with_halving
from ifed.modeling.hooks import capture, final_hidden, mlp_at_outputs
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixSharing
from ifed.modeling.prompt_cache import PromptCache
from ifed.modeling.prompts import PromptTemplate
from ifed.tensors.values import SITES, ContextVector


def context_vector(
    lm: LanguageModel,
    template: PromptTemplate,
    labels: LabelTokens | None,
    examples: Sequence[LabelledText[int]],
    *,
    layers: Sequence[int],
    token_budget: int | None = None,
    prompts: PromptCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ContextVector:
    """Return the mean of a_l and m_l at the last token of each demonstration (v_k of arXiv 2511.06757; d' of arXiv 2405.14660).

    The forward pass ends at the last of `layers`. The mean is taken in float64.

    Args:
        labels: the label words, which follow each text as published; with None the vector is of the last token of the prompt, where an
            injection at the last token acts.
        token_budget: tokens of one forward pass; the model's own by default.
        prompts: the cache of these examples' prompts, for a vector without labels; it is filled here, so that calibration can go on with it.
        progress: called after each batch with the examples done and the examples in all.

    Returns:
        float32, (layer, site, d), the layers in the order of `layers`.

    Raises:
        Malformed: there are no examples.
        LayoutMismatch: the model does not have one of the layers.
    """
    if not examples:
        raise Malformed("a context vector is a mean over demonstrations; there are none")
    if prompts is None:
        rows, layout = _demonstration_rows(template, labels, examples), layout_for(lm)
    else:
        assert labels is None, "a cache of prompts has no labels"
        prompts.fill(progress)
        progress = None  # what is left is one token a text
        rows, layout = [prompts.row(index) for index in range(len(examples))], "packed"
    sums: dict[tuple[int, ...], torch.Tensor] = {}

    def run(group: list[int]) -> None:
        batch = Batch.of([rows[index] for index in group], layout=layout, device=lm.device)
        replayed = contextlib.nullcontext() if prompts is None else prompts.replayed(batch, group)
        with replayed, capture(lm, layers, batch=batch, stop=True) as captured, mlp_at_outputs(lm, batch, max(layers)):
            final_hidden(lm, batch)
        sums[tuple(group)] = captured.stacked().to(torch.float64).sum(0).cpu()
        if progress is not None:
            progress(sum(map(len, sums)), len(rows))

    with torch.inference_mode():
        if layout == "packed" and prompts is None:
            rows = PrefixSharing(lm).apply(rows, [None] * len(rows))
        for group in group_by_budget([len(row.ids) for row in rows], token_budget or lm.token_budget, layout):
            run_with_halving(group, run)
    mean = torch.zeros(len(layers), len(SITES), lm.hidden_size, dtype=torch.float64)
    for batch_sum in sums.values():
        mean += batch_sum
    return ContextVector((mean / len(rows)).numpy())


def _demonstration_rows(template: PromptTemplate, labels: LabelTokens | None, examples: Sequence[LabelledText[int]]) -> list[Row]:
    prompts = [template.prompt(example.text) for example in examples]
    ends = [() if labels is None else labels.ids[example.label] for example in examples]
    ids = [prompt.ids + end for prompt, end in zip(prompts, ends, strict=True)]
    return [Row(tokens, (len(tokens) - 1,), prompt.prefix_length) for tokens, prompt in zip(ids, prompts, strict=True)]

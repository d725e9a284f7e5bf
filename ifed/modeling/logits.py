"""Logits of tokens and log-probabilities of labels from final hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel

NORMALISER_ROWS = 32  # hidden states whose logits over the vocabulary are in memory at once


def token_logits(lm: LanguageModel, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the logits of a few tokens, from those rows of the head alone, in at least float32.

    Args:
        hidden: (n, d), after the final norm.

    Returns:
        (n, len(tokens)).
    """
    head = lm.model.get_output_embeddings()
    index = torch.tensor(tokens, device=hidden.device)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    bias = getattr(head, "bias", None)
    rows, row_bias = head.weight[index].to(dtype), None if bias is None else bias[index].to(dtype)
    return _softcapped(lm, torch.nn.functional.linear(hidden.to(dtype), rows, row_bias))


def vocabulary_logits(lm: LanguageModel, hidden: Tensor) -> Tensor:
    """Return the logits of the whole vocabulary, (n, V): the product in the dtype of the model, the rest in at least float32.

    Args:
        hidden: (n, d), after the final norm.
    """
    logits = lm.model.get_output_embeddings()(hidden)
    return _softcapped(lm, logits.to(torch.promote_types(logits.dtype, torch.float32)))


def label_scores(lm: LanguageModel, labels: LabelTokens, hidden: Tensor) -> Tensor:
    """Return the log-probabilities of the labels, normalised over the labels, whatever the number of tokens of each.

    The normaliser over the vocabulary is left out at a node that every label passes, because it cancels there: labels of one token each
    cost C rows of the head and nothing else. All sums run in the order of the token ids, so the order of the labels changes no bit.

    Args:
        hidden: (n, node, d) at the inner nodes of `labels`, in the order of `labels.nodes_by_extension`, flattened.

    Returns:
        float32, (n, C), in the order of `labels.names`.
    """
    edges: dict[tuple[int, ...], Tensor] = {}
    nodes = [node for nodes in labels.nodes_by_extension for node in nodes]
    for node, states in sorted(zip(nodes, hidden.unbind(1), strict=True), key=lambda pair: pair[0]):
        tokens = labels.children[node]
        scores = token_logits(lm, states, tokens)
        if any(ids[: len(node)] != node for ids in labels.ids):
            scores = scores - _log_normaliser(lm, states)[:, None]
        edges |= {(*node, token): column for token, column in zip(tokens, scores.unbind(1), strict=True)}
    order = sorted(range(len(labels.ids)), key=lambda label: labels.ids[label])
    totals = [
        sum((edges[ids[: length + 1]] for length in range(1, len(ids))), edges[ids[:1]])
        for ids in (labels.ids[label] for label in order)
    ]
    normalised = torch.log_softmax(torch.stack(totals, dim=1), dim=1)
    inverse_order = torch.tensor(order, device=hidden.device).argsort()
    return normalised[:, inverse_order].to(torch.float32)


def softcap(lm: LanguageModel) -> float | None:
    """Return the cap of Gemma 2's final logits; None for models without one."""
    return getattr(lm.model.config, "final_logit_softcapping", None)


def _log_normaliser(lm: LanguageModel, hidden: Tensor) -> Tensor:
    """Return log Σ exp over the vocabulary, (n,)."""
    return torch.cat([torch.logsumexp(vocabulary_logits(lm, part), dim=1) for part in hidden.split(NORMALISER_ROWS)])


def _softcapped(lm: LanguageModel, logits: Tensor) -> Tensor:
    cap = softcap(lm)
    return logits if cap is None else torch.tanh(logits / cap) * cap

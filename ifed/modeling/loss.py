"""The calibration loss: cross-entropy over the vocabulary in chunks, and logit adjustment by the label prior of a client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.logits import softcap
from ifed.tensors.regression import LabelHead

LOGITS_AT_ONCE = 1 << 22
SMOOTHING = 1.0  # added to the count of each label, so that no prior is zero


@dataclass(frozen=True, slots=True, eq=False)
class LogitAdjustments:
    """Values added to single logits before the softmax: `values[i]` to token `tokens[i]` of row `rows[i]`, at distinct places."""

    rows: Tensor
    tokens: Tensor
    values: Tensor

    def add_to(self, logits: Tensor, first: int) -> None:
        """Add, in place, to the logits (n, part of V) of the tokens from `first` on."""
        inside = (self.tokens >= first) & (self.tokens < first + logits.shape[1])
        logits[self.rows[inside], self.tokens[inside] - first] += self.values[inside].to(logits.dtype)


class Objective:
    """Cross-entropy of the label's tokens over the whole vocabulary ("perplexity loss" of arXiv 2511.06757).

    Local logit adjustment (arXiv 2007.07314, equation 10; FedLC, arXiv 2209.00189) adds `tau` times the log prior of the client's own
    labels to the logits of the label tokens, in training only, so that a client whose data lack some labels does not train its own prior into Λ. For
    labels of several tokens that is the prior of each edge of the label tree given its node. Counts are smoothed by one each.

    Args:
        counts: the client's training examples per label.
        tau: strength of the adjustment; 0 turns it off.
    """

    def __init__(self, lm: LanguageModel, labels: LabelTokens, counts: Sequence[int], tau: float) -> None:
        self._lm, self._labels, self._tau = lm, labels, tau
        self._log_priors = labels.log_priors([count + SMOOTHING for count in counts])

    def total(self, hidden: Tensor, true_labels: Sequence[int]) -> Tensor:
        """Return the sum over all label tokens of a batch, a scalar in at least float32.

        Args:
            hidden: (n, d), the final hidden states that predict each label token: example after example, token after token.
            true_labels: the label of each example.
        """
        label_ids = [self._labels.ids[label] for label in true_labels]
        steps = [(ids[:length], ids[length]) for ids in label_ids for length in range(len(ids))]
        targets = torch.tensor([token for _, token in steps], device=hidden.device)
        adjustments = self._adjustments([node for node, _ in steps], hidden) if self._tau else None
        return cross_entropy(self._lm, hidden, targets, adjustments)

    def _adjustments(self, nodes: Sequence[tuple[int, ...]], hidden: Tensor) -> LogitAdjustments:
        entries = [(row, token, prior) for row, node in enumerate(nodes) for token, prior in self._log_priors[node].items()]
        rows = torch.tensor([row for row, _, _ in entries], device=hidden.device)
        tokens = torch.tensor([token for _, token, _ in entries], device=hidden.device)
        priors = hidden.new_tensor([prior for _, _, prior in entries], dtype=torch.promote_types(hidden.dtype, torch.float32))
        return LogitAdjustments(rows, tokens, self._tau * priors)


class HeadObjective:
    """Cross-entropy of the label under a fixed label head, with the same logit adjustment as `Objective`; no product with the vocabulary.

    Args:
        counts: the client's training examples per label.
        tau: strength of the adjustment; 0 turns it off.
    """

    def __init__(self, lm: LanguageModel, head: LabelHead, counts: Sequence[int], tau: float) -> None:
        smoothed = torch.tensor([count + SMOOTHING for count in counts], dtype=lm.injection_dtype)
        prior = torch.log(smoothed / smoothed.sum())
        self._weight = torch.tensor(head.weight, dtype=lm.injection_dtype, device=lm.device)
        self._bias = (torch.tensor(head.bias, dtype=lm.injection_dtype) + tau * prior).to(lm.device)

    def total(self, hidden: Tensor, true_labels: Sequence[int]) -> Tensor:
        """Return the sum over a batch, a scalar in at least float32.

        Args:
            hidden: (n, d), the final hidden state at the last token of each prompt.
            true_labels: the label of each example.
        """
        logits = torch.nn.functional.linear(hidden.to(self._weight.dtype), self._weight, self._bias)
        return torch.nn.functional.cross_entropy(logits, torch.tensor(true_labels, device=hidden.device), reduction="sum")


def cross_entropy(
    lm: LanguageModel,
    hidden: Tensor,
    targets: Tensor,
    adjustments: LogitAdjustments | None = None,
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Return the sum over the rows of -log p(target), a scalar in at least float32; differentiable once, by `hidden` alone.

    As in cut cross-entropy (arXiv 2411.09009), the logits are never stored: the gradient is computed together with the loss, one chunk of
    the vocabulary after another, and the tensor saved for the backward pass is as large as `hidden`. On a CPU core, eight rows of Gemma 3 270M
    took 130 ms instead of 173.

    Args:
        hidden: (n, d), after the final norm.
        targets: int64, (n,), token ids.
        logits_at_once: the most logits that exist at any time, but at least one token of every row.
    """
    total: Tensor = _CrossEntropy.apply(hidden, lm, targets, adjustments, logits_at_once)  # type: ignore[no-untyped-call]  # untyped in torch
    return total


class _CrossEntropy(torch.autograd.Function):
    """Running sums over chunks of the vocabulary, in units of exp(peak), where `peak` is the largest logit so far.

    `mass` is Σ exp(logit - peak), `pull` is Σ exp(logit - peak) · dlogit/dhidden, and the gradient is pull / mass minus that of the target's logit.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, lm: LanguageModel, targets: Tensor, adjustments: LogitAdjustments | None, logits_at_once: int
    ) -> Tensor:
        head, cap = lm.model.get_output_embeddings(), softcap(lm)
        bias = getattr(head, "bias", None)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        peak = hidden.new_full((len(hidden), 1), -torch.inf, dtype=dtype)
        mass, target_logits = (hidden.new_zeros((len(hidden), 1), dtype=dtype) for _ in range(2))
        pull, target_pull = (hidden.new_zeros(hidden.shape, dtype=dtype) for _ in range(2))
        width = max(1, logits_at_once // max(1, len(hidden)))
        for first in range(0, len(head.weight), width):
            weight = head.weight[first : first + width]
            logits = torch.nn.functional.linear(hidden, weight, None if bias is None else bias[first : first + width]).to(dtype)
            slope = None
            if cap is not None:
                squashed = torch.tanh(logits / cap)
                logits, slope = squashed * cap, 1 - squashed.square()
            if adjustments is not None:
                adjustments.add_to(logits, first)
            rows = ((targets >= first) & (targets < first + width)).nonzero()[:, 0]
            columns = targets[rows] - first
            target_logits[rows, 0] = logits[rows, columns]
            target_pull[rows] = weight[columns].to(dtype) * (1 if slope is None else slope[rows, columns][:, None])
            new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
            shares = logits.sub_(new_peak).exp_()
            shrink = (peak - new_peak).exp()
            mass = mass * shrink + shares.sum(1, keepdim=True)
            pull = pull * shrink + ((shares if slope is None else shares * slope).to(hidden.dtype) @ weight).to(dtype)
            peak = new_peak
        ctx.save_for_backward((pull / mass - target_pull).to(hidden.dtype))
        return (mass.log() + peak - target_logits).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None, None

"""The loss of calibration: cross-entropy of label tokens over the vocabulary, adjusted for skewed labels. Knows no optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifed.modeling.heads import vocabulary_logits
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel

SMOOTHING = 1.0


class Objective:
    """Cross-entropy of the label's tokens over the whole vocabulary ("perplexity loss" of arXiv 2511.06757).

    Local logit adjustment (arXiv 2007.07314, equation 10; FedLC, arXiv 2209.00189) adds `tau` times the log prior of the client's own
    labels to the logits of the label tokens, in training only, so that a one-sided client does not teach its own prior. For labels of
    several tokens that is the prior of each edge of the label tree given its node. Counts are smoothed by one each.

    Args:
        counts: the client's training examples per label.
        tau: strength of the adjustment; 0 is off.
    """

    def __init__(self, lm: LanguageModel, labels: LabelTokens, counts: Sequence[int], tau: float) -> None:
        self._lm, self._labels, self._tau = lm, labels, tau
        self._priors = labels.log_priors([count + SMOOTHING for count in counts])

    def total(self, hidden: Tensor, truths: Sequence[int]) -> Tensor:
        """The sum over all label tokens of a batch, a scalar in at least float32.

        Args:
            hidden: (n, d) final hidden states where each label token is predicted: example after example, token after token.
            truths: the label of each example.
        """
        steps = [(ids[:at], ids[at]) for ids in (self._labels.ids[truth] for truth in truths) for at in range(len(ids))]
        logits = vocabulary_logits(self._lm, hidden)
        if self._tau:
            places = [(row, token, prior) for row, (node, _) in enumerate(steps) for token, prior in self._priors[node].items()]
            rows, tokens, priors = zip(*places, strict=True)
            index = (torch.tensor(rows, device=hidden.device), torch.tensor(tokens, device=hidden.device))
            logits = logits.index_put(index, self._tau * logits.new_tensor(priors), accumulate=True)
        targets = torch.tensor([token for _, token in steps], device=hidden.device)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

"""The loss of calibration: cross-entropy of label tokens over the vocabulary, adjusted for skewed labels. Knows no optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.vocabulary import Offsets, cross_entropy

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
        targets = torch.tensor([token for _, token in steps], device=hidden.device)
        return cross_entropy(self._lm, hidden, targets, self._offsets([node for node, _ in steps], hidden) if self._tau else None)

    def _offsets(self, nodes: Sequence[tuple[int, ...]], hidden: Tensor) -> Offsets:
        places = [(row, token, prior) for row, node in enumerate(nodes) for token, prior in self._priors[node].items()]
        rows, tokens = (torch.tensor([place[part] for place in places], device=hidden.device) for part in (0, 1))
        priors = hidden.new_tensor([prior for _, _, prior in places], dtype=torch.promote_types(hidden.dtype, torch.float32))
        return Offsets(rows, tokens, self._tau * priors)

"""Label prior matching: replace the label prior of a model's scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch
from ifed.tensors.values import Float32

LEAST = 1e-6  # keeps the bias of a label that no text made likely finite


def bias_of(probabilities: npt.NDArray[np.floating], counts: npt.NDArray[np.integer]) -> tuple[float, ...]:
    """How much too likely each label is: the logarithm of its mean probability over many texts, less that of its share among them.

    With equal shares that is batch calibration, arXiv 2309.17249, but for a constant. Where a label is truly more frequent it stays
    so: the model's prior is replaced by that of the texts (arXiv 2007.07314 has it in training). The mean of the logarithms is
    lowest for a label that is told apart clearly, and would raise it for that.

    Args:
        probabilities: float, (labels,); below 1e-6 they count as that.
        counts: how many of the texts carry each label, (labels,); each counts once more, so that none has a share of zero.
    """
    shares = (counts + 1) / (counts + 1).sum()
    return tuple(float(one) for one in np.log(np.maximum(probabilities, LEAST)) - np.log(shares))


def without_bias(scores: Float32, bias: Sequence[float] | None) -> Float32:
    """Log-probabilities of the labels less what makes each too likely anyway: `score - bias`, normalised again.

    As in batch calibration, arXiv 2309.17249, equation 5, with a bias told beforehand instead of one over the batch.

    Args:
        scores: float32, (labels,).
        bias: of each label, as `bias_of` gives it; None leaves the scores as they are.

    Raises:
        LayoutMismatch: another number of labels.
    """
    if bias is None:
        return scores
    if len(bias) != len(scores):
        raise LayoutMismatch(f"a bias of {len(bias)} labels is not for {len(scores)} scores")
    corrected = scores.astype(np.float64) - np.asarray(bias, dtype=np.float64)
    corrected -= corrected.max()
    return np.asarray(corrected - np.log(np.exp(corrected).sum()), dtype=np.float32)

"""Label prior matching: replace the label prior of a model's scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch
from ifed.tensors.values import Float32

LEAST = 1e-6  # keeps the bias of a label that no text made likely finite


def bias_of(probabilities: npt.NDArray[np.floating], counts: npt.NDArray[np.integer]) -> tuple[float, ...]:
    """Return the bias of each label: the logarithm of its mean probability over many texts, less that of its share among them.

    With equal shares this is batch calibration (arXiv 2309.17249) up to a constant. A label that really is more frequent stays so: the
    model's prior is replaced by that of the texts (arXiv 2007.07314 does the same in training). The mean of the probabilities is used and
    not that of their logarithms, which would favour labels that are easy to recognise.

    Args:
        probabilities: float, (labels,); values below 1e-6 count as 1e-6.
        counts: the number of texts of each label, (labels,); one is added to each, so that no share is zero.
    """
    shares = (counts + 1) / (counts + 1).sum()
    return tuple(float(value) for value in np.log(np.maximum(probabilities, LEAST)) - np.log(shares))


def without_bias(scores: Float32, bias: Sequence[float] | None) -> Float32:
    """Return the log-probabilities without the bias of each label: `scores - bias`, normalised again.

    As in batch calibration (arXiv 2309.17249, equation 5), but with a bias estimated beforehand instead of over the batch.

    Args:
        scores: float32, (labels,).
        bias: of each label, as `bias_of` returns it; None leaves the scores unchanged.

    Raises:
        LayoutMismatch: scores and bias have different numbers of labels.
    """
    if bias is None:
        return scores
    if len(bias) != len(scores):
        raise LayoutMismatch(f"a bias of {len(bias)} labels is not for {len(scores)} scores")
    corrected = scores.astype(np.float64) - np.asarray(bias, dtype=np.float64)
    corrected -= corrected.max()
    return np.asarray(corrected - np.log(np.exp(corrected).sum()), dtype=np.float32)

"""A label prior taken out of a text's label scores. Pure numpy: knows no model and no task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ifed.errors import LayoutMismatch
from ifed.tensors import Float32


def without_bias(scores: Float32, bias: Sequence[float] | None) -> Float32:
    """Log-probabilities of the labels without the mean log-score each label has anyway: `score - bias`, normalised again.

    Batch calibration, arXiv 2309.17249, equation 5, with the mean over many texts told beforehand instead of one over the batch.

    Args:
        scores: float32, (labels,).
        bias: mean log-score of each label; None leaves the scores as they are.

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

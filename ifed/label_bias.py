"""A label prior taken out of a text's label scores. Pure numpy: knows no model and no task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch
from ifed.tensors import Float32

LEAST = 1e-6  # keeps the bias of a label that no text made likely finite


def bias_of(probabilities: npt.NDArray[np.floating]) -> tuple[float, ...]:
    """The prior that stands for itself in the scores: the logarithm of each label's mean probability over many texts.

    Batch calibration, arXiv 2309.17249. The mean of the logarithms is lowest for a label that is told apart clearly, and would raise it for that.

    Args:
        probabilities: float, (labels,); below 1e-6 they count as that.
    """
    return tuple(float(one) for one in np.log(np.maximum(probabilities, LEAST)))


def without_bias(scores: Float32, bias: Sequence[float] | None) -> Float32:
    """Log-probabilities of the labels without the prior each label has anyway: `score - bias`, normalised again.

    Batch calibration, arXiv 2309.17249, equation 5, with the mean over many texts told beforehand instead of one over the batch.

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

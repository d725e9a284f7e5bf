"""What a client sends to a calibration round: coefficients, a gradient, or a quantised change of the coefficients."""

from __future__ import annotations

from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.values import Coefficients, Float32, Float64, Gradient, TensorBody

Update = Coefficients | Gradient | QuantizedUpdate
UPDATE_TENSORS = ("coefficients", "gradient", "change", "scales")


def update_tensors(update: Update | None) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors that carry an update in a body, by name; none for None."""
    match update:
        case None:
            return {}
        case Gradient():  # before Coefficients, whose subclass it is
            return {"gradient": update.values}
        case Coefficients():
            return {"coefficients": update.values}
        case QuantizedUpdate():
            return update.tensors()
        case other:
            assert_never(other)


def read_update(body: TensorBody) -> Update | None:
    """Read the update of a body; None when it carries none, as in an evaluation round.

    Raises:
        LayoutMismatch: more than one update, or one of another dtype or number of axes.
        NonFinite: NaN or Inf among the values.
    """
    names = {"change" if name == "scales" else name for name in UPDATE_TENSORS if name in body.tensors}
    if len(names) > 1:
        raise LayoutMismatch(f"a body carries one update, this one {' and '.join(sorted(names))}")
    match names.pop() if names else None:
        case None:
            return None
        case "coefficients":
            return Coefficients(body.tensor("coefficients", np.float32))
        case "gradient":
            return Gradient(body.tensor("gradient", np.float32))
        case _:
            return QuantizedUpdate.read(body)


def apply_update(update: Update, start: Float64) -> Float32 | Float64:
    """Return the coefficients that an update leads to from `start`; of a gradient, its values, since the server takes the step.

    Args:
        start: the coefficients that the round starts from, float64, shape (layer, site, coefficient, G).
    """
    return start + update.restored() if isinstance(update, QuantizedUpdate) else update.values

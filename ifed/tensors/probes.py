"""Probes: the activations of a model on public texts, compressed, and their comparison between two parties.

A probe is a sketch: the channels of each activation are dealt into 8 buckets and summed there with fixed signs, which keeps squared
distances in the mean. With 4 texts that is 64 numbers a site and layer, and the relative difference of two models is known to about a
fifth of itself: 8 KB for 30 layers, 20 KB for 80, whatever the hidden size.

The logits over the vocabulary are sketched in the same way, so that a probe reaches what labels are scored with. Probes from before they were
added have none, and are compared by their layers alone.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ifed.errors import ProbeMismatch
from ifed.tensors.values import SITES, Float32

TEXTS = (
    "The film was a quiet triumph, and nobody I know regretted the ticket.",
    "Stocks fell.",
    "Water boils at 100 °C at sea level; on a mountain it boils sooner.",
    '¿Quién sabe? 你好 🙂 -- 3.14 <tag> "quoted"',
)
BUCKETS = 8
TOLERANCE = (
    0.15  # bfloat16 against float32 differs by 0.07 at the most, eight-bit weights by 0.09, four-bit weights by 0.8 and more
)


class Probe(BaseModel):
    """A sketch of one party's activations at the last token of the probe texts, in the task's template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the probe texts and the labels as tokens in the template")
    layers: int = Field(ge=1, le=1000)
    values: str = Field(max_length=200_000, description="base64 of float32, little-endian, shape (text, layer, site, bucket)")

    logits: str | None = Field(
        None, max_length=1000, description="base64 of float32, little-endian, shape (text, bucket); null from older clients"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        _check_encoded(self.values, int(np.prod(self._shape)), f"a probe of {self.layers} layers")
        if self.logits is not None:
            _check_encoded(self.logits, len(TEXTS) * BUCKETS, "the sketch of the logits")
        return self

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(TEXTS), self.layers, len(SITES), BUCKETS)

    @classmethod
    def of(cls, tokens: str, activations: Float32, logits: Float32 | None = None) -> Self:
        """Return the probe of a model.

        Args:
            tokens: the digest of the tokens of texts and labels.
            activations: of each site at the last token of each text, shape (text, layer, site, d).
            logits: over the vocabulary after each text, shape (text, V).

        Raises:
            ProbeMismatch: an activation or a logit is not finite, because the dtype overflows for this model.
        """
        lost = ~np.isfinite(activations).all(axis=(0, 2, 3))
        if lost.any():
            raise ProbeMismatch(
                f"layer {int(lost.argmax())} of this model gives numbers that are not finite: this dtype is too small for it; "
                "use bfloat16 or float32"
            )
        if logits is not None and not np.isfinite(logits).all():
            raise ProbeMismatch("the logits of this model are not finite: this dtype is too small for it; use bfloat16 or float32")
        return cls(
            tokens=tokens,
            layers=activations.shape[1],
            values=_encoded(_sketch(activations)),
            logits=None if logits is None else _encoded(_sketch(logits)),
        )

    def difference(self, other: Probe) -> Float32:
        """Return the relative difference of `other` from this probe per layer, float32, (layer,): the larger of its two sites."""
        mine, theirs = self._array(), other._array()
        far = np.square(theirs - mine).sum(axis=(0, 3))
        size = np.maximum(np.square(mine).sum(axis=(0, 3)), np.finfo(np.float64).tiny)
        share: Float32 = np.sqrt(far / size).max(axis=1).astype(np.float32)
        return share

    def head_difference(self, other: Probe) -> float:
        """Return the relative difference of the logits of `other` from those of this probe; 0 if one of the two has none."""
        if self.logits is None or other.logits is None:
            return 0.0
        mine, theirs = (_decoded(logits) for logits in (self.logits, other.logits))
        size = max(float(np.square(mine).sum()), float(np.finfo(np.float64).tiny))
        return math.sqrt(float(np.square(theirs - mine).sum()) / size)

    def must_agree(self, other: Probe) -> None:
        """Check that another party's probe is of the same model under the same template.

        Raises:
            ProbeMismatch: the tokens or the number of layers differ, or a layer differs by more than the tolerance; the message says which.
        """
        if (words := self.disagreement(other)) is not None:
            raise ProbeMismatch(words)

    def disagreement(self, other: Probe) -> str | None:
        """Describe the difference of `other` from this probe; return None if they agree."""
        if self.layers != other.layers:
            return f"the task's model has {self.layers} layers, this client's {other.layers}"
        if self.tokens != other.tokens:
            return "this client turns the task's template and labels into other tokens: its tokenizer, template or software differs"
        differences = self.difference(other)
        if not (differences > TOLERANCE).any():
            if (head := self.head_difference(other)) <= TOLERANCE:
                return None
            return (
                f"on the probe texts this client's layers agree with the task's model, but its logits differ by {head:.0%}; "
                f"{TOLERANCE:.0%} is allowed: another final norm or output head"
            )
        first, worst = int((differences > TOLERANCE).argmax()), int(differences.argmax())
        return (
            f"on the probe texts this client's model first differs at layer {first}, by {differences[first]:.0%}, and most at layer {worst}, "
            f"by {differences[worst]:.0%}; {TOLERANCE:.0%} is allowed: other weights, a coarse quantisation, or padding that is not masked"
        )

    def _array(self) -> npt.NDArray[np.float64]:
        return _decoded(self.values).reshape(self._shape)


def _encoded(values: npt.NDArray[np.float64]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _decoded(text: str) -> npt.NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)


def _check_encoded(text: str, count: int, what: str) -> None:
    """Raise ValueError unless `text` is the base64 of so many finite values."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as reason:
        raise ValueError("the values of a probe are base64") from reason
    if len(raw) != 4 * count:
        raise ValueError(f"{what} holds {count} float32 values")
    if not np.isfinite(np.frombuffer(raw, dtype="<f4")).all():
        raise ValueError("the values of a probe are finite")


def _sketch(activations: Float32) -> npt.NDArray[np.float64]:
    """Compress (…, d) to (…, bucket), with signs and buckets from a fixed hash of the channel, the same on every machine."""
    mixed = (np.arange(activations.shape[-1], dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    signs = 1.0 - 2.0 * (mixed & np.uint64(1)).astype(np.float64)
    dealt = np.zeros((activations.shape[-1], BUCKETS))
    dealt[np.arange(activations.shape[-1]), ((mixed >> np.uint64(8)) % np.uint64(BUCKETS)).astype(np.int64)] = signs
    product: npt.NDArray[np.float64] = activations.astype(np.float64) @ dealt
    return product

"""The HTTP bodies that carry tensors: contributions and adapters, each one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ifed.errors import LayoutMismatch, Malformed, NonFinite
from ifed.messages.rounds import AdapterMeta, ContributionMeta, Reading
from ifed.messages.tasks import Message
from ifed.messages.validation import describe_errors
from ifed.tensors.confidence import ConfidenceBins
from ifed.tensors.confusion import Counts, confusion_tensors, has_confusion, read_confusion
from ifed.tensors.quantization import QuantizedRows
from ifed.tensors.regression import LabelHead, Standardization
from ifed.tensors.updates import UPDATE_TENSORS, Update, read_update, update_tensors
from ifed.tensors.values import Coefficients, ContextVector, Float32, Float64, TensorBody

TENSORS = "application/vnd.safetensors"
SUM_TOLERANCE = 1e-3
LARGEST_ADAPTER_HEADER = 4 * 2**20  # bytes; a task may have a thousand long labels
Meta = TypeVar("Meta", bound=Message)


class ContextBody:
    """The body of `PUT …/context`: tensor `context`, float16 or float32, shape (layer, site, d).

    For a task with a label head it carries `state_mean` and `state_deviation` too, float32, (d,): the statistics of the final state over
    public texts, by which its states are standardised.
    """

    def __init__(self, vector: ContextVector, meta: ContributionMeta, standardization: Standardization | None = None) -> None:
        self.vector, self.meta, self.standardization = vector, meta, standardization

    def to_bytes(self) -> bytes:
        tensors = {"context": self.vector.wire()} | standardization_tensors(self.standardization)
        return TensorBody(tensors, self.meta.model_dump(exclude_none=True)).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        parsed = _only(TensorBody.from_bytes(body), "context", *STANDARDIZATION_TENSORS)
        return cls(read_context(parsed), _meta(ContributionMeta, parsed), read_standardization(parsed))


class HeadBody:
    """The body of `PUT …/head`: a client's answer to the question of a head round.

    Tensors: `answer`, rows of d numbers in float32, float16, or int8 with `scales`, one a row: TᵀZ / n, or ZᵀZ / n times each direction of
    the query; for the question `sums` the upper triangle of ZᵀZ / n as `gram` besides; for `likelihood`, `log_likelihoods`, float64,
    (candidate, temperature), sums over the held-out examples, whose number is `examples` of the metadata. See `ifed.tensors.regression`.
    """

    def __init__(
        self,
        meta: ContributionMeta,
        answer: QuantizedRows | None = None,
        *,
        gram: npt.NDArray[np.floating] | None = None,
        log_likelihoods: Float64 | None = None,
    ) -> None:
        self.meta, self.answer, self.gram, self.log_likelihoods = meta, answer, gram, log_likelihoods

    def to_bytes(self) -> bytes:
        tensors: dict[str, npt.NDArray[Any]] = {} if self.answer is None else self.answer.tensors("answer")
        if self.gram is not None:
            tensors["gram"] = self.gram
        if self.log_likelihoods is not None:
            tensors["log_likelihoods"] = self.log_likelihoods
        return TensorBody(tensors, self.meta.model_dump(exclude_none=True)).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        parsed = _only(TensorBody.from_bytes(body), "answer", "scales", "gram", "log_likelihoods")
        gram = parsed.tensor("gram", np.float16, np.float32, np.float64) if "gram" in parsed.tensors else None
        sums = parsed.tensor("log_likelihoods", np.float64) if "log_likelihoods" in parsed.tensors else None
        for name, values in (("gram", gram), ("log_likelihoods", sums)):
            if values is not None and not np.isfinite(values).all():
                raise NonFinite(f"{name} holds values that are NaN or infinite; send finite numbers")
        if sums is not None and (sums > 0).any():
            raise Malformed("log-likelihoods are logarithms of probabilities: 0 at the most")
        answer = QuantizedRows.read(parsed, "answer") if "answer" in parsed.tensors else None
        return cls(_meta(ContributionMeta, parsed), answer, gram=gram, log_likelihoods=sums)


class HeadQuery:
    """The body of `GET …/rounds/{number}/query`: what a head round asks.

    Tensors: `shares`, float64, (C,), of the labels among all examples; for the question `product`, `directions`, float16, (m, d); for
    `likelihood`, `candidates`, float32, (candidate, C - 1, d), and `temperatures`, float64; of many labels the candidates are fewer and
    in float16, and `ridges`, float64, has the λ of each.
    """

    def __init__(
        self,
        shares: Float64,
        *,
        directions: npt.NDArray[np.float16] | None = None,
        candidates: Float32 | npt.NDArray[np.float16] | None = None,
        temperatures: Float64 | None = None,
        ridges: Float64 | None = None,
    ) -> None:
        self.shares, self.directions, self.candidates, self.temperatures = shares, directions, candidates, temperatures
        self.ridges = ridges

    def to_bytes(self) -> bytes:
        named = {"directions": self.directions, "candidates": self.candidates, "temperatures": self.temperatures}
        named |= {"ridges": self.ridges}
        tensors: dict[str, npt.NDArray[Any]] = {name: values for name, values in named.items() if values is not None}
        return TensorBody({"shares": self.shares} | tensors, {}).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        parsed = TensorBody.from_bytes(body)
        return cls(
            parsed.tensor("shares", np.float64),
            directions=parsed.tensor("directions", np.float16) if "directions" in parsed.tensors else None,
            candidates=parsed.tensor("candidates", np.float32, np.float16) if "candidates" in parsed.tensors else None,
            ridges=parsed.tensor("ridges", np.float64) if "ridges" in parsed.tensors else None,
            temperatures=parsed.tensor("temperatures", np.float64) if "temperatures" in parsed.tensors else None,
        )


HELD_OUT_TENSORS = ("confusion", "confusion_cells", "label_probabilities", "log_likelihood", "bins")
OTHER_READINGS: tuple[Reading, ...] = ("words", "both")


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutCounts:
    """What a client reports of a version on its held-out examples.

    Attributes:
        confusion: integers, (truth, prediction).
        label_probabilities: mean probability of each label, float32, (labels,).
        log_likelihood: sum of the log-probabilities of the true labels, 0 at the most.
        confidence: the same texts by the probability of their most probable label.
    """

    confusion: Counts
    label_probabilities: Float32 | None = None
    log_likelihood: float | None = None
    confidence: ConfidenceBins | None = None

    def tensors(self, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
        """Return the tensors that a body carries, by name."""
        tensors = confusion_tensors(self.confusion, prefix)
        if self.label_probabilities is not None:
            tensors[f"{prefix}label_probabilities"] = self.label_probabilities
        if self.log_likelihood is not None:
            tensors[f"{prefix}log_likelihood"] = np.array([self.log_likelihood], dtype=np.float64)
        if self.confidence is not None:
            tensors[f"{prefix}bins"] = self.confidence.packed()
        return tensors

    @classmethod
    def read(cls, body: TensorBody, prefix: str = "") -> Self:
        """Read the tensors whose names begin with `prefix`.

        Raises:
            LayoutMismatch: the confusion counts are missing, or a tensor has another dtype or shape.
            NonFinite: a value is NaN or infinite.
            Malformed: the label probabilities, the log-likelihood or the confidence bins cannot be what they are said to be.
        """
        confusion = read_confusion(body, prefix)
        confidence = _read_confidence(body, f"{prefix}bins", confusion) if f"{prefix}bins" in body.tensors else None
        probabilities = f"{prefix}label_probabilities"
        return cls(
            confusion,
            read_label_probabilities(body, probabilities) if probabilities in body.tensors else None,
            _read_log_likelihood(body, f"{prefix}log_likelihood") if f"{prefix}log_likelihood" in body.tensors else None,
            confidence,
        )


class UpdateBody:
    """The body of `PUT …/update`: the confusion counts of the round's version, and in a calibration round the update.

    Tensors: `confusion`, integers, (truth, prediction), or its cells that are not 0 as `confusion_cells` (see `ifed.tensors.confusion`);
    the update as `coefficients` or `gradient`, float32, (layer, site, coefficient, group), or as `change` in float16, int8 or int4, the
    last two with `scales`; and where the policy asks for them `label_probabilities`, float32, (labels,): the mean probability of each label on the held-out texts under the round's version; and `log_likelihood`, float64, (1,), the
    sum of the log-probabilities of their true labels; where the assignment asks for it `bins`, uint16 or uint32, (3, k), as
    `ConfidenceBins.packed` returns them. In an evaluation round of a task with head `auto`, these are of the label head, and
    `words_…` and `both_…` are those of the two other ways of reading the labels.
    """

    def __init__(
        self,
        update: Update | None,
        confusion: Counts,
        meta: ContributionMeta,
        *,
        label_probabilities: Float32 | None = None,
        log_likelihood: float | None = None,
        confidence: ConfidenceBins | None = None,
        others: Mapping[Reading, HeldOutCounts] | None = None,
    ) -> None:
        self.update, self.confusion, self.meta, self.label_probabilities = update, confusion, meta, label_probabilities
        self.log_likelihood, self.confidence, self.others = log_likelihood, confidence, others or {}

    @classmethod
    def of(
        cls,
        held_out: HeldOutCounts,
        meta: ContributionMeta,
        update: Update | None = None,
        *,
        others: Mapping[Reading, HeldOutCounts] | None = None,
    ) -> Self:
        """Return the body of what a client reports of the round's version, and of its update."""
        return cls(
            update,
            held_out.confusion,
            meta,
            label_probabilities=held_out.label_probabilities,
            log_likelihood=held_out.log_likelihood,
            confidence=held_out.confidence,
            others=others,
        )

    def to_bytes(self) -> bytes:
        own = HeldOutCounts(self.confusion, self.label_probabilities, self.log_likelihood, self.confidence)
        tensors = own.tensors() | update_tensors(self.update)
        for reading, counts in self.others.items():
            tensors |= counts.tensors(f"{reading}_")
        return TensorBody(tensors, self.meta.model_dump(exclude_none=True)).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        others = [f"{reading}_{name}" for reading in OTHER_READINGS for name in HELD_OUT_TENSORS]
        parsed = _only(TensorBody.from_bytes(body), *HELD_OUT_TENSORS, *others, *UPDATE_TENSORS)
        counts = HeldOutCounts.read(parsed)
        return cls(
            read_update(parsed),
            counts.confusion,
            _meta(ContributionMeta, parsed),
            label_probabilities=counts.label_probabilities,
            log_likelihood=counts.log_likelihood,
            confidence=counts.confidence,
            others={
                reading: HeldOutCounts.read(parsed, f"{reading}_")
                for reading in OTHER_READINGS
                if has_confusion(parsed, f"{reading}_")
            },
        )


class AdapterBody:
    """The body of `GET …/adapter`: `context`, `coefficients` and, if the labels are read by it, the head: all that a model needs to serve one task."""

    def __init__(
        self, context: ContextVector, coefficients: Coefficients, meta: AdapterMeta, *, head: LabelHead | None = None
    ) -> None:
        self.context, self.coefficients, self.meta, self.head = context, coefficients, meta, head

    def to_bytes(self) -> bytes:
        tensors = {"context": self.context.wire(), "coefficients": self.coefficients.values} | head_tensors(self.head)
        return TensorBody(tensors, self.meta.model_dump(mode="json", exclude_none=True)).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        parsed = TensorBody.from_bytes(body, largest_header=LARGEST_ADAPTER_HEADER)
        return cls(read_context(parsed), read_coefficients(parsed), _meta(AdapterMeta, parsed), head=read_head(parsed))


STANDARDIZATION_TENSORS = ("state_mean", "state_deviation")


def standardization_tensors(standardization: Standardization | None) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a body that carry a standardisation, by name; none for None."""
    if standardization is None:
        return {}
    return {"state_mean": standardization.mean, "state_deviation": standardization.deviation}


def read_standardization(body: TensorBody) -> Standardization | None:
    """Read `state_mean` and `state_deviation`, float32, (d,); None when the body has neither.

    Raises:
        LayoutMismatch: one of them is missing, or has another dtype.
        NonFinite: a value is NaN or infinite.
    """
    if not set(STANDARDIZATION_TENSORS) & set(body.tensors):
        return None
    return Standardization(*(body.tensor(name, np.float32) for name in STANDARDIZATION_TENSORS))


def head_tensors(head: LabelHead | None) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a body that carry a label head, by name; none for None."""
    return {} if head is None else {"head_weight": head.weight, "head_bias": head.bias}


def read_head(body: TensorBody) -> LabelHead | None:
    """Read `head_weight`, float32, (C, d), and `head_bias`, float32, (C,); None when the body has neither.

    Raises:
        LayoutMismatch: one of them is missing, or has another dtype or shape.
        NonFinite: a value is NaN or infinite.
    """
    if "head_weight" not in body.tensors and "head_bias" not in body.tensors:
        return None
    return LabelHead(body.tensor("head_weight", np.float32), body.tensor("head_bias", np.float32))


def read_context(body: TensorBody) -> ContextVector:
    """Read the tensor `context` of a body, float16 or float32, shape (layer, site, d).

    Raises:
        LayoutMismatch: it is not there, or of another dtype or number of axes.
        NonFinite: it holds NaN or Inf.
    """
    return ContextVector(body.tensor("context", np.float16, np.float32))


def read_coefficients(body: TensorBody) -> Coefficients:
    """Read the tensor `coefficients` of a body, float32, shape (layer, site, coefficient, group).

    Raises:
        LayoutMismatch: it is not there, or of another dtype or number of axes.
        NonFinite: it holds NaN or Inf.
    """
    return Coefficients(body.tensor("coefficients", np.float32))


def _only(body: TensorBody, *names: str) -> TensorBody:
    if unknown := sorted(set(body.tensors) - set(names)):
        raise LayoutMismatch(f"the body holds tensors that have no place here: {unknown[:5]}; it takes {' and '.join(names)}")
    return body


def _read_log_likelihood(body: TensorBody, name: str) -> float:
    values = body.tensor(name, np.float64)
    if values.shape != (1,):
        raise LayoutMismatch(f"a log-likelihood is one number, got shape {values.shape}")
    if not np.isfinite(values[0]):
        raise NonFinite("a log-likelihood that is NaN or infinite says nothing; send a finite number")
    if values[0] > 0:
        raise Malformed("a log-likelihood is the logarithm of a probability: 0 at the most")
    return float(values[0])


def _read_confidence(body: TensorBody, name: str, confusion: Counts) -> ConfidenceBins:
    confidence = ConfidenceBins.unpacked(body.tensor(name, np.uint16, np.uint32))
    if (confidence.texts, confidence.correct) != (int(confusion.sum()), int(np.trace(confusion))):
        raise Malformed("the confidence bins hold other numbers of texts and of correct ones than the confusion counts")
    return confidence


def read_label_probabilities(body: TensorBody, name: str = "label_probabilities") -> Float32:
    """Read the label probabilities of a body, float32, shape (labels,): non-negative numbers whose sum is 1.

    Raises:
        LayoutMismatch: it is not there, or of another dtype or number of axes.
        NonFinite: it holds NaN or Inf.
        Malformed: a number below 0, or a sum that is not 1.
    """
    means = body.tensor(name, np.float32)
    if means.ndim != 1:
        raise LayoutMismatch(f"label probabilities have one axis, the labels, got shape {means.shape}")
    if not np.isfinite(means).all():
        raise NonFinite("label probabilities that are NaN or infinite say nothing of a prior; send finite numbers")
    if (means < 0).any() or abs(float(means.sum(dtype=np.float64)) - 1) > SUM_TOLERANCE:
        raise Malformed("label probabilities are the mean over the held-out texts: numbers from 0 whose sum is 1")
    return means


def _meta(kind: type[Meta], parsed: TensorBody) -> Meta:
    try:
        return kind.model_validate(dict(parsed.metadata))
    except ValidationError as reason:
        raise Malformed(f"the body's metadata is not what a {kind.__name__} holds: {describe_errors(reason.errors())}") from reason

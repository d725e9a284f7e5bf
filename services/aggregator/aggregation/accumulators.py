"""Accumulators: from the bodies of contributions, added one at a time in the order of client names, to the body of the aggregate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ifed.messages.bodies import (
    OTHER_READINGS,
    HeldOutCounts,
    head_tensors,
    read_coefficients,
    read_context,
    read_head,
    read_standardization,
    standardization_tensors,
)
from ifed.messages.enums import HeadQuestion, RoundKind
from ifed.messages.rounds import Reading, ReadingResult
from ifed.messages.tasks import Policy
from ifed.tensors.confidence import ConfidenceBins
from ifed.tensors.confusion import has_confusion
from ifed.tensors.label_prior import bias_of
from ifed.tensors.regression import Standardization
from ifed.tensors.updates import apply_update, read_update
from ifed.tensors.values import Coefficients, ContextVector, Float32, Float64, TensorBody
from services.aggregator.aggregation.robust import coordinate_median
from services.aggregator.aggregation.rules import Reducer, WeightedMean
from services.aggregator.aggregation.server_optimizers import Moments, ServerOptimizer
from services.aggregator.aggregation.sketch import sketch
from services.aggregator.domain.evaluation import ConfusionMatrix, EvaluationResult, label_results
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task


@dataclass(frozen=True, slots=True)
class StartingVersion:
    """The version that a calibration round starts from.

    Attributes:
        coefficients: the body of the version.
        moments: the body of the moments of the server optimiser after it; None where it keeps none.
        calibrated: the calibration rounds behind it in a row.
    """

    coefficients: bytes
    moments: bytes | None = None
    calibrated: int = 0


@dataclass(frozen=True, slots=True)
class AggregationResult:
    """The result of a round.

    Attributes:
        body: the aggregate as it travels; None for an evaluation round.
        weight: the number of examples behind it.
        evaluation: of the version that the round started from.
        moments: the body of the moments of the server optimiser for the next round.
        sketch: of a context vector.
        changes: the number of additions and withdrawals that a context vector reflects.
        next_question: of a head round that did not end its solution: what is asked next, and its query.
    """

    body: bytes | None
    weight: int
    evaluation: EvaluationResult | None
    moments: bytes | None = None
    sketch: tuple[float, ...] | None = None
    changes: int = 0
    next_question: tuple[HeadQuestion, bytes] | None = None


class ContextAccumulator:
    """Accumulates a context vector. The same parts of the same clients give the same bytes, whenever each of them arrived.

    The parts of a client must be added one after the other. They are first averaged by examples, and the mean counts with all of their
    examples: so a rule sees every client once, the cap of weights applies to clients, and a client that adds demonstrations later
    counts as if it had sent all of them at once.
    """

    def __init__(self, task: str, number: int, policy: Policy) -> None:
        self._task, self._number = task, number
        self._reducer = Reducer(policy)
        self._client: str | None = None
        self._parts: list[tuple[Float32, int]] = []
        self._standardizations: list[Standardization] = []

    def add(self, client: str, weight: int, body: bytes) -> None:
        """Add one part."""
        if client != self._client:
            self._add_client()
        self._client = client
        parsed = TensorBody.from_bytes(body)
        if (standardization := read_standardization(parsed)) is not None:
            self._standardizations.append(standardization)
        self._parts.append((read_context(parsed).values, weight))

    def _add_client(self) -> None:
        if len(self._parts) == 1:
            self._reducer.add(*self._parts[0])
        elif self._parts:
            mean = WeightedMean()
            for values, weight in self._parts:
                mean.add(values, weight)
            self._reducer.add(mean.value(), mean.weight)
        self._parts = []

    def summed(self) -> AggregationResult:
        """Return the context vector, float16 where its values allow, and its sketch.

        Raises:
            WrongState: there are no parts, or fewer clients than the rule needs.
        """
        self._add_client()
        value, examples = self._reducer.value(), self._reducer.examples
        metadata = {"task": self._task, "round": self._number, "examples": examples}
        body = context_body(value, metadata, median_standardization(self._standardizations))
        return AggregationResult(body, examples, None, sketch=tuple(float(number) for number in sketch(value)))


class EvaluationAccumulator:
    """Accumulates what clients report of one version and one way of reading its labels on their held-out examples."""

    def __init__(self, labels: int) -> None:
        self._confusion = ConfusionMatrix(labels)
        # Of the clients that sent label probabilities alone.
        self._label_counts, self._label_probabilities = np.zeros(labels, dtype=np.int64), WeightedMean()
        self._log_likelihood, self._with_likelihood = 0.0, 0
        self._confidence = ConfidenceBins()

    def add(self, counts: HeldOutCounts) -> None:
        """Add the report of one client."""
        self._confusion.add(counts.confusion)
        examples = int(counts.confusion.sum())
        if counts.label_probabilities is not None:
            self._label_counts += counts.confusion.sum(axis=1, dtype=np.int64)
            self._label_probabilities.add(counts.label_probabilities, examples)
        if counts.log_likelihood is not None:
            self._log_likelihood += counts.log_likelihood
            self._with_likelihood += examples
        if counts.confidence is not None:
            self._confidence += counts.confidence

    def result(self) -> EvaluationResult | None:
        """Return the evaluation, with a likelihood and with confidence bins if every client sent them; None without held-out examples."""
        evaluation = self._confusion.measure()
        if evaluation is None:
            return None
        evaluation = replace(evaluation, labels=tuple(label_results(self._confusion.counts)))
        if self._confidence.texts == evaluation.examples:
            evaluation = replace(evaluation, confidence=self._confidence)
        if self._with_likelihood == evaluation.examples:
            evaluation = replace(evaluation, log_likelihood=self._log_likelihood / self._with_likelihood)
        if self._label_probabilities.weight == 0:
            return evaluation
        bias = bias_of(self._label_probabilities.value(), self._label_counts)
        return replace(evaluation, label_bias=bias)


class RoundAccumulator:
    """Accumulates a calibration or evaluation round. The same contributions and the same start give the same bytes."""

    def __init__(self, round_: Round, labels: int, policy: Policy, start: StartingVersion | None = None) -> None:
        self._round, self._policy, self._start = round_, policy, start
        self._evaluation = EvaluationAccumulator(labels)
        self._others = {reading: EvaluationAccumulator(labels) for reading in OTHER_READINGS}
        self._start_values = None if start is None else _values(start.coefficients)
        self._reducer = Reducer(policy, self._origin())

    def _origin(self) -> Float64 | None:
        """Return what updates are measured from: the start for coefficients, 0 for gradients."""
        if self._start_values is None or self._policy.mode == "coefficients":
            return self._start_values
        return np.zeros_like(self._start_values)

    def add(self, weight: int, body: bytes) -> None:
        """Add one contribution with its number of examples."""
        parsed = TensorBody.from_bytes(body)
        self._evaluation.add(HeldOutCounts.read(parsed))
        for reading, evaluation in self._others.items():
            if has_confusion(parsed, f"{reading}_"):
                evaluation.add(HeldOutCounts.read(parsed, f"{reading}_"))
        if self._round.kind is RoundKind.CALIBRATION:
            self._reducer.add(self._update(parsed), weight)

    def _update(self, parsed: TensorBody) -> Float32 | Float64:
        """Return the coefficients of the client after its local work, or in gradient mode its gradient."""
        update = read_update(parsed)
        assert update is not None, "a calibration round stores contributions with an update alone"
        assert self._start_values is not None, "a calibration round starts from a version"
        return apply_update(update, self._start_values)

    def summed(self) -> AggregationResult:
        """Return the coefficients in float32 and the evaluation, or the evaluation alone in an evaluation round.

        Raises:
            WrongState: there are too few contributions for the rule, or none that carries weight.
        """
        evaluation = self._best_reading()
        if self._round.kind is RoundKind.EVALUATION:
            return AggregationResult(None, 0, evaluation)
        values, moments = self._step()
        metadata = {"task": self._round.task, "round": self._round.number, "examples": self._reducer.examples}
        head = None if self._start is None else read_head(TensorBody.from_bytes(self._start.coefficients))
        tensors = {"coefficients": Coefficients(values.astype(np.float32)).values} | head_tensors(head)
        body = TensorBody(tensors, metadata).to_bytes()
        return AggregationResult(body, self._reducer.examples, evaluation, None if moments is None else _moments_body(moments))

    def _step(self) -> tuple[Float64, Moments | None]:
        reduced, optimizer = self._reducer.value(), self._optimizer()
        gradient = self._policy.mode == "gradient"
        if optimizer.plain and not gradient:
            return reduced, None
        assert self._start_values is not None, "a calibration round starts from a version"
        update = -reduced if gradient else reduced - self._start_values
        moments = None if self._start is None or self._start.moments is None else _read_moments(self._start.moments)
        return optimizer.step(self._start_values, update, moments)

    def _optimizer(self) -> ServerOptimizer:
        policy = self._policy
        return ServerOptimizer(
            policy.server_optimizer,
            policy.server_rate_at(0 if self._start is None else self._start.calibrated),
            momentum=policy.server_momentum,
            second_momentum=policy.server_second_momentum,
            adaptivity=policy.server_adaptivity,
        )

    def _best_reading(self) -> EvaluationResult | None:
        """Return the evaluation; where the labels were read in several ways, that of the highest likelihood, with the results of each."""
        own = self._evaluation.result()
        by_reading: dict[Reading, EvaluationResult | None] = {"head": own}
        by_reading |= {reading: other.result() for reading, other in self._others.items()}
        measured = {
            reading: (evaluation, evaluation.log_likelihood)
            for reading, evaluation in by_reading.items()
            if evaluation is not None and evaluation.log_likelihood is not None
        }
        if len(measured) <= 1:
            return own
        best = max(measured, key=lambda reading: measured[reading][1])
        readings = tuple(
            ReadingResult(
                reading=reading,
                accuracy=result.accuracy,
                macro_f1=result.macro_f1,
                log_likelihood=likelihood,
                expected_calibration_error=result.expected_calibration_error,
            )
            for reading, (result, likelihood) in measured.items()
        )
        return replace(measured[best][0], reading=best, readings=readings)


def context_body(values: Float64, metadata: dict[str, object], standardization: Standardization | None = None) -> bytes:
    """Return the body of a context vector."""
    tensors = {"context": ContextVector(values.astype(np.float32)).wire()} | standardization_tensors(standardization)
    return TensorBody(tensors, metadata).to_bytes()


def median_standardization(standardizations: Sequence[Standardization]) -> Standardization | None:
    """Return the median by channel of what clients measured on the same public texts; None when no client sent any.

    It is the same at every client but for rounding; the median keeps a minority from moving it.
    """
    if not standardizations:
        return None
    mean = coordinate_median(np.stack([one.mean for one in standardizations]))
    deviation = coordinate_median(np.stack([one.deviation for one in standardizations]))
    return Standardization(mean.astype(np.float32), deviation.astype(np.float32))


def first_coefficients(task: Task, round_: Round) -> bytes:
    """Return the body of version 0: λ as the policy says, β = 1."""
    assert task.spec.identity is not None, "a round closed before anyone joined"
    layout = task.spec.layout(task.spec.identity)
    first = Coefficients.identity(len(layout.layers), layout.groups, context_weight=task.spec.policy.initial_context_weight)
    return TensorBody({"coefficients": first.values}, {"task": round_.task, "round": round_.number, "examples": 0}).to_bytes()


def _values(body: bytes) -> Float64:
    return read_coefficients(TensorBody.from_bytes(body)).values.astype(np.float64)


def _moments_body(moments: Moments) -> bytes:
    tensors = {"first": moments.first} | ({} if moments.second is None else {"second": moments.second})
    return TensorBody(tensors, {}).to_bytes()


def _read_moments(body: bytes) -> Moments:
    parsed = TensorBody.from_bytes(body)
    second = parsed.tensor("second", np.float64) if "second" in parsed.tensors else None
    return Moments(parsed.tensor("first", np.float64), second)

"""Contributions' bodies in, the aggregate's body out, one at a time in client-id order. Knows no database and no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ifed.messages.bodies import read_coefficients, read_context, read_gradient, read_label_probabilities
from ifed.messages.enums import RoundKind
from ifed.messages.tasks import Policy
from ifed.tensors.label_prior import bias_of
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.values import Coefficients, ContextVector, Float32, Int64, TensorBody
from services.aggregator.aggregation.rules import Reducer, WeightedMean
from services.aggregator.aggregation.server_optimizers import Moments, ServerOptimizer
from services.aggregator.aggregation.sketch import sketch
from services.aggregator.domain.evaluation import ConfusionMatrix, EvaluationResult, Float64
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task


@dataclass(frozen=True, slots=True)
class Start:
    """Where a calibration round sets out from.

    Attributes:
        coefficients: body of the version it starts from.
        moments: body of what the server's optimiser remembers at that version; None where it remembers nothing.
        calibrated: calibration rounds behind that version.
    """

    coefficients: bytes
    moments: bytes | None = None
    calibrated: int = 0


@dataclass(frozen=True, slots=True)
class AggregationResult:
    """What a round gave.

    Attributes:
        body: its aggregate, as it travels; None for an evaluation.
        weight: examples behind it.
        evaluation: the measure of the version it started from.
        moments: what the server's optimiser remembers for the next round.
        sketch: of a context vector.
        changes: of what it is made of, that a context vector reflects.
    """

    body: bytes | None
    weight: int
    evaluation: EvaluationResult | None
    moments: bytes | None = None
    sketch: tuple[float, ...] | None = None
    changes: int = 0


class ContextAccumulator:
    """The running sum of a context vector. The same parts of the same clients give the same bytes, whenever each of them came.

    A client's parts must come one after the other. They become one vector first, their mean by examples, which then counts with all
    of its examples: so a rule sees every client once, a cap of weights holds for clients, and one that adds demonstrations counts
    as if it had sent all of them at once.
    """

    def __init__(self, task: str, number: int, policy: Policy) -> None:
        self._task, self._number = task, number
        self.combination = Reducer(policy)
        self._client: str | None = None
        self._parts: list[tuple[Float32, int]] = []

    def add(self, client: str, weight: int, body: bytes) -> None:
        """Add one part."""
        if client != self._client:
            self._end_client()
        self._client = client
        self._parts.append((read_context(TensorBody.from_bytes(body)).values, weight))

    def _end_client(self) -> None:
        if len(self._parts) == 1:
            self.combination.add(*self._parts[0])
        elif self._parts:
            mean = WeightedMean()
            for values, weight in self._parts:
                mean.add(values, weight)
            self.combination.add(mean.value(), mean.weight)
        self._parts = []

    def summed(self) -> AggregationResult:
        """The vector, float16 where its values allow, and its sketch.

        Raises:
            WrongState: no part, or fewer clients than the rule needs.
        """
        self._end_client()
        value, examples = self.combination.value(), self.combination.examples
        body = context_body(value, {"task": self._task, "round": self._number, "examples": examples})
        return AggregationResult(body, examples, None, sketch=tuple(float(number) for number in sketch(value)))


class RoundAccumulator:
    """The running sums of a calibration or evaluation round. The same contributions and the same start give the same bytes."""

    def __init__(self, round_: Round, labels: int, policy: Policy, start: Start | None = None) -> None:
        self._round, self._policy, self._start = round_, policy, start
        self._confusion, self._told_of, self._label_probabilities = ConfusionMatrix(labels), ConfusionMatrix(labels), WeightedMean()
        self._from = None if start is None else _values(start.coefficients)
        self.combination = Reducer(policy, self._origin())

    def _origin(self) -> Float64 | None:
        """What updates are measured from: the start for coefficients, nothing for gradients."""
        if self._from is None or self._policy.mode == "coefficients":
            return self._from
        return np.zeros_like(self._from)

    def add(self, weight: int, body: bytes) -> None:
        """Add one contribution."""
        parsed = TensorBody.from_bytes(body)
        counts: Int64 = parsed.tensors["confusion"]
        self._confusion.add(counts)
        if "label_probabilities" in parsed.tensors:
            self._told_of.add(counts)
            self._label_probabilities.add(read_label_probabilities(parsed), int(counts.sum()))
        if self._round.kind is RoundKind.CALIBRATION:
            self.combination.add(self._update(parsed), weight)

    def _update(self, parsed: TensorBody) -> Float32 | Float64:
        """The coefficients a client came to, or in gradient mode its gradient."""
        if self._policy.mode == "gradient":
            return read_gradient(parsed).values
        if self._policy.update_dtype == "float32":
            return read_coefficients(parsed).values
        assert self._from is not None, "a change is measured from a version"
        return self._from + QuantizedUpdate.read(parsed).restored()

    def summed(self) -> AggregationResult:
        """The aggregate: float32 for coefficients, nothing for an evaluation."""
        evaluation = self._evaluation()
        if self._round.kind is RoundKind.EVALUATION:
            return AggregationResult(None, 0, evaluation)
        after, moments = self._step()
        body = TensorBody({"coefficients": Coefficients(after.astype(np.float32)).values}, self._said()).to_bytes()
        return AggregationResult(body, self.combination.examples, evaluation, None if moments is None else _moments_body(moments))

    def _step(self) -> tuple[Float64, Moments | None]:
        combined, optimizer = self.combination.value(), self._optimizer()
        gradient = self._policy.mode == "gradient"
        if optimizer.plain and not gradient:
            return combined, None
        assert self._from is not None, "a calibration round starts from a version"
        update = -combined if gradient else combined - self._from
        moments = None if self._start is None or self._start.moments is None else _read_moments(self._start.moments)
        return optimizer.step(self._from, update, moments)

    def _optimizer(self) -> ServerOptimizer:
        policy = self._policy
        return ServerOptimizer(
            policy.server_optimizer,
            policy.server_rate_at(0 if self._start is None else self._start.calibrated),
            momentum=policy.server_momentum,
            second_momentum=policy.server_second_momentum,
            adaptivity=policy.server_adaptivity,
        )

    def _evaluation(self) -> EvaluationResult | None:
        found = self._confusion.measure()
        if found is None or self._label_probabilities.weight == 0:
            return found
        return replace(found, label_bias=bias_of(self._label_probabilities.value(), self._told_of.counts.sum(axis=1)))

    def _said(self) -> dict[str, object]:
        return {"task": self._round.task, "round": self._round.number, "examples": self.combination.examples}


def context_body(values: Float64, said: dict[str, object]) -> bytes:
    """A context vector as it travels."""
    return TensorBody({"context": ContextVector(values.astype(np.float32)).wire()}, said).to_bytes()


def first_coefficients(task: Task, round_: Round) -> bytes:
    """The body of version 0: λ as the policy says, β = 1."""
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

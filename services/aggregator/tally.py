"""Contributions' bodies in, the aggregate's body out, one at a time in client-id order. Knows no database and no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ifed.bodies import read_coefficients, read_context, read_gradient, read_label_scores
from ifed.states import RoundKind
from ifed.tasks import Policy
from ifed.tensors import Coefficients, ContextVector, Int64, TensorBody
from services.aggregator.aggregation import ConfusionTotal, Float64, Measure, WeightedMean
from services.aggregator.combination import Combination
from services.aggregator.domain import Round
from services.aggregator.records import FederatedTask
from services.aggregator.server_optimizers import Moments, ServerOptimizer
from services.aggregator.sketches import sketch


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
class Summed:
    """What a round gave.

    Attributes:
        body: its aggregate, as it travels; None for an evaluation.
        weight: examples behind it.
        evaluation: the measure of the version it started from.
        moments: what the server's optimiser remembers for the next round.
        sketch: of a context vector.
    """

    body: bytes | None
    weight: int
    evaluation: Measure | None
    moments: bytes | None = None
    sketch: tuple[float, ...] | None = None


class Tally:
    """The running sums of one round. The same contributions and the same start give the same bytes."""

    def __init__(self, round_: Round, labels: int, policy: Policy, start: Start | None = None) -> None:
        self._round, self._policy, self._start = round_, policy, start
        self._confusion, self._label_scores = ConfusionTotal(labels), WeightedMean()
        self._from = None if start is None else _values(start.coefficients)
        self.combination = Combination(policy, self._origin())

    def _origin(self) -> Float64 | None:
        """What updates are measured from: the start for coefficients, nothing for gradients, no origin for context vectors."""
        if self._from is None or self._policy.mode == "coefficients":
            return self._from
        return np.zeros_like(self._from)

    def add(self, weight: int, body: bytes) -> None:
        """Add one contribution."""
        parsed = TensorBody.from_bytes(body)
        if self._round.kind is RoundKind.CONTEXT:
            self.combination.add(read_context(parsed).values, weight)
            return
        counts: Int64 = parsed.tensors["confusion"]
        self._confusion.add(counts)
        if "label_scores" in parsed.tensors:
            self._label_scores.add(read_label_scores(parsed), int(counts.sum()))
        if self._round.kind is RoundKind.CALIBRATION:
            read = read_gradient if self._policy.mode == "gradient" else read_coefficients
            self.combination.add(read(parsed).values, weight)

    def summed(self) -> Summed:
        """The aggregate: float16 for a context vector where its values allow, float32 for coefficients, nothing for an evaluation."""
        evaluation, moments = self._evaluation(), None
        match self._round.kind:
            case RoundKind.CONTEXT:
                value = self.combination.value()
                short = tuple(float(number) for number in sketch(value))
                return Summed(context_body(value, self._said()), self.combination.examples, evaluation, sketch=short)
            case RoundKind.CALIBRATION:
                after, moments = self._step()
                tensors = {"coefficients": Coefficients(after.astype(np.float32)).values}
            case RoundKind.EVALUATION:
                return Summed(None, 0, evaluation)
        body = TensorBody(tensors, self._said()).to_bytes()
        return Summed(body, self.combination.examples, evaluation, None if moments is None else _moments_body(moments))

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

    def _evaluation(self) -> Measure | None:
        found = self._confusion.measure()
        if found is None or self._label_scores.weight == 0:
            return found
        return replace(found, label_bias=tuple(float(score) for score in self._label_scores.value()))

    def _said(self) -> dict[str, object]:
        return {"task": self._round.task, "round": self._round.number, "examples": self.combination.examples}


def context_body(values: Float64, said: dict[str, object]) -> bytes:
    """A context vector as it travels."""
    return TensorBody({"context": ContextVector(values.astype(np.float32)).wire()}, said).to_bytes()


def first_coefficients(task: FederatedTask, round_: Round) -> bytes:
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

"""The request bodies of clients, and the aggregator's own arithmetic on them, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from ifed.messages.bodies import ContextBody, UpdateBody, read_coefficients, read_context
from ifed.messages.enums import RoundKind
from ifed.messages.rounds import ContributionMeta
from ifed.messages.tasks import Policy
from ifed.modeling.calibration import LocalGradient, LocalResult
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.updates import Update
from ifed.tensors.values import Coefficients, ContextVector, Float32, Gradient, Int64, TensorBody
from services.aggregator.aggregation.accumulators import AggregationResult, ContextAccumulator, RoundAccumulator, StartingVersion
from services.aggregator.domain.round import Round

TASK = "benchmark"
SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)  # the times of the rounds do not affect any sum


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """A client's evaluation, on its held-out examples, of the version that a round starts from.

    Attributes:
        confusion: counts, int64, (C, C); rows are the true labels.
        label_probabilities: mean over the examples, float32, (C,); None where they are not sent.
    """

    confusion: Int64
    label_probabilities: Float32 | None


class InProcessAggregator:
    """Encode contributions as request bodies, and aggregate such bodies as the aggregator does.

    Args:
        fingerprint: of the clients' model.
        labels: number of labels of the task.
    """

    def __init__(self, fingerprint: str, labels: int) -> None:
        self._fingerprint, self._labels = fingerprint, labels

    def context_body(self, vector: ContextVector, examples: int) -> bytes:
        """Encode a client's context vector."""
        return ContextBody(vector, self._meta(examples)).to_bytes()

    def update_body(
        self,
        work: LocalResult | LocalGradient | None,
        held_out: HeldOutResult,
        examples: int,
        version: int,
        *,
        change: QuantizedUpdate | None = None,
    ) -> bytes:
        """Encode a client's contribution to a calibration round or, without `work`, to the evaluation.

        Args:
            change: sent in place of the coefficients of `work`.
        """
        update: Update | None = change
        if isinstance(work, LocalGradient):
            update = Gradient(work.values)
        elif work is not None and change is None:
            update = work.coefficients
        meta = self._meta(examples, version=version, loss=None if work is None else work.loss)
        means = held_out.label_probabilities
        return UpdateBody(update, held_out.confusion, meta, label_probabilities=means).to_bytes()

    def aggregate_context(self, bodies: Sequence[bytes]) -> tuple[ContextVector, int]:
        """Return the global context vector, and the size of its body in bytes."""
        accumulator = ContextAccumulator(TASK, 1, Policy(clients_expected=len(bodies)))
        for rank, body in enumerate(bodies):
            accumulator.add(f"client-{rank:02}", _weight(body), body)
        total = accumulator.summed().body
        assert total is not None
        return read_context(TensorBody.from_bytes(total)), len(total)

    def aggregate_updates(self, policy: Policy, bodies: Sequence[bytes], start: StartingVersion) -> AggregationResult:
        """Return the result of a calibration round."""
        return self._aggregate(RoundKind.CALIBRATION, policy, bodies, start)

    def aggregate_evaluations(self, policy: Policy, bodies: Sequence[bytes]) -> AggregationResult:
        """Return the result of an evaluation round."""
        return self._aggregate(RoundKind.EVALUATION, policy, bodies, None)

    def _aggregate(
        self, kind: RoundKind, policy: Policy, bodies: Sequence[bytes], start: StartingVersion | None
    ) -> AggregationResult:
        round_ = Round(TASK, 1, kind, SOME_TIME, SOME_TIME, expected=len(bodies), required=len(bodies), version=0)
        accumulator = RoundAccumulator(round_, self._labels, policy, start)
        for body in bodies:
            accumulator.add(_weight(body), body)
        return accumulator.summed()

    def _meta(self, examples: int, *, version: int | None = None, loss: float | None = None) -> ContributionMeta:
        return ContributionMeta(fingerprint=self._fingerprint, examples=examples, version=version, loss=loss, seconds=0.0)


def coefficients_body(coefficients: Coefficients) -> bytes:
    """Encode coefficients as the aggregator sends them."""
    return TensorBody({"coefficients": coefficients.values}, {"task": TASK, "round": 1, "examples": 0}).to_bytes()


def parse_coefficients(body: bytes) -> Coefficients:
    """Decode coefficients that the aggregator sends."""
    values: Float32 = np.array(read_coefficients(TensorBody.from_bytes(body)).values)
    return Coefficients(values)


def _weight(body: bytes) -> int:
    return int(TensorBody.from_bytes(body).metadata["examples"])

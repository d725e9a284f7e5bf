"""The bodies that clients and aggregator exchange, and the aggregator's own arithmetic on them. Opens no socket."""

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
from ifed.tensors.values import Coefficients, ContextVector, Float32, Gradient, Int64, TensorBody
from services.aggregator.aggregation.accumulators import AggregationResult, ContextAccumulator, RoundAccumulator, Start
from services.aggregator.domain.round import Round

TASK = "benchmark"
ALWAYS = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a client found of the version a round starts from: confusion counts and mean label probabilities on its held-out examples."""

    confusion: Int64
    label_probabilities: Float32 | None


class Wire:
    """Contributions as bodies, and rounds of bodies as aggregates.

    Args:
        fingerprint: of the clients' model.
        labels: how many the task has.
    """

    def __init__(self, fingerprint: str, labels: int) -> None:
        self._fingerprint, self._labels = fingerprint, labels

    def context(self, vector: ContextVector, examples: int) -> bytes:
        """A client's context vector as it travels."""
        return ContextBody(vector, self._meta(examples)).to_bytes()

    def update(
        self,
        work: LocalResult | LocalGradient | None,
        measured: Measured,
        examples: int,
        version: int,
        *,
        change: QuantizedUpdate | None = None,
    ) -> bytes:
        """A client's contribution to a calibration round, or to the evaluation when it did no work.

        Args:
            change: travels in place of the coefficients the work came to.
        """
        coefficients = work.coefficients if isinstance(work, LocalResult) and change is None else None
        gradient = Gradient(work.values) if isinstance(work, LocalGradient) else None
        meta = self._meta(examples, version=version, loss=None if work is None else work.loss)
        means = measured.label_probabilities
        return UpdateBody(
            coefficients, measured.confusion, meta, gradient=gradient, change=change, label_probabilities=means
        ).to_bytes()

    def global_context(self, bodies: Sequence[bytes]) -> tuple[ContextVector, int]:
        """The global context vector, and the bytes of its body."""
        tally = ContextAccumulator(TASK, 1, Policy(clients_expected=len(bodies)))
        for rank, body in enumerate(bodies):
            tally.add(f"client-{rank:02}", _weight(body), body)
        made = tally.summed().body
        assert made is not None
        return read_context(TensorBody.from_bytes(made)), len(made)

    def calibration(self, policy: Policy, bodies: Sequence[bytes], start: Start) -> AggregationResult:
        """What a calibration round of the aggregator gives."""
        return self._sum(RoundKind.CALIBRATION, policy, bodies, start)

    def evaluation(self, policy: Policy, bodies: Sequence[bytes]) -> AggregationResult:
        """What an evaluation round gives."""
        return self._sum(RoundKind.EVALUATION, policy, bodies, None)

    def _sum(self, kind: RoundKind, policy: Policy, bodies: Sequence[bytes], start: Start | None) -> AggregationResult:
        round_ = Round(TASK, 1, kind, ALWAYS, ALWAYS, expected=len(bodies), required=len(bodies), version=0)
        tally = RoundAccumulator(round_, self._labels, policy, start)
        for body in bodies:
            tally.add(_weight(body), body)
        return tally.summed()

    def _meta(self, examples: int, *, version: int | None = None, loss: float | None = None) -> ContributionMeta:
        return ContributionMeta(fingerprint=self._fingerprint, examples=examples, version=version, loss=loss, seconds=0.0)


def body_of(coefficients: Coefficients) -> bytes:
    """Coefficients as the aggregator gives them out."""
    return TensorBody({"coefficients": coefficients.values}, {"task": TASK, "round": 1, "examples": 0}).to_bytes()


def coefficients_of(body: bytes) -> Coefficients:
    """The coefficients of a body."""
    values: Float32 = np.array(read_coefficients(TensorBody.from_bytes(body)).values)
    return Coefficients(values)


def _weight(body: bytes) -> int:
    return int(TensorBody.from_bytes(body).metadata["examples"])

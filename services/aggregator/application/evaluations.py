"""The evaluation of a version in detail, computed from the confusion counts in its round's contributions."""

from __future__ import annotations

import asyncio

import numpy as np

from ifed.messages.evaluations import ClientEvaluation, EvaluationDetails, LabelEvaluation
from ifed.tensors.values import TensorBody
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.domain.evaluation import ConfusionMatrix, label_results
from services.aggregator.domain.round import Seat


class Evaluations:
    """What the contributions to a round say about the version that it started from."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def get(self, name: str, version: int) -> EvaluationDetails:
        """Return the newest evaluation of a version.

        Raises:
            UnknownTask: there is no task of this name.
            NothingYet: no closed round has evaluated this version.
        """
        async with self._dependencies.database.read_only() as work:
            task = await work.tasks.get(name)
            round_ = await work.rounds.evaluation_of(name, version)
            assert round_.evaluation is not None, "it was asked for because it has one"
            seats = (await work.rounds.seats(name, [round_.number]))[round_.number]
            matrix = ConfusionMatrix(len(task.spec.labels))
            async for _, _, body in work.rounds.bodies(name, round_.number):
                await asyncio.to_thread(_add, matrix, body)
        results = zip(task.spec.labels, label_results(matrix.counts), strict=True)
        return EvaluationDetails(
            **messages.evaluation(version, round_.evaluation).model_dump(),
            round=round_.number,
            labels=[
                LabelEvaluation(
                    label=label, texts=result.texts, predicted=result.predicted, precision=result.precision, recall=result.recall
                )
                for label, result in results
            ],
            confusion=matrix.counts.tolist(),
            clients=[client for seat in seats if (client := _client(seat)) is not None],
        )


def _add(matrix: ConfusionMatrix, body: bytes) -> None:
    matrix.add(TensorBody.from_bytes(body).tensor("confusion", np.int64))


def _client(seat: Seat) -> ClientEvaluation | None:
    """Return how well the version does for one client; None for one that evaluated nothing."""
    if (entry := seat.entry) is None or entry.correct is None or not entry.evaluated:
        return None
    return ClientEvaluation(
        client=seat.client, texts=entry.evaluated, correct=entry.correct, accuracy=entry.correct / entry.evaluated
    )

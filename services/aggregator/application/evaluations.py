"""The evaluation of a version in detail, computed from the confusion counts in its round's contributions."""

from __future__ import annotations

import asyncio

import numpy as np

from ifed.messages.bodies import OTHER_READINGS
from ifed.messages.evaluations import ClientEvaluation, EvaluationDetails
from ifed.messages.rounds import Reading
from ifed.tensors.confusion import Counts, has_confusion, read_confusion
from ifed.tensors.values import TensorBody
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.domain.evaluation import ConfusionMatrix, label_results


class Evaluations:
    """What the contributions to a round say about the version that it started from."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def get(self, name: str, version: int) -> EvaluationDetails:
        """Return the newest evaluation of a version, as its labels are read.

        Raises:
            UnknownTask: there is no task of this name.
            NothingYet: no closed round has evaluated this version.
        """
        clients: list[ClientEvaluation] = []
        async with self._dependencies.database.read_only() as work:
            task = await work.tasks.get(name)
            round_ = await work.rounds.evaluation_of(name, version)
            result = round_.evaluation
            assert result is not None, "it was asked for because it has one"
            matrix = ConfusionMatrix(len(task.spec.labels))
            async for client, _, body in work.rounds.bodies(name, round_.number):
                counts = await asyncio.to_thread(_counts, body, result.reading)
                if counts is None:
                    continue
                matrix.add(counts)
                if texts := int(counts.sum()):
                    clients.append(_client(client, texts, int(np.trace(counts))))
        summary = messages.evaluation(version, result).model_dump(exclude={"labels"})
        return EvaluationDetails(
            **summary,
            round=round_.number,
            labels=messages.label_evaluations(task.spec.labels, label_results(matrix.counts)),
            confusion=matrix.counts.tolist(),
            confidence=None if result.confidence is None else messages.confidence_bins(result.confidence),
            clients=clients,
        )


def _counts(body: bytes, reading: Reading | None) -> Counts | None:
    """Return the confusion counts of a contribution for one way of reading the labels; None where it has none for it."""
    parsed = TensorBody.from_bytes(body)
    prefix = f"{reading}_" if reading in OTHER_READINGS else ""
    return read_confusion(parsed, prefix) if has_confusion(parsed, prefix) else None


def _client(name: str, texts: int, correct: int) -> ClientEvaluation:
    return ClientEvaluation(client=name, texts=texts, correct=correct, accuracy=correct / texts)

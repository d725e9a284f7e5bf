"""The label head of clients' final states, solved by the product's messages and the aggregator's arithmetic, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifed.messages.bodies import HeadBody, HeadQuery, read_head
from ifed.messages.enums import HeadQuestion
from ifed.messages.rounds import ContributionMeta
from ifed.messages.tasks import Policy
from ifed.tensors.quantization import QuantizedRows
from ifed.tensors.regression import LabelHead, RegressionData, Standardization, log_likelihoods
from ifed.tensors.values import Coefficients, Float32, Float64, TensorBody
from services.aggregator.aggregation.head_accumulator import CombinedAnswers, next_query, solved_version

SOME_FINGERPRINT = "0" * 64  # no sum depends on it
NO_COEFFICIENTS = Coefficients(np.zeros((1, 2, 2, 1), dtype=np.float32))


@dataclass(frozen=True, slots=True)
class ClientStates:
    """One client's final states, or any other features, of its training and held-out texts.

    Attributes:
        training: (n, d).
        labels: of each training text.
        held_out: (h, d).
        held_out_labels: of each held-out text.
    """

    training: Float32
    labels: Sequence[int]
    held_out: Float32
    held_out_labels: Sequence[int]


@dataclass(frozen=True, slots=True)
class SolvedHead:
    """A head and what it cost.

    Attributes:
        bodies_up: bytes of the body of a client's answer, one a round.
        bodies_down: bytes of the body of each question.
    """

    head: LabelHead
    bodies_up: list[int]
    bodies_down: list[int]


def solve_head(clients: Sequence[ClientStates], standardization: Standardization, labels: int, policy: Policy) -> SolvedHead:
    """Return the label head of all clients' training texts by the policy's solver, with ridge and temperature by their held-out texts."""
    standardized = [(standardization.apply(client.training), standardization.apply(client.held_out)) for client in clients]
    counts = np.bincount(np.concatenate([client.labels for client in clients]), minlength=labels)
    question = HeadQuestion.SUMS if policy.solver == "sums" else HeadQuestion.MOMENT
    query = HeadQuery(counts / counts.sum())
    rounds: list[CombinedAnswers] = []
    up, down = [], []
    while True:
        answers = CombinedAnswers(question, query, policy)
        bodies = [
            _answer(question, query, policy, client, states).to_bytes()
            for client, states in zip(clients, standardized, strict=True)
        ]
        for client, body in zip(clients, bodies, strict=True):
            held_out = question is HeadQuestion.LIKELIHOOD
            answers.add(len(client.held_out_labels if held_out else client.labels), body)
        up.append(max(map(len, bodies)))
        down.append(len(query.to_bytes()))
        if question is HeadQuestion.LIKELIHOOD:
            body = solved_version(answers, NO_COEFFICIENTS, standardization, {})
            head = read_head(TensorBody.from_bytes(body))
            assert head is not None, "a solved version carries its head"
            return SolvedHead(head, up, down)
        rounds.append(answers)
        question, query = next_query(rounds, policy)


def _answer(
    question: HeadQuestion, query: HeadQuery, policy: Policy, client: ClientStates, states: tuple[Float64, Float64]
) -> HeadBody:
    """Return a client's answer, as its agent gives it."""
    training, held_out = states
    dtype = policy.update_dtype
    if question is HeadQuestion.LIKELIHOOD:
        assert query.candidates is not None
        assert query.temperatures is not None
        sums = log_likelihoods(held_out, client.held_out_labels, query.candidates, query.shares, query.temperatures.tolist())
        return HeadBody(_meta(len(client.held_out_labels)), log_likelihoods=sums)
    data, meta = RegressionData(training, client.labels, query.shares), _meta(len(client.labels))
    if question is HeadQuestion.SUMS:
        gram = data.gram().astype(np.float32 if dtype == "float32" else np.float16)
        return HeadBody(meta, QuantizedRows.of(data.moment, "float32"), gram=gram)
    if question is HeadQuestion.MOMENT:
        return HeadBody(meta, QuantizedRows.of(data.moment, dtype))
    assert query.directions is not None
    return HeadBody(meta, QuantizedRows.of(data.product(query.directions), dtype))


def _meta(examples: int) -> ContributionMeta:
    return ContributionMeta(fingerprint=SOME_FINGERPRINT, examples=examples, seconds=0.0)

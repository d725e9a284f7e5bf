"""The label head of ten clients against numpy's solution of their pooled data."""

from __future__ import annotations

import numpy as np
import pytest

from ifed.errors import LayoutMismatch, WrongState
from ifed.messages.bodies import HeadBody, HeadQuery
from ifed.messages.enums import HeadQuestion
from ifed.messages.rounds import ContributionMeta
from ifed.messages.tasks import Policy
from ifed.tensors.quantization import QuantizedRows, RowsDType
from ifed.tensors.regression import (
    RIDGES,
    TEMPERATURES,
    RegressionData,
    Standardization,
    contrasts,
    full_matrix,
    log_likelihoods,
)
from ifed.tensors.values import Coefficients, Float64, TensorBody
from services.aggregator.aggregation.head_accumulator import CombinedAnswers, next_query, solved_version
from services.aggregator.aggregation.head_solver import KrylovSolver, best_candidate, solve_sums

CHANNELS, LABELS, RIDGE = 40, 4, 0.3


class Clients:
    """Ten clients with states of a falling spectrum, of which some have one label alone."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        turn = np.linalg.qr(generator.normal(size=(CHANNELS, CHANNELS)))[0]
        self.states = generator.normal(size=(400, CHANNELS)) * np.arange(1, CHANNELS + 1) ** -0.6 @ turn + 0.2
        self.labels = (self.states @ generator.normal(size=(CHANNELS, LABELS))).argmax(axis=1)
        order = np.argsort(self.labels, kind="stable")  # by label, so that the first clients have one label each
        self.parts = np.split(order, np.cumsum([60, 20, 50, 30, 70, 10, 40, 60, 35])) if seed == 0 else np.split(order, 10)
        self.shares = np.bincount(self.labels, minlength=LABELS) / len(self.labels)
        self.data = [RegressionData(self.states[part], self.labels[part].tolist(), self.shares) for part in self.parts]
        assert any(len(set(self.labels[part])) == 1 for part in self.parts)

    def pooled(self, ridge: float = RIDGE) -> Float64:
        """Return the head of the pooled data as numpy solves it, a weight for each label: (C, d)."""
        targets = np.eye(LABELS)[self.labels] - self.shares
        count = len(self.states)
        matrix = self.states.T @ self.states / count + ridge * np.eye(CHANNELS)
        return np.linalg.solve(matrix, self.states.T @ targets / count).T

    def mean(self, values: list[Float64]) -> Float64:
        return sum(len(part) * value for part, value in zip(self.parts, values, strict=True)) / len(self.states)


def meta(examples: int) -> ContributionMeta:
    return ContributionMeta(fingerprint="0" * 64, examples=examples, version=0)


def combined(question: HeadQuestion, query: HeadQuery, bodies: list[HeadBody], policy: Policy = Policy()) -> CombinedAnswers:
    answers = CombinedAnswers(question, query, policy)
    for body in bodies:
        answers.add(body.meta.examples, body.to_bytes())
    return answers


def solve(clients: Clients, policy: Policy, dtype: RowsDType) -> tuple[list[CombinedAnswers], HeadQuery]:
    """Run the rounds of a solution; return their answers and the candidates."""
    query, question = HeadQuery(clients.shares), HeadQuestion.MOMENT
    rounds: list[CombinedAnswers] = []
    while question is not HeadQuestion.LIKELIHOOD:
        rows = [data.moment if query.directions is None else data.product(query.directions) for data in clients.data]
        bodies = [
            HeadBody(meta(len(part)), QuantizedRows.of(values, dtype)) for part, values in zip(clients.parts, rows, strict=True)
        ]
        rounds.append(combined(question, query, bodies, policy))
        question, query = next_query(rounds, policy)
    return rounds, query


def test_contrasts_are_orthonormal_and_sum_to_zero() -> None:
    np.testing.assert_allclose(contrasts(5) @ contrasts(5).T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(contrasts(5).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(contrasts(2), [[2**-0.5, -(2**-0.5)]])


def test_sums_of_ten_clients_give_the_pooled_solution_to_rounding() -> None:
    clients = Clients()
    gram = full_matrix(clients.mean([data.gram() for data in clients.data]), CHANNELS)
    actual = contrasts(LABELS).T @ solve_sums(gram, clients.mean([data.moment for data in clients.data]), RIDGE)
    np.testing.assert_allclose(actual, clients.pooled(), rtol=1e-9, atol=1e-12)


def test_conjugate_gradients_give_the_pooled_solution_of_every_ridge() -> None:
    clients = Clients()
    rounds, query = solve(clients, Policy(head_rounds=20), "float32")
    assert query.candidates is not None
    assert len(rounds) - 1 <= CHANNELS // (LABELS - 1) + 1
    for ridge, candidate in zip(RIDGES, query.candidates, strict=True):
        expected, error = clients.pooled(ridge), 0.06 if ridge < RIDGE else 1e-3
        assert np.linalg.norm(contrasts(LABELS).T @ candidate - expected) < error * np.linalg.norm(expected)


def test_answers_in_eight_bits_come_close_in_few_rounds() -> None:
    clients = Clients()
    _, query = solve(clients, Policy(head_rounds=6), "int8")
    assert query.candidates is not None
    actual = contrasts(LABELS).T @ query.candidates[RIDGES.index(RIDGE)]
    assert np.linalg.norm(actual - clients.pooled()) < 0.1 * np.linalg.norm(clients.pooled())


def test_a_client_that_drops_out_leaves_nothing_in_the_solution_and_no_question_is_asked_twice() -> None:
    clients = Clients()
    policy = Policy(head_rounds=30)
    rounds, _ = solve(clients, policy, "float32")
    rest, data = clients.parts[1:], clients.data[1:]

    def answered(question: HeadQuestion, query: HeadQuery) -> CombinedAnswers:
        rows = [one.moment if query.directions is None else one.product(query.directions) for one in data]
        bodies = [HeadBody(meta(len(part)), QuantizedRows.of(values, "float32")) for part, values in zip(rest, rows, strict=True)]
        return combined(question, query, bodies, policy)

    of_rest = [answered(answers.question, answers.query) for answers in rounds]
    question, query = next_query(of_rest, policy)
    while question is HeadQuestion.PRODUCT:
        of_rest.append(answered(question, query))
        question, query = next_query(of_rest, policy)
    left = np.concatenate(rest)
    states, targets = clients.states[left], np.eye(LABELS)[clients.labels[left]] - clients.shares
    matrix = states.T @ states / len(left) + RIDGE * np.eye(CHANNELS)
    expected = np.linalg.solve(matrix, states.T @ targets / len(left)).T
    assert query.candidates is not None
    actual = contrasts(LABELS).T @ query.candidates[RIDGES.index(RIDGE)]
    assert np.linalg.norm(actual - expected) < 1e-3 * np.linalg.norm(expected)


def test_the_ridge_and_temperature_of_the_highest_held_out_likelihood_become_the_head() -> None:
    clients = Clients()
    _, query = solve(clients, Policy(head_rounds=20), "float32")
    assert query.candidates is not None
    assert query.temperatures is not None
    held_out = Clients(seed=1)
    sums = log_likelihoods(held_out.states, held_out.labels.tolist(), query.candidates, clients.shares, TEMPERATURES)
    answers = combined(HeadQuestion.LIKELIHOOD, query, [HeadBody(meta(400), log_likelihoods=sums)])
    ridge, temperature = answers.best
    assert sums[ridge, temperature] == sums.max()
    standardization = Standardization(np.full(CHANNELS, 0.5, dtype=np.float32), np.full(CHANNELS, 2.0, dtype=np.float32))
    body = TensorBody.from_bytes(solved_version(answers, Coefficients.identity(2, 4), standardization, {"round": 3}))
    raw = held_out.states * 2.0 + 0.5
    logits = raw @ body.tensors["head_weight"].T + body.tensors["head_bias"]
    scores = held_out.states @ (contrasts(LABELS).T @ query.candidates[ridge]).T + clients.shares
    np.testing.assert_allclose(logits, TEMPERATURES[temperature] * scores, rtol=1e-3, atol=1e-3)
    assert body.metadata["ridge"] == RIDGES[ridge]


def test_without_held_out_examples_the_head_has_the_default_ridge() -> None:
    clients = Clients()
    _, query = solve(clients, Policy(), "float32")
    nothing = np.zeros((len(RIDGES), len(TEMPERATURES)))
    assert combined(HeadQuestion.LIKELIHOOD, query, [HeadBody(meta(0), log_likelihoods=nothing)]).best[0] == RIDGES.index(0.3)


def test_the_candidates_of_a_thousand_labels_are_few_and_in_sixteen_bits_and_lose_nothing_that_matters() -> None:
    generator, labels, channels = np.random.default_rng(0), 1000, 220
    states, shares = generator.normal(size=(300, channels)), np.full(labels, 1 / labels)
    truths = generator.integers(labels, size=300).tolist()
    data = RegressionData(states, truths, shares)
    sums = HeadBody(meta(300), QuantizedRows.of(data.moment, "float32"), gram=data.gram())
    answered = combined(HeadQuestion.SUMS, HeadQuery(shares), [sums])
    question, query = next_query([answered], Policy(solver="sums"))
    assert question is HeadQuestion.LIKELIHOOD
    body = query.to_bytes()
    assert len(body) < 3 * 999 * channels * 2 + 10_000
    query = HeadQuery.from_bytes(body)
    assert query.candidates is not None
    likelihoods = log_likelihoods(states[:9], truths[:9], query.candidates, shares, TEMPERATURES)
    compared = combined(HeadQuestion.LIKELIHOOD, query, [HeadBody(meta(9), log_likelihoods=likelihoods)])
    place, temperature = compared.best
    assert likelihoods[place, temperature] == likelihoods.max()
    exact = solve_sums(answered.gram, answered.rows, compared.ridges[place])
    assert np.linalg.norm(query.candidates[place] - exact) < 1e-3 * np.linalg.norm(exact)
    standardization = Standardization(np.zeros(channels, np.float32), np.ones(channels, np.float32))
    made = TensorBody.from_bytes(solved_version(compared, Coefficients.identity(1, 4), standardization, {}))
    assert made.metadata["ridge"] == compared.ridges[place]
    assert made.tensors["head_weight"].shape == (labels, channels)


def test_with_more_labels_than_channels_one_round_of_products_is_the_pooled_solution() -> None:
    generator, labels, channels = np.random.default_rng(0), 60, 20
    states, shares = generator.normal(size=(200, channels)), np.full(labels, 1 / labels)
    data = RegressionData(states, generator.integers(labels, size=200).tolist(), shares)
    moment = HeadBody(meta(200), QuantizedRows.of(data.moment, "float32"))
    rounds = [combined(HeadQuestion.MOMENT, HeadQuery(shares), [moment])]
    question, query = next_query(rounds, Policy())
    assert question is HeadQuestion.PRODUCT
    assert query.directions is not None
    assert query.directions.shape == (channels, channels)
    rows = HeadBody(meta(200), QuantizedRows.of(data.product(query.directions), "float32"))
    question, candidates = next_query([*rounds, combined(question, query, [rows])], Policy())
    assert question is HeadQuestion.LIKELIHOOD
    assert candidates.candidates is not None
    exact = solve_sums(full_matrix(data.gram(), channels), data.moment, RIDGE)
    assert np.linalg.norm(candidates.candidates[RIDGES.index(RIDGE)] - exact) < 1e-3 * np.linalg.norm(exact)


def test_products_end_when_the_residual_is_negligible() -> None:
    moment = np.array([[1.0, 0.0, 0.0]])
    solver = KrylovSolver(moment, np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 0.0, 0.0]]))
    np.testing.assert_allclose(solver.solution(0.5), [[0.4, 0.0, 0.0]])
    assert solver.next_directions(0.5, most=3).shape == (0, 3)


def test_shapes_that_do_not_fit_and_a_ridge_of_zero_are_refused() -> None:
    with pytest.raises(LayoutMismatch):
        solve_sums(np.eye(3), np.ones((1, 4)), 1.0)
    with pytest.raises(WrongState):
        solve_sums(np.eye(3), np.ones((1, 3)), 0.0)
    with pytest.raises(LayoutMismatch):
        full_matrix(np.ones(5), 3)
    with pytest.raises(LayoutMismatch):
        best_candidate(np.zeros((1, 2)), RIDGES, TEMPERATURES)
    with pytest.raises(LayoutMismatch):
        KrylovSolver(np.ones((1, 3)), np.ones((2, 3)), np.ones((1, 3)))

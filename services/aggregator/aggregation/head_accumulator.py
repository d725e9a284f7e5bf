"""The answers of head rounds, combined, and what to ask next: from a task's first question to its label head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ifed.errors import Malformed
from ifed.messages.bodies import HeadBody, HeadQuery, head_tensors
from ifed.messages.enums import HeadQuestion
from ifed.messages.tasks import Policy
from ifed.tensors.regression import RIDGES, TEMPERATURES, LabelHead, Standardization, full_matrix
from ifed.tensors.values import Coefficients, Float64, TensorBody
from services.aggregator.aggregation.head_solver import KrylovSolver, best_candidate, solve_sums
from services.aggregator.aggregation.rules import Reducer

ASKED_RIDGE = 0.3  # the λ whose residual gives the next directions; near the best on all data sets tried
DEFAULT_RIDGE, DEFAULT_TEMPERATURE = 0.3, 6.0  # without held-out examples
LARGEST_CANDIDATES = 4 * 2**20  # bytes of a query's candidates; of more labels they are fewer and in float16
FEW_RIDGES = (0.1, 0.3, 1.0)


@dataclass(slots=True, eq=False)
class CombinedAnswers:
    """The answers to one head round, combined by the task's aggregation rule. They must be added in the order of client names.

    Attributes:
        question: what the round asked.
        query: its tensors.
    """

    question: HeadQuestion
    query: HeadQuery
    policy: Policy
    examples: int = 0
    _rows: Reducer = field(init=False)
    _gram: Reducer = field(init=False)
    _likelihoods: Float64 | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._rows, self._gram = Reducer(self.policy), Reducer(self.policy)

    def add(self, weight: int, body: bytes) -> None:
        """Add the answer of one client with its number of examples."""
        answer = HeadBody.from_bytes(body)
        self.examples += weight
        if answer.answer is not None:
            self._rows.add(answer.answer.restored(), weight)
        if answer.gram is not None:
            self._gram.add(answer.gram.astype(np.float64), weight)
        if answer.log_likelihoods is not None:
            sums = answer.log_likelihoods
            self._likelihoods = sums.copy() if self._likelihoods is None else self._likelihoods + sums

    @property
    def rows(self) -> Float64:
        """The combined rows: TᵀZ / n, or the products of the directions."""
        return self._rows.value()

    @property
    def gram(self) -> Float64:
        """The combined matrix ZᵀZ / n."""
        return full_matrix(self._gram.value(), self.rows.shape[1])

    @property
    def best(self) -> tuple[int, int]:
        """The places of the ridge and the temperature of the highest held-out likelihood; defaults without held-out examples."""
        if self._likelihoods is None or not self.examples:
            return self.ridges.index(DEFAULT_RIDGE), TEMPERATURES.index(DEFAULT_TEMPERATURE)
        return best_candidate(self._likelihoods, self.ridges, TEMPERATURES)

    @property
    def ridges(self) -> list[float]:
        """The λ of each candidate that the round compares."""
        return list(RIDGES) if self.query.ridges is None else self.query.ridges.tolist()


def next_query(rounds: list[CombinedAnswers], policy: Policy) -> tuple[HeadQuestion, HeadQuery]:
    """Return what to ask after these rounds of one solution, none of which asked for likelihoods.

    Conjugate gradients ask for products until the residual is negligible or the policy's rounds are used; then, as after sums, candidates
    for several ridges are compared on held-out examples.
    """
    shares, moment = rounds[0].query.shares, rounds[0].rows
    if rounds[0].question is HeadQuestion.SUMS:
        return HeadQuestion.LIKELIHOOD, _candidates(_solution_of_sums(rounds[0]), shares, moment.shape)
    solver = _krylov_solver(rounds)
    if len(rounds) - 1 < policy.head_rounds:
        new = solver.next_directions(ASKED_RIDGE, most=len(moment))
        if len(new):
            return HeadQuestion.PRODUCT, HeadQuery(shares, directions=new.astype(np.float16))
    return HeadQuestion.LIKELIHOOD, _candidates(solver.solution, shares, moment.shape)


def revised_head(rounds: list[CombinedAnswers], standardization: Standardization, *, ridge: float, temperature: float) -> LabelHead:
    """Return the head of these rounds' answers, for a λ and a temperature that were chosen before.

    From sums it is the pooled solution of those who answered; from products the best one in the space of the directions that were asked.

    Args:
        rounds: of one solution; those that compared candidates are skipped.
    """
    answered = [answers for answers in rounds if answers.question is not HeadQuestion.LIKELIHOOD]
    of_sums = answered[0].question is HeadQuestion.SUMS
    solution = _solution_of_sums(answered[0]) if of_sums else _krylov_solver(answered).solution
    return standardization.head(solution(ridge), answered[0].query.shares, temperature)


def _solution_of_sums(answers: CombinedAnswers) -> Callable[[float], Float64]:
    gram, moment = answers.gram, answers.rows
    return lambda ridge: solve_sums(gram, moment, ridge)


def _krylov_solver(rounds: list[CombinedAnswers]) -> KrylovSolver:
    moment, products = rounds[0].rows, rounds[1:]
    asked = [answers.query.directions for answers in products if answers.query.directions is not None]
    none = np.zeros((0, moment.shape[1]))
    directions = np.concatenate([none, *(rows.astype(np.float64) for rows in asked)])
    return KrylovSolver(moment, directions, np.concatenate([none, *(answers.rows for answers in products)]))


def _candidates(solution: Callable[[float], Float64], shares: Float64, shape: tuple[int, ...]) -> HeadQuery:
    """Return the query of the solutions for several ridges; for many labels of fewer ridges, and in float16, within a few megabytes."""
    large = len(RIDGES) * math.prod(shape) * np.dtype(np.float32).itemsize > LARGEST_CANDIDATES
    ridges = FEW_RIDGES if large else RIDGES
    candidates = np.stack([solution(ridge).astype(np.float16 if large else np.float32) for ridge in ridges])
    return HeadQuery(
        shares, candidates=candidates, temperatures=np.asarray(TEMPERATURES), ridges=np.asarray(FEW_RIDGES) if large else None
    )


def solved_version(
    answers: CombinedAnswers, coefficients: Coefficients, standardization: Standardization, metadata: dict[str, object]
) -> bytes:
    """Return the body of a version: the coefficients it began with, and the head of the highest held-out likelihood.

    Raises:
        Malformed: the round did not compare candidates.
    """
    if answers.query.candidates is None:
        raise Malformed("a head is made from the candidates that a round compared")
    ridge, temperature = answers.best
    head = standardization.head(answers.query.candidates[ridge].astype(np.float64), answers.query.shares, TEMPERATURES[temperature])
    tensors = {"coefficients": coefficients.values} | head_tensors(head)
    return TensorBody(tensors, metadata | {"ridge": answers.ridges[ridge], "temperature": TEMPERATURES[temperature]}).to_bytes()

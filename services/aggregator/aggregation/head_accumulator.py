"""The answers of head rounds, combined, and what to ask next: from a task's first question to its label head."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ifed.errors import Malformed
from ifed.messages.bodies import HeadBody, HeadQuery, head_tensors
from ifed.messages.enums import HeadQuestion
from ifed.messages.tasks import Policy
from ifed.tensors.regression import RIDGES, TEMPERATURES, Standardization, full_matrix
from ifed.tensors.values import Coefficients, Float64, TensorBody
from services.aggregator.aggregation.head_solver import KrylovSolver, best_candidate, solve_sums
from services.aggregator.aggregation.rules import Reducer

ASKED_RIDGE = 0.3  # the λ whose residual gives the next directions; near the best on all data sets tried
DEFAULT_PLACES = RIDGES.index(0.3), TEMPERATURES.index(6.0)  # without held-out examples


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
            return DEFAULT_PLACES
        return best_candidate(self._likelihoods, RIDGES, TEMPERATURES)


def next_query(rounds: list[CombinedAnswers], policy: Policy) -> tuple[HeadQuestion, HeadQuery]:
    """Return what to ask after these rounds of one solution, none of which asked for likelihoods.

    Conjugate gradients ask for products until the residual is negligible or the policy's rounds are used; then, as after sums, candidates
    for several ridges are compared on held-out examples.
    """
    shares = rounds[0].query.shares
    if rounds[0].question is HeadQuestion.SUMS:
        gram, moment = rounds[0].gram, rounds[0].rows
        return HeadQuestion.LIKELIHOOD, _candidates([solve_sums(gram, moment, ridge) for ridge in RIDGES], shares)
    moment = rounds[0].rows
    products = rounds[1:]
    asked = [answers.query.directions for answers in products if answers.query.directions is not None]
    none = np.zeros((0, moment.shape[1]))
    directions = np.concatenate([none, *(rows.astype(np.float64) for rows in asked)])
    solver = KrylovSolver(moment, directions, np.concatenate([none, *(answers.rows for answers in products)]))
    if len(products) < policy.head_rounds:
        new = solver.next_directions(ASKED_RIDGE, most=len(moment))
        if len(new):
            return HeadQuestion.PRODUCT, HeadQuery(shares, directions=new.astype(np.float16))
    return HeadQuestion.LIKELIHOOD, _candidates([solver.solution(ridge) for ridge in RIDGES], shares)


def _candidates(solutions: list[Float64], shares: Float64) -> HeadQuery:
    candidates = np.stack(solutions).astype(np.float32)
    return HeadQuery(shares, candidates=candidates, temperatures=np.asarray(TEMPERATURES))


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
    return TensorBody(tensors, metadata | {"ridge": RIDGES[ridge], "temperature": TEMPERATURES[temperature]}).to_bytes()

"""Local steps with a corrected gradient or a shared second moment: FedProx, SCAFFOLD and FedLALR. Not in the product; for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.federated.aggregation import Measured, body_of
from benchmarks.federated.algorithms import Step, plan_of, seed_of
from benchmarks.federated.federation import Federation, Party
from ifed.messages.tasks import Policy
from ifed.modeling.calibration import LocalPlan, LocalResult, sample_batches
from ifed.tensors.values import Coefficients, Float64
from services.aggregator.aggregation.rules import WeightedMean

Correct = Callable[[Float64, Float64], Float64]
FIRST_DECAY, SECOND_DECAY, TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class Walk:
    """Where a client's local steps led.

    Attributes:
        gradient: mean over the steps, before any correction.
        second: v̂ after the steps, where the second moment is shared.
    """

    values: Float64
    loss: float
    gradient: Float64
    second: Float64


def walk(
    party: Party, start: Coefficients, plan: LocalPlan, *, correct: Correct | None = None, second: Float64 | None = None
) -> Walk:
    """The steps of `Calibrator.run` on the same draws: Adam (arXiv 1412.6980), or AMSGrad from the second moment `second`.

    Args:
        correct: values and gradient to the gradient the step takes.
    """
    values = start.values.astype(np.float64)
    first, squares, largest = np.zeros_like(values), np.zeros_like(values), np.zeros_like(values)
    if second is not None:
        squares, largest = second.copy(), second.copy()
    losses, total = [], np.zeros_like(values)
    for step, indices in enumerate(sample_batches(party.examples, plan.batch_size, plan.steps, plan.seed)):
        found = party.calibrator.gradient_of(
            Coefficients(values.astype(np.float32)), indices, logit_adjustment=plan.logit_adjustment
        )
        gradient = found.values.astype(np.float64)
        losses.append(found.loss)
        total += gradient
        if correct is not None:
            gradient = correct(values, gradient)
        rate = plan.learning_rate + (plan.learning_rate_end - plan.learning_rate) * step / plan.steps
        first = FIRST_DECAY * first + (1 - FIRST_DECAY) * gradient
        squares = SECOND_DECAY * squares + (1 - SECOND_DECAY) * np.square(gradient)
        largest = np.maximum(largest, squares)
        mean = first / (1 - FIRST_DECAY ** (step + 1))
        spread = squares / (1 - SECOND_DECAY ** (step + 1)) if second is None else largest
        values = values - rate * mean / (np.sqrt(spread) + TINY)
    return Walk(values, float(np.mean(losses)), total / plan.steps, largest)


class Corrected:
    """FedAvg of local walks; what else clients and aggregator exchange is up to the kind."""

    extra = 0  # tensors of Λ's shape that travel besides Λ, each way

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        self.federation, self._policy, self._seed = federation, policy, seed

    def round(self, index: int, start: Coefficients, measured: Sequence[Measured]) -> Step:
        """Local walks, their mean with the numbers of examples as weights, and what the kind keeps."""
        walks = [self.local(party, start, self._plan(party, index)) for party in self.federation.parties]
        after = Coefficients(self.mean([walk.values for walk in walks]).astype(np.float32))
        self.learn(walks)
        more = self.extra * after.values.nbytes
        wire, up = self.federation.wire, []
        for party, walk_, found in zip(self.federation.parties, walks, measured, strict=True):
            result = LocalResult(Coefficients(walk_.values.astype(np.float32)), walk_.loss, party.examples)
            up.append(len(wire.update(result, found, party.examples, index)))
        return Step(after, float(np.mean([walk.loss for walk in walks])), float(np.mean(up)) + more, len(body_of(start)) + more)

    def local(self, party: Party, start: Coefficients, plan: LocalPlan) -> Walk:
        raise NotImplementedError

    def learn(self, walks: Sequence[Walk]) -> None:
        """Keep what the next round needs; nothing unless the kind says so."""

    def mean(self, values: Sequence[Float64]) -> Float64:
        """The aggregator's weighted mean of one tensor a client."""
        total = WeightedMean()
        for party, one in zip(self.federation.parties, values, strict=True):
            total.add(one, party.examples)
        return total.value()

    def _plan(self, party: Party, index: int) -> LocalPlan:
        return plan_of(self._policy, index, seed_of(self._seed, index, party.name))


class FedProx(Corrected):
    """A proximal term μ/2 |Λ - Λ_g|² in the local loss (arXiv 1812.06127, equation 2), μ = 0.1."""

    mu = 0.1

    def local(self, party: Party, start: Coefficients, plan: LocalPlan) -> Walk:
        origin = start.values.astype(np.float64)
        return walk(party, start, plan, correct=lambda values, gradient: gradient + self.mu * (values - origin))


class Scaffold(Corrected):
    """Control variates (arXiv 1910.06378): each step's gradient loses the client's own drift c_k and gains the mean drift c.

    c_k is the mean gradient of the client's last local steps (option I along the path), the steps are Adam's as in all rows.
    """

    extra = 1

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        super().__init__(federation, policy, seed)
        self._own: dict[str, Float64] = {}
        self._shared: Float64 | None = None

    def local(self, party: Party, start: Coefficients, plan: LocalPlan) -> Walk:
        own, shared = self._own.get(party.name), self._shared
        if own is None or shared is None:
            return walk(party, start, plan)
        return walk(party, start, plan, correct=lambda _values, gradient: gradient - own + shared)

    def learn(self, walks: Sequence[Walk]) -> None:
        self._own = {party.name: walk.gradient for party, walk in zip(self.federation.parties, walks, strict=True)}
        self._shared = self.mean([walk.gradient for walk in walks])


class FedLALR(Corrected):
    """Local AMSGrad whose second moments the aggregator averages each round (arXiv 2309.09719)."""

    extra = 1

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        super().__init__(federation, policy, seed)
        self._second: Float64 | None = None

    def local(self, party: Party, start: Coefficients, plan: LocalPlan) -> Walk:
        return walk(party, start, plan, second=self._second)

    def learn(self, walks: Sequence[Walk]) -> None:
        self._second = self.mean([walk.second for walk in walks])

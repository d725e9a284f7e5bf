"""Federated algorithms that the product does not have, for comparison: FedProx, SCAFFOLD and FedLALR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.federated.aggregation import HeldOutResult, coefficients_body
from benchmarks.federated.algorithms import RoundResult, batch_seed, local_plan
from benchmarks.federated.federation import Client, Federation
from ifed.messages.tasks import Policy
from ifed.modeling.calibration import LocalPlan, LocalResult, sample_batches
from ifed.tensors.values import Coefficients, Float64
from services.aggregator.aggregation.rules import WeightedMean

GradientCorrection = Callable[[Float64, Float64], Float64]
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class LocalSteps:
    """The result of a client's local steps.

    Attributes:
        values: the coefficients after the last step.
        gradient: mean over the steps, before any correction.
        second_moment: v̂ after the last step.
    """

    values: Float64
    loss: float
    gradient: Float64
    second_moment: Float64


def run_local_steps(
    client: Client,
    start: Coefficients,
    plan: LocalPlan,
    *,
    correct: GradientCorrection | None = None,
    second_moment: Float64 | None = None,
) -> LocalSteps:
    """Run the steps of `Calibrator.run` on the same batches, by Adam (arXiv 1412.6980) or, from a given second moment, by AMSGrad.

    Args:
        correct: maps the values and the gradient to the gradient that the step takes.
    """
    values = start.values.astype(np.float64)
    first, second, largest = np.zeros_like(values), np.zeros_like(values), np.zeros_like(values)
    if second_moment is not None:
        second, largest = second_moment.copy(), second_moment.copy()
    losses, total = [], np.zeros_like(values)
    for step, indices in enumerate(sample_batches(client.examples, plan.batch_size, plan.steps, plan.seed)):
        local = client.calibrator.gradient_of(
            Coefficients(values.astype(np.float32)), indices, logit_adjustment=plan.logit_adjustment
        )
        gradient = local.values.astype(np.float64)
        losses.append(local.loss)
        total += gradient
        if correct is not None:
            gradient = correct(values, gradient)
        rate = plan.learning_rate + (plan.learning_rate_end - plan.learning_rate) * step / plan.steps
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * np.square(gradient)
        largest = np.maximum(largest, second)
        mean = first / (1 - BETA_1 ** (step + 1))
        variance = second / (1 - BETA_2 ** (step + 1)) if second_moment is None else largest
        values = values - rate * mean / (np.sqrt(variance) + EPSILON)
    return LocalSteps(values, float(np.mean(losses)), total / plan.steps, largest)


class Baseline:
    """FedAvg of local steps; a subclass defines the steps of a client and which other tensors are exchanged.

    Attributes:
        extra_tensors: tensors of Λ's shape that are sent with Λ in each direction.
    """

    extra_tensors = 0

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        self.federation, self._policy, self._seed = federation, policy, seed

    def round(self, index: int, start: Coefficients, held_out: Sequence[HeldOutResult]) -> RoundResult:
        """Run every client's local steps and average their results, weighted by the numbers of examples."""
        clients, aggregator = self.federation.clients, self.federation.aggregator
        results = [self.run_client(client, start, self._plan(client, index)) for client in clients]
        average = Coefficients(self.weighted_mean([result.values for result in results]).astype(np.float32))
        self.update_state(results)
        extra = self.extra_tensors * average.values.nbytes
        sizes = []
        for client, result, measured in zip(clients, results, held_out, strict=True):
            local = LocalResult(Coefficients(result.values.astype(np.float32)), result.loss, client.examples)
            sizes.append(len(aggregator.update_body(local, measured, client.examples, index)))
        loss = float(np.mean([result.loss for result in results]))
        return RoundResult(average, loss, float(np.mean(sizes)) + extra, len(coefficients_body(start)) + extra)

    def run_client(self, client: Client, start: Coefficients, plan: LocalPlan) -> LocalSteps:
        """Run one client's local steps."""
        raise NotImplementedError

    def update_state(self, results: Sequence[LocalSteps]) -> None:
        """Update the state for the next round; by default there is none."""

    def weighted_mean(self, values: Sequence[Float64]) -> Float64:
        """Return the aggregator's weighted mean of one tensor a client."""
        mean = WeightedMean()
        for client, value in zip(self.federation.clients, values, strict=True):
            mean.add(value, client.examples)
        return mean.value()

    def _plan(self, client: Client, index: int) -> LocalPlan:
        return local_plan(self._policy, index, batch_seed(self._seed, index, client.name))


class FedProx(Baseline):
    """A proximal term μ/2 |Λ - Λ_g|² in the local loss (arXiv 1812.06127, equation 2), μ = 0.1."""

    mu = 0.1

    def run_client(self, client: Client, start: Coefficients, plan: LocalPlan) -> LocalSteps:
        origin = start.values.astype(np.float64)
        return run_local_steps(client, start, plan, correct=lambda values, gradient: gradient + self.mu * (values - origin))


class Scaffold(Baseline):
    """SCAFFOLD (arXiv 1910.06378): subtract the client's control variate c_k from each gradient and add the global one c.

    c_k is the mean gradient over the client's last local steps (option I along the path); the steps are Adam's, as in all rows.
    """

    extra_tensors = 1

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        super().__init__(federation, policy, seed)
        self._client_variates: dict[str, Float64] = {}
        self._global_variate: Float64 | None = None

    def run_client(self, client: Client, start: Coefficients, plan: LocalPlan) -> LocalSteps:
        own, shared = self._client_variates.get(client.name), self._global_variate
        if own is None or shared is None:
            return run_local_steps(client, start, plan)
        return run_local_steps(client, start, plan, correct=lambda _values, gradient: gradient - own + shared)

    def update_state(self, results: Sequence[LocalSteps]) -> None:
        self._client_variates = {
            client.name: result.gradient for client, result in zip(self.federation.clients, results, strict=True)
        }
        self._global_variate = self.weighted_mean([result.gradient for result in results])


class FedLALR(Baseline):
    """Local AMSGrad whose second moments the aggregator averages after each round (arXiv 2309.09719)."""

    extra_tensors = 1

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        super().__init__(federation, policy, seed)
        self._second_moment: Float64 | None = None

    def run_client(self, client: Client, start: Coefficients, plan: LocalPlan) -> LocalSteps:
        return run_local_steps(client, start, plan, second_moment=self._second_moment)

    def update_state(self, results: Sequence[LocalSteps]) -> None:
        self._second_moment = self.weighted_mean([result.second_moment for result in results])

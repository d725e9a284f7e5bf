"""Rounds as the product runs them: local work by the modelling code, then the aggregator's step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.federated.aggregation import HeldOutResult, coefficients_body, parse_coefficients
from benchmarks.federated.clock import now
from benchmarks.federated.federation import Client, Federation
from ifed.messages.tasks import Policy
from ifed.modeling.calibration import LocalGradient, LocalPlan, LocalResult
from ifed.tensors.quantization import QuantizedUpdate, with_feedback
from ifed.tensors.values import Coefficients, Float32
from services.aggregator.aggregation.accumulators import StartingVersion


@dataclass(frozen=True, slots=True)
class RoundResult:
    """The result of one round.

    Attributes:
        loss: mean over the clients of the mean loss of their local steps.
        bytes_up, bytes_down: sizes of one client's bodies, mean over the clients.
        seconds: cost of the local work for a client, mean over the clients; 0 where it is not measured.
        local: each client's coefficients before they are averaged; empty in gradient mode.
    """

    coefficients: Coefficients
    loss: float
    bytes_up: float
    bytes_down: float
    seconds: float = 0.0
    local: tuple[Coefficients, ...] = ()


class Algorithm(Protocol):
    """A federated algorithm, which computes the next version of the coefficients."""

    def round(self, index: int, start: Coefficients, held_out: Sequence[HeldOutResult]) -> RoundResult:
        """Run round `index`, from 0; `held_out` has each client's evaluation of `start`."""


class PolicyAlgorithm:
    """The algorithm of the aggregator and its clients under a policy: FedAvg, a server optimiser, or gradient mode.

    Args:
        seed: of the clients' batches.
    """

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        self._federation, self._policy, self._seed = federation, policy, seed
        self._moments: bytes | None = None
        self._quantization_error: dict[str, Float32] = {}

    def round(self, index: int, start: Coefficients, held_out: Sequence[HeldOutResult]) -> RoundResult:
        """Run the local work of every client, then the aggregator's step; keep its optimiser's moments for the next round."""
        aggregator, start_body = self._federation.aggregator, coefficients_body(start)
        clients = self._federation.clients
        began = now(self._federation.lm)
        work = [self._work(client, index, start) for client in clients]
        seconds = (now(self._federation.lm) - began) / len(work)
        bodies = [
            aggregator.update_body(result, measured, client.examples, index, change=self._quantize(client, result, start))
            for result, measured, client in zip(work, held_out, clients, strict=True)
        ]
        total = aggregator.aggregate_updates(self._policy, bodies, StartingVersion(start_body, self._moments, index))
        self._moments = total.moments
        assert total.body is not None
        return RoundResult(
            parse_coefficients(total.body),
            float(np.mean([result.loss for result in work])),
            float(np.mean([len(body) for body in bodies])),
            len(start_body),
            seconds,
            tuple(result.coefficients for result in work if isinstance(result, LocalResult)),
        )

    def _quantize(self, client: Client, result: LocalResult | LocalGradient, start: Coefficients) -> QuantizedUpdate | None:
        """Return the update in the policy's number format, with error feedback; None where the coefficients are sent in float32."""
        dtype = self._policy.update_dtype
        if dtype == "float32" or not isinstance(result, LocalResult):
            return None
        step = result.coefficients.values - start.values
        update, self._quantization_error[client.name] = with_feedback(step, self._quantization_error.get(client.name), dtype)
        return update

    def _work(self, client: Client, index: int, start: Coefficients) -> LocalResult | LocalGradient:
        policy, seed = self._policy, batch_seed(self._seed, index, client.name)
        if policy.mode == "gradient":
            return client.calibrator.mean_gradient(
                start, batch_size=policy.batch_size, seed=seed, logit_adjustment=policy.logit_adjustment
            )
        return client.calibrator.run(start, local_plan(policy, index, seed))


def local_plan(policy: Policy, index: int, seed: int) -> LocalPlan:
    """Return the plan of the local steps of round `index`."""
    first, last = policy.learning_rate_at(index)
    return LocalPlan(
        steps=policy.local_steps,
        batch_size=policy.batch_size,
        learning_rate=first,
        learning_rate_end=last,
        logit_adjustment=policy.logit_adjustment,
        seed=seed,
        weight_decay=policy.weight_decay,
    )


def batch_seed(seed: int, index: int, client: str) -> int:
    """Return the seed of a client's batches in round `index`; it is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{client}".encode()).digest()[:4], "big")


AlgorithmFactory = Callable[[Federation, Policy, int], Algorithm]

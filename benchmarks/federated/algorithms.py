"""Rounds as the product runs them: local work by the modelling code, the step by the aggregator's. Knows no test set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.federated.aggregation import Measured, body_of, coefficients_of
from benchmarks.federated.clock import now
from benchmarks.federated.federation import Federation, Party
from ifed.messages.tasks import Policy
from ifed.modeling.calibration import LocalGradient, LocalPlan, LocalResult
from ifed.tensors.quantization import QuantizedUpdate, with_feedback
from ifed.tensors.values import Coefficients, Float32
from services.aggregator.aggregation.accumulators import Start


@dataclass(frozen=True, slots=True)
class Step:
    """What a round gave.

    Attributes:
        loss: mean over the clients of the mean loss of their local steps.
        bytes_up, bytes_down: one client's, mean over the clients.
        seconds: what the local work costs a client, mean over the clients; 0 where it was not measured.
        local: what each client came to by itself, where it came to coefficients.
    """

    coefficients: Coefficients
    loss: float
    bytes_up: float
    bytes_down: float
    seconds: float = 0.0
    local: tuple[Coefficients, ...] = ()


class Algorithm(Protocol):
    """One way to get from one version of the coefficients to the next."""

    def round(self, index: int, start: Coefficients, measured: Sequence[Measured]) -> Step:
        """Round `index`, from 0; `measured` is what each client found of `start`."""


class ByPolicy:
    """What the aggregator and its clients do under a policy: FedAvg, server optimisers, or the gradient mode.

    Args:
        seed: of all draws of batches.
    """

    def __init__(self, federation: Federation, policy: Policy, seed: int) -> None:
        self._federation, self._policy, self._seed = federation, policy, seed
        self._moments: bytes | None = None
        self._lost: dict[str, Float32] = {}

    def round(self, index: int, start: Coefficients, measured: Sequence[Measured]) -> Step:
        """Local work at every client, then the aggregator's step; what its optimiser remembers is kept for the next round."""
        wire, before = self._federation.wire, body_of(start)
        began = now(self._federation.lm)
        work = [self._work(party, index, start) for party in self._federation.parties]
        seconds = (now(self._federation.lm) - began) / len(work)
        bodies = [
            wire.update(done, found, party.examples, index, change=self._change(party, done, start))
            for done, found, party in zip(work, measured, self._federation.parties, strict=True)
        ]
        summed = wire.calibration(self._policy, bodies, Start(before, self._moments, index))
        self._moments = summed.moments
        assert summed.body is not None
        return Step(
            coefficients_of(summed.body),
            float(np.mean([done.loss for done in work])),
            float(np.mean([len(body) for body in bodies])),
            len(before),
            seconds,
            tuple(done.coefficients for done in work if isinstance(done, LocalResult)),
        )

    def _change(self, party: Party, done: LocalResult | LocalGradient, start: Coefficients) -> QuantizedUpdate | None:
        """What travels in a compact setting; what is lost by it comes with the client's next update."""
        dtype = self._policy.update_dtype
        if dtype == "float32" or not isinstance(done, LocalResult):
            return None
        step = done.coefficients.values - start.values
        change, self._lost[party.name] = with_feedback(step, self._lost.get(party.name), dtype)
        return change

    def _work(self, party: Party, index: int, start: Coefficients) -> LocalResult | LocalGradient:
        policy, seed = self._policy, seed_of(self._seed, index, party.name)
        if policy.mode == "gradient":
            return party.calibrator.mean_gradient(
                start, batch_size=policy.batch_size, seed=seed, logit_adjustment=policy.logit_adjustment
            )
        return party.calibrator.run(start, plan_of(policy, index, seed))


def plan_of(policy: Policy, index: int, seed: int) -> LocalPlan:
    """The local steps of round `index`."""
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


def seed_of(seed: int, index: int, client: str) -> int:
    """Another draw of batches for every run, round and client; the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{client}".encode()).digest()[:4], "big")


Maker = Callable[[Federation, Policy, int], Algorithm]

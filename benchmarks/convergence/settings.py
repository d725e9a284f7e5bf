"""The settings of the study: a base, and one change of it at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.federated.algorithms import AlgorithmFactory, PolicyAlgorithm
from benchmarks.federated.baselines import FedLALR, FedProx, Scaffold
from ifed.messages.tasks import LayerChoice, Policy

BASE = "fedavg-adjusted"


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        training: training examples that are divided among the clients.
        test: test examples on which accuracy is measured.
    """

    clients: int = 10
    alpha: float = 0.5
    rounds: int = 6
    local_steps: int = 3
    batch_size: int = 8
    training: int = 600
    test: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        axis: what it varies: the algorithm, the groups, the start, the layers, or several of them (together).
        groups: G; None means one group for each channel.
    """

    name: str
    axis: str
    title: str
    groups: int | None = 16
    layers: LayerChoice = "upper_half"
    context_weight: float = 0.0
    policy: Mapping[str, Any] = field(default_factory=dict)
    make_algorithm: AlgorithmFactory = PolicyAlgorithm

    def policy_for(self, plan: Plan) -> Policy:
        """Return the task's policy; in gradient mode a round is one step, so that all settings cost their clients the same work."""
        defaults = {"logit_adjustment": 1.0, "learning_rate": 0.04, "label_bias": True, "batch_size": plan.batch_size}
        defaults |= {"update_dtype": "float32", "cycle": None} | dict(self.policy)
        every = self.rounds_between_evaluations(plan)
        size = {"clients_expected": plan.clients, "rounds": plan.rounds * every, "local_steps": plan.local_steps // every}
        return Policy.model_validate(size | defaults)

    def rounds_between_evaluations(self, plan: Plan) -> int:
        """Return the number of rounds between two evaluations."""
        return plan.local_steps if self.policy.get("mode") == "gradient" else 1


def all_settings() -> list[Setting]:
    """Return all settings, the base first."""
    base = Setting(BASE, "algorithm", "FedAvg, logit adjustment")
    adaptive = {"server_learning_rate": 0.1}

    def algorithm(name: str, title: str, **changes: Any) -> Setting:
        return replace(base, name=name, title=title, **changes)

    return [
        base,
        algorithm("fedavg", "FedAvg", policy={"logit_adjustment": 0.0}),
        algorithm("gradient-fedadam", "gradient mode, FedAdam", policy={"mode": "gradient", "server_optimizer": "fedadam"}),
        algorithm("fedadam", "FedAdam", policy={"server_optimizer": "fedadam"} | adaptive),
        algorithm("fedyogi", "FedYogi", policy={"server_optimizer": "fedyogi"} | adaptive),
        algorithm("fedavgm", "FedAvgM, β = 0.5", policy={"server_optimizer": "fedavgm", "server_momentum": 0.5}),
        algorithm("fedprox", "FedProx, μ = 0.1", make_algorithm=FedProx),
        algorithm("scaffold", "SCAFFOLD", make_algorithm=Scaffold),
        algorithm("fedlalr", "FedLALR", make_algorithm=FedLALR),
        replace(
            base,
            name="published",
            axis="algorithm",
            title="as published: G = 1, all layers, λ₀ = 0.1, FedAvg",
            groups=1,
            layers="all",
            context_weight=0.1,
            policy={"logit_adjustment": 0.0, "learning_rate": 0.01, "learning_rate_schedule": "constant"},
        ),
        *(replace(base, name=f"groups-{groups}", axis="groups", title=f"G = {groups}", groups=groups) for groups in (1, 4, 64)),
        replace(base, name="groups-d", axis="groups", title="G = d", groups=None),
        replace(base, name="start-0.1", axis="start", title="λ₀ = 0.1", context_weight=0.1),
        replace(base, name="layers-upper-third", axis="layers", title="upper third", layers="upper_third"),
        replace(base, name="layers-all", axis="layers", title="all layers", layers="all"),
        *_candidates(base),
    ]


def _candidates(base: Setting) -> list[Setting]:
    """Return the candidates for a task's defaults, which change several things at once."""
    longer, more = {"rounds": 4, "local_steps": 12}, {"rounds": 6, "local_steps": 8}
    return [
        replace(base, name="all-64", axis="together", title="all layers, G = 64", layers="all", groups=64),
        replace(base, name="longer-64", axis="together", title="G = 64, 4 rounds of 12 steps", groups=64, policy=longer),
        replace(base, name="more-64", axis="together", title="G = 64, 6 rounds of 8 steps", groups=64, policy=more),
    ]

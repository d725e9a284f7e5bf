"""The methods that are compared, and the size of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ifed.messages.tasks import LayerChoice, Policy, TaskSpec

SWEEP_SEED = 0  # LoRA's learning rate is chosen on its division; methods of one seed run on it
RATES = (0.0003, 0.001, 0.003, 0.01)
UNUSED_POLICY_FIELDS = (
    *("quorum", "quorum_fraction", "sample", "sample_fraction", "retries", "deadline_seconds"),
    *("patience", "serve", "holdout", "max_holdout", "max_demonstrations"),
    *("solver", "head_rounds"),  # of a label head, which no method here has
)
"""Policy fields without effect here, where every client answers in every round and the last version is evaluated."""


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        training: training examples that are divided among the clients.
        test: test examples on which accuracy is measured.
        shots: demonstrations in a few-shot prompt; fewer where a client's do not fit.
        few: test examples on which each client's own coefficients are evaluated, round by round.
        few_seeds: number of seeds, the first ones, for which that is done.
        lora_rank: of each adapter; `lora_alpha` is twice the rank, so the scale is 2.
    """

    clients: int = 10
    alpha: float = 0.5
    rounds: int = Policy.model_fields["rounds"].default
    local_steps: int = Policy.model_fields["local_steps"].default
    batch_size: int = 8
    training: int = 1500
    test: int = 250
    shots: int = 8
    few: int = 60
    few_seeds: int = 1
    lora_rank: int = 8


QUICK = Plan(clients=4, rounds=3, local_steps=2, training=160, test=60, shots=4, few=12)
QUICK_RATES = (0.001, 0.003)


@dataclass(frozen=True)
class Setting:
    """A task whose clients calibrate coefficients.

    Attributes:
        policy: differences from the product's defaults; the size of the run comes from the plan.
        rounds_times: factor on the plan's number of rounds.
        steps_times: factor on the plan's number of local steps in each round.
    """

    groups: int = TaskSpec.model_fields["groups"].default
    layers: LayerChoice = TaskSpec.model_fields["layers"].default
    policy: Mapping[str, Any] = field(default_factory=dict)
    rounds_times: int = 1
    steps_times: int = 1

    def fits(self, hidden_size: int) -> bool:
        """Return whether the groups divide a model's channels; 128 groups do not divide 576 channels."""
        return hidden_size % self.groups == 0

    def policy_for(self, plan: Plan) -> Policy:
        """Return the task's policy under a plan."""
        work = {"rounds": self.rounds_times * plan.rounds, "local_steps": self.steps_times * plan.local_steps}
        size = {"batch_size": plan.batch_size, "clients_expected": plan.clients}
        return Policy.model_validate(work | size | dict(self.policy))

    def describe(self, plan: Plan) -> dict[str, Any]:
        """Return, JSON-ready, everything that a cell depends on in addition to the plan and the model."""
        policy = self.policy_for(plan).model_dump(mode="json", exclude=set(UNUSED_POLICY_FIELDS))
        return {"groups": self.groups, "layers": self.layers, "policy": policy}


OURS = Setting()  # the product's defaults
PUBLISHED = Setting(
    groups=1,
    layers="all",
    policy={
        "initial_context_weight": 0.1,
        "logit_adjustment": 0.0,
        "label_bias": False,
        "learning_rate": 0.01,
        "learning_rate_schedule": "constant",
    },
)
OURS_INT8 = replace(OURS, policy={"update_dtype": "int8"})
WIDE = replace(OURS_INT8, groups=128)
LONG = replace(WIDE, rounds_times=2)
CONSTANT = replace(OURS_INT8, policy={**OURS_INT8.policy, "learning_rate_schedule": "constant"})
STEPS = replace(OURS_INT8, steps_times=2)
COMPACT = replace(OURS, groups=16)


def compact(dtype: str) -> Setting:
    """Return the compact setting with updates in another number format."""
    return replace(COMPACT, policy={**COMPACT.policy, "update_dtype": dtype})


SETTINGS: dict[str, Setting] = {
    "published": PUBLISHED,
    "ours": OURS,
    "steps": STEPS,
    "more-steps": replace(OURS_INT8, steps_times=4),
    "long": LONG,
    "compact": COMPACT,
    "compact-float16": compact("float16"),
    "compact-int8": compact("int8"),
    "ours-int8": OURS_INT8,
    "wide": WIDE,
    "constant": CONSTANT,
    "wide-constant": replace(CONSTANT, groups=WIDE.groups),
    "steps-long": replace(STEPS, rounds_times=2),
}
LORA: dict[str, Setting] = {"lora": OURS, "lora-steps": replace(OURS, steps_times=2)}
"""FedAvg-LoRA: the settings whose policies, but for the learning rate, its adapters are trained by."""

VARIANTS = ("ours-int8", "wide", "constant", "wide-constant", "steps-long", "lora-steps")
"""Methods that were tried beside the comparison and have a table of their own."""
ONE_SEED = ("zero-shot", *VARIANTS)
"""Methods that run on `SWEEP_SEED` alone."""
RESTRICTED_DATASETS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(VARIANTS, ("subj", "emoc")),
    "more-steps": ("subj",),
    "steps-long": ("subj",),
}
"""The data sets of methods that do not run on all of them."""

TITLES = {
    "zero-shot": "zero-shot",
    "icl": "local ICL",
    "lora": "FedAvg-LoRA",
    "published": "IFed-ICL as published",
    "ours": "ours",
    "steps": "ours, int8, twice the steps a round",
    "more-steps": "ours, int8, four times the steps a round",
    "long": "ours, G = 128, int8, twice the rounds",
    "compact": "compact",
    "compact-float16": "compact, float16 updates",
    "compact-int8": "compact, int8 updates",
    "ours-int8": "ours, int8 updates",
    "wide": "ours, G = 128, int8",
    "constant": "ours, int8, constant rate",
    "wide-constant": "ours, G = 128, int8, constant rate",
    "steps-long": "ours, int8, twice the steps a round, twice the rounds",
    "lora-steps": "FedAvg-LoRA, twice the steps a round",
}
COMPARED = tuple(method for method in TITLES if method not in VARIANTS)
"""The methods of the comparison: its tables of accuracy, bytes and seconds, its plot, and the target of 95 %."""
QUICK_METHODS = tuple(method for method in COMPARED if method not in ("steps", "more-steps"))


def runs_on(method: str, seed: int, key: str) -> bool:
    """Return whether a method runs under a seed on the data set of this key."""
    return (seed == SWEEP_SEED or method not in ONE_SEED) and key in RESTRICTED_DATASETS.get(method, (key,))


@dataclass(frozen=True)
class Cell:
    """One method under one seed; for LoRA also under one learning rate."""

    method: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        return f"{self.method}-{self.seed}" if self.rate is None else f"{self.method}-{self.rate:g}-{self.seed}"

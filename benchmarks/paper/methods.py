"""The methods that are compared, and the size of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from benchmarks.datasets import DATASETS, Dataset
from ifed.messages.tasks import LayerChoice, Policy, TaskSpec
from ifed.tensors.quantization import UpdateDType

SWEEP_SEED = 0  # LoRA's learning rate is chosen on its division; methods of one seed run on it
RATES = (0.0003, 0.001, 0.003, 0.01)
FIRST_RELEASE: Mapping[str, Any] = {
    "mode": "coefficients",
    "update_dtype": "float32",
    "aggregation": "weighted_mean",
    "nearest_neighbour_mixing": False,
    "byzantine_fraction": 0.1,
    "norm_bound": None,
    "weight_cap": 10_000,
    "server_optimizer": "fedavg",
    "server_learning_rate": None,
    "server_momentum": 0.9,
    "server_second_momentum": 0.99,
    "server_adaptivity": 0.001,
    "label_bias": True,
    "rounds": 6,
    "clients_expected": 10,
    "local_steps": 8,
    "batch_size": 8,
    "learning_rate": 0.04,
    "learning_rate_schedule": "cosine",
    "weight_decay": 0.0,
    "logit_adjustment": 1.0,
    "initial_context_weight": 0.0,
}
"""The policy of the first release, and what a cell of one of its methods stores: later defaults change neither."""
IRRELEVANT_POLICY_FIELDS = (
    *("quorum", "quorum_fraction", "sample", "sample_fraction", "retries", "deadline_seconds"),
    *("holdout", "max_holdout", "max_demonstrations"),
)
"""Policy fields without effect here, where every client answers in every round and all methods hold out the same texts."""
DEADLINE_SECONDS = 31_536_000.0  # of a round whose clients work one after the other


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        training: training examples that are divided among the clients.
        rounds: calibration rounds of LoRA and of the methods of the first release; another number than the default is the most that
            ours has, too, which otherwise follow the product's defaults; likewise `local_steps` and `batch_size`.
        test: test examples; the first half of them are texts A, which earlier choices have read, the others texts B.
        shots: demonstrations in a few-shot prompt; fewer where a client's do not fit.
        few: test examples on which each client's own coefficients are evaluated, round by round.
        few_seeds: number of seeds, the first ones, for which that is done.
        lora_rank: of each adapter; `lora_alpha` is twice the rank, so the scale is 2.
    """

    clients: int = 10
    alpha: float = 0.5
    rounds: int = FIRST_RELEASE["rounds"]
    local_steps: int = FIRST_RELEASE["local_steps"]
    batch_size: int = FIRST_RELEASE["batch_size"]
    training: int = 1500
    test: int = 500
    shots: int = 8
    few: int = 60
    few_seeds: int = 1
    lora_rank: int = 8

    @property
    def first_texts(self) -> int:
        """The number of texts A, the first half of the test examples."""
        return self.test // 2

    @property
    def changed_work(self) -> dict[str, int]:
        """The rounds, steps and batch size that differ from the defaults."""
        work = {"rounds": self.rounds, "local_steps": self.local_steps, "batch_size": self.batch_size}
        return {name: value for name, value in work.items() if value != FIRST_RELEASE[name]}


QUICK = Plan(clients=4, rounds=3, local_steps=2, training=160, test=60, shots=4, few=12)
QUICK_RATES = (0.001, 0.003)


@dataclass(frozen=True)
class Setting:
    """A task of the first release: label words, an injection at all tokens, and a fixed number of rounds.

    Attributes:
        policy: differences from `FIRST_RELEASE`; the size of the run comes from the plan.
        rounds_times: factor on the plan's number of rounds.
        steps_times: factor on the plan's number of local steps in each round.
    """

    groups: int = 64
    layers: LayerChoice = "upper_half"
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
        return Policy.model_validate({**FIRST_RELEASE, "patience": None, "cycle": None, **work, **size, **self.policy})

    def describe(self, plan: Plan) -> dict[str, Any]:
        """Return, JSON-ready, everything that a cell depends on in addition to the plan and the model."""
        policy = self.policy_for(plan).model_dump(mode="json", include=set(FIRST_RELEASE))
        return {"groups": self.groups, "layers": self.layers, "policy": policy}


@dataclass(frozen=True)
class TaskSetting:
    """A task of the second generation, run by the product's aggregator and agents: the product's defaults and what differs from them.

    Attributes:
        task: differences from the defaults of a task.
        policy: differences from the defaults of a policy.
        context: whether clients send context vectors; without, they send zeros, and λ has no effect.
        head_alone: end after the first label head, which is then read, on the states of the base model.
    """

    groups: int = TaskSpec.model_fields["groups"].default
    task: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    context: bool = True
    head_alone: bool = False

    def fits(self, hidden_size: int) -> bool:
        """Return whether the groups divide a model's channels."""
        return hidden_size % self.groups == 0

    def spec(self, name: str, model: str, dataset: Dataset, plan: Plan) -> TaskSpec:
        """Return the task under a plan."""
        size = {"clients_expected": plan.clients, "deadline_seconds": DEADLINE_SECONDS}
        given = {"labels": list(dataset.labels), "template": dataset.template, "model": model, "groups": self.groups}
        policy = {**plan.changed_work, **size, **self.policy}
        return TaskSpec.model_validate({"name": name, **given, **self.task, "policy": policy})

    def describe(self, plan: Plan) -> dict[str, Any]:
        """Return, JSON-ready, everything that a cell depends on in addition to the plan, the model and the texts."""
        spec = self.spec("described", "described", DATASETS["subj"], plan)
        task = spec.model_dump(mode="json", include={"layers", "groups", "head", "injection", "chat"})
        policy = spec.policy.model_dump(mode="json", exclude=set(IRRELEVANT_POLICY_FIELDS))
        return {"task": task, "policy": policy, "context": self.context, "head_alone": self.head_alone}


OURS = Setting()  # the defaults of the first release
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
TASKS: dict[str, TaskSetting] = {
    "head": TaskSetting(task={"head": "regression"}, policy={"rounds": 1, "local_steps": 1}, head_alone=True),
    "second": TaskSetting(),
    "second-int4": TaskSetting(policy={"update_dtype": "int4"}),
    "second-float32": TaskSetting(policy={"update_dtype": "float32"}),
    "second-sums": TaskSetting(policy={"solver": "sums"}),
    "second-no-context": TaskSetting(context=False),
    "second-all-tokens": TaskSetting(task={"injection": "all_tokens"}),
}
"""The methods of the second generation."""
LORA: dict[str, Setting] = {
    "lora": OURS,
    "lora-steps": replace(OURS, steps_times=2),
    "lora-8": OURS,
    "lora-16": replace(OURS, steps_times=2),
    "lora-32": replace(OURS, steps_times=4),
}
"""FedAvg-LoRA: the settings whose policies, but for the learning rate, its adapters are trained by."""
TUNED = "lora-8"
"""The method whose learning rate is chosen on the development texts."""
EARLIER_LORA = ("lora", "lora-steps")
"""LoRA of the first release's comparison, whose learning rate was chosen on texts A; its stored cells are shown, and no new ones made."""

VARIANTS = ("ours-int8", "wide", "constant", "wide-constant", "steps-long", "lora-steps")
"""Methods that were tried beside the comparison of the first release and have a table of their own."""
SECOND_VARIANTS = ("second-int4", "second-float32", "second-sums", "second-no-context", "second-all-tokens")
ONE_SEED = ("zero-shot", *VARIANTS, *SECOND_VARIANTS)
"""Methods that run on `SWEEP_SEED` alone."""
RESTRICTED_DATASETS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(VARIANTS, ("subj", "emoc")),
    "more-steps": ("subj",),
    "steps-long": ("subj",),
}
"""The data sets of methods that do not run on all of them."""

TITLES = {
    "zero-shot": "zero-shot",
    "icl": "local few-shot",
    "embedding": "sentence embeddings + head",
    "lora-8": "FedAvg-LoRA, 8 steps",
    "lora-16": "FedAvg-LoRA, 16 steps",
    "lora-32": "FedAvg-LoRA, 32 steps",
    "head": "label head alone",
    "second": "ours",
    "second-int4": "ours, int4 updates",
    "second-float32": "ours, float32 updates",
    "second-sums": "ours, full sums",
    "second-no-context": "ours, no context vector",
    "second-all-tokens": "ours, at all tokens",
    "published": "IFed-ICL as published",
    "ours": "first release",
    "lora": "FedAvg-LoRA, rate chosen on A",
    "steps": "first release, int8, twice the steps a round",
    "more-steps": "first release, int8, four times the steps a round",
    "long": "first release, G = 128, int8, twice the rounds",
    "compact": "first release, G = 16",
    "compact-float16": "first release, G = 16, float16 updates",
    "compact-int8": "first release, G = 16, int8 updates",
    "ours-int8": "first release, int8 updates",
    "wide": "first release, G = 128, int8",
    "constant": "first release, int8, constant rate",
    "wide-constant": "first release, G = 128, int8, constant rate",
    "steps-long": "first release, int8, twice the steps a round, twice the rounds",
    "lora-steps": "FedAvg-LoRA, rate chosen on A, twice the steps a round",
}
COMPARED = tuple(method for method in TITLES if method not in VARIANTS)
"""The methods of the comparison: its tables of accuracy and costs, and its plot."""
DEFAULT_METHODS = (
    *("zero-shot", "icl", "embedding", "published", "ours"),
    *("lora-8", "lora-16", "lora-32", "head", "second", *SECOND_VARIANTS),
)
"""What runs without `--methods`."""
QUICK_METHODS = ("zero-shot", "icl", "published", "ours", "lora-8", "head", "second")


def is_default(method: str) -> bool:
    """Return whether a variant is what the product's defaults are anyway, so that it would be measured twice."""
    return method in SECOND_VARIANTS and TASKS[method] != TASKS["second"] and _same(TASKS[method], TASKS["second"])


def is_known(method: str) -> bool:
    """Return whether the product has the number format of a method's updates."""
    dtype = TASKS[method].policy.get("update_dtype") if method in TASKS else None
    return dtype is None or dtype in get_args(UpdateDType)


def _same(one: TaskSetting, other: TaskSetting) -> bool:
    return one.describe(Plan()) == other.describe(Plan())


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

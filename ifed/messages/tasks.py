"""The definition of a task: labels, template, model, layers, and the policy of its rounds."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from ifed.errors import BadTemplate, LayoutMismatch
from ifed.tensors.probes import Probe
from ifed.tensors.quantization import UpdateDType

Mode = Literal["coefficients", "gradient"]
AggregationRule = Literal["weighted_mean", "median", "trimmed_mean", "multi_krum", "geometric_median"]
InjectionPosition = Literal["all_tokens", "last_token"]
HeadChoice = Literal["words", "regression", "auto"]
Solver = Literal["sums", "conjugate_gradient"]
OptimizerName = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]


def ceil_share(fraction: float, count: int) -> int:
    """Return `fraction` of `count`, rounded up: `ceil_share(0.07, 100) == 7`, although the product of the floats is above 7."""
    return math.ceil(round(fraction * count, 9))


class AggregationPolicy(BaseModel):
    """The part of a policy that says how contributions become the next version: the mode, the rule, the server optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field(
        "coefficients",
        description="what a client sends in a calibration round: its coefficients after `local_steps`, or the mean gradient over one "
        "batch, from which the aggregator takes the step",
    )
    update_dtype: UpdateDType = Field(
        "int4",
        description="how coefficients travel from client to aggregator: whole in float32, or as the change since the round's start in "
        "float16, int8 or int4; what is lost by that a client adds to its next update (arXiv 1901.09847). A gradient travels in float32",
    )
    aggregation: AggregationRule = Field("weighted_mean", description="how the contributions of a round become one")
    nearest_neighbour_mixing: bool = Field(
        False, description="before the rule, replace each contribution by the mean of those nearest to it (arXiv 2302.01772)"
    )
    byzantine_fraction: float = Field(
        0.1,
        ge=0.0,
        lt=0.5,
        description="share of the contributions, rounded up, that trimmed mean, multi-Krum and mixing take to be hostile",
    )
    norm_bound: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        examples=[1.0],
        description="largest L2 norm of an update or gradient; a longer one is scaled down to it",
    )
    weight_cap: int = Field(10_000, ge=1, description="examples that count as a contribution's weight at the most")
    server_optimizer: OptimizerName = Field("fedavg", description="the step from the mean update to the next coefficients")
    server_learning_rate: float | None = Field(
        None,
        gt=0,
        le=10,
        examples=[1.0],
        description="rate of that step; when not set 1 for fedavg and fedavgm of coefficients, else `learning_rate`; "
        "in gradient mode it follows `learning_rate_schedule`",
    )
    server_momentum: float = Field(0.9, ge=0, lt=1, description="β₁ of fedavgm, fedadam and fedyogi")
    server_second_momentum: float = Field(0.99, ge=0, lt=1, description="β₂ of fedadam and fedyogi")
    server_adaptivity: float = Field(1e-3, gt=0, le=1, description="τ of fedadam and fedyogi")
    label_bias: bool = Field(
        True,
        description="clients tell the mean probability of each label on their held-out texts, and serving divides by it and multiplies "
        "by the label's share among them (after batch calibration, arXiv 2309.17249)",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_gradient_travels_whole(cls, data: object) -> object:
        return {"update_dtype": "float32", **data} if isinstance(data, dict) and data.get("mode") == "gradient" else data

    @model_validator(mode="after")
    def _what_travels_is_known(self) -> Self:
        if self.mode == "gradient" and self.update_dtype != "float32":
            raise ValueError(f"update_dtype {self.update_dtype!r} is for mode 'coefficients'; a gradient travels in float32")
        return self

    def least_contributions(self, count: int) -> int:
        """Return the number of contributions that the rule needs of `count`: 2 f + 3 for multi-Krum, 2 f + 1 for rules that drop f, else 1."""
        hostile = ceil_share(self.byzantine_fraction, count)
        if self.aggregation == "multi_krum":
            return 2 * hostile + 3
        return 2 * hostile + 1 if self.nearest_neighbour_mixing or self.aggregation == "trimmed_mean" else 1

    def check_enough(self, count: int) -> None:
        """Check that the rule can aggregate the fewest contributions with which a round may close."""
        if (needed := self.least_contributions(count)) > count:
            steps = " with nearest_neighbour_mixing" if self.nearest_neighbour_mixing else ""
            raise ValueError(
                f"aggregation {self.aggregation!r}{steps} against byzantine_fraction {self.byzantine_fraction} needs {needed} "
                f"contributions, and a round of this policy may close with {count}; raise the quorum or clients_expected"
            )


TEXT_SLOT = "{text}"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
LayerChoice = Literal["all", "upper_half", "upper_third"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Message(BaseModel):
    """An immutable JSON message that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelIdentity(Message):
    """The identity of the frozen model that a party runs. Parties of a task must agree in `fingerprint`, `num_layers` and `hidden_size`."""

    name: str = Field(max_length=300, examples=["smollm2-135m"], description="catalogue name or Hugging Face id")
    fingerprint: str = Field(
        pattern=r"^[0-9a-f]{64}$", examples=["5f" * 32], description="sha256 of weights, configuration and tokenizer"
    )
    family: str = Field(max_length=40, examples=["llama"], description="the architecture, as `model_type` names it")
    num_layers: int = Field(ge=1, le=1000, examples=[30], description="its number of layers, L")
    hidden_size: int = Field(ge=1, le=100_000, examples=[576], description="the width of its residual stream, d")

    def agrees_with(self, other: ModelIdentity) -> bool:
        return (self.fingerprint, self.num_layers, self.hidden_size) == (other.fingerprint, other.num_layers, other.hidden_size)


class Policy(AggregationPolicy, Message):
    """The policy of a task: how its rounds run."""

    rounds: int = Field(24, ge=1, le=10_000, description="calibration rounds at the most")
    cycle: int | None = Field(
        6,
        ge=1,
        le=10_000,
        description="calibration rounds of a cycle, after which the label head is solved anew and the version evaluated; another cycle follows "
        "while that evaluation is the best so far; when null, all rounds are one cycle",
    )
    clients_expected: int = Field(1, ge=1, le=1_000_000, description="the first round opens when so many have joined")
    quorum: int | None = Field(
        None,
        ge=1,
        examples=[3],
        description="contributions a round needs at its deadline, and clients that must have joined before one opens; "
        "when neither this nor `quorum_fraction` is set, a round needs every client it opened with",
    )
    quorum_fraction: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of the clients a round opened with that it needs at its deadline, rounded up; "
        "with `quorum`, the larger of the two counts",
    )
    sample: int | None = Field(
        None, ge=1, le=1_000_000, examples=[10], description="clients a calibration round asks; when not set, every one that joined"
    )
    sample_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        examples=[0.5],
        description="share of the clients that joined which a calibration round asks, rounded up; instead of `sample`",
    )
    retries: int = Field(0, ge=0, le=100, description="times a failed round is opened again before the task fails")
    deadline_seconds: float = Field(3600.0, gt=0, le=31_536_000, description="how long a round stays open")
    local_steps: int = Field(8, ge=1, le=100_000, description="optimiser steps a client takes in a calibration round")
    batch_size: int = Field(32, ge=1, le=4096, description="examples in one optimiser step of a client")
    learning_rate: float = Field(0.08, gt=0, le=10, description="learning rate of a client's first optimiser step")
    learning_rate_schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="how the learning rate goes over the rounds of a cycle: to 0 along a cosine, or not at all"
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="weight decay of a client's optimiser, which is AdamW")
    logit_adjustment: float = Field(1.0, ge=0, le=10, description="weight of the client's log label prior in training; 0 is off")
    initial_context_weight: float = Field(0.0, ge=-10, le=10, description="λ before the first round; 0 starts from the base model")
    patience: int | None = Field(
        None,
        ge=1,
        le=10_000,
        examples=[2],
        description="stop calibrating when so many rounds have not improved the held-out likelihood, or the accuracy where it is unknown",
    )
    solver: Solver = Field(
        "conjugate_gradient",
        description="how the label head is solved: in rounds of a few products each, or from full sums in one round, d (d + 1) / 2 numbers",
    )
    head_rounds: int = Field(8, ge=1, le=1000, description="rounds of products at the most for one solution by conjugate gradients")
    serve: Literal["best", "latest"] = Field("best", description="which evaluated version the adapter endpoint gives")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of its examples a client keeps for evaluation")
    max_holdout: int = Field(100, ge=1, le=1_000_000, description="held-out examples a client scores in a round at the most")
    max_demonstrations: int = Field(
        1000, ge=1, le=100_000_000, description="examples a client condenses into its context vector at the most"
    )

    @model_validator(mode="after")
    def _rule_has_enough(self) -> Self:
        if self.sample is not None and self.sample_fraction is not None:
            raise ValueError("sample and sample_fraction are two words for one thing; set one of them")
        asked = self.sampled(max(self.clients_expected, self.quorum or 1))
        if asked < (self.quorum or 1):
            raise ValueError(f"a quorum of {self.quorum} cannot come from a sample of {asked}; raise the sample")
        share = ceil_share(self.quorum_fraction, asked)
        every = self.quorum is None and self.quorum_fraction == 0.0
        self.check_enough(asked if every else max(self.quorum or 1, share))
        return self

    def sampled(self, members: int) -> int:
        """Return how many of `members` clients take part in a calibration round."""
        if self.sample_fraction is not None:
            return max(1, ceil_share(self.sample_fraction, members))
        return members if self.sample is None else min(self.sample, members)

    @property
    def cycle_rounds(self) -> int:
        """The calibration rounds of a cycle."""
        return min(self.cycle or self.rounds, self.rounds)

    def learning_rate_at(self, round_index: int) -> tuple[float, float]:
        """Return the first and last learning rate of calibration round `round_index` (0-based): a cosine over its cycle, or a constant."""
        round_index %= self.cycle_rounds
        first, last = (self.learning_rate * self._left(step) for step in (round_index, round_index + 1))
        return first, last

    def server_rate_at(self, round_index: int) -> float:
        """Return the server's learning rate η in calibration round `round_index` (0-based)."""
        averages = self.mode == "coefficients" and self.server_optimizer in ("fedavg", "fedavgm")
        rate = self.server_learning_rate or (1.0 if averages else self.learning_rate)
        return rate * self._left(round_index % self.cycle_rounds) if self.mode == "gradient" else rate

    def _left(self, round_index: int) -> float:
        """Return the share of the learning rate that the schedule leaves at the start of a round."""
        if self.learning_rate_schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * round_index / self.cycle_rounds))


class Layout(Message):
    """The shapes of the tensors of a task on its model."""

    layers: list[int] = Field(description="injected layers, lowest first")
    hidden_size: int
    groups: int

    @property
    def context_shape(self) -> tuple[int, int, int]:
        return (len(self.layers), 2, self.hidden_size)

    @property
    def coefficients_shape(self) -> tuple[int, int, int, int]:
        return (len(self.layers), 2, 2, self.groups)


class TaskSpec(Message):
    """The definition of a task: what is classified, with which model, and how the rounds run."""

    name: Name = Field(examples=["sentiment"], description="unique; part of URLs and of `model` when a text is classified")
    labels: list[Label] = Field(
        min_length=2,
        max_length=1000,
        examples=[["negative", "positive"]],
        description="all different, without white space at either end",
    )
    template: str = Field(
        max_length=10_000,
        examples=["Review: {text}\nSentiment:"],
        description="the prompt, with `{text}` exactly once and no white space at its end; a label follows after one space",
    )
    chat: bool = Field(False, description="put the template into the model's chat template, as a user's words")
    model: str = Field(
        max_length=300, examples=["smollm2-135m"], description="catalogue name or Hugging Face id; clients may map it to a folder"
    )
    identity: ModelIdentity | None = Field(None, description="the exact model; when not set, the first client that joins sets it")
    probe: Probe | None = Field(
        None, description="what the model does with public texts; when not set, the first client that joins sets it"
    )
    layers: LayerChoice = Field("upper_half", description="where is injected: a part of the layers, or a list of them from 0")
    groups: int = Field(64, ge=1, le=100_000, description="coefficient groups; must divide the hidden size")
    head: HeadChoice = Field(
        "auto",
        description="how a text's labels are read: by the label words, by a label head solved by ridge regression, or by whichever of the "
        "two and their mean has the highest held-out likelihood",
    )
    injection: InjectionPosition = Field(
        "last_token", description="the tokens that the injection acts on: the last of the prompt, or all, as published"
    )
    abstain_below: float | None = Field(
        None,
        ge=0,
        le=1,
        examples=[0.7],
        description="give a text no label where the highest probability, as it is served, is below this; can be changed at any time; "
        "when not set, or 0, every text gets a label",
    )
    policy: Policy = Field(Policy(), description="how the rounds run, see [policy](#policy)")

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels) or any(label != label.strip() for label in labels):
            raise ValueError("labels must differ and must not begin or end with white space")
        return labels

    @field_validator("template")
    @classmethod
    def _one_slot(cls, template: str) -> str:
        try:
            check_template(template)
        except BadTemplate as refusal:
            raise ValueError(refusal.detail) from refusal
        return template

    @model_validator(mode="after")
    def _sums_are_averaged(self) -> Self:
        if self.head != "words" and self.policy.solver == "sums" and self.policy.aggregation != "weighted_mean":
            raise ValueError(
                f"aggregation {self.policy.aggregation!r} does not apply to solver 'sums'; use solver 'conjugate_gradient', whose rounds it aggregates"
            )
        return self

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.identity is not None:
            try:
                self.layout(self.identity)
            except LayoutMismatch as refusal:
                raise ValueError(refusal.detail) from refusal
        return self

    def layout(self, identity: ModelIdentity) -> Layout:
        """Return the shapes of this task's tensors on a model.

        Raises:
            LayoutMismatch: the groups do not divide the hidden size, or a listed layer does not exist.
        """
        if identity.hidden_size % self.groups:
            raise LayoutMismatch(
                f"{self.groups} groups do not divide the hidden size {identity.hidden_size} of {identity.name}; "
                f"try {_divisor_near(identity.hidden_size, self.groups)}"
            )
        return Layout(
            layers=list(resolve_layers(self.layers, identity.num_layers)), hidden_size=identity.hidden_size, groups=self.groups
        )


def resolve_layers(choice: LayerChoice, num_layers: int) -> tuple[int, ...]:
    """Return the indices of the injected layers, lowest first.

    Raises:
        LayoutMismatch: a listed layer does not exist in a model of `num_layers` layers, or is listed twice.
    """
    if choice == "all":
        return tuple(range(num_layers))
    if choice == "upper_half":
        return tuple(range(num_layers // 2, num_layers))
    if choice == "upper_third":
        return tuple(range(2 * num_layers // 3, num_layers))
    layers = tuple(sorted(choice))
    if len(set(layers)) != len(layers) or layers[-1] >= num_layers:
        raise LayoutMismatch(f"layers {list(choice)} do not fit a model of {num_layers} layers (0 to {num_layers - 1}, each once)")
    return layers


def check_template(template: str) -> None:
    """Check that a prompt template contains `{text}` exactly once and does not end in white space.

    Raises:
        BadTemplate: it does not; the message says which.
    """
    if template.count(TEXT_SLOT) != 1:
        raise BadTemplate(f"a template holds {TEXT_SLOT} exactly once; this one holds it {template.count(TEXT_SLOT)} times")
    if template != template.rstrip():
        raise BadTemplate("a template must not end in white space: the label follows after one space")


def _divisor_near(size: int, groups: int) -> int:
    return min((divisor for divisor in range(1, size + 1) if size % divisor == 0), key=lambda divisor: abs(divisor - groups))

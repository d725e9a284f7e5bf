"""What a task is: labels, template, model, layers, and the policy its rounds follow. Knows no rounds and no HTTP."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from ifed.errors import BadTemplate, LayoutMismatch
from ifed.probes import Probe
from ifed.rules import AggregationPolicy

TEXT_SLOT = "{text}"

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
LayerChoice = Literal["all", "upper_half", "upper_third"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Message(BaseModel):
    """A JSON body: unknown fields are refused, values do not change once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelIdentity(Message):
    """Which frozen model a party runs. Two parties work together only if `fingerprint`, `num_layers` and `hidden_size` agree."""

    name: str = Field(max_length=300, examples=["smollm2-135m"])
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of weights, configuration and tokenizer")
    family: str = Field(max_length=40, examples=["llama"])
    num_layers: int = Field(ge=1, le=1000)
    hidden_size: int = Field(ge=1, le=100_000)

    def agrees_with(self, other: ModelIdentity) -> bool:
        return (self.fingerprint, self.num_layers, self.hidden_size) == (other.fingerprint, other.num_layers, other.hidden_size)


class Policy(AggregationPolicy, Message):
    """How a task runs its rounds."""

    rounds: int = Field(6, ge=1, le=10_000, description="calibration rounds at the most")
    clients_expected: int = Field(1, ge=1, le=1_000_000, description="the first round opens when so many have joined")
    quorum: int | None = Field(
        None,
        ge=1,
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
        None, ge=1, le=1_000_000, description="clients a calibration round asks; when not set, every one that joined"
    )
    sample_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the clients that joined which a calibration round asks, rounded up; instead of `sample`",
    )
    retries: int = Field(0, ge=0, le=100, description="times a failed round is opened again before the task fails")
    deadline_seconds: float = Field(3600.0, gt=0, le=31_536_000, description="how long a round stays open")
    local_steps: int = Field(8, ge=1, le=100_000, description="optimiser steps a client takes in a calibration round")
    batch_size: int = Field(8, ge=1, le=4096)
    learning_rate: float = Field(0.04, gt=0, le=10)
    learning_rate_schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0, le=1)
    logit_adjustment: float = Field(1.0, ge=0, le=10, description="weight of the client's log label prior in training; 0 is off")
    initial_context_weight: float = Field(0.0, ge=-10, le=10, description="λ before the first round; 0 starts from the bare model")
    patience: int | None = Field(None, ge=1, le=10_000, description="stop when the accuracy has not risen for so many rounds")
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
        share = math.ceil(round(self.quorum_fraction * asked, 9))
        every = self.quorum is None and self.quorum_fraction == 0.0
        self.check_enough(asked if every else max(self.quorum or 1, share))
        return self

    def sampled(self, members: int) -> int:
        """How many of `members` clients a calibration round asks."""
        if self.sample_fraction is not None:
            return max(1, math.ceil(round(self.sample_fraction * members, 9)))
        return members if self.sample is None else min(self.sample, members)

    def learning_rate_at(self, round_index: int) -> tuple[float, float]:
        """First and last learning rate of calibration round `round_index` (0-based): a cosine over all rounds, or a constant."""
        first, last = (self.learning_rate * self._left(step) for step in (round_index, round_index + 1))
        return first, last

    def server_rate_at(self, round_index: int) -> float:
        """The server's rate η in calibration round `round_index` (0-based)."""
        averages = self.mode == "coefficients" and self.server_optimizer in ("fedavg", "fedavgm")
        rate = self.server_learning_rate or (1.0 if averages else self.learning_rate)
        return rate * self._left(round_index) if self.mode == "gradient" else rate

    def _left(self, round_index: int) -> float:
        """Share of the rate that the schedule leaves at the start of a round."""
        if self.learning_rate_schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(round_index, self.rounds) / self.rounds))


class Layout(Message):
    """The shapes of a task's tensors once its model is known."""

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
    """What the clients classify, with which model, and how the rounds run."""

    name: Name = Field(examples=["sentiment"])
    labels: list[Label] = Field(min_length=2, max_length=1000, examples=[["negative", "positive"]])
    template: str = Field(max_length=10_000, examples=["Review: {text}\nSentiment:"])
    chat: bool = Field(False, description="put the template into the model's chat template, as a user's words")
    model: str = Field(
        max_length=300, examples=["smollm2-135m"], description="catalogue name or Hugging Face id; clients may map it to a folder"
    )
    identity: ModelIdentity | None = Field(None, description="the exact model; when not set, the first client that joins sets it")
    probe: Probe | None = Field(
        None, description="what the model does with public texts; when not set, the first client that joins sets it"
    )
    layers: LayerChoice = "upper_half"
    groups: int = Field(64, ge=1, le=100_000, description="coefficient groups; must divide the hidden size")
    policy: Policy = Policy()

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
    def _layout_fits(self) -> Self:
        if self.identity is not None:
            try:
                self.layout(self.identity)
            except LayoutMismatch as refusal:
                raise ValueError(refusal.detail) from refusal
        return self

    def layout(self, identity: ModelIdentity) -> Layout:
        """Shapes of this task's tensors on a model.

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
    """The indices of the injected layers, lowest first.

    Raises:
        LayoutMismatch: a listed layer that a model of `num_layers` layers does not have, or one listed twice.
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
    """Refuse a prompt template that has not exactly one `{text}`, or ends in white space.

    Raises:
        BadTemplate: it says which of the two.
    """
    if template.count(TEXT_SLOT) != 1:
        raise BadTemplate(f"a template holds {TEXT_SLOT} exactly once; this one holds it {template.count(TEXT_SLOT)} times")
    if template != template.rstrip():
        raise BadTemplate("a template must not end in white space: the label follows after one space")


def _divisor_near(size: int, groups: int) -> int:
    return min((divisor for divisor in range(1, size + 1) if size % divisor == 0), key=lambda divisor: abs(divisor - groups))

"""The part of a policy that says how contributions become the next aggregate. Knows no rounds and no arrays."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ifed.states import UpdateDType

Mode = Literal["coefficients", "gradient"]
AggregationRule = Literal["weighted_mean", "median", "trimmed_mean", "multi_krum", "geometric_median"]
OptimizerName = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]


class AggregationPolicy(BaseModel):
    """Fields of a task's policy: the mode, the rule, and the server's optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field(
        "coefficients",
        description="what a client sends in a calibration round: its coefficients after `local_steps`, or the mean gradient over one "
        "batch, from which the aggregator takes the step",
    )
    update_dtype: UpdateDType = Field(
        "float32",
        description="how coefficients travel from client to aggregator: whole in float32, or as the change since the round's start in "
        "float16 or int8; what is lost by that a client adds to its next update (arXiv 1901.09847)",
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
        None, gt=0, allow_inf_nan=False, description="largest L2 norm of an update or gradient; a longer one is scaled down to it"
    )
    weight_cap: int = Field(10_000, ge=1, description="examples that count as a contribution's weight at the most")
    server_optimizer: OptimizerName = Field("fedavg", description="the step from the mean update to the next coefficients")
    server_learning_rate: float | None = Field(
        None,
        gt=0,
        le=10,
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

    @model_validator(mode="after")
    def _what_travels_is_known(self) -> Self:
        if self.mode == "gradient" and self.update_dtype != "float32":
            raise ValueError(f"update_dtype {self.update_dtype!r} is for mode 'coefficients'; a gradient travels in float32")
        return self

    def least_contributions(self, count: int) -> int:
        """Contributions that the rule needs when `count` come: 2 f + 3 for multi-Krum, 2 f + 1 for what drops f, else 1."""
        hostile = math.ceil(round(self.byzantine_fraction * count, 9))
        if self.aggregation == "multi_krum":
            return 2 * hostile + 3
        return 2 * hostile + 1 if self.nearest_neighbour_mixing or self.aggregation == "trimmed_mean" else 1

    def check_enough(self, count: int) -> None:
        """Refuse a rule that could not aggregate the fewest contributions a round may close with."""
        if (needed := self.least_contributions(count)) > count:
            steps = " with nearest_neighbour_mixing" if self.nearest_neighbour_mixing else ""
            raise ValueError(
                f"aggregation {self.aggregation!r}{steps} against byzantine_fraction {self.byzantine_fraction} needs {needed} "
                f"contributions, and a round of this policy may close with {count}; raise the quorum or clients_expected"
            )

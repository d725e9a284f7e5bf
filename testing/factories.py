"""Builders of valid values for tests, with an argument for each field that a test may set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from ifed.messages.bodies import ContextBody, UpdateBody
from ifed.messages.enums import Role, RoundKind
from ifed.messages.rounds import ContributionMeta, JoinRequest
from ifed.messages.tasks import Layout, ModelIdentity, Policy, TaskSpec
from ifed.tensors.probes import TEXTS, Probe
from ifed.tensors.values import Coefficients, ContextVector
from services.aggregator.application.participation import read_context_body, read_update_body
from services.aggregator.domain.access import Party
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.contribution import Contribution, ContributionRecord, ContributionSchema
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Membership, Task

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FINGERPRINT = "a" * 64
OTHER_FINGERPRINT = "b" * 64
LABELS = ["negative", "positive"]
ADMIN_TOKEN = "an-admin-token-for-tests-only"
LAYERS, HIDDEN, GROUPS = 2, 8, 2


def identity(**changes: Any) -> ModelIdentity:
    """Return the identity of a model of four layers, of which a task injects into the upper two."""
    return ModelIdentity.model_validate(
        {"name": "tiny", "fingerprint": FINGERPRINT, "family": "llama", "num_layers": 2 * LAYERS, "hidden_size": HIDDEN} | changes
    )


def policy(**changes: Any) -> Policy:
    """Return the policy of two rounds of two clients, whose coefficients travel whole."""
    return Policy.model_validate({"rounds": 2, "clients_expected": 2, "update_dtype": "float32"} | changes)


def spec(name: str = "sentiment", **changes: Any) -> TaskSpec:
    """Return a task of two labels, read by their words; changes that are not fields of the task are fields of its policy."""
    task_fields = {key: changes.pop(key) for key in list(changes) if key in TaskSpec.model_fields}
    fields = {"name": name, "labels": LABELS, "template": "Review: {text}\nSentiment:", "model": "tiny", "groups": GROUPS}
    fields |= {"head": "words", "injection": "all_tokens"}
    return TaskSpec.model_validate(fields | {"policy": policy(**changes)} | task_fields)


def task(name: str = "sentiment", **changes: Any) -> Task:
    return Task(spec(name, **changes), NOON)


def layout() -> Layout:
    return Layout(layers=list(range(LAYERS, 2 * LAYERS)), hidden_size=HIDDEN, groups=GROUPS)


def join_request(*, examples: int = 10, holdout: int = 8, **changes: Any) -> JoinRequest:
    counts = {LABELS[0]: examples // 2, LABELS[1]: examples - examples // 2}
    model = identity(**changes)
    return JoinRequest(identity=model, label_counts=counts, holdout=holdout, probe=probe(model.num_layers))


def probe(layers: int = 2 * LAYERS, *, noise: float = 0.0, tokens: str = "c" * 64) -> Probe:
    """Return a probe of fixed random activations, with relative noise."""
    random = np.random.default_rng(0)
    activations = random.normal(size=(len(TEXTS), layers, 2, 64))
    return Probe.of(tokens, (activations + noise * random.normal(size=activations.shape)).astype(np.float32))


def party(name: str, role: Role = Role.CLIENT) -> Party:
    return Party(name, role, f"{name:0>64}", NOON)


def membership(client: str, task: str = "sentiment", *, holdout: int = 8) -> Membership:
    return Membership(task, client, NOON, {LABELS[0]: 5, LABELS[1]: 5}, holdout)


def round_(number: int = 1, kind: RoundKind = RoundKind.CONTEXT, *, expected: int = 2, **changes: Any) -> Round:
    """Return an open round of an hour."""
    fields: dict[str, Any] = {"task": "sentiment", "opened_at": NOON, "deadline": NOON + timedelta(hours=1), "required": expected}
    if kind is not RoundKind.CONTEXT:
        fields["version"] = 0
    return Round(number=number, kind=kind, expected=expected, **(fields | changes))


def contribution_schema(**changes: Any) -> ContributionSchema:
    fields: dict[str, Any] = {"fingerprint": FINGERPRINT, "labels": len(LABELS), "holdout": 8}
    fields |= {"context_shape": layout().context_shape, "coefficients_shape": layout().coefficients_shape}
    return ContributionSchema(**(fields | changes))


def context_values(value: float = 1.0) -> ContextVector:
    return ContextVector(np.full(layout().context_shape, value, dtype=np.float32))


def coefficients(value: float = 0.5) -> Coefficients:
    return Coefficients(np.full(layout().coefficients_shape, value, dtype=np.float32))


def context_body(value: float = 1.0, *, examples: int = 10, fingerprint: str = FINGERPRINT, seconds: float | None = 1.5) -> bytes:
    """Return the body that a client sends in a context round."""
    meta = ContributionMeta(fingerprint=fingerprint, examples=examples, seconds=seconds)
    return ContextBody(context_values(value), meta).to_bytes()


def update_body(
    value: float | None = 0.5,
    *,
    confusion: npt.ArrayLike = ((3, 1), (1, 3)),
    version: int | None = 0,
    examples: int = 10,
    loss: float | None = 0.7,
    fingerprint: str = FINGERPRINT,
) -> bytes:
    """Return the body that a client sends in a calibration round, or in an evaluation round if `value` is None."""
    meta = ContributionMeta(fingerprint=fingerprint, examples=examples, version=version, loss=loss)
    values = None if value is None else coefficients(value)
    return UpdateBody(values, np.asarray(confusion, dtype=np.int64), meta).to_bytes()


def context_contribution(client: str, value: float = 1.0, **changes: Any) -> Contribution:
    return read_context_body(context_body(value, **changes), client, NOON)


def update_contribution(client: str, value: float | None = 0.5, **changes: Any) -> Contribution:
    return read_update_body(update_body(value, **changes), client, NOON)


def contribution_record(client: str, **changes: Any) -> ContributionRecord:
    fields: dict[str, Any] = {"client": client, "digest": "d" * 64, "received_at": NOON, "weight": 10, "size": 100}
    return ContributionRecord(**(fields | changes))


def aggregate(version: int = 0, task: str = "sentiment", *, digest: str = "c" * 64) -> Aggregate:
    return Aggregate(task, version, digest, NOON, 1, 20)

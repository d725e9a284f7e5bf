"""The bytes of a contribution read into a `Contribution`. Refuses what is malformed; knows no rounds and no storage."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from ifed.bodies import ContextBody, UpdateBody
from ifed.contracts import ContributionMeta
from ifed.tensors import digest_of
from services.aggregator.contribution import Contribution, Entry


def read_context_body(body: bytes, client: str, now: datetime) -> Contribution:
    """A context vector as a contribution.

    Raises:
        Malformed: not a safetensors body of ours; also LayoutMismatch and NonFinite.
    """
    parsed = ContextBody.from_bytes(body)
    entry = _entry(body, client, now, parsed.meta)
    return Contribution(entry, body, parsed.meta.fingerprint, parsed.meta.version, context=parsed.vector)


def read_update_body(body: bytes, client: str, now: datetime) -> Contribution:
    """An update, or an evaluation alone, as a contribution.

    Raises:
        Malformed: not a safetensors body of ours; also LayoutMismatch and NonFinite.
    """
    parsed = UpdateBody.from_bytes(body)
    correct, evaluated = int(np.trace(parsed.confusion)), int(parsed.confusion.sum())
    entry = _entry(body, client, now, parsed.meta, correct=correct, evaluated=evaluated)
    return Contribution(
        entry,
        body,
        parsed.meta.fingerprint,
        parsed.meta.version,
        coefficients=parsed.coefficients,
        gradient=parsed.gradient,
        change=parsed.change,
        confusion=parsed.confusion,
        label_probabilities=parsed.label_probabilities,
    )


def _entry(
    body: bytes,
    client: str,
    now: datetime,
    meta: ContributionMeta,
    *,
    correct: int | None = None,
    evaluated: int | None = None,
) -> Entry:
    return Entry(
        client=client,
        digest=digest_of(body),
        received_at=now,
        weight=meta.examples,
        size=len(body),
        loss=meta.loss,
        seconds=meta.seconds,
        correct=correct,
        evaluated=evaluated,
    )

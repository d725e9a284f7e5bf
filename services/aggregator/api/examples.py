"""An example of every message of the HTTP API: the task `sentiment` of the clients `north` and `south`."""

from __future__ import annotations

import base64
from typing import Any

FINGERPRINT, DIGEST = "5f" * 32, "c0ffee11" * 8
OPENED, CLOSED, DEADLINE = "2026-03-01T12:00:00Z", "2026-03-01T12:00:41Z", "2026-03-01T13:00:00Z"
LABELS = ["negative", "positive"]
TEMPLATE = "Review: {text}\nSentiment:"
MODEL = {"name": "smollm2-135m", "fingerprint": FINGERPRINT, "family": "llama", "num_layers": 2, "hidden_size": 576}
LAYOUT = {"layers": [1], "hidden_size": 576, "groups": 64}
POLICY = {"rounds": 4, "clients_expected": 2, "quorum_fraction": 0.5, "deadline_seconds": 3600}
PROBE = {"tokens": "ab" * 32, "layers": 2, "values": base64.b64encode(bytes(4 * 4 * 2 * 2 * 8)).decode()}
SPEC = {"name": "sentiment", "labels": LABELS, "template": TEMPLATE, "model": "smollm2-135m", "groups": 64, "policy": POLICY}
EVALUATION = {
    "version": 1,
    "accuracy": 0.872,
    "macro_f1": 0.868,
    "examples": 180,
    "expected_calibration_error": 0.031,
    "thresholds": [
        {"abstain_below": 0.5, "answered": 1.0, "accuracy": 0.872},
        {"abstain_below": 0.6, "answered": 0.961, "accuracy": 0.89},
        {"abstain_below": 0.7, "answered": 0.906, "accuracy": 0.914},
        {"abstain_below": 0.8, "answered": 0.811, "accuracy": 0.945},
        {"abstain_below": 0.9, "answered": 0.622, "accuracy": 0.982},
    ],
    "labels": [
        {"label": "negative", "texts": 90, "predicted": 95, "precision": 0.853, "recall": 0.9},
        {"label": "positive", "texts": 90, "predicted": 85, "precision": 0.894, "recall": 0.844},
    ],
}
MEMBER = {"client": "north", "joined_at": OPENED, "label_counts": {"negative": 210, "positive": 190}, "holdout": 100}
NORTH = {
    "client": "north",
    "contributed_at": CLOSED,
    "examples": 400,
    "bytes_up": 4608,
    "loss": 0.31,
    "accuracy": 0.88,
    "seconds": 22.5,
}
ROUND = {
    "task": "sentiment",
    "number": 3,
    "kind": "calibration",
    "state": "closed",
    "opened_at": OPENED,
    "deadline": DEADLINE,
    "closed_at": CLOSED,
    "expected": ["north", "south"],
    "missing": ["south"],
    "clients": [NORTH, {"client": "south"}],
    "version": 1,
    "produced": 2,
    "loss": 0.31,
    "evaluation": EVALUATION,
}
TASK = {
    "spec": SPEC,
    "state": "running",
    "created_at": OPENED,
    "identity": MODEL,
    "layout": LAYOUT,
    "members": [MEMBER],
    "withdrawn": [{"task": "sentiment", "client": "east", "withdrawn_at": CLOSED}],
    "round": ROUND,
    "version": 2,
    "served": 1,
    "evaluations": [EVALUATION],
}
EVENT = {
    "number": 7,
    "at": CLOSED,
    "kind": "round.closed",
    "task": "sentiment",
    "round": 3,
    "round_kind": "calibration",
    "version": 2,
}
WEBHOOK = {"name": "pager", "url": "https://hooks.example.org/ifed", "events": ["round.failed", "task.failed"]}
BRIEF = {name: SPEC[name] for name in ("name", "labels", "template", "model", "groups", "policy")}
WORK = {
    "mode": "coefficients",
    "steps": 12,
    "batch_size": 8,
    "learning_rate": 0.034,
    "learning_rate_end": 0.02,
    "weight_decay": 0.0,
    "logit_adjustment": 1.0,
    "seed": 20260301,
}
EXAMPLES: dict[str, Any] = {
    "TaskSpec": SPEC,
    "TaskInfo": TASK,
    "TaskChanges": {"template": "Film review: {text}\nSentiment:", "policy": POLICY | {"rounds": 8}},
    "Start": {"warm_start": True},
    "RoundInfo": ROUND,
    "EvaluationDetails": EVALUATION
    | {
        "round": 3,
        "confusion": [[81, 9], [14, 76]],
        "clients": [{"client": "north", "texts": 100, "correct": 88, "accuracy": 0.88}],
    },
    "Extension": {"seconds": 3600},
    "Rollback": {"version": 1},
    "LedgerEntry": {
        "round": 3,
        "kind": "calibration",
        "state": "closed",
        "client": "north",
        "digest": DIGEST,
        "received_at": CLOSED,
        "examples": 400,
        "bytes": 4608,
    },
    "Replay": {
        "round": 3,
        "kind": "calibration",
        "contributions": 1,
        "version": 2,
        "stored": DIGEST,
        "replayed": DIGEST,
        "altered": [],
        "deleted": [],
        "proven": True,
    },
    "ContextInfo": {"version": 2, "digest": DIGEST, "created_at": CLOSED, "examples": 900, "changes": 1},
    "Withdrawal": {"task": "sentiment", "client": "south", "withdrawn_at": CLOSED},
    "MatchRequest": {"task": "sentiment", "limit": 3},
    "Matches": {
        "items": [{"task": "movies", "similarity": 0.91, "version": 4, "labels": LABELS, "evaluation": EVALUATION | {"version": 4}}]
    },
    "NewClient": {"name": "north", "role": "client"},
    "ClientInfo": {"name": "north", "role": "client", "enrolled_at": OPENED, "last_seen_at": CLOSED},
    "Enrolment": {"name": "north", "role": "client", "token": "ifed_XXXXXXXX"},
    "TokenHolder": {"name": "north", "role": "client"},
    "NewEnrolment": {"name": "south", "role": "client", "valid_seconds": 86400},
    "EnrolmentCodeInfo": {"name": "south", "role": "client", "code": "enrol_XXXXXXXX", "expires_at": "2026-03-02T12:00:00Z"},
    "CodeTrade": {"code": "enrol_XXXXXXXX"},
    "AuditLine": {
        "number": 12,
        "at": OPENED,
        "actor": "admin",
        "action": "POST /v1/tasks/{task}/start",
        "target": "/v1/tasks/sentiment/start",
        "request_id": "0123456789abcdef0123456789abcdef",
    },
    "JoinRequest": {"identity": MODEL, "label_counts": MEMBER["label_counts"], "holdout": 100, "probe": PROBE},
    "Member": MEMBER,
    "Assignment": {
        "kind": "calibration",
        "task": BRIEF | {"layers": "upper_half", "identity": MODEL, "layout": LAYOUT},
        "round": 3,
        "deadline": DEADLINE,
        "version": 1,
        "context_digest": DIGEST,
        "work": WORK,
        "confidence": True,
        "state": "running",
    },
    "Receipt": {"task": "sentiment", "round": 3, "client": "north", "digest": DIGEST, "received_at": CLOSED},
    "NewWebhook": WEBHOOK,
    "WebhookInfo": WEBHOOK | {"created_at": OPENED, "pending": 0},
    "WebhookSecret": WEBHOOK | {"created_at": OPENED, "pending": 0, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
    "DeliveryInfo": {"event": EVENT, "state": "delivered", "attempts": 1, "status": 204, "delivered_at": CLOSED},
    "Readiness": {"ready": True, "checks": {"database": "ok", "cache": "ok"}},
}

"""Messages are refused where they hold no text, whichever shape they have; a deadline is read or left out, never an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ifed.messages.inference import ClassifyRequest
from services.inference.api.formats import HubRequest, PredictRequest
from services.inference.api.open_inference import read_inference

HALF = "half a character: \ud83d"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ClassifyRequest, {"model": "a", "input": HALF}),
        (ClassifyRequest, {"model": "a", "input": ["fine ✓", HALF]}),
        (PredictRequest, {"inputs": HALF}),
        (PredictRequest, {"inputs": [["fine ✓"], [HALF]]}),
        (HubRequest, {"inputs": HALF}),
        (HubRequest, {"inputs": ["fine ✓", HALF]}),
    ],
)
def test_half_a_character_is_refused_in_every_shape(kind: type[BaseModel], message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(message)
    kind.model_validate(json.loads(json.dumps(message).replace("\\ud83d", "✓")))


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(2_000_000, 2.0), (1.5, 1.5e-6), (10**400, 1e9), (0, None), (-1, None), (True, None), ("soon", None), (None, None)],
)
def test_a_deadline_in_microseconds_is_read_and_anything_else_left_out(given: object, seconds: float | None) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["fine"]}
    request = {"inputs": [tensor], "parameters": {} if given is None else {"timeout": given}}
    assert read_inference(json.dumps(request).encode(), None).timeout == seconds

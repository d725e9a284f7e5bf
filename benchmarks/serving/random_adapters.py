"""Random adapters of the size of real ones, for any number of tasks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout, ModelIdentity
from ifed.tensors.values import Coefficients, ContextVector

TEMPLATE = "News: {text}\nTopic:"
GROUPS = 64


def identity(model: str, cache: Path | None) -> tuple[ModelIdentity, Path]:
    """Return the identity of a model and its folder, computed in a process of its own, so that the driver holds no model in memory."""
    program = (
        "import json, sys; from pathlib import Path; from ifed.downloads import cache_folder;"
        "from ifed.modeling.catalog import prepare; from ifed.modeling.loading import load;"
        "cache = cache_folder(Path(sys.argv[2]) if sys.argv[2] else None);"
        "print(json.dumps([load(sys.argv[1], cache=cache).identity.model_dump(), "
        "str(prepare(sys.argv[1], cache=cache, announce=lambda _: None))]))"
    )
    process = subprocess.run([sys.executable, "-c", program, model, str(cache or "")], check=True, capture_output=True, text=True)
    identity_fields, folder = json.loads(process.stdout.splitlines()[-1])
    return ModelIdentity.model_validate(identity_fields), Path(folder)


def write(folder: Path, count: int, model: ModelIdentity, labels: list[str]) -> None:
    """Write adapters `task-0` to `task-{count - 1}` for the upper half of the layers, near the base model."""
    folder.mkdir(parents=True)
    layers = list(range(model.num_layers // 2, model.num_layers))
    layout = Layout(layers=layers, hidden_size=model.hidden_size, groups=math.gcd(GROUPS, model.hidden_size))
    random = np.random.default_rng(0)
    for number in range(count):
        coefficients = random.normal(scale=0.05, size=layout.coefficients_shape)
        coefficients[:, :, 1] += 1.0
        meta = AdapterMeta(
            task=f"task-{number}",
            version=1,
            labels=labels,
            template=TEMPLATE,
            identity=model,
            layout=layout,
            created_at=datetime.now(UTC),
        )
        body = AdapterBody(ContextVector(random.normal(scale=0.5, size=layout.context_shape)), Coefficients(coefficients), meta)
        (folder / f"task-{number}.safetensors").write_bytes(body.to_bytes())

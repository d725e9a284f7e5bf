"""A Flower client with the payloads of the simulated clients."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return a context vector, an update or an evaluation, according to the kind of round."""
    config, random = context.run_config, np.random.default_rng()
    layers, hidden, groups = int(config["layers"]), int(config["hidden"]), int(config["groups"])
    arrays: list[np.ndarray] = []
    match message.content["round"]["kind"]:
        case "context":
            arrays = [random.standard_normal((layers, 2, hidden), dtype=np.float32).astype(np.float16)]
        case "calibration":
            arrays = [random.standard_normal((layers, 2, 2, groups), dtype=np.float32)]
    metrics = MetricRecord({"num-examples": 100, "confusion": [40, 10, 10, 40]})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

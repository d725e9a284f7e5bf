"""A Flower server that runs the rounds of the benchmark's task and times each."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for every client, then run a context round, calibration rounds and an evaluation round."""
    config = context.run_config
    clients, out = int(config["clients"]), Path(str(config["out"]))
    while len(nodes := list(grid.get_node_ids())) < clients:
        time.sleep(0.5)
    seconds, arrays = [], ArrayRecord([])
    for kind in ["context", *["calibration"] * int(config["rounds"]), "evaluation"]:
        began = time.monotonic()
        content = {"round": ConfigRecord({"kind": kind}), "arrays": arrays}
        requests = [Message(RecordDict(content), dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes[:clients]]
        replies = [reply.content for reply in grid.send_and_receive(requests)]
        if kind != "evaluation":
            arrays = ArrayRecord([weighted_mean(replies).astype(np.float32)])
        seconds.append(time.monotonic() - began)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(seconds), encoding="utf-8")
    part.rename(out)


def weighted_mean(replies: list[RecordDict]) -> np.ndarray:
    """Return the mean of the replies in float64, weighted by their numbers of examples."""
    weights = [float(reply["metrics"]["num-examples"]) for reply in replies]
    values = [reply["arrays"].to_numpy_ndarrays()[0].astype(np.float64) for reply in replies]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

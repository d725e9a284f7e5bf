"""The cost of a client's work in seconds."""

from __future__ import annotations

import time

import torch

from ifed.modeling.language_model import LanguageModel


def now(lm: LanguageModel) -> float:
    """Return seconds since an arbitrary start, so that the difference of two calls is the cost of the work between them.

    On a CPU they are core-seconds of this process, which other processes lengthen less than wall-clock time. On any other device they are
    wall-clock seconds, taken after the device has finished its queue.
    """
    if lm.device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(lm.device)
    return time.perf_counter()

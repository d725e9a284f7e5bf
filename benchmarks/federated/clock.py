"""What work at a client costs, in seconds that other work on the machine does not lengthen where that can be told. Measures nothing."""

from __future__ import annotations

import time

import torch

from ifed.modeling.language_model import LanguageModel


def now(lm: LanguageModel) -> float:
    """Core-seconds of this process where the model runs on the CPU; elsewhere seconds by the clock, once the device has finished."""
    if lm.device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(lm.device)
    return time.perf_counter()

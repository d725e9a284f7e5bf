"""Replicas of a model that share its weights, so that several threads can run it at once.

On a CPU that is faster than one forward pass over all cores: the threads of one pass wait for each other after every product, and wait long if
another process occupies a core briefly. On two cores with other work, a text of SmolLM2 135M took 851 ms of CPU in passes over both, most
of it waiting, and 104 ms in passes over one each.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ifed.modeling.language_model import LanguageModel

MAX_DEFAULT_REPLICAS = 4


def replica(lm: LanguageModel) -> LanguageModel:
    """Return a model that shares the tensors of `lm` and has its own modules, so that hooks on one do not affect the other.

    The code that `torch.compile` made for an MLP or a norm is shared.
    """
    shared = {id(tensor): tensor for tensors in (lm.model.parameters(), lm.model.buffers()) for tensor in tensors}
    return replace(lm, model=copy.deepcopy(lm.model, dict(shared)))


def replicate(lm: LanguageModel, count: int) -> list[LanguageModel]:
    """Return `count` models that share the weights of `lm`, `lm` itself first."""
    return [lm, *(replica(lm) for _ in range(count - 1))]


def divide_threads(lm: LanguageModel, replicas: int | None, threads: int | None) -> int:
    """Give each replica an equal share of torch's threads from here on, and return how many replicas to run at once.

    Args:
        replicas: how many; by default one on a GPU, which one pass keeps busy, and on a CPU one for each thread, four at the most.
        threads: CPU threads of all replicas together; torch's own choice by default.
    """
    total = threads or torch.get_num_threads()
    count = replicas or (min(total, MAX_DEFAULT_REPLICAS) if lm.device.type == "cpu" else 1)
    # Threads that start later inherit this number.
    torch.set_num_threads(max(1, total // count))
    return count

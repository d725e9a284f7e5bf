"""One set of weights behind several models, so that as many threads can run it at once. Knows no queue and no injection.

On a CPU that is faster than one forward pass over all cores: the threads of one pass wait for each other after every product, and wait long where
another process takes a core for a moment. On two cores that were busy otherwise, a text of SmolLM2 135M took 851 ms of CPU in passes over
both, most of it waiting, and 104 ms in passes over one each.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ifed.modeling.language_model import LanguageModel

MOST = 4


def twin(lm: LanguageModel) -> LanguageModel:
    """A model of the same weights, the very tensors, whose modules are its own: hooks on one are not on the other.

    What `torch.compile` made of the inside of an MLP or a norm stays in common.
    """
    shared = {id(tensor): tensor for tensors in (lm.model.parameters(), lm.model.buffers()) for tensor in tensors}
    return replace(lm, model=copy.deepcopy(lm.model, dict(shared)))


def twins(lm: LanguageModel, count: int) -> list[LanguageModel]:
    """`lm` and so many of its twins that they are `count` together."""
    return [lm, *(twin(lm) for _ in range(count - 1))]


def lanes_for(lm: LanguageModel, lanes: int | None, threads: int | None) -> int:
    """How many forward passes are to run at once, and, of the threads that torch may use, an equal part for each from here on.

    Args:
        lanes: as many; by default one on a GPU, which one pass keeps busy, and on a CPU one for each thread, four at the most.
        threads: CPU threads of all together; torch's own choice when not set.
    """
    whole = threads or torch.get_num_threads()
    count = lanes or (min(whole, MOST) if lm.device.type == "cpu" else 1)
    # For threads that start later as well: each takes over what was set last.
    torch.set_num_threads(max(1, whole // count))
    return count

"""Pieces of a forward pass as TorchScript: one call that takes Python's lock once, where the same operators one by one take it a dozen times.

Lanes of one process wait for that lock and not for a core: `benchmarks.lanes` measures by how much. The operators are the same ones, and so
are the bits. Only for passes without gradients. torch calls TorchScript deprecated and names `torch.compile` in its place, whose guards
are Python: with it one text took longer, not less (docs/decisions/0007-pieces-outside-pythons-lock.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    none: list[int | float | complex | None] = []
    result: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", none, "")  # noqa: SLF001  # no public name
    return result


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    keys_before: list[Tensor | None],
    values_before: list[Tensor | None],
    masks: list[Tensor | None],
    scale: float | None,
    grouped: bool,
) -> Tensor:
    outputs: list[Tensor] = []
    queries, keys, values = query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2)
    for row in range(len(lengths)):
        own_keys, own_values, before, values_of_before = keys[row], values[row], keys_before[row], values_before[row]
        if before is not None and values_of_before is not None:
            own_keys, own_values = torch.cat([before, own_keys], 2), torch.cat([values_of_before, own_values], 2)
        mask = masks[row]
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                queries[row],
                own_keys,
                own_values,
                attn_mask=mask,
                dropout_p=0.0,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def _scripted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function as TorchScript on a CPU where no gradient is wanted; elsewhere as it is (on a GPU a fuser would change the bits)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        piece: Callable[..., Tensor] = torch.jit.script(function)

    def run(*arguments: Any) -> Tensor:
        pays = arguments[0].device.type == "cpu" and not torch.is_grad_enabled()
        return (piece if pays else function)(*arguments)

    return run


packed_product = _scripted(_product)
attended = _scripted(_attended)

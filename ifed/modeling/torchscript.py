"""Parts of a forward pass as TorchScript, which takes Python's global interpreter lock once instead of a dozen times.

Replicas of one process wait for that lock rather than for a core: `benchmarks.lanes` measures by how much. The operators are the same, and
so are the bits. Only passes without gradients use the scripts. TorchScript is deprecated in favour of
`torch.compile`, whose guards run in Python: with it one text took longer, not less (docs/decisions/0007-pieces-outside-pythons-lock.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _packed_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    no_scalars: list[int | float | complex | None] = []
    result: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", no_scalars, "")  # noqa: SLF001  # no public name
    return result


def _row_by_row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    prefix_keys: list[Tensor | None],
    prefix_values: list[Tensor | None],
    masks: list[Tensor | None],
    scale: float | None,
    grouped: bool,
) -> Tensor:
    outputs: list[Tensor] = []
    queries, keys, values = query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2)
    for row in range(len(lengths)):
        row_keys, row_values, cached_keys, cached_values = keys[row], values[row], prefix_keys[row], prefix_values[row]
        if cached_keys is not None and cached_values is not None:
            row_keys, row_values = torch.cat([cached_keys, row_keys], 2), torch.cat([cached_values, row_values], 2)
        mask = masks[row]
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                queries[row],
                row_keys,
                row_values,
                attn_mask=mask,
                dropout_p=0.0,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def _scripted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that runs as TorchScript on a CPU without gradients, and as Python elsewhere (a GPU fuser would change the bits)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script: Callable[..., Tensor] = torch.jit.script(function)

    def run(*arguments: Any) -> Tensor:
        use_script = arguments[0].device.type == "cpu" and not torch.is_grad_enabled()
        return (script if use_script else function)(*arguments)

    return run


packed_linear = _scripted(_packed_linear)
row_by_row_attention = _scripted(_row_by_row_attention)

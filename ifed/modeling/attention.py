"""Attention of packed rows, one row at a time, after a prefix that rows share. Knows no tokens and no layers' weights.

With a mask over the whole pack three quarters of the work on seven rows is for places that the mask then hides, and the kernel that takes a
mask is slower than the causal one: on a CPU, 256 tokens of SmolLM2 135M took 3.3 ms a layer with it and 1.1 ms row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ifed.modeling.torchscript import attended

NAME = "ifed_rows"


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """What tokens in front of several rows leave for them to attend to: keys and values by layer, each (1, heads, P, size)."""

    length: int
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for parts in (self.keys, self.values) for part in parts.values())


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """How the tokens of a packed batch attend: each row to itself and to the prefix in front of it, nothing else.

    Attributes:
        lengths: of the rows, in their order.
        before: what each row follows, if anything.
        keep: filled with the keys and values of this very pass, where it is a prefix that is computed.
    """

    lengths: tuple[int, ...]
    before: tuple[Prefix | None, ...]
    keep: Prefix | None = None
    _masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def mask(self, before: int, length: int, window: int | None, device: torch.device) -> Tensor | None:
        """(length, before + length), true where a token attends; None where plain causal attention is the same."""
        reach = before + length if window is None else min(window, before + length)
        if not before and reach == length:
            return None
        if (before, length, reach) not in self._masks:
            at = torch.arange(before, before + length, device=device)[:, None]
            to = torch.arange(before + length, device=device)[None]
            self._masks[before, length, reach] = (to <= at) & (to > at - reach)
        return self._masks[before, length, reach]


class Projected(Exception):  # no error: the way out of an attention module before it attends
    """What an attention module hands to `attend`: queries, keys and values with their positions in them, and how it would attend."""

    def __init__(self, states: tuple[Tensor, Tensor, Tensor], told: dict[str, Any]) -> None:
        super().__init__()
        self.states, self.told = states, told


ONLY_PROJECTED = Rows((), ())  # as `rows`: `attend` raises what it was handed


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    rows: Rows | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in each layer; without `rows` it is transformers' own attention.

    Args:
        query, key, value: (1, heads, tokens, size), positions already in them.

    Returns:
        (1, tokens, heads, size), and no weights.

    Raises:
        Projected: where that is all that was asked for.
    """
    if rows is ONLY_PROJECTED:
        raise Projected((query, key, value), {"scaling": scaling, "sliding_window": sliding_window})
    if rows is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **others
        )
        return found
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if rows.keep is not None:
        # Copies, since a family that projects all three at once gives views, and they would keep the queries too.
        rows.keep.keys[layer], rows.keep.values[layer] = key.clone(), value.clone()
    keys_before = [None if before is None else before.keys[layer] for before in rows.before]
    values_before = [None if before is None else before.values[layer] for before in rows.before]
    masks = [
        rows.mask(before.length if before else 0, length, sliding_window, query.device)
        for before, length in zip(rows.before, rows.lengths, strict=True)
    ]
    grouped = query.shape[1] != key.shape[1]
    return attended(query, key, value, list(rows.lengths), keys_before, values_before, masks, scaling, grouped), None


def attend_by_rows(model: PreTrainedModel) -> None:
    """Let a model take `rows` where it computes attention with torch's kernel; elsewhere (Gemma 2 bends its scores) it stays as it is."""
    if model.config._attn_implementation == "sdpa":  # noqa: SLF001  # transformers has no public name for it
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def takes_rows(model: PreTrainedModel) -> bool:
    """Whether `attend_by_rows` has changed it."""
    return bool(model.config._attn_implementation == NAME)  # noqa: SLF001  # as above

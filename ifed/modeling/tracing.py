"""A model whose MLPs, norms and projections run as one traced piece each, hooks between them. Knows no injection and no tokens.

Why, and what torch says of it: `ifed.modeling.scripted`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ifed.modeling.attention import ONLY_PROJECTED, Projected, Rows, attend, attend_by_rows, takes_rows
from ifed.modeling.families import Family

EXAMPLE = (0, 1, 2)  # tokens; a trace takes any others, and any number of them


def trace(model: PreTrainedModel, family: Family) -> None:
    """Change a frozen model on a CPU; what it computes without a gradient stays the same bits, and with one is computed as before.

    A part whose trace gives other bits stays as it is: GPT-2's activation in bfloat16, whose factors the trace rounds, and on some
    processors in float32 too.
    """
    attend_by_rows(model)
    layers = family.layers(model)
    seen = _arguments(model, [module for layer in layers for module in layer.children()])
    for layer in layers:
        for name, module in layer.named_children():
            changed = None
            if name == "mlp" or "norm" in type(module).__name__.lower():
                changed = _in_one(module, seen[module].hidden)
            elif name == "self_attn" and hasattr(module, "o_proj") and takes_rows(model):
                changed = _attention(module, seen[module])
            if changed is not None:
                module.__dict__["forward"] = changed


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a module was given in the pass over the example."""

    hidden: Tensor
    named: dict[str, Any]


def _arguments(model: PreTrainedModel, modules: list[nn.Module]) -> dict[nn.Module, _Seen]:
    seen: dict[nn.Module, _Seen] = {}

    def keep(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen[module] = _Seen(arguments[0] if arguments else named["hidden_states"], named)

    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    with torch.no_grad():
        model.base_model(input_ids=torch.tensor([EXAMPLE], device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def _in_one(module: nn.Module, example: Tensor) -> Callable[..., Tensor] | None:
    whole, piece = module.forward, _traced(module, example)
    if piece is None:
        return None

    def forward(hidden: Tensor) -> Tensor:  # a function, which a copy of the module shares
        result: Tensor = whole(hidden) if torch.is_grad_enabled() else piece(hidden)
        return result

    return forward


def _attention(module: nn.Module, seen: _Seen) -> Callable[..., Any] | None:
    """Projections and positions in one piece, then the attention of rows."""
    whole, output = module.forward, module.get_submodule("o_proj")
    front = _Front(module)
    piece = _traced(front, seen.hidden, *seen.named["position_embeddings"])
    told = front.told
    if piece is None:
        return None

    def forward(hidden_states: Tensor, *, rows: Rows | None = None, **named: Any) -> tuple[Tensor, Tensor | None]:
        if rows is None or torch.is_grad_enabled():
            result: tuple[Tensor, Tensor | None] = whole(hidden_states, rows=rows, **named)
            return result
        query, key, value = piece(hidden_states, *named["position_embeddings"])
        found, weights = attend(module, query, key, value, named.get("attention_mask"), rows=rows, **told)
        return output(found.reshape(*hidden_states.shape[:-1], -1)), weights

    return forward


class _Front(nn.Module):
    """An attention module up to what it hands to the function that attends.

    Attributes:
        told: what else that function is told, filled when it runs.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.told = attention, dict[str, Any]()

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            self.attention(hidden_states=hidden, position_embeddings=(cos, sin), attention_mask=None, rows=ONLY_PROJECTED)
        except Projected as found:
            self.told |= found.told
            return found.states
        raise AssertionError("an attention module of a model that takes rows did not attend by them")


def _traced(module: nn.Module, *example: Tensor) -> Callable[..., Any] | None:
    """A module in one piece; None where that gives other bits."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        piece: Callable[..., Any] = torch.jit.trace(module.eval(), example, check_trace=False)
        pairs = zip(_several(piece(*example)), _several(module(*example)), strict=True)
        return piece if all(torch.equal(one, other) for one, other in pairs) else None


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)

"""Tracing of the MLPs, norms and attention projections of a model, one TorchScript graph each, with hooks between them.

`ifed.modeling.torchscript` explains why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ifed.modeling.attention import (
    PROJECTION_ONLY,
    AttentionInputs,
    RowAttention,
    attend,
    enable_row_attention,
    has_row_attention,
)
from ifed.modeling.families import Family

EXAMPLE_IDS = (0, 1, 2)  # a trace accepts any tokens, and any number of them


def trace(model: PreTrainedModel, family: Family) -> None:
    """Trace the sub-layers of a frozen model on a CPU, in place.

    What the model computes without gradients stays the same, bit for bit, and with gradients is computed as before. A module whose trace
    differs in any bit stays untraced: GPT-2's activation in bfloat16, whose factors the trace rounds, and on some processors in float32 too.
    """
    enable_row_attention(model)
    layers = family.layers(model)
    inputs = _example_inputs(model, [module for layer in layers for module in layer.children()])
    for layer in layers:
        for name, module in layer.named_children():
            forward = None
            if name == "mlp" or "norm" in type(module).__name__.lower():
                forward = _traced_forward(module, inputs[module].hidden)
            elif name == "self_attn" and hasattr(module, "o_proj") and has_row_attention(model):
                forward = _traced_attention_forward(module, inputs[module])
            if forward is not None:
                module.__dict__["forward"] = forward


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The hidden states and the keyword arguments that a module received for the example."""

    hidden: Tensor
    keywords: dict[str, Any]


def _example_inputs(model: PreTrainedModel, modules: list[nn.Module]) -> dict[nn.Module, _Inputs]:
    inputs: dict[nn.Module, _Inputs] = {}

    def record(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs[module] = _Inputs(arguments[0] if arguments else keywords["hidden_states"], keywords)

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    with torch.no_grad():
        model.base_model(input_ids=torch.tensor([EXAMPLE_IDS], device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return inputs


def _traced_forward(module: nn.Module, example: Tensor) -> Callable[..., Tensor] | None:
    original, graph = module.forward, _traced(module, example)
    if graph is None:
        return None

    def forward(hidden: Tensor) -> Tensor:  # a function, which a copy of the module shares
        result: Tensor = original(hidden) if torch.is_grad_enabled() else graph(hidden)
        return result

    return forward


def _traced_attention_forward(module: nn.Module, inputs: _Inputs) -> Callable[..., Any] | None:
    """Return a forward that runs projections and positions as one graph, then `attend`; None if the graph differs in any bit."""
    original, output_projection = module.forward, module.get_submodule("o_proj")
    projections = _AttentionProjections(module)
    graph = _traced(projections, inputs.hidden, *inputs.keywords["position_embeddings"])
    options = projections.options
    if graph is None:
        return None

    def forward(hidden_states: Tensor, *, rows: RowAttention | None = None, **keywords: Any) -> tuple[Tensor, Tensor | None]:
        if rows is None or torch.is_grad_enabled():
            result: tuple[Tensor, Tensor | None] = original(hidden_states, rows=rows, **keywords)
            return result
        query, key, value = graph(hidden_states, *keywords["position_embeddings"])
        output, weights = attend(module, query, key, value, keywords.get("attention_mask"), rows=rows, **options)
        return output_projection(output.reshape(*hidden_states.shape[:-1], -1)), weights

    return forward


class _AttentionProjections(nn.Module):
    """An attention module up to the call of `attend`: queries, keys and values with their positions.

    Attributes:
        options: the other arguments of that call, filled when the module runs.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.options = attention, dict[str, Any]()

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            self.attention(hidden_states=hidden, position_embeddings=(cos, sin), attention_mask=None, rows=PROJECTION_ONLY)
        except AttentionInputs as inputs:
            self.options |= inputs.options
            return inputs.states
        raise AssertionError("the attention module did not call `attend`, although its model has row attention")


def _traced(module: nn.Module, *example: Tensor) -> Callable[..., Any] | None:
    """Return the trace of a module; None if it differs from the module in any bit."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        graph: Callable[..., Any] = torch.jit.trace(module.eval(), example, check_trace=False)
        pairs = zip(_as_tuple(graph(*example)), _as_tuple(module(*example)), strict=True)
        return graph if all(torch.equal(traced, original) for traced, original in pairs) else None


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)

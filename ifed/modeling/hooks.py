"""Context managers that capture, inject or replay what the layers of a frozen model compute, and that always remove their hooks."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ifed.errors import LayoutMismatch
from ifed.modeling.attention import KVCache, RowAttention
from ifed.modeling.batching import Batch
from ifed.modeling.injection import Injection, InjectionBatch, SiteTransform
from ifed.modeling.language_model import LanguageModel
from ifed.tensors.values import SITES

_injected_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class _ForwardDone(Exception):  # not an error: raised to leave a forward pass once its result is complete
    pass


class Captured:
    """The outputs of the captured sites in the last forward pass; filled while the model runs.

    Attributes:
        layers: the captured layers.
        outputs: by (layer, site), (B, W, d), or (n, d) at output positions alone.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.outputs: dict[tuple[int, int], Tensor] = {}

    def stacked(self) -> Tensor:
        """Return all outputs as one tensor, (…, layer, site, d)."""
        sites = range(len(SITES))
        return torch.stack([torch.stack([self.outputs[layer, site] for site in sites], -2) for layer in self.layers], -3)


def final_hidden(lm: LanguageModel, batch: Batch, *, fill: KVCache | None = None) -> Tensor:
    """Return the hidden states after the last layer and the final norm, (B, W, d), without running the head.

    Args:
        fill: a KV cache to be filled with the keys and values of this pass, for rows that follow it.
    """
    mask, keywords = batch.attention_mask, {}
    if mask is None and lm.row_attention:
        mask = torch.zeros(
            1, 1, 1, 1, dtype=torch.bool, device=lm.device
        )  # with four axes, so that transformers does not derive one
        keywords["rows"] = RowAttention(batch.lengths, batch.kv_caches, fill, batch.parents)
    output = lm.model.base_model(
        input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False, **keywords
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def layer_inputs_and_kv(lm: LanguageModel, layer: int, batch: Batch) -> tuple[Tensor, KVCache]:
    """Return the hidden states that enter `layer`, (B, W, d), and the keys and values of that layer and those above for the whole batch.

    One forward pass of the base model; the batch must be packed and the model use row attention.
    """
    inputs: list[Tensor] = []
    kv_cache = KVCache(batch.input_ids.shape[1], {}, {})

    def keep(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.append(arguments[0] if arguments else keywords["hidden_states"])

    hook = lm.family.layers(lm.model)[layer].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with mlp_at_outputs(lm, batch, lm.num_layers - 1):
            final_hidden(lm, batch, fill=kv_cache)
    finally:
        hook.remove()
    for below in range(layer):
        kv_cache.keys.pop(below), kv_cache.values.pop(below)
    return inputs[0], kv_cache


def output_states(lm: LanguageModel, batch: Batch) -> Tensor:
    """Return the final hidden states at the output positions, (n, d); the last MLP runs at these alone if that is faster."""
    with mlp_at_outputs(lm, batch, lm.num_layers - 1):
        return batch.select_outputs(final_hidden(lm, batch))


def layer_input(lm: LanguageModel, layer: int, batch: Batch) -> Tensor:
    """Return the hidden states that enter `layer`, (B, W, d); that layer and the ones above are not run."""
    inputs: list[Tensor] = []

    def stop(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.append(arguments[0] if arguments else keywords["hidden_states"])
        raise _ForwardDone

    hook = lm.family.layers(lm.model)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(_ForwardDone):
            final_hidden(lm, batch)
    finally:
        hook.remove()
    return inputs[0]


@contextlib.contextmanager
def capture(lm: LanguageModel, layers: Sequence[int], *, batch: Batch | None = None, stop: bool = False) -> Iterator[Captured]:
    """Capture what `layers` add to the residual stream: a_l and m_l, before any injection that is entered later.

    Args:
        batch: capture its output positions alone, (n, d); all tokens by default.
        stop: leave the forward pass once the last of `layers` has been captured; the block ends there without an error.

    Raises:
        LayoutMismatch: the model does not have one of the layers.
    """
    captured = Captured(layers)
    last = (max(layers), len(SITES) - 1)

    def capturing(place: tuple[int, int]) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            activation = _activation(output)
            captured.outputs[place] = activation if batch is None else batch.select_outputs(activation)
            if stop and place == last:
                raise _ForwardDone

        return hook

    with contextlib.ExitStack() as hooks:
        for layer, modules in zip(layers, _sites(lm, layers), strict=True):
            for site, module in enumerate(modules):
                hooks.callback(module.register_forward_hook(capturing((layer, site))).remove)
        with contextlib.suppress(_ForwardDone):
            yield captured


@contextlib.contextmanager
def inject(lm: LanguageModel, injection: Injection | InjectionBatch | None, *, rows: Tensor | None = None) -> Iterator[None]:
    """Within the block, r_l = r_{l-1} + (λ^a v^a + β^a a) + (λ^m v^m + β^m m) at every token (arXiv 2511.06757); None changes nothing.

    Each site is computed in the dtype of the injection and then rounded to the model's; nothing is written in place.

    Args:
        rows: int64, (B, W), the row of the injection that each token takes. By default row i of the injection is row i of the batch.

    Raises:
        LayoutMismatch: the model does not have one of the layers, or has another hidden size.
        RuntimeError: the model carries an injection already, or a layer to inject into is being replayed.
    """
    if injection is None:
        yield
        return
    sites = _sites(lm, injection.layers)
    if injection.hidden_size != lm.hidden_size:
        raise LayoutMismatch(f"the injection has hidden size {injection.hidden_size}, {lm.name} has {lm.hidden_size}")
    if lm.model in _injected_models:
        raise RuntimeError(f"{lm.name} carries an injection already: a forward pass takes one; use `batch_injections` for several")
    _refuse_replayed_layers(lm, injection.layers)
    with contextlib.ExitStack() as hooks:
        _injected_models.add(lm.model)
        hooks.callback(_injected_models.discard, lm.model)
        for module, transform in zip(itertools.chain(*sites), injection.transforms(rows), strict=True):
            hooks.callback(module.register_forward_hook(_transforming(transform)).remove)
        yield


@contextlib.contextmanager
def replay(lm: LanguageModel, first_layer: int, hidden: Tensor) -> Iterator[None]:
    """Within the block, the layers below `first_layer` do nothing, and `hidden` enters there in place of their output.

    With `hidden` from `layer_input` on the same batch, the outputs are those of the full forward pass, bit for bit.

    Args:
        hidden: (B, W, d), in the dtype of the model.

    Raises:
        RuntimeError: the model is being replayed already.
    """
    layers = lm.family.layers(lm.model)
    _refuse_replayed_layers(lm, range(first_layer))

    def enter(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (hidden, *arguments[1:]), {name: value for name, value in keywords.items() if name != "hidden_states"}

    with contextlib.ExitStack() as hooks:
        hooks.callback(layers[first_layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
        for layer in layers[:first_layer]:
            hooks.enter_context(_replaced_forward(layer, _skip_layer))
        yield


@contextlib.contextmanager
def mlp_at_outputs(lm: LanguageModel, batch: Batch, layer: int) -> Iterator[None]:
    """Within the block, the MLP of `layer` outputs zero except at the output positions; for the last layer that is read."""
    mlp = lm.family.layers(lm.model)[layer].get_submodule("mlp")
    full_forward = mlp.forward

    def sparse_forward(hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        # With three axes, as in every other pass: a traced MLP may not accept another number.
        outputs = full_forward(flat[None, batch.output_indices])[0]
        return torch.zeros_like(flat).index_copy(0, batch.output_indices, outputs).view_as(hidden)

    is_faster = lm.options.sparse_last_mlp and 2 * len(batch.output_indices) <= batch.input_ids.numel()
    with _replaced_forward(mlp, sparse_forward) if is_faster else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    original = {name: value for name, value in module.__dict__.items() if name == "forward"}
    module.__dict__["forward"] = forward  # on the instance, where it hides the method of the class
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        module.__dict__.update(original)


def _skip_layer(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _transforming(transform: SiteTransform) -> Callable[..., Any]:
    """Return a hook that replaces the output of a site by its transform."""

    def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> Any:
        activation = transform.apply(_activation(output))
        return (activation, *output[1:]) if isinstance(output, tuple) else activation

    return hook


def _activation(output: Any) -> Tensor:
    activation: Tensor = output[0] if isinstance(output, tuple) else output
    return activation


def _sites(lm: LanguageModel, layers: Sequence[int]) -> list[tuple[nn.Module, nn.Module]]:
    """Return the sites of each of `layers`; all are looked up before the first hook is set."""
    if unknown := [layer for layer in layers if not 0 <= layer < lm.num_layers]:
        raise LayoutMismatch(f"{lm.name} has the layers 0 to {lm.num_layers - 1}, got {unknown}")
    stack = lm.family.layers(lm.model)
    return [lm.family.sites(stack[layer]) for layer in layers]


def _refuse_replayed_layers(lm: LanguageModel, layers: Sequence[int]) -> None:
    stack = lm.family.layers(lm.model)
    if replayed := [layer for layer in layers if stack[layer].__dict__.get("forward") is _skip_layer]:
        raise RuntimeError(f"the layers {replayed} of {lm.name} are being replayed and cannot be changed")

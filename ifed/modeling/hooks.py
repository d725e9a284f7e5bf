"""Hooks on a frozen model that read, change or skip what its layers do, and always come off. Knows no texts and no labels."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ifed.errors import LayoutMismatch
from ifed.modeling.attention import Prefix, Rows
from ifed.modeling.batching import Batch
from ifed.modeling.injection import Injection, Rescaling, RunByRun, SideBySide
from ifed.modeling.language_model import LanguageModel
from ifed.tensors.values import SITES

_injected: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class _Stop(Exception):
    """Not an error: the way out of a forward pass that has given all it was asked for."""


class Captured:
    """What the sites gave in the last forward pass; filled while the model runs.

    Attributes:
        outputs: by (layer, site): (B, W, d), or (n, d) where only some tokens were asked for.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.outputs: dict[tuple[int, int], Tensor] = {}

    def stacked(self) -> Tensor:
        """All outputs as one tensor, (…, layer, site, d)."""
        sites = range(len(SITES))
        return torch.stack([torch.stack([self.outputs[layer, site] for site in sites], -2) for layer in self.layers], -3)


def final_hidden(lm: LanguageModel, batch: Batch, *, keep: Prefix | None = None) -> Tensor:
    """Hidden states after the last layer and the final norm, (B, W, d). The head is not run.

    Args:
        keep: filled with the keys and values of this pass, for rows that will follow it.
    """
    mask, told = batch.attention_mask, {}
    if mask is None and lm.by_rows:
        mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=lm.device)  # of four axes: transformers derives none of its own
        told["rows"] = Rows(batch.lengths, batch.before, keep)
    output = lm.model.base_model(
        input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False, **told
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def wanted_states(lm: LanguageModel, batch: Batch) -> Tensor:
    """The final hidden states at the wanted places alone, (n, d); the MLP of the last layer is run for no other token."""
    with mlp_at_wanted(lm, batch, lm.num_layers - 1):
        return batch.at_wanted(final_hidden(lm, batch))


@contextlib.contextmanager
def mlp_at_wanted(lm: LanguageModel, batch: Batch, layer: int) -> Iterator[None]:
    """Within the block the MLP of `layer` gives zero but at the wanted places; for a layer after which nothing else is read."""
    mlp = lm.family.layers(lm.model)[layer].get_submodule("mlp")
    whole = mlp.forward

    def at_wanted(hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        # Of three axes, as in every other pass: what was traced may take no other number.
        given = whole(flat[None, batch.wanted])[0]
        return torch.zeros_like(flat).index_copy(0, batch.wanted, given).view_as(hidden)

    pays = lm.options.last_at_wanted and 2 * len(batch.wanted) <= batch.input_ids.numel()
    with _forward_of(mlp, at_wanted) if pays else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def capture(lm: LanguageModel, layers: Sequence[int], *, batch: Batch | None = None, stop: bool = False) -> Iterator[Captured]:
    """Keep what `layers` add to the residual stream: a_l and m_l, as the sites give them, before any injection entered later.

    Args:
        batch: keep only the tokens this batch wants, (n, d); all tokens otherwise.
        stop: leave the forward pass as soon as the last of `layers` has been read; the block then ends there without an error.

    Raises:
        LayoutMismatch: a layer the model does not have.
    """
    captured = Captured(layers)
    last = (max(layers), len(SITES) - 1)

    def keep(place: tuple[int, int]) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            activation = _activation(output)
            captured.outputs[place] = activation if batch is None else batch.at_wanted(activation)
            if stop and place == last:
                raise _Stop

        return hook

    with contextlib.ExitStack() as hooks:
        for layer, modules in zip(layers, _sites(lm, layers), strict=True):
            for site, module in enumerate(modules):
                hooks.callback(module.register_forward_hook(keep((layer, site))).remove)
        with contextlib.suppress(_Stop):
            yield captured


@contextlib.contextmanager
def inject(lm: LanguageModel, injection: Injection | SideBySide | None, *, rows: Tensor | None = None) -> Iterator[None]:
    """Within the block, r_l = r_{l-1} + (λ^a v^a + β^a a) + (λ^m v^m + β^m m) at every token (arXiv 2511.06757); None changes nothing.

    Computed in the dtype of the injection and then rounded to the model's; nothing is written in place.

    Args:
        rows: int64, (B, W): which row of the injection each token takes. Otherwise row i of the injection is row i of the batch.

    Raises:
        LayoutMismatch: a layer the model does not have, or another hidden size.
        RuntimeError: the model carries an injection already, or a layer to inject into is being replayed.
    """
    if injection is None:
        yield
        return
    sites = _sites(lm, injection.layers)
    if injection.hidden_size != lm.hidden_size:
        raise LayoutMismatch(f"the injection has hidden size {injection.hidden_size}, {lm.name} has {lm.hidden_size}")
    if lm.model in _injected:
        raise RuntimeError(f"{lm.name} carries an injection already: one forward pass takes one; put rows side by side instead")
    _refuse_replayed(lm, injection.layers)
    with contextlib.ExitStack() as hooks:
        _injected.add(lm.model)
        hooks.callback(_injected.discard, lm.model)
        for module, change in zip(itertools.chain(*sites), injection.changes(rows), strict=True):
            hooks.callback(module.register_forward_hook(_changing(change)).remove)
        yield


def entering(lm: LanguageModel, layer: int, batch: Batch) -> Tensor:
    """The hidden states that enter `layer`, (B, W, d); the layers from there on are not run."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.append(arguments[0] if arguments else keywords["hidden_states"])
        raise _Stop

    hook = lm.family.layers(lm.model)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(_Stop):
            final_hidden(lm, batch)
    finally:
        hook.remove()
    return found[0]


@contextlib.contextmanager
def replay(lm: LanguageModel, first_layer: int, hidden: Tensor) -> Iterator[None]:
    """Within the block the layers below `first_layer` do nothing, and `hidden` enters there instead of what they would have given.

    With `hidden` from `entering` on the same batch, the outputs are those of the full forward pass, bit for bit.

    Args:
        hidden: (B, W, d), in the dtype of the model.

    Raises:
        RuntimeError: the model is being replayed already.
    """
    layers = lm.family.layers(lm.model)
    _refuse_replayed(lm, range(first_layer))

    def enter(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (hidden, *arguments[1:]), {name: value for name, value in keywords.items() if name != "hidden_states"}

    with contextlib.ExitStack() as hooks:
        hooks.callback(layers[first_layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
        for layer in layers[:first_layer]:
            hooks.enter_context(_forward_of(layer, _unchanged))
        yield


@contextlib.contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block a module does something else."""
    before = {name: value for name, value in module.__dict__.items() if name == "forward"}
    module.__dict__["forward"] = forward  # on the instance, where it hides the method of the class
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        module.__dict__.update(before)


def _unchanged(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _changing(change: Rescaling | RunByRun) -> Callable[..., Any]:
    """A hook that gives the changed output in place of what the site gave."""

    def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> Any:
        changed = change.of(_activation(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _activation(output: Any) -> Tensor:
    activation: Tensor = output[0] if isinstance(output, tuple) else output
    return activation


def _sites(lm: LanguageModel, layers: Sequence[int]) -> list[tuple[nn.Module, nn.Module]]:
    """The sites of each of `layers`, all looked up before the first hook is set."""
    if unknown := [layer for layer in layers if not 0 <= layer < lm.num_layers]:
        raise LayoutMismatch(f"{lm.name} has the layers 0 to {lm.num_layers - 1}, asked for {unknown}")
    stack = lm.family.layers(lm.model)
    return [lm.family.sites(stack[layer]) for layer in layers]


def _refuse_replayed(lm: LanguageModel, layers: Sequence[int]) -> None:
    stack = lm.family.layers(lm.model)
    if replayed := [layer for layer in layers if stack[layer].__dict__.get("forward") is _unchanged]:
        raise RuntimeError(f"the layers {replayed} of {lm.name} are being replayed: nothing can be changed in them")

"""Where each architecture adds to the residual stream, or a refusal. Knows module names, never numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ifed.errors import UnsupportedFamily


@dataclass(frozen=True, slots=True)
class Family:
    """One way of laying out a decoder.

    Attributes:
        name: the `model_type` of its configuration.
        stack: name of the list of layers in the base model.
        attention: name, in a layer, of the module whose output is the attention's part of the residual stream (`a_l`).
        mlp: likewise for the MLP's part (`m_l`).
    """

    name: str
    stack: str
    attention: str
    mlp: str

    def layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """The decoder layers of `model`, lowest first."""
        return list(getattr(model.base_model, self.stack))

    def sites(self, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The two modules of `layer` whose outputs are added to the residual stream: attention, MLP."""
        return layer.get_submodule(self.attention), layer.get_submodule(self.mlp)


def _plain(name: str) -> Family:
    return Family(name, stack="layers", attention="self_attn", mlp="mlp")


def _normed_after(name: str) -> Family:
    """Gemma 2 and 3 normalise what a sub-layer gives before they add it."""
    return Family(name, stack="layers", attention="post_attention_layernorm", mlp="post_feedforward_layernorm")


FAMILIES: Mapping[str, Family] = {
    "llama": _plain("llama"),
    "mistral": _plain("mistral"),
    "qwen2": _plain("qwen2"),
    "qwen3": _plain("qwen3"),
    "phi3": _plain("phi3"),
    "gemma2": _normed_after("gemma2"),
    "gemma3_text": _normed_after("gemma3_text"),
    "gpt2": Family("gpt2", stack="h", attention="attn", mlp="mlp"),
}


def family_of(model: PreTrainedModel) -> Family:
    """The family of a causal language model.

    Raises:
        UnsupportedFamily: an architecture that is not in `FAMILIES`, or one without a language-model head.
    """
    kind = str(model.config.model_type)
    refuse_unknown(kind)
    if model.get_output_embeddings() is None:
        raise UnsupportedFamily(f"this {kind} model has no language-model head; load it as a causal language model")
    return FAMILIES[kind]


def refuse_unknown(kind: str) -> None:
    """Refuse a `model_type` that is not in `FAMILIES`.

    Raises:
        UnsupportedFamily: it names the type and those that are known.
    """
    if kind not in FAMILIES:
        raise UnsupportedFamily(
            f"the model is of the family {kind!r} and where that adds to its residual stream is not known here; "
            f"known families: {', '.join(sorted(FAMILIES))}"
        )

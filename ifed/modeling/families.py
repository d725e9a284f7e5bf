"""The supported model families: where each architecture adds to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ifed.errors import UnsupportedFamily


@dataclass(frozen=True, slots=True)
class Family:
    """The module names of one decoder architecture.

    Attributes:
        name: the `model_type` of its configuration.
        stack: the list of layers in the base model.
        attention: the module of a layer whose output is the attention's part of the residual stream (`a_l`).
        mlp: likewise for the MLP's part (`m_l`).
    """

    name: str
    stack: str
    attention: str
    mlp: str

    def layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the decoder layers of `model`, lowest first."""
        return list(getattr(model.base_model, self.stack))

    def sites(self, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the two modules of `layer` whose outputs are added to the residual stream: attention, MLP."""
        return layer.get_submodule(self.attention), layer.get_submodule(self.mlp)


def _pre_norm(name: str) -> Family:
    return Family(name, stack="layers", attention="self_attn", mlp="mlp")


def _pre_and_post_norm(name: str) -> Family:
    """Return a family that normalises the output of a sub-layer before adding it, as Gemma 2 and 3 do."""
    return Family(name, stack="layers", attention="post_attention_layernorm", mlp="post_feedforward_layernorm")


FAMILIES: Mapping[str, Family] = {
    "llama": _pre_norm("llama"),
    "mistral": _pre_norm("mistral"),
    "qwen2": _pre_norm("qwen2"),
    "qwen3": _pre_norm("qwen3"),
    "phi3": _pre_norm("phi3"),
    "gemma2": _pre_and_post_norm("gemma2"),
    "gemma3_text": _pre_and_post_norm("gemma3_text"),
    "gpt2": Family("gpt2", stack="h", attention="attn", mlp="mlp"),
}


def family_of(model: PreTrainedModel) -> Family:
    """Return the family of a causal language model.

    Raises:
        UnsupportedFamily: the architecture is not in `FAMILIES`, or the model has no language-model head.
    """
    name = str(model.config.model_type)
    require_known_family(name)
    if model.get_output_embeddings() is None:
        raise UnsupportedFamily(f"this {name} model has no language-model head; load it as a causal language model")
    return FAMILIES[name]


def require_known_family(name: str) -> None:
    """Check that a `model_type` is in `FAMILIES`.

    Raises:
        UnsupportedFamily: it is not; the detail lists those that are.
    """
    if name not in FAMILIES:
        raise UnsupportedFamily(
            f"the model is of the family {name!r}, and where that adds to its residual stream is not known here; "
            f"known families: {', '.join(sorted(FAMILIES))}"
        )

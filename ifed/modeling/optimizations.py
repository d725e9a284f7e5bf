"""A loaded model changed for speed or memory where its owner asks for it. Knows no injection and no tokens."""

from __future__ import annotations

import shutil

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ifed.errors import UnknownModel, UnsupportedFamily
from ifed.modeling.families import Family
from ifed.modeling.language_model import Options
from ifed.modeling.torchscript import packed_product
from ifed.modeling.tracing import trace

COMPILERS = ("c++", "g++", "clang++", "cl")
PACKED_FOR = 256  # tokens of a pass for which the weights are laid out; any number may be read


def apply(options: Options, model: PreTrainedModel, family: Family) -> None:
    """Do to a frozen model what `options` ask for and a forward pass cannot do by itself.

    Raises:
        UnknownModel: what it needs is not installed here.
        UnsupportedFamily: a family whose projections torchao does not know.
    """
    if options.int8:
        _in_eight_bits(model, family)
    elif options.packed_weights and not options.compiled and _packs(model):
        _packed(model, family)
    if options.compiled:
        _compiled(model, family)
    elif options.traced and not options.int8 and model.device.type == "cpu":
        trace(model, family)


def _in_eight_bits(model: PreTrainedModel, family: Family) -> None:
    """The weights of the layers, not of the embeddings and the head, as torchao's symmetric eight-bit integers, a scale for each row."""
    layers = family.layers(model)
    if not any(isinstance(module, nn.Linear) for module in layers[0].modules()):
        raise UnsupportedFamily(f"the layers of {family.name} have no linear modules that torchao could hold in eight bits")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # takes seconds to import, and is an extra
    except ImportError as reason:
        raise UnknownModel("weights in eight bits need torchao: install ifed-icl[int8]") from reason
    for layer in layers:
        quantize_(layer, Int8WeightOnlyConfig(version=2))


def _compiled(model: PreTrainedModel, family: Family) -> None:
    """MLPs and norms, one by one: hooks, replay and the rows of attention lie between them and stay what they are."""
    if model.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise UnknownModel("a compiled model needs a C++ compiler on this machine; install one, or turn the option off")
    for layer in family.layers(model):
        for name, module in layer.named_children():
            if name == "mlp" or "norm" in type(module).__name__.lower():
                module.__dict__["forward"] = torch.compile(module.forward, dynamic=True)


class Packed(nn.Module):
    """A frozen linear module whose weights lie as oneDNN reads them; the operators are those that `torch.compile` puts in its place.

    The same bits as before. One text of 58 tokens takes a sixth less time, a pass of 500 tokens a twentieth.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_FOR)  # noqa: SLF001  # no public name
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return packed_product(hidden, self.weight, self.bias)


def _packs(model: PreTrainedModel) -> bool:
    return model.device.type == "cpu" and model.dtype is torch.bfloat16 and torch.backends.mkldnn.is_available()


def _packed(model: PreTrainedModel, family: Family) -> None:
    for layer in family.layers(model):
        for name, module in [pair for pair in layer.named_modules() if isinstance(pair[1], nn.Linear)]:
            layer.set_submodule(name, Packed(module))

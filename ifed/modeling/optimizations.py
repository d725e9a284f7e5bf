"""Changes to a loaded model for speed or memory: eight-bit weights, packed weights, compiled or traced modules."""

from __future__ import annotations

import shutil

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ifed.errors import UnknownModel, UnsupportedFamily
from ifed.modeling.families import Family
from ifed.modeling.language_model import Options
from ifed.modeling.torchscript import packed_linear
from ifed.modeling.tracing import trace

COMPILERS = ("c++", "g++", "clang++", "cl")
PACKING_TOKENS = 256  # tokens of a pass for which the weights are laid out; a pass may have any number


def apply_options(options: Options, model: PreTrainedModel, family: Family) -> None:
    """Apply, in place, the options that change the modules of a frozen model.

    Raises:
        UnknownModel: a package or compiler that an option needs is not installed.
        UnsupportedFamily: torchao cannot quantise the projections of the family.
    """
    if options.int8:
        _quantize_int8(model, family)
    elif options.packed_weights and not options.compiled and _packs_weights(model):
        _pack_weights(model, family)
    if options.compiled:
        _compile(model, family)
    elif options.traced and not options.int8 and model.device.type == "cpu":
        trace(model, family)


def _quantize_int8(model: PreTrainedModel, family: Family) -> None:
    """Store the weights of the layers, not of the embeddings and the head, as symmetric eight-bit integers, one scale per row."""
    layers = family.layers(model)
    if not any(isinstance(module, nn.Linear) for module in layers[0].modules()):
        raise UnsupportedFamily(f"the layers of {family.name} have no linear modules that torchao can quantise to eight bits")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # takes seconds to import, and is an extra
    except ImportError as reason:
        raise UnknownModel("weights in eight bits need torchao: install ifed-icl[int8]") from reason
    for layer in layers:
        quantize_(layer, Int8WeightOnlyConfig(version=2))


def _compile(model: PreTrainedModel, family: Family) -> None:
    """Compile MLPs and norms one by one; hooks, replay and row attention lie between them and are not compiled."""
    if model.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise UnknownModel("a compiled model needs a C++ compiler on this machine; install one, or turn the option off")
    for layer in family.layers(model):
        for name, module in layer.named_children():
            if name == "mlp" or "norm" in type(module).__name__.lower():
                module.__dict__["forward"] = torch.compile(module.forward, dynamic=True)


class PackedLinear(nn.Module):
    """A frozen linear module with its weights in oneDNN's own layout, as `torch.compile` would store them; the bits stay the same.

    One text of 58 tokens takes a sixth less time, a pass of 500 tokens a twentieth.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKING_TOKENS)  # noqa: SLF001  # no public name
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the product, (…, out), of `hidden`, (…, in), in bfloat16."""
        return packed_linear(hidden, self.weight, self.bias)


def _packs_weights(model: PreTrainedModel) -> bool:
    on_cpu_in_bfloat16 = model.device.type == "cpu" and model.dtype is torch.bfloat16 and torch.backends.mkldnn.is_available()
    return on_cpu_in_bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # no public name


def _pack_weights(model: PreTrainedModel, family: Family) -> None:
    for layer in family.layers(model):
        for name, module in [pair for pair in layer.named_modules() if isinstance(pair[1], nn.Linear)]:
            layer.set_submodule(name, PackedLinear(module))

"""A frozen language model together with its tokenizer, family and fingerprint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ifed.messages.tasks import ModelIdentity
from ifed.modeling.attention import enable_row_attention, has_row_attention
from ifed.modeling.families import Family, family_of
from ifed.modeling.fingerprint import fingerprint_of_model


@dataclass(frozen=True, slots=True)
class Options:
    """Ways to run a model faster. All but `int8` are exact to rounding, and each can be turned off to measure its effect.

    Attributes:
        packed: on a CPU, place the rows of a batch end to end instead of padding them to the longest.
        row_attention: compute the attention of packed rows one row at a time if the family uses torch's kernel, else under a mask.
        share_prefix: run the tokens with which rows begin alike once: the template in front of the text, and a text under several tasks;
            needs `row_attention`.
        sparse_last_mlp: run the MLP of the last layer at the output positions alone.
        compiled: compile MLPs and norms with `torch.compile` at their first use, which takes a minute or two; needs a C++ compiler.
        packed_weights: on a CPU in bfloat16, store the weights of the layers in the layout of the CPU kernels instead of rearranging them in
            every pass; for a model that is run and never trained or saved.
        traced: on a CPU, run MLPs, norms and projections as TorchScript, so that passes in several threads wait less for the interpreter lock.
        int8: store the weights of the layers in eight bits, by torchao: half the memory, and results that are close but not equal.
    """

    packed: bool = True
    row_attention: bool = True
    share_prefix: bool = True
    sparse_last_mlp: bool = True
    compiled: bool = False
    packed_weights: bool = False
    traced: bool = False
    int8: bool = False


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model whose weights never change, and its tokenizer.

    Attributes:
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: pads on the right; its pad token is the end token if it has none of its own.
        family: where the architecture adds to the residual stream.
        name: a label for people, not an identity.
        fingerprint: sha256, hexadecimal, of weights, configuration and tokenizer; the identity.
        num_layers: L.
        hidden_size: d.
        options: how it is run.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    name: str
    fingerprint: str
    num_layers: int
    hidden_size: int
    options: Options = Options()

    @property
    def identity(self) -> ModelIdentity:
        """The identity with which a client joins a task and a service checks an adapter."""
        return ModelIdentity(
            name=self.name,
            fingerprint=self.fingerprint,
            family=self.family.name,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
        )

    @property
    def row_attention(self) -> bool:
        """Whether packed batches compute their attention row by row."""
        return self.options.row_attention and has_row_attention(self.model)

    @property
    def shares_prefixes(self) -> bool:
        """Whether rows of a packed batch that begin alike run their beginning once."""
        return self.options.share_prefix and self.row_attention

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the forward pass."""
        return self.model.dtype

    @property
    def injection_dtype(self) -> torch.dtype:
        """The dtype of coefficients in training: at least float32, since bfloat16 near 1 moves in steps of 0.8 %."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def max_tokens(self) -> int:
        """The longest row that the position embeddings allow."""
        return int(self.model.config.max_position_embeddings)

    @property
    def token_budget(self) -> int:
        """The default number of tokens of one forward pass.

        Measured with 135M and 270M parameters: on a CPU core the time per token is lowest near 256 tokens and 30 % higher at
        1000; a GPU needs many more to be busy.
        """
        return 256 if self.device.type == "cpu" else 16_384


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "wrapped",
    fingerprint: str | None = None,
    options: Options = Options(),
) -> LanguageModel:
    """Return a `LanguageModel` around a model that is already built; freeze it and set it to evaluation mode.

    Args:
        fingerprint: the identity, if the caller knows it; by default computed from the tensors in memory.

    Raises:
        UnsupportedFamily: the architecture is not one of `FAMILIES`.
    """
    family = family_of(model)
    model.eval().requires_grad_(False)
    enable_row_attention(model)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        family=family,
        name=name,
        fingerprint=fingerprint or fingerprint_of_model(model, tokenizer),
        num_layers=len(family.layers(model)),
        hidden_size=int(model.config.hidden_size),
        options=options,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers within the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

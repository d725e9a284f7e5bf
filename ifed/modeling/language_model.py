"""A frozen language model with its tokenizer, as one value. Knows nothing of where it came from or what is injected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ifed.messages.tasks import ModelIdentity
from ifed.modeling.attention import attend_by_rows, takes_rows
from ifed.modeling.families import Family, family_of
from ifed.modeling.fingerprint import fingerprint_of_model


@dataclass(frozen=True, slots=True)
class Options:
    """Ways to run a model faster, apart from `int8` all exact to rounding; each can be turned off, to measure what it gives.

    Attributes:
        packed: on a CPU, rows end to end instead of padded to the longest of a batch.
        by_rows: attention of packed rows one row at a time, where the family computes it with torch's kernel; else under a mask.
        share_prefix: tokens of the template in front of the text are run once for all rows of a task, not in each row; needs `by_rows`.
        last_at_wanted: the MLP of the last layer runs at the tokens whose hidden states are asked for, not at all.
        compiled: the sub-layers and norms are compiled by `torch.compile` at their first use, which takes a minute or two; needs a C++ compiler.
        packed_weights: on a CPU in bfloat16, the weights of the layers lie as its kernels read them, and are not rearranged in every
            pass; for a model that is run and never trained or saved.
        traced: on a CPU, the sub-layers and norms run as one piece each, so that passes in several threads wait less for Python's lock.
        int8: weights of the layers in eight bits, by torchao: another model, though a close one; half the memory.
    """

    packed: bool = True
    by_rows: bool = True
    share_prefix: bool = True
    last_at_wanted: bool = True
    compiled: bool = False
    packed_weights: bool = False
    traced: bool = False
    int8: bool = False


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model whose weights never change, and what it takes to feed it.

    Attributes:
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: pads on the right; its pad token is the end token where it has none of its own.
        family: where the architecture adds to the residual stream.
        name: what people call it; a label, not an identity.
        fingerprint: sha256, hexadecimal, of the weights, the configuration and the tokenizer; the identity.
        num_layers: L.
        hidden_size: d.
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
        """The identity under which a party joins a task or checks an adapter."""
        return ModelIdentity(
            name=self.name,
            fingerprint=self.fingerprint,
            family=self.family.name,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
        )

    @property
    def by_rows(self) -> bool:
        """Whether packed rows are attended to one by one."""
        return self.options.by_rows and takes_rows(self.model)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the forward pass."""
        return self.model.dtype

    @property
    def injection_dtype(self) -> torch.dtype:
        """What coefficients are computed in: at least float32, since bfloat16 near 1 moves in steps of 0.8 %."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def max_tokens(self) -> int:
        """The longest row the positions of the model allow."""
        return int(self.model.config.max_position_embeddings)

    @property
    def token_budget(self) -> int:
        """Tokens of one forward pass when the caller names none.

        Measured with 135M and 270M parameters: on a CPU core the time per token is lowest near 256 tokens and 30 % higher at
        1000; a GPU wants many more to be busy.
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
    """A `LanguageModel` around a model that is already built; freezes it and sets it to evaluation mode.

    Args:
        fingerprint: the identity, where the caller knows it; otherwise computed from the tensors as they are in memory.

    Raises:
        UnsupportedFamily: an architecture whose residual stream we do not know.
    """
    family = family_of(model)
    model.eval().requires_grad_(False)
    attend_by_rows(model)
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
    """Keep the progress bars and warnings of transformers off the terminal within the block."""
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

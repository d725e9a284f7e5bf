"""Random three-layer models of every family and a small tokenizer, built in code without a download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ifed.messages.texts import LabelledText
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, Options, wrap
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem
from ifed.tensors.values import Coefficients, ContextVector

LAYERS, HIDDEN, POSITIONS = 3, 32, 256
FAMILY_NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2")
CODE_PATHS = ("llama", "gemma3_text", "gpt2")  # norms before a sub-layer; norms after it too, and windows; fused projections
ALL = tuple(range(LAYERS))
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}  # norms and eager attention compute in float32 even in a float64 model
TEMPLATE = "Review: {text}\nSentiment:"
LONG_TEMPLATE = "the film was good and the plot was bad but we liked it a lot because of the acting " + TEMPLATE
LABELS = ("positive", "topic sport", "topic science")  # of one token and of several with a common beginning
PLAIN = Options(row_attention=False, share_prefix=False, sparse_last_mlp=False)

WORDS = (
    "the film was good and the plot was bad but we liked it a lot because of the acting and nothing else mattered to us "
    "Review: Sentiment: positive negative mixed topic sport topic science subject object objective subjective "
)
TEXTS = (
    "the film was good",
    "bad",
    "nothing else mattered to us and the plot was bad but the acting was good",
    "",
    "we liked it",
    "the acting 🎬 was naïve",
    "a lot",
    "the plot was bad because of the acting and the film",
)
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {"sliding_window": 6},
}


@cache
def _trained_tokenizer() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([WORDS] * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return str(backend.to_str())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer over a few words, with a beginning-of-text token and no pad token."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained_tokenizer()), bos_token="<bos>", eos_token="<eos>")  # noqa: S106  # tokens of a vocabulary


def build_model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **shape: Any) -> PreTrainedModel:
    """Return a random model of three layers, every parameter different from its initial value; `shape` goes into its configuration."""
    size = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        size |= {"n_layer": LAYERS, "n_embd": HIDDEN, "n_head": 4, "n_positions": POSITIONS}
    else:
        size |= {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": 48, "max_position_embeddings": POSITIONS}
        size |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = CONFIG_MAPPING[family](**(size | SHAPES.get(family, {}) | shape))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.data = parameter.data + 0.1 * noise if parameter.ndim == 1 else 0.2 * noise
        model.tie_weights()
    typed: PreTrainedModel = model.to(dtype)
    return typed


def build(family: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **shape: Any) -> LanguageModel:
    """Return a `LanguageModel` around a random model; without `shape` the same object each time, for tests that do not change it."""
    return build_fresh(family, dtype=dtype, seed=seed, **shape) if shape else _shared(family, dtype, seed)


def build_fresh(family: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **shape: Any) -> LanguageModel:
    """Return a `LanguageModel` around a random model that a test may change."""
    return wrap(build_model(family, dtype=dtype, seed=seed, **shape), build_tokenizer(), name=f"random-{family}")


@cache
def _shared(family: str, dtype: torch.dtype, seed: int) -> LanguageModel:
    return build_fresh(family, dtype=dtype, seed=seed)


def template(lm: LanguageModel, text: str = TEMPLATE) -> PromptTemplate:
    """Return a template for a model."""
    return PromptTemplate.of(lm, text)


def examples(count: int = len(TEXTS), labels: int = 2) -> list[LabelledText[int]]:
    """Return `count` distinct texts, their labels in turn."""
    return [LabelledText(TEXTS[index % len(TEXTS)] + " good" * (index // len(TEXTS)), index % labels) for index in range(count)]


def random_context(layers: int, *, seed: int = 1) -> ContextVector:
    """Return a context vector from a standard normal distribution."""
    return ContextVector(np.random.default_rng(seed).normal(size=(layers, 2, HIDDEN)).astype(np.float32))


def random_coefficients(layers: int, groups: int, *, seed: int = 2) -> Coefficients:
    """Return coefficients with λ around 0.3 and β around 1."""
    values = np.random.default_rng(seed).normal(scale=0.3, size=(layers, 2, 2, groups))
    values[:, :, 0] += 0.3
    values[:, :, 1] += 1.0
    return Coefficients(values.astype(np.float32))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Give torch one thread: with models this small, more would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_injection(lm: LanguageModel, *, groups: int = 4, seed: int = 2, context_seed: int | None = None) -> Injection:
    """Return an injection into all layers, from a random context vector and random coefficients; by default of the same seed."""
    context = random_context(LAYERS, seed=seed if context_seed is None else context_seed)
    coefficients = random_coefficients(LAYERS, groups, seed=seed)
    return injection_of(context, coefficients, ALL, device="cpu", dtype=lm.dtype)


def scoring_items(
    lm: LanguageModel, injected: Injection | None, template_text: str = TEMPLATE, labels: Sequence[str] = LABELS
) -> list[ScoringItem]:
    """Return `TEXTS` to score, each in the template and under the injection."""
    prompts = template(lm, template_text)
    return [ScoringItem(prompts.prompt(text), prompts.labels(labels), injected) for text in TEXTS]


def save_model(family: str, folder: Path) -> Path:
    """Save a random model and its tokenizer to `folder`, and return it."""
    build_model(family).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def forward_sizes(lm: LanguageModel) -> Iterator[list[int]]:
    """Return a list that grows by the number of input tokens with each forward pass in the block."""
    sizes: list[int] = []
    hook = lm.model.base_model.register_forward_pre_hook(
        lambda _module, _arguments, keywords: sizes.append(keywords["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield sizes
    finally:
        hook.remove()

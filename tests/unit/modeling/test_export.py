"""Folded checkpoints, loaded by stock code, against the model under its hooks; and the model card of an exported adapter."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from ifed.errors import AlreadyExists, FingerprintMismatch, LayoutMismatch, NotFoldable, UnsupportedFamily
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta, Evaluation
from ifed.messages.tasks import Layout
from ifed.modeling.batching import Batch, Row
from ifed.modeling.export import FOLDING, UNFOLDABLE, export, fold, write
from ifed.modeling.hooks import final_hidden, inject
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, quiet
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.label_prior import without_bias
from testing.random_models import (
    ALL,
    FAMILY_NAMES,
    HIDDEN,
    POSITIONS,
    TEMPLATE,
    TEXTS,
    build,
    build_fresh,
    random_coefficients,
    random_context,
    template,
)

WIDE: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": POSITIONS}, "phi3": {"sliding_window": POSITIONS}}
foldable = pytest.mark.parametrize("family", sorted(FOLDING))


def wide(family: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """Return a model without a sliding window."""
    return build(family, dtype=dtype, **WIDE.get(family, {}))


def injection(lm: LanguageModel, layers: tuple[int, ...] = ALL, groups: int = 4) -> Injection:
    tensors = random_context(len(layers)), random_coefficients(len(layers), groups)
    return injection_of(*tensors, layers, device="cpu", dtype=lm.dtype)


def injected_logits(lm: LanguageModel, injected: Injection) -> list[torch.Tensor]:
    rows = [Row.for_last_token(template(lm).prompt(text).ids) for text in TEXTS]
    logits = []
    for row in rows:
        with torch.no_grad(), inject(lm, injected):
            logits.append(lm.model.get_output_embeddings()(final_hidden(lm, Batch.of([row], layout="padded")))[0])
    return logits


def stock_logits(folder: Path, lm: LanguageModel, dtype: torch.dtype) -> list[torch.Tensor]:
    with quiet():
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return [stock(torch.tensor([template(lm).prompt(text).ids])).logits[0] for text in TEXTS]


@pytest.mark.parametrize(
    ("family", "layers", "dtype", "close"),
    [
        *((family, ALL, torch.float64, 1e-6) for family in sorted(FOLDING)),
        ("llama", (1, 2), torch.float64, 1e-6),
        ("gpt2", (1, 2), torch.float32, 1e-3),
    ],
)
def test_stock_code_computes_the_injected_models_logits(
    family: str, layers: tuple[int, ...], dtype: torch.dtype, close: float, tmp_path: Path
) -> None:
    lm = wide(family, dtype)
    injected = injection(lm, layers)
    write(lm, *fold(lm, injected), tmp_path)
    for ours, stock in zip(injected_logits(lm, injected), stock_logits(tmp_path, lm, dtype), strict=True):
        torch.testing.assert_close(stock, ours, rtol=close, atol=close)


@foldable
def test_families_without_both_biases_are_written_as_llama(family: str) -> None:
    config, _ = fold(wide(family), injection(wide(family)))
    assert config.model_type == ("gpt2" if family == "gpt2" else "llama")
    assert family == "gpt2" or (config.attention_bias, config.mlp_bias) == (True, True)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_an_untouched_layer_keeps_its_bytes(family: str) -> None:
    lm = wide(family)
    _, weights = fold(lm, injection(lm, (2,)))
    before = lm.model.state_dict()
    untouched = [name for name in weights if name in before and ".2." not in name]
    assert len(untouched) > 10
    assert all(torch.equal(weights[name], before[name]) for name in untouched)


def test_the_tokenizer_and_the_dtype_travel_with_the_weights(tmp_path: Path) -> None:
    lm = wide("llama", torch.float32)
    write(lm, *fold(lm, injection(lm), dtype=torch.bfloat16), tmp_path)
    with quiet():
        stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert stock.dtype == torch.bfloat16
    assert tokenizer(TEXTS[0]).input_ids == lm.tokenizer(TEXTS[0]).input_ids


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tied: bool, tmp_path: Path) -> None:
    lm = build("qwen2", dtype=torch.float32, tie_word_embeddings=tied)
    injected = injection(lm)
    write(lm, *fold(lm, injected), tmp_path)
    for ours, stock in zip(injected_logits(lm, injected), stock_logits(tmp_path, lm, torch.float32), strict=True):
        torch.testing.assert_close(stock, ours, rtol=1e-3, atol=1e-3)


def test_every_family_folds_or_is_refused_with_its_reason() -> None:
    assert set(FOLDING) | set(UNFOLDABLE) == set(FAMILY_NAMES)
    for family, reason in UNFOLDABLE.items():
        lm = build(family)
        with pytest.raises(UnsupportedFamily, match=f"{family} cannot represent an injection exactly") as refusal:
            fold(lm, injection(lm))
        assert reason in refusal.value.detail


def test_a_window_as_long_as_a_prompt_becomes_the_longest_position() -> None:
    lm = build("mistral", max_position_embeddings=4096, sliding_window=2048)
    config, _ = fold(lm, injection(lm))
    assert (config.model_type, config.max_position_embeddings) == ("llama", 2048)


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_a_short_sliding_window_is_refused(family: str) -> None:
    lm = build(family)
    with pytest.raises(UnsupportedFamily, match="looks back 6 tokens"):
        fold(lm, injection(lm))


def test_qwen2_with_a_window_in_some_layers_is_refused() -> None:
    lm = build("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1)
    with pytest.raises(UnsupportedFamily, match="looks back 6 tokens"):
        fold(lm, injection(lm))


def test_partial_rotation_is_refused() -> None:
    lm = build("phi3", rope_parameters={"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5})
    with pytest.raises(UnsupportedFamily, match="rotates a part of each head"):
        fold(lm, injection(lm))


def test_an_injection_that_does_not_fit_the_model_is_refused() -> None:
    lm = wide("llama", torch.float32)
    with pytest.raises(LayoutMismatch, match="differs between rows"):
        fold(lm, Injection((0,), *torch.ones(2, 3, 1, 2, lm.hidden_size)))
    with pytest.raises(LayoutMismatch, match=r"layers \[0, 7\]"):
        fold(lm, injection(lm, (0, 7)))


LABELS = ["positive", "topic sport", "topic science"]


def adapter(lm: LanguageModel) -> AdapterBody:
    meta = AdapterMeta(
        task="reviews",
        version=3,
        labels=LABELS,
        template=TEMPLATE,
        identity=lm.identity,
        layout=Layout(layers=[1, 2], hidden_size=HIDDEN, groups=4),
        evaluation=Evaluation(version=3, accuracy=0.875, macro_f1=0.87, examples=80),
        created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    )
    return AdapterBody(random_context(2), random_coefficients(2, 4), meta)


BIAS = [0.9, -0.4, 0.2]
CHAT = "{% for message in messages %}<bos>ask: {{ message.content }}<eos>{% endfor %}answer:"
HOSTILE = (*TEXTS, "the <eos> film <bos>", "<pad>")


@pytest.mark.parametrize(
    ("family", "changes", "ends", "dtype", "close"),
    [
        *((family, {"label_bias": BIAS}, False, torch.float32, 2e-4) for family in sorted(FOLDING)),
        ("llama", {}, False, torch.float32, 2e-4),
        ("llama", {"label_bias": BIAS, "chat": True}, False, torch.float32, 2e-4),
        ("llama", {"label_bias": BIAS}, True, torch.float32, 2e-4),
        ("llama", {"label_bias": BIAS}, False, torch.bfloat16, 0.1),
    ],
)
def test_the_code_on_the_model_card_computes_the_services_probabilities(
    family: str, changes: dict[str, Any], ends: bool, dtype: torch.dtype, close: float, tmp_path: Path
) -> None:
    lm = build_fresh(family, dtype=dtype, **WIDE.get(family, {}))
    lm.tokenizer.chat_template = CHAT
    if ends:  # a tokenizer that appends an end token
        lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    exported = adapter(lm)
    exported = AdapterBody(exported.context, exported.coefficients, exported.meta.model_copy(update=changes))
    export(lm, exported, tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.S)
    room: dict[str, Any] = {}
    with quiet():
        exec(code.replace('folder = "."', f"folder = {str(tmp_path)!r}"), room)
    meta = exported.meta
    injected = injection_of(exported.context, exported.coefficients, [1, 2], device="cpu", dtype=lm.dtype)
    prompts = PromptTemplate.of(lm, meta.template, chat=meta.chat)
    items = [ScoringItem(prompts.prompt(text), prompts.labels(LABELS), injected) for text in HOSTILE]
    for item, text, scores in zip(items, HOSTILE, score(lm, items), strict=True):
        assert room["tokens_of"](text) == list(item.prompt.ids)
        probabilities = room["classify"](text)
        assert list(probabilities) == LABELS
        np.testing.assert_allclose(list(probabilities.values()), np.exp(without_bias(scores, meta.label_bias)), atol=close)
    with pytest.raises(ValueError, match="too long"):
        room["classify"]("good " * POSITIONS)


def test_the_model_card_names_the_task_the_base_model_and_the_accuracy(tmp_path: Path) -> None:
    lm = build()
    export(lm, adapter(lm), tmp_path)
    card = (tmp_path / "README.md").read_text()
    for fact in ("reviews", "`topic sport`", r"Review: {text}\nSentiment:", lm.name, lm.fingerprint, "| calibration rounds | 3 |"):
        assert fact in card
    assert "87.5%, macro-F1 0.870, on 80 held-out examples" in card


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FingerprintMismatch, match="name the task's own model"):
        export(build(seed=1), adapter(build()), tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"injection": "last_token"}, "a weight acts on every token"), ({"reading": "both"}, "by the mean of words and head")],
)
def test_what_no_weight_can_stand_for_is_not_exported(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    body = adapter(build())
    body.meta = body.meta.model_copy(update=changes)
    with pytest.raises(NotFoldable, match=reason):
        export(build(), body, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_refused_export_overwrites_and_leaves_nothing(tmp_path: Path) -> None:
    lm = build("gemma2")
    with pytest.raises(UnsupportedFamily, match="norm has no bias"):
        export(lm, adapter(lm), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(AlreadyExists):
        export(lm, adapter(lm), tmp_path)

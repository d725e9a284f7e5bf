"""Checkpoints of tasks with a label head, loaded by stock transformers, against the service's probabilities."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

from ifed.errors import LayoutMismatch, NotFoldable
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout
from ifed.modeling.batching import Row
from ifed.modeling.export import FOLDING, UNFOLDABLE, Form, export
from ifed.modeling.forward import run_rows
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, quiet
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.label_prior import without_bias
from ifed.tensors.regression import LabelHead
from ifed.tensors.values import Coefficients
from testing.random_models import (
    HIDDEN,
    POSITIONS,
    TEMPLATE,
    TEXTS,
    build,
    build_fresh,
    random_coefficients,
    random_context,
)

LABELS = ["positive", "topic sport", "a label with an emoji 🎬"]
WORDS = ["positive", "negative", "topic"]  # one token each
BIAS = [0.9, -0.4, 0.2]
CHAT = "{% for message in messages %}<bos>ask: {{ message.content }}<eos>{% endfor %}answer:"
HOSTILE = (*TEXTS, "the <eos> film <bos>", "<pad>")
CLOSE = 2e-4
WIDE: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": POSITIONS}, "phi3": {"sliding_window": POSITIONS}}


def identity_coefficients() -> Coefficients:
    values = np.zeros((2, 2, 2, 4), dtype=np.float32)
    values[:, :, 1] = 1.0
    return Coefficients(values)


def head_of(lm: LanguageModel, injected: Injection, template: PromptTemplate, classes: int) -> LabelHead:
    """Return a random head that is centred on the states of the texts, as solved ones are: its biases are as large as its products."""
    rows = [Row.for_last_token(template.prompt(text).ids) for text in TEXTS]
    states = torch.cat(run_rows(lm, rows, [injected] * len(rows))).float().numpy()
    weight = np.random.default_rng(classes).normal(size=(classes, HIDDEN))
    return LabelHead(weight.astype(np.float32), (-weight @ states.mean(axis=0)).astype(np.float32))


def adapter(
    lm: LanguageModel, labels: list[str], *, identity: bool = False, classes: int | None = None, **changes: Any
) -> AdapterBody:
    values: dict[str, Any] = {
        "template": TEMPLATE,
        "reading": "head",
        "label_bias": BIAS[: len(labels)] if len(labels) <= len(BIAS) else None,
    }
    meta = AdapterMeta(
        task="reviews",
        version=3,
        labels=labels,
        identity=lm.identity,
        layout=Layout(layers=[1, 2], hidden_size=HIDDEN, groups=4),
        created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        **(values | changes),
    )
    coefficients = identity_coefficients() if identity else random_coefficients(2, 4)
    body = AdapterBody(random_context(2), coefficients, meta)
    body.head = head_of(lm, injection(lm, body), PromptTemplate.of(lm, meta.template, chat=meta.chat), classes or len(labels))
    return body


def injection(lm: LanguageModel, body: AdapterBody) -> Injection:
    return injection_of(body.context, body.coefficients, body.meta.layout.layers, device="cpu", dtype=lm.dtype)


def service_probabilities(lm: LanguageModel, body: AdapterBody, texts: tuple[str, ...]) -> npt.NDArray[np.floating]:
    """Return what the inference service answers, (texts, labels)."""
    meta, injected = body.meta, injection(lm, body)
    template = PromptTemplate.of(lm, meta.template, chat=meta.chat)
    items = [ScoringItem(template.prompt(text), None, injected, body.head) for text in texts]
    return np.stack([np.exp(without_bias(scores, meta.label_bias)) for scores in score(lm, items)])


def stock_probabilities(model: PreTrainedModel, folder: Path, prompts: list[str], side: str) -> npt.NDArray[np.floating]:
    """Return the softmax of stock logits, plus the bias that the configuration may hold, for one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    assert bool((batch.attention_mask == 0).any())
    if (
        side == "left" and model.config.model_type == "gpt2"
    ):  # whose positions are absolute: stock code counts the padding unless told
        batch["position_ids"] = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**batch).logits
    if logits.ndim == 3:  # of a language model, padded on the left
        logits = logits[:, -1]
    bias = getattr(model.config, "ifed_label_bias", None)
    return np.asarray((logits if bias is None else logits + torch.tensor(bias)).softmax(-1).numpy())


def card_code(folder: Path) -> dict[str, Any]:
    """Run the last piece of code on the model card and return its names."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[-1]
    room: dict[str, Any] = {}
    with quiet():
        exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), room)
    return room


def load(kind: type[Any], folder: Path) -> Any:
    with quiet():
        return kind.from_pretrained(folder)


FILLED = [TEMPLATE.replace("{text}", text) for text in TEXTS]


@pytest.mark.parametrize(
    ("family", "shape", "carried"),
    [
        *((family, WIDE.get(family, {}), True) for family in sorted(FOLDING)),
        *((family, {}, False) for family in (*sorted(UNFOLDABLE), "mistral", "phi3")),  # the last two with short windows
    ],
)
def test_a_stock_classifier_gives_the_services_probabilities(
    family: str, shape: dict[str, Any], carried: bool, tmp_path: Path
) -> None:
    lm = build(family, **shape)
    body = adapter(lm, LABELS, identity=not carried)
    export(lm, body, tmp_path, form="sequence-classification")
    model = load(AutoModelForSequenceClassification, tmp_path)
    expected = service_probabilities(lm, body, HOSTILE)
    assert len(set(expected.argmax(1))) > 1
    for side in ("left", "right"):
        np.testing.assert_allclose(stock_probabilities(model, tmp_path, FILLED, side), expected[: len(TEXTS)], atol=CLOSE)
    assert list(model.config.id2label.values()) == LABELS
    assert model.config.ifed_template == TEMPLATE
    assert hasattr(model.config, "ifed_label_bias") != carried
    code = card_code(tmp_path)
    for text, probabilities in zip(HOSTILE, expected, strict=True):
        answer = code["classify"](text)
        assert list(answer) == LABELS
        np.testing.assert_allclose(list(answer.values()), probabilities, atol=CLOSE)
    with pytest.raises(ValueError, match="too long"):
        code["classify"]("good " * POSITIONS)


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *((family, WIDE.get(family, {})) for family in sorted(FOLDING)),
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {"tie_word_embeddings": False}),
    ],
)
def test_the_next_token_of_a_stock_language_model_is_the_label(family: str, shape: dict[str, Any], tmp_path: Path) -> None:
    lm = build(family, **shape)
    body = adapter(lm, WORDS)
    said: list[str] = []
    export(lm, body, tmp_path, announce=said.append)
    assert any("tied to the input embeddings no longer" in sentence for sentence in said)
    model = load(AutoModelForCausalLM, tmp_path)
    assert torch.equal(model.get_input_embeddings().weight, lm.model.get_input_embeddings().weight)
    tokens = [ids[0] for ids in PromptTemplate.of(lm, TEMPLATE).labels(WORDS).ids]
    expected = service_probabilities(lm, body, HOSTILE)
    over_vocabulary = stock_probabilities(model, tmp_path, FILLED, "left")
    np.testing.assert_allclose(over_vocabulary[:, tokens], expected[: len(TEXTS)], atol=CLOSE)
    code = card_code(tmp_path)
    for text, probabilities in zip(HOSTILE, expected, strict=True):
        answer = code["classify"](text)
        assert list(answer) == WORDS
        np.testing.assert_allclose(list(answer.values()), probabilities, atol=CLOSE)


def test_the_pipelines_of_the_model_cards_answer_with_the_services_labels(tmp_path: Path) -> None:
    lm = build("llama")
    body = adapter(lm, WORDS)
    labels = [WORDS[index] for index in service_probabilities(lm, body, TEXTS).argmax(1)]
    export(lm, body, tmp_path / "classifier", form="sequence-classification")
    export(lm, body, tmp_path / "model", form="lm-head")
    with quiet():
        classifier = pipeline("text-classification", model=str(tmp_path / "classifier"))
        assert [answer["label"] for answer in classifier(FILLED, batch_size=4)] == labels
        model = pipeline("text-generation", model=str(tmp_path / "model"))
        conversations = [[{"role": "user", "content": text}] for text in TEXTS]
        answers = [answer[0]["generated_text"][-1]["content"].strip() for answer in model(conversations)]
    assert answers == labels


@pytest.mark.parametrize("form", ["sequence-classification", "lm-head"])
def test_a_rendered_chat_template_and_an_appended_end_token_are_handled(form: Form, tmp_path: Path) -> None:
    lm = build_fresh("llama")
    lm.tokenizer.chat_template = CHAT
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    body = adapter(lm, WORDS, chat=True)
    export(lm, body, tmp_path, form=form)
    expected, code = service_probabilities(lm, body, HOSTILE), card_code(tmp_path)
    for text, probabilities in zip(HOSTILE, expected, strict=True):
        np.testing.assert_allclose(list(code["classify"](text).values()), probabilities, atol=CLOSE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompts = PromptTemplate.of(lm, TEMPLATE, chat=True)
    for text in TEXTS:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False)
        assert rendered == list(prompts.prompt(text).ids)
    if form == "sequence-classification":  # the appended end token is padding, which the stock class skips
        filled = [prompts.template.replace("{text}", text) for text in TEXTS]
        model = load(AutoModelForSequenceClassification, tmp_path)
        np.testing.assert_allclose(stock_probabilities(model, tmp_path, filled, "right"), expected[: len(TEXTS)], atol=CLOSE)


def test_the_padding_never_ends_a_prompt(tmp_path: Path) -> None:
    lm = build("gpt2")
    body = adapter(lm, LABELS, template="Review: {text}<eos>")
    assert lm.tokenizer.pad_token == "<eos>"  # a token of a vocabulary
    export(lm, body, tmp_path, form="sequence-classification")
    model = load(AutoModelForSequenceClassification, tmp_path)
    filled = [f"Review: {text}<eos>" for text in TEXTS]
    np.testing.assert_allclose(
        stock_probabilities(model, tmp_path, filled, "right"), service_probabilities(lm, body, TEXTS), atol=CLOSE
    )


@pytest.mark.parametrize("classes", [HIDDEN - 1, HIDDEN + 3])
def test_many_labels_are_carried_while_each_has_a_channel(classes: int, tmp_path: Path) -> None:
    lm = build("llama")
    body = adapter(lm, [f"label {index}" for index in range(classes)])
    said: list[str] = []
    export(lm, body, tmp_path, announce=said.append)
    model = load(AutoModelForSequenceClassification, tmp_path)
    np.testing.assert_allclose(
        stock_probabilities(model, tmp_path, FILLED, "right"), service_probabilities(lm, body, TEXTS), atol=CLOSE
    )
    carried = classes < HIDDEN
    assert (model.config.num_hidden_layers == 4, hasattr(model.config, "ifed_label_bias")) == (carried, not carried)
    assert any("add ifed_label_bias" in sentence for sentence in said) != carried
    assert ("**The stock class leaves out the bias" in (tmp_path / "README.md").read_text()) != carried


def test_a_bfloat16_checkpoint_is_close_and_float16_is_refused(tmp_path: Path) -> None:
    lm = build("llama", dtype=torch.bfloat16)
    body = adapter(lm, LABELS)
    export(lm, body, tmp_path / "bfloat16")
    model = load(AutoModelForSequenceClassification, tmp_path / "bfloat16")
    assert model.dtype == torch.bfloat16
    probabilities = stock_probabilities(model.float(), tmp_path / "bfloat16", FILLED, "right")
    np.testing.assert_allclose(probabilities, service_probabilities(lm, body, TEXTS), atol=0.1)
    half = build("llama", dtype=torch.float16)
    with pytest.raises(NotFoldable, match="write bfloat16 or float32"):
        export(half, adapter(half, LABELS), tmp_path / "float16")
    assert not (tmp_path / "float16").exists()


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("qwen3", "Qwen3ForSequenceClassification")],
)
def test_an_export_takes_the_form_that_the_family_can_carry_and_leaves_the_loaded_model_alone(
    family: str, architecture: str, tmp_path: Path
) -> None:
    lm = build_fresh(family)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    config = lm.model.config.to_dict()
    export(lm, adapter(lm, WORDS, identity=True, injection="last_token"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    assert lm.model.config.to_dict() == config
    assert lm.tokenizer.chat_template is None


@pytest.mark.parametrize(
    ("family", "labels", "changes", "form", "reason"),
    [
        ("llama", WORDS, {"injection": "last_token"}, "auto", "train a task with injection 'all_tokens'"),
        ("llama", WORDS, {"reading": "both"}, "auto", "train a task with head 'regression' or 'words'"),
        ("llama", WORDS, {"reading": "words"}, "lm-head", "leave --format out"),
        ("llama", LABELS, {}, "lm-head", "the label 'topic sport' is 2 tokens.*--format sequence-classification"),
        ("llama", ["good", " bad"], {}, "lm-head", "white space around it.*--format sequence-classification"),
        ("gemma2", WORDS, {"identity": True}, "lm-head", "gemma2 has no place for the biases.*--format sequence-classification"),
        ("qwen3", WORDS, {"identity": True}, "lm-head", "qwen3 has no place for the biases"),
    ],
)
def test_what_a_checkpoint_cannot_be_is_refused_with_what_to_do(
    family: str, labels: list[str], changes: dict[str, Any], form: Form, reason: str, tmp_path: Path
) -> None:
    lm = build(family)
    with pytest.raises(NotFoldable, match=reason):
        export(lm, adapter(lm, labels, **changes), tmp_path / "new", form=form)
    assert not (tmp_path / "new").exists()


def test_a_head_that_does_not_fit_the_labels_is_refused(tmp_path: Path) -> None:
    lm = build("llama")
    with pytest.raises(LayoutMismatch, match="3 labels by a head of 32 channels"):
        export(lm, adapter(lm, LABELS, classes=2), tmp_path)

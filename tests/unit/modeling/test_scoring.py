"""Label scores against brute force, alone and in company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ifed.messages.texts import LabelledText
from ifed.modeling.hooks import inject
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.scoring import ScoringItem, evaluate, score
from ifed.tensors.values import Coefficients
from testing.random_models import ALL, CODE_PATHS, FAMILY_NAMES, TEXTS, build, random_coefficients, random_context, template

LABEL_SETS = (
    ["positive", "negative"],
    ["topic sport", "topic science"],
    ["topic sport", "positive", "topic science", "object of science", "mixed was good", "mixed was bad"],
)
families = pytest.mark.parametrize("family", FAMILY_NAMES)
SINGLE, SHARED, TREE = LABEL_SETS
label_sets = pytest.mark.parametrize("names", LABEL_SETS, ids=["single", "shared", "tree"])


def injection(lm: LanguageModel, *, seed: int = 2) -> Injection:
    return injection_of(random_context(3, seed=seed), random_coefficients(3, 4, seed=seed), ALL, device="cpu", dtype=lm.dtype)


def brute_force(lm: LanguageModel, text: str, names: list[str], injected: Injection | None) -> list[float]:
    """Return the summed log-probabilities of each label's tokens over the vocabulary, one label per forward pass."""
    prompts = template(lm)
    labels = prompts.labels(names)
    prompt, totals = prompts.prompt(text).ids, []
    for tokens in labels.ids:
        with inject(lm, injected), torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0]
        log_probabilities = torch.log_softmax(logits.double(), -1)
        totals.append(sum(float(log_probabilities[len(prompt) - 1 + at, token]) for at, token in enumerate(tokens)))
    return [float(value) for value in torch.log_softmax(torch.tensor(totals, dtype=torch.float64), 0)]


@pytest.mark.parametrize(
    ("family", "names"),
    [*((family, TREE) for family in CODE_PATHS), *((family, SHARED) for family in FAMILY_NAMES), ("llama", SINGLE)],
)
def test_scores_equal_brute_force(family: str, names: list[str]) -> None:
    lm = build(family)
    prompts = template(lm)
    injected = injection(lm)
    items = [ScoringItem(prompts.prompt(text), prompts.labels(names), injected) for text in TEXTS]
    for text, actual in zip(TEXTS, score(lm, items), strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, brute_force(lm, text, names, injected), rtol=1e-4, atol=1e-4)


@label_sets
def test_probabilities_sum_to_one(names: list[str]) -> None:
    lm = build()
    prompts = template(lm)
    (actual,) = score(lm, [ScoringItem(prompts.prompt("good"), prompts.labels(names), None)])
    assert np.exp(actual).sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("names", "dtype"), [(TREE, torch.float32), (TREE, torch.bfloat16), (SINGLE, torch.float32)])
def test_the_order_of_the_labels_changes_no_score(names: list[str], dtype: torch.dtype) -> None:
    lm = build("gemma2", dtype=dtype)
    prompts = template(lm)
    prompt = prompts.prompt(TEXTS[0])
    (expected,) = score(lm, [ScoringItem(prompt, prompts.labels(names), None)])
    by_name = dict(zip(names, expected.tolist(), strict=True))
    for order in itertools.islice(itertools.permutations(names), 24):
        (actual,) = score(lm, [ScoringItem(prompt, prompts.labels(order), None)])
        assert dict(zip(order, actual.tolist(), strict=True)) == by_name


@pytest.mark.parametrize(
    ("family", "budget"), [*((family, 64) for family in (*CODE_PATHS, "gemma2")), ("llama", 1), ("llama", 10_000)]
)
def test_items_of_several_tasks_in_one_batch_score_what_they_score_alone(family: str, budget: int) -> None:
    lm = build(family)
    prompts = template(lm)
    injections = [injection(lm), None, injection(lm, seed=7)]
    items = [
        ScoringItem(prompts.prompt(text), prompts.labels(LABEL_SETS[index % 3]), injections[index % len(injections)])
        for index, text in enumerate(TEXTS)
    ]
    together = score(lm, items, token_budget=budget)
    for item, actual in zip(items, together, strict=True):
        (alone,) = score(lm, [item])
        np.testing.assert_allclose(actual, alone, rtol=1e-4, atol=1e-4)


def test_no_items_have_no_scores() -> None:
    assert score(build(), []) == []


def test_single_token_labels_do_not_run_the_full_head() -> None:
    lm = build()
    prompts = template(lm)
    ran: list[int] = []
    counter = lm.model.get_output_embeddings().register_forward_hook(lambda *_: ran.append(1))
    score(lm, [ScoringItem(prompts.prompt("good"), prompts.labels(LABEL_SETS[0]), None)])
    assert ran == []
    score(lm, [ScoringItem(prompts.prompt("good"), prompts.labels(LABEL_SETS[2]), None)])
    counter.remove()
    assert ran


def test_the_confusion_counts_truths_in_rows_and_predictions_in_columns() -> None:
    lm = build()
    prompts = template(lm)
    labels = prompts.labels(["positive", "negative"])
    scores = score(lm, [ScoringItem(prompts.prompt(text), labels, None) for text in TEXTS])
    examples = [LabelledText(text, index % 2) for index, text in enumerate(TEXTS)]
    expected = np.zeros((2, 2), dtype=np.int64)
    for example, actual in zip(examples, scores, strict=True):
        expected[example.label, int(actual.argmax())] += 1
    counts = evaluate(lm, prompts, labels, examples, None)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == len(TEXTS)


def test_scoring_survives_a_batch_that_does_not_fit_into_memory() -> None:
    lm = build()
    prompts = template(lm)
    items = [ScoringItem(prompts.prompt(text), prompts.labels(LABEL_SETS[0]), injection(lm)) for text in TEXTS]
    expected = score(lm, items)

    def too_much(module: torch.nn.Module, arguments: tuple[object, ...], keywords: dict[str, torch.Tensor]) -> None:
        if keywords["input_ids"].numel() > 40:
            raise torch.OutOfMemoryError

    hook = lm.model.base_model.register_forward_pre_hook(too_much, with_kwargs=True)
    actual = score(lm, items, token_budget=10_000)
    hook.remove()
    for scores, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(scores, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CODE_PATHS)
def test_bfloat16_scores_what_float32_scores_to_rounding(family: str) -> None:
    actual = []
    for dtype in (torch.float32, torch.bfloat16):
        lm = build(family, dtype=dtype)
        injected = injection_of(random_context(3), Coefficients.identity(3, 4, context_weight=0.05), ALL, device="cpu", dtype=dtype)
        labels = template(lm).labels(["positive", "negative"])
        actual.append(np.stack(score(lm, [ScoringItem(template(lm).prompt(text), labels, injected) for text in TEXTS])))
    assert np.abs(np.exp(actual[0]) - np.exp(actual[1])).max() < 0.1
    sure = np.abs(actual[0][:, 0] - actual[0][:, 1]) > 0.4
    assert (actual[0].argmax(1) == actual[1].argmax(1))[sure].all()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_order_batch_and_budget_change_no_score_beyond_rounding(family: str) -> None:
    lm = build(family)
    injected = injection_of(random_context(3), random_coefficients(3, 4), ALL, device="cpu", dtype=lm.dtype)
    labels = template(lm).labels(["positive", "topic sport"])
    items = [ScoringItem(template(lm).prompt(text), labels, injected) for text in TEXTS]
    alone = np.stack([score(lm, [item])[0] for item in items])
    for budget in (16, 64, 1024):
        np.testing.assert_allclose(np.stack(score(lm, items, token_budget=budget)), alone, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.stack(score(lm, items[::-1]))[::-1], alone, rtol=1e-3, atol=1e-3)

"""Calibration: the right gradient, a falling loss, and no change but of Λ."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ifed.errors import LayoutMismatch, Malformed
from ifed.messages.texts import LabelledText
from ifed.modeling.calibration import Calibrator, LocalPlan, sample_batches
from ifed.modeling.extraction import context_vector
from ifed.modeling.fingerprint import fingerprint_of_model
from ifed.modeling.injection import injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loss import Objective
from ifed.modeling.scoring import ScoringItem, evaluate, score
from ifed.tensors.values import Coefficients
from testing.random_models import (
    ALL,
    CODE_PATHS,
    FAMILY_NAMES,
    build,
    build_fresh,
    examples,
    random_coefficients,
    random_context,
    template,
)

pytestmark = pytest.mark.slow

PLAN = LocalPlan(steps=10, batch_size=4, learning_rate=0.05, learning_rate_end=0.01, logit_adjustment=0.0, seed=3)
SINGLE, TREE = ["positive", "negative"], ["topic sport", "positive", "topic science"]


def calibrator(
    lm: LanguageModel, *, layers: tuple[int, ...] = ALL, names: list[str] | None = None, held_out: int = 4, cache_bytes: int = 1 << 30,
    count: int = 8,
) -> Calibrator:  # fmt: skip
    prompts = template(lm)
    names = names or SINGLE
    every = examples(count + held_out, labels=len(names))
    return Calibrator(
        lm, prompts, prompts.labels(names), every[:count], random_context(len(layers)), layers,
        held_out=every[count:], cache_bytes=cache_bytes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "tau", "names"),
    [*((family, 1.0, TREE) for family in FAMILY_NAMES), ("llama", 0.0, SINGLE), ("gpt2", 0.0, TREE)],
)
def test_the_gradient_equals_finite_differences(family: str, tau: float, names: list[str]) -> None:
    lm = build(family, dtype=torch.float64)
    client, values = calibrator(lm, layers=(1, 2), names=names), random_coefficients(2, 2).values
    actual = client.mean_gradient(Coefficients(values), batch_size=8, seed=0, logit_adjustment=tau)
    step = 2e-3
    for place in [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 0), (1, 1, 0, 1)]:
        losses = []
        for sign in (1, -1):
            moved = values.copy()
            moved[place] += sign * step
            losses.append(
                (client.mean_gradient(Coefficients(moved), batch_size=8, seed=0, logit_adjustment=tau).loss, moved[place])
            )
        slope = (losses[0][0] - losses[1][0]) / float(losses[0][1] - losses[1][1])
        assert actual.values[place] == pytest.approx(slope, rel=1e-3, abs=2e-4)


@pytest.mark.parametrize(("family", "names"), [*((family, SINGLE) for family in CODE_PATHS), ("llama", TREE)])
def test_calibration_lowers_the_loss(family: str, names: list[str]) -> None:
    client = calibrator(build(family), names=names)
    start = Coefficients.identity(3, 4)
    done = client.run(start, replace(PLAN, steps=25))
    before = client.mean_gradient(start, batch_size=8, seed=0).loss
    assert client.mean_gradient(done.coefficients, batch_size=8, seed=0).loss < before - 0.1
    assert done.examples == 8
    assert math.isfinite(done.loss)


@pytest.mark.parametrize("family", CODE_PATHS)
def test_calibration_changes_the_coefficients_and_nothing_of_the_model(family: str) -> None:
    lm = build(family)
    start = Coefficients.identity(3, 4)
    done = calibrator(lm).run(start, PLAN)
    assert fingerprint_of_model(lm.model, lm.tokenizer) == lm.fingerprint
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert (done.coefficients.values != start.values).all(), "every coefficient has learned"
    assert start == Coefficients.identity(3, 4)


def test_the_loss_is_the_mean_cross_entropy_of_the_label_tokens_over_the_vocabulary() -> None:
    lm = build(dtype=torch.float64)
    prompts = template(lm)
    labels = prompts.labels(TREE)
    client = calibrator(lm, names=TREE, held_out=0)
    actual = client.mean_gradient(Coefficients.identity(3, 1), batch_size=8, seed=0).loss
    tokens: list[float] = []
    for example in examples(8, labels=3):
        prompt, label = prompts.prompt(example.text).ids, labels.ids[example.label]
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([prompt + label]), use_cache=False).logits[0]
        for at, token in enumerate(label):
            tokens.append(-float(torch.log_softmax(logits, -1)[len(prompt) - 1 + at, token]))
    assert actual == pytest.approx(np.mean(tokens), rel=1e-6)


def test_logit_adjustment_adds_the_log_prior_to_the_label_logits_by_hand() -> None:
    lm = build(dtype=torch.float64)
    labels = template(lm).labels(SINGLE)
    hidden = torch.randn(1, lm.hidden_size, dtype=torch.float64)
    actual = Objective(lm, labels, counts=[6, 0], tau=2.0).total(hidden, [1])
    logits = lm.model.get_output_embeddings()(hidden)[0]
    logits[labels.ids[0][0]] += 2.0 * math.log(7 / 8)
    logits[labels.ids[1][0]] += 2.0 * math.log(1 / 8)
    assert float(actual) == pytest.approx(-float(torch.log_softmax(logits, -1)[labels.ids[1][0]]), rel=1e-9)


@pytest.mark.parametrize("layers", [ALL, (1, 2)])
def test_the_same_plan_gives_the_same_bytes_whatever_ran_before(layers: tuple[int, ...]) -> None:
    lm = build(dtype=torch.bfloat16)
    start = Coefficients.identity(len(layers), 4)
    first, second = calibrator(lm, layers=layers), calibrator(lm, layers=layers)
    second.run(start, replace(PLAN, seed=99))
    second.evaluate(start)
    result, other = first.run(start, PLAN), second.run(start, PLAN)
    assert result == other
    assert result.coefficients.values.tobytes() == first.run(start, PLAN).coefficients.values.tobytes()
    assert result.coefficients != first.run(start, replace(PLAN, seed=4)).coefficients


def test_caching_the_lower_layers_changes_nothing_but_rounding() -> None:
    lm = build()
    start = random_coefficients(2, 4)
    cached, computed = calibrator(lm, layers=(1, 2)), calibrator(lm, layers=(1, 2), cache_bytes=0)
    gradient, other = (client.mean_gradient(start, batch_size=8, seed=0) for client in (cached, computed))
    np.testing.assert_allclose(gradient.values, other.values, rtol=1e-4, atol=1e-6)
    assert cached.evaluate(start).tolist() == computed.evaluate(start).tolist()


def test_a_step_divided_into_small_passes_has_the_same_gradient() -> None:
    lm = build(dtype=torch.float64)
    prompts = template(lm)
    every = examples(8)
    single_pass, small_passes = (
        Calibrator(lm, prompts, prompts.labels(SINGLE), every, random_context(3), ALL, token_budget=budget)
        for budget in (10_000, 1)
    )
    gradient, other = (
        client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0) for client in (single_pass, small_passes)
    )
    np.testing.assert_allclose(gradient.values, other.values, rtol=1e-5, atol=1e-8)
    assert gradient.loss == pytest.approx(other.loss)


@pytest.mark.parametrize("names", [SINGLE, TREE], ids=["single", "tree"])
@pytest.mark.parametrize("layers", [ALL, (1, 2)])
def test_held_out_counts_equal_a_plain_evaluation(layers: tuple[int, ...], names: list[str]) -> None:
    lm = build()
    prompts = template(lm)
    coefficients = random_coefficients(len(layers), 4)
    client = calibrator(lm, layers=layers, names=names, held_out=7)
    injected = injection_of(random_context(len(layers)), coefficients, layers, device="cpu", dtype=lm.dtype)
    expected = evaluate(lm, prompts, prompts.labels(names), examples(15, labels=len(names))[8:], injected)
    assert client.evaluate(coefficients).tolist() == expected.tolist()
    assert client.evaluate(coefficients).tolist() == expected.tolist(), "the second time from the cache"
    means = client.measure(coefficients).label_probabilities
    items = [
        ScoringItem(prompts.prompt(example.text), prompts.labels(names), injected)
        for example in examples(15, labels=len(names))[8:]
    ]
    each = np.exp(score(lm, items))
    assert means is not None
    assert means == pytest.approx(each.mean(axis=0), abs=1e-5)


def test_without_held_out_examples_all_counts_are_zero() -> None:
    assert calibrator(build(), held_out=0).evaluate(Coefficients.identity(3, 1)).tolist() == [[0, 0], [0, 0]]


def test_activations_cached_by_an_evaluation_can_be_trained_on() -> None:
    client = calibrator(build(), layers=(1, 2))
    client.evaluate(Coefficients.identity(2, 4))
    client.run(Coefficients.identity(2, 4), PLAN)


def test_calibration_may_be_called_where_gradients_are_off() -> None:
    client = calibrator(build(), layers=(1, 2))
    with torch.no_grad():
        assert client.run(Coefficients.identity(2, 4), PLAN).coefficients != Coefficients.identity(2, 4)


def test_every_example_is_drawn_equally_often() -> None:
    drawn = [index for batch in sample_batches(10, 4, 25, seed=1) for index in batch]
    assert len(drawn) == 100
    assert {drawn.count(index) for index in range(10)} == {10}


def test_a_batch_larger_than_the_training_set_is_the_training_set() -> None:
    assert [sorted(batch) for batch in sample_batches(3, 8, 2, seed=1)] == [[0, 1, 2], [0, 1, 2]]


def test_the_learning_rate_falls_linearly_from_its_start_to_its_end() -> None:
    client = calibrator(build())
    start = Coefficients.identity(3, 4)
    stepped = client.run(start, replace(PLAN, steps=1, learning_rate=0.05, learning_rate_end=0.0)).coefficients
    np.testing.assert_allclose(np.abs(stepped.values - start.values), 0.05, rtol=1e-2)  # Adam's first step is as long as the rate


def test_progress_counts_every_step() -> None:
    reports: list[tuple[int, int]] = []
    calibrator(build()).run(Coefficients.identity(3, 4), PLAN, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(step, 10) for step in range(1, 11)]


def test_calibration_without_training_examples_is_refused() -> None:
    lm = build()
    prompts = template(lm)
    with pytest.raises(Malformed, match="there are none"):
        Calibrator(lm, prompts, prompts.labels(SINGLE), [], random_context(3), ALL)


def test_a_context_vector_of_other_layers_is_refused() -> None:
    lm = build()
    prompts = template(lm)
    with pytest.raises(LayoutMismatch, match="not for 2 layers"):
        Calibrator(lm, prompts, prompts.labels(SINGLE), examples(), random_context(3), (1, 2))


def test_groups_that_do_not_divide_the_hidden_size_are_refused() -> None:
    with pytest.raises(LayoutMismatch, match="do not divide"):
        calibrator(build()).run(Coefficients.identity(3, 5), PLAN)


@pytest.mark.parametrize("family", CODE_PATHS)
def test_extraction_and_calibration_together_learn_a_separable_task(family: str) -> None:
    lm = build(family)
    prompts = template(lm)
    labels = prompts.labels(SINGLE)
    every = [LabelledText(text, label) for label, text in enumerate(["good film", "bad plot"])] * 4
    vector = context_vector(lm, prompts, labels, every, layers=ALL)
    client = Calibrator(lm, prompts, labels, every, vector, ALL, held_out=every)
    done = client.run(Coefficients.identity(3, 8), replace(PLAN, steps=60, batch_size=8, learning_rate=0.1, learning_rate_end=0.1))
    assert client.evaluate(done.coefficients).tolist() == [[4, 0], [0, 4]]


@pytest.mark.parametrize("family", CODE_PATHS)
def test_the_gradient_of_every_coefficient_is_its_finite_difference(family: str) -> None:
    work = calibrator(build(family, dtype=torch.float64), names=TREE, count=4)
    start = random_coefficients(3, 2)

    def at(values: np.ndarray) -> tuple[np.ndarray, float]:
        actual = work.mean_gradient(Coefficients(values), batch_size=4, seed=0)
        return actual.values, actual.loss

    gradient, _ = at(start.values)
    step = np.float32(2**-7)
    for place in np.ndindex(start.values.shape):
        higher, lower = start.values.copy(), start.values.copy()
        higher[place] += step
        lower[place] -= step
        distance = float(higher[place]) - float(lower[place])
        numeric = (at(higher)[1] - at(lower)[1]) / distance
        assert numeric == pytest.approx(gradient[place], rel=2e-2, abs=2e-3), place


def test_a_calibration_batch_that_does_not_fit_into_memory_is_halved_and_gives_the_same_gradient() -> None:
    lm = build(dtype=torch.float64)
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(TREE), examples(labels=3), random_context(3), ALL, token_budget=10_000)
    expected = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    sizes: list[int] = []

    def too_much(_module: object, _arguments: object, keywords: dict[str, torch.Tensor]) -> None:
        sizes.append(keywords["input_ids"].numel())
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError

    hook = lm.model.base_model.register_forward_pre_hook(too_much, with_kwargs=True)
    actual = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    hook.remove()
    assert max(sizes) > 60 >= min(sizes)
    np.testing.assert_allclose(actual.values, expected.values, rtol=1e-4, atol=1e-6)
    assert actual.loss == pytest.approx(expected.loss)


def test_memory_that_runs_out_in_the_backward_pass_adds_nothing_twice() -> None:
    lm = build(dtype=torch.float64)
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(TREE), examples(labels=3), random_context(3), ALL, token_budget=10_000)
    expected = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    failures_left = [1]

    def fail_once(gradient: torch.Tensor) -> torch.Tensor:
        if failures_left:
            failures_left.pop()
            raise torch.OutOfMemoryError
        return gradient

    def watch(_module: object, _arguments: object, output: Any) -> None:
        (output[0] if isinstance(output, tuple) else output).register_hook(fail_once)

    hook = lm.family.layers(lm.model)[0].register_forward_hook(watch)
    actual = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    hook.remove()
    assert not failures_left
    np.testing.assert_allclose(actual.values, expected.values, rtol=1e-4, atol=1e-6)


def test_backward_keeps_no_weights_gradient_and_records_no_layer_below_the_first_injected() -> None:
    lm = build()
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(TREE), examples(labels=3), random_context(2), (1, 2), cache_bytes=0)
    recorded: list[bool] = []
    hooks = [
        layer.register_forward_hook(
            lambda _module, _arguments, output: recorded.append((output[0] if isinstance(output, tuple) else output).requires_grad)
        )
        for layer in lm.family.layers(lm.model)
    ]
    client.mean_gradient(random_coefficients(2, 4), batch_size=8, seed=0)
    for hook in hooks:
        hook.remove()
    assert recorded == [False, True, True]
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_backward_keeps_no_input_of_a_frozen_projection() -> None:
    lm = build_fresh()
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(TREE), examples(labels=3), random_context(3), ALL)
    projections = [module for layer in lm.family.layers(lm.model) for module in layer.modules() if isinstance(module, nn.Linear)]

    def inputs_kept() -> int:
        entered: list[torch.Tensor] = []  # held, so that no memory is used a second time
        saved: list[torch.Tensor] = []
        hooks = [module.register_forward_pre_hook(lambda _module, injected: entered.append(injected[0])) for module in projections]
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
            client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
        for hook in hooks:
            hook.remove()
        assert len(entered) >= len(projections)
        places = {tensor.untyped_storage().data_ptr() for tensor in saved}
        return sum(tensor.untyped_storage().data_ptr() in places for tensor in entered)

    assert inputs_kept() == 0
    lm.family.layers(lm.model)[1].get_submodule("mlp.down_proj").weight.requires_grad_(True)
    assert inputs_kept() == 1, "with a weight to train it would be"

"""Tasks of the second generation in the comparison: the product's own rounds, heads of other features, and one's own texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.federated.head import ClientStates, solve_head
from benchmarks.paper import lora
from benchmarks.paper.encoder import SentenceEncoder, run_encoder
from benchmarks.paper.methods import LORA, TASKS, Plan, TaskSetting, is_default
from benchmarks.paper.product import ServedTexts, run_rounds, run_task
from benchmarks.paper.texts import BOTH, DEVELOPMENT, A, B, EvaluationTexts
from benchmarks.tests.conftest import DEFAULT_TASKS
from benchmarks.tests.test_federated import DATASET
from benchmarks.tests.test_paper_methods import discard
from ifed.messages.tasks import Policy, TaskSpec
from ifed.messages.texts import LabelledText
from ifed.modeling.language_model import LanguageModel
from ifed.tensors.label_prior import without_bias
from ifed.tensors.regression import RIDGES, Standardization
from services.client_agent.demonstrations import Split
from services.inference.model import PreparedText, Scorer
from testing.random_models import build, build_tokenizer, examples

PLAN = Plan(clients=2, rounds=1, local_steps=1, batch_size=4, lora_rank=2)
TEXTS = EvaluationTexts(examples(12), 6)
PARTS = [examples(24), examples(30)]
SPLITS = [Split(tuple(part[4:]), tuple(part[:4])) for part in PARTS]


def with_head() -> TaskSetting:
    """Return ours as it is once the defaults are a label head and an injection at the last token."""
    return replace(TASKS["second"], task={"head": "auto", "injection": "last_token"}, policy={"head_rounds": 2})


def run(method: TaskSetting, lm: LanguageModel | None = None) -> dict[str, Any]:
    return run_task(lm or build("llama"), DATASET, PARTS, TEXTS, method, PLAN, 0, discard)


def test_a_task_runs_head_calibration_and_head_anew_by_the_products_services() -> None:
    result = run(with_head())
    parts, rows = result["parts"], result["rows"]
    assert set(parts) == {"joining", "context", "head", "calibration", "evaluation"}
    assert all(part["up"] > 0 and part["down"] > 0 for part in parts.values())
    assert all(parts[name]["seconds"] > 0 for name in ("joining", "context", "head", "calibration"))
    assert [row["made_by"] for row in rows] == ["head", "calibration", "head"]
    assert [row["round"] for row in rows] == [0, 1, 1]
    assert parts["calibration"]["rounds"] == 1
    assert parts["head"]["largest_body"] < parts["head"]["up"] / parts["head"]["rounds"], "headers come on top"
    assert set(result["readings"]["served"]) == {A, B, BOTH}
    served = next(row for row in rows if row["version"] == result["served"]["version"])
    assert served["figures"] == result["readings"]["served"]


def test_the_head_alone_is_read_on_the_bare_model() -> None:
    result = run(TASKS["head"])
    assert [row["made_by"] for row in result["rows"]] == ["head"]
    assert set(result["parts"]) == {"joining", "context", "head"}
    assert result["served"]["reading"] == "head"


def test_without_context_vectors_lambda_has_nothing_to_act_on() -> None:
    lm, setting = build("llama"), replace(with_head(), context=False)
    finished = run_rounds(lm, setting.spec("paper-0", lm.identity.name, DATASET, PLAN), SPLITS, setting, discard)
    assert len(finished.adapters) == 3
    assert not any(body.context.values.any() for body in finished.adapters.values())


def test_a_setting_differs_from_the_products_defaults_by_its_name_alone() -> None:
    spec = DEFAULT_TASKS["second"].spec("name", "model", DATASET, Plan())
    plain = TaskSpec(name="name", labels=list(DATASET.labels), template=DATASET.template, model="model")
    changed = {name for name in Policy.model_fields if getattr(spec.policy, name) != getattr(plain.policy, name)}
    assert changed == {"clients_expected", "deadline_seconds"}
    assert spec.model_dump(exclude={"policy"}) == plain.model_dump(exclude={"policy"})
    assert DEFAULT_TASKS["second"].spec("name", "model", DATASET, Plan(rounds=2)).policy.rounds == 2
    assert DEFAULT_TASKS["second-sums"].spec("name", "model", DATASET, Plan()).policy.solver == "sums"
    assert not is_default("second")
    assert is_default("second-float32") == (plain.policy.update_dtype == "float32")


def test_solved_heads_are_those_of_the_pooled_examples() -> None:
    random = np.random.default_rng(0)
    truths = [random.integers(0, 3, size=count) for count in (30, 50)]
    states = [np.eye(3)[labels] @ random.normal(size=(3, 8)) + random.normal(size=(len(labels), 8)) for labels in truths]
    clients = [
        ClientStates(part.astype(np.float32), labels.tolist(), part[:5].astype(np.float32), labels[:5].tolist())
        for part, labels in zip(states, truths, strict=True)
    ]
    pooled, labels = np.concatenate(states), np.concatenate(truths)
    standardization = Standardization.of(pooled.astype(np.float32))
    sums = solve_head(clients, standardization, 3, Policy(solver="sums", update_dtype="float32"))
    gradient = solve_head(clients, standardization, 3, Policy(solver="conjugate_gradient", update_dtype="float32"))
    assert (len(sums.bodies_up), len(gradient.bodies_up) > 2) == (2, True)
    assert max(gradient.bodies_up[:-1]) < sums.bodies_up[0], "the last of both compares candidates"
    shares = np.bincount(labels) / len(labels)
    z = standardization.apply(pooled.astype(np.float32))
    gram, targets = z.T @ z / len(z), np.eye(3)[labels] - shares
    weights = [np.linalg.solve(gram + ridge * np.eye(8), z.T @ targets / len(z)).T / standardization.deviation for ridge in RIDGES]
    for solved in (sums, gradient):
        directions = [
            float(np.sum(solved.head.weight * w) / np.linalg.norm(solved.head.weight) / np.linalg.norm(w)) for w in weights
        ]
        assert max(directions) == pytest.approx(1, abs=1e-4)


def test_lora_is_read_by_words_and_by_a_head_on_its_states_from_one_training() -> None:
    plan = Plan(clients=2, rounds=2, local_steps=1, batch_size=4, lora_rank=2)
    policy = LORA["lora-8"].policy_for(plan).model_copy(update={"learning_rate": 0.01})
    texts = EvaluationTexts(examples(18), 6, development=6)
    result = lora.run_fedavg(build("qwen2"), DATASET, PARTS, texts, policy, 2, 0, discard)
    assert set(result["readings"]) == {"plain", "matched", "head"}
    assert all(set(by_set) == {A, B, BOTH, DEVELOPMENT} for by_set in result["readings"].values())
    assert result["rows"][-1]["accuracy_plain"] == result["readings"]["plain"][A]["accuracy"]
    assert result["head"]["seconds"] > 0
    assert len(result["head"]["bodies_up"]) == 2


def test_sets_of_texts_are_the_halves_and_both_and_what_follows() -> None:
    truths = np.array([0, 0, 1, 1, 0, 1])
    scores = np.log(np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]], dtype=np.float32))
    labelled = [LabelledText(str(index), int(truth)) for index, truth in enumerate(truths)]
    figures = EvaluationTexts(labelled, 2, development=2).figures(truths, scores)
    assert {name: found["accuracy"] for name, found in figures.items()} == {A: 0.5, B: 1.0, BOTH: 0.75, DEVELOPMENT: 0.0}
    assert set(EvaluationTexts(labelled, 6).figures(truths, scores)) == {A}


def test_texts_are_scored_as_the_inference_service_scores_them() -> None:
    lm, setting = build("llama"), with_head()
    spec = setting.spec("paper-0", lm.identity.name, DATASET, PLAN)
    finished = run_rounds(lm, spec, SPLITS, setting, discard)
    served, scorer = ServedTexts(lm, spec, TEXTS), Scorer(lm)
    kept = [index for index, example in enumerate(TEXTS.examples) if example.text]  # the service refuses an empty text
    assert len(finished.adapters) == 3
    for body in finished.adapters.values():
        loaded = scorer.load_adapter(body)
        prepared = [scorer.prepare(loaded, TEXTS.examples[index].text, truncate=True) for index in kept]
        scores = [
            without_bias(row, body.meta.label_bias)
            for row in scorer.score([one.item for one in prepared if isinstance(one, PreparedText)])
        ]
        np.testing.assert_allclose(served.scores(body)[kept], np.stack(scores), atol=1e-3)


def tiny_encoder(folder: Path) -> SentenceEncoder:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SentenceEncoder.load(folder)


def test_an_embedding_has_length_one_and_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    encoder = tiny_encoder(tmp_path)
    short, long = "bad", "the film was good and the plot was bad but we liked it a lot"
    together = encoder.embed([short, long])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together[0], encoder.embed([short])[0], atol=1e-6)
    assert encoder.embed([]).shape == (0, 16)


def test_the_head_on_embeddings_is_solved_in_both_ways_for_the_same_texts(tmp_path: Path) -> None:
    result = run_encoder(tiny_encoder(tmp_path), PARTS, TEXTS, len(DATASET.labels))
    assert set(result["readings"]) == {"sums", "gradient"}
    assert all(set(by_set) == {A, B, BOTH} for by_set in result["readings"].values())
    assert max(result["head"]["gradient"]["bodies_up"]) < max(result["head"]["sums"]["bodies_up"])

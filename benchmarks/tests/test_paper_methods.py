"""The methods of the paper's experiment: LoRA adapters, few-shot prompts, calibration rounds, and the bytes on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from torch import nn

from benchmarks.federated.algorithms import local_plan
from benchmarks.federated.federation import Federation
from benchmarks.paper import lora, traffic
from benchmarks.paper.byte_counter import serve_counted
from benchmarks.paper.calibration import run_calibration
from benchmarks.paper.methods import FIRST_RELEASE, LORA, OURS, PUBLISHED, SETTINGS, Plan, Setting, compact, runs_on
from benchmarks.paper.prompting import few_shot, few_shot_template, zero_shot
from benchmarks.paper.texts import A, EvaluationTexts
from benchmarks.tests.test_federated import DATASET
from ifed.messages.tasks import LayerChoice
from ifed.messages.texts import LabelledText
from ifed.modeling.calibration import LocalPlan
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from testing.random_models import build, examples

PLAN = Plan(clients=2, rounds=2, local_steps=2, batch_size=4, lora_rank=2)
LOCAL = LocalPlan(steps=3, batch_size=4, learning_rate=0.02, learning_rate_end=0.0, logit_adjustment=1.0, seed=1)


def texts(count: int) -> EvaluationTexts:
    return EvaluationTexts(examples(count), count)


def discard(_: str) -> None:
    """Discard a progress message."""


def scores(lm: LanguageModel) -> np.ndarray:
    template = PromptTemplate.of(lm, DATASET.template)
    labels = template.labels(DATASET.labels)
    return np.stack(score(lm, [ScoringItem(template.prompt(example.text), labels, None) for example in examples(8)]))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_adapters_change_nothing_before_they_learn_and_nothing_after_they_are_off(family: str) -> None:
    lm = build(family)
    before, names = scores(lm), [name for name, _ in lm.model.named_modules()]
    with lora.inject_adapters(lm, 2, 0) as parameters:
        assert len(parameters) == 3 * 2 * 2
        assert all("q_proj" in name or "v_proj" in name for name in parameters)
        assert all(parameter.dtype is torch.float32 for parameter in parameters.values())
        np.testing.assert_array_equal(scores(lm), before)
        lora.load_weights(
            parameters, {name: parameter + np.float32(0.3) for name, parameter in lora.copy_weights(parameters).items()}
        )
        assert np.abs(scores(lm) - before).max() > 1e-3
    np.testing.assert_array_equal(scores(lm), before)
    assert [name for name, _ in lm.model.named_modules()] == names
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_adapters_are_drawn_by_the_seed_and_leave_the_draws_of_others_alone() -> None:
    lm, drawn = build("llama"), []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        with lora.inject_adapters(lm, 2, seed) as parameters:
            drawn.append(lora.weights_body(lora.copy_weights(parameters)))
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(5)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_model_without_such_projections_is_refused() -> None:
    with pytest.raises(ValueError, match=r"q_proj"), lora.inject_adapters(build("gpt2"), 2, 0):
        pass
    assert [lora.fits(build(family)) for family in ("gpt2", "phi3", "qwen2")] == [False, False, True]


def test_the_local_steps_are_those_of_a_plain_loop_over_padded_rows() -> None:
    lm = build("llama", dtype=torch.float64)
    (client,) = lora.make_clients(lm, DATASET, [examples(16)], 0.0)
    with lora.inject_adapters(lm, 2, 0) as parameters:
        start = lora.copy_weights(parameters)
        client.train(lm, parameters, LOCAL)
        ours = lora.copy_weights(parameters)
        lora.load_weights(parameters, start)
        optimiser = torch.optim.AdamW(parameters.values(), lr=LOCAL.learning_rate, weight_decay=0.0)
        for step, indices in enumerate(lora.sample_batches(len(client.rows), 4, 3, 1)):
            optimiser.param_groups[0]["lr"] = LOCAL.learning_rate * (1 - step / 3)
            optimiser.zero_grad()
            loss, tokens = torch.zeros((), dtype=torch.float64), 0
            for index in indices:
                row, label = client.rows[index], PromptTemplate.of(lm, DATASET.template).labels(DATASET.labels).ids
                logits = lm.model(torch.tensor([row.ids])).logits[0, list(row.output_positions)]
                loss = loss + nn.functional.cross_entropy(logits, torch.tensor(label[client.truths[index]]), reduction="sum")
                tokens += len(row.output_positions)
            (loss / tokens).backward()
            optimiser.step()
        for name, values in lora.copy_weights(parameters).items():
            np.testing.assert_allclose(ours[name], values, atol=2e-5)
    assert max(np.abs(ours[name] - start[name]).max() for name in start) > 0.01


def test_adapters_are_averaged_by_examples() -> None:
    class Fixed(lora.LoraClient):
        def train(self, lm: LanguageModel, parameters: Mapping[str, nn.Parameter], plan: LocalPlan) -> float:
            with torch.no_grad():
                for parameter in parameters.values():
                    parameter.add_(len(self.rows))
            return float(len(self.rows))

    lm = build("llama")
    clients = [
        Fixed(client.name, client.rows[:count], client.truths, client.objective)
        for client, count in clients_with_counts(lm, (1, 3))
    ]
    with lora.inject_adapters(lm, 2, 0) as parameters:
        start = lora.copy_weights(parameters)
        after, loss = lora.run_round(lm, parameters, start, clients, [LOCAL] * 2)
    assert loss == 2.0
    for name, values in after.items():
        np.testing.assert_allclose(values, start[name] + (1 * 1 + 3 * 3) / 4, rtol=1e-6)


def clients_with_counts(lm: LanguageModel, counts: tuple[int, ...]) -> list[tuple[lora.LoraClient, int]]:
    return list(zip(lora.make_clients(lm, DATASET, [examples(8)] * len(counts), 0.0), counts, strict=True))


def test_lora_trains_on_the_same_batches_as_a_task() -> None:
    lm, parts = build("llama"), [examples(24), examples(40)]
    federated = Federation(lm, DATASET, parts, examples(8), "upper_half")
    clients = lora.make_clients(lm, DATASET, parts, 1.0)
    for member, client in zip(federated.clients, clients, strict=True):
        assert (member.name, member.examples) == (client.name, len(client.rows))
        assert member.calibrator._rows == client.rows


def test_every_round_of_lora_is_evaluated() -> None:
    lm, parts = build("qwen2"), [examples(16), examples(16)]
    plan = Plan(clients=2, rounds=3, local_steps=1, batch_size=2, lora_rank=2)
    low, high = (OURS.policy_for(plan).model_copy(update={"learning_rate": rate}) for rate in (0.001, 0.05))
    slow, fast = (lora.run_fedavg(lm, DATASET, parts, texts(8), policy, plan.lora_rank, 0, discard) for policy in (low, high))
    assert [slow["rate"], fast["rate"]] == [0.001, 0.05]
    assert slow["rows"][-1]["loss"] != fast["rows"][-1]["loss"]
    assert [row["round"] for row in slow["rows"]] == [1, 2, 3]
    assert slow["parameters"] == 3 * 2 * (32 + 32 + 32 + 16)
    assert all(row["body_up"] > 4 * slow["parameters"] for row in slow["rows"])


def test_settings_differ_from_the_defaults_as_their_names_say() -> None:
    ours = OURS.policy_for(Plan())
    policies = {name: setting.policy_for(Plan()) for name, setting in SETTINGS.items()}
    assert {name for name, policy in policies.items() if policy.local_steps == 2 * ours.local_steps} == {"steps", "steps-long"}
    assert {name for name, policy in policies.items() if policy.local_steps == 4 * ours.local_steps} == {"more-steps"}
    assert {name for name, policy in policies.items() if policy.rounds == 2 * ours.rounds} == {"long", "steps-long"}
    constant = {name for name, policy in policies.items() if policy.learning_rate_schedule == "constant"}
    assert constant == {"published", "constant", "wide-constant"}
    assert all(policy.patience is None for policy in policies.values())
    assert {name for name, policy in policies.items() if policy.update_dtype == "float32"} == {"published", "ours", "compact"}


@pytest.mark.parametrize(
    ("method", "seed", "key", "runs"),
    [
        ("ours", 1, "agnews", True),
        ("lora", 2, "subj", True),
        ("zero-shot", 0, "agnews", True),
        ("zero-shot", 1, "agnews", False),
        ("wide", 0, "subj", True),
        ("wide", 0, "emoc", True),
        ("wide", 0, "agnews", False),
        ("wide", 1, "subj", False),
        ("steps-long", 0, "subj", True),
        ("steps-long", 0, "emoc", False),
        ("lora-steps", 0, "emoc", True),
        ("lora-steps", 1, "emoc", False),
        ("more-steps", 2, "subj", True),
        ("more-steps", 0, "agnews", False),
    ],
)
def test_some_methods_run_on_one_seed_or_on_some_data_sets(method: str, seed: int, key: str, runs: bool) -> None:
    assert runs_on(method, seed, key) is runs


def test_lora_is_trained_by_the_policy_of_ours_but_for_the_steps() -> None:
    ours = OURS.policy_for(Plan())
    for method, steps in (("lora", 8), ("lora-steps", 16), ("lora-8", 8), ("lora-16", 16), ("lora-32", 32)):
        assert LORA[method].policy_for(Plan()) == ours.model_copy(update={"local_steps": steps})


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_runs_its_rounds_and_measures_each_version(name: str) -> None:
    setting = SETTINGS[name]
    federated = Federation(build("llama"), DATASET, [examples(20), examples(24)], examples(8), setting.layers, subset=4)
    result = run_calibration(federated, texts(8), setting, PLAN, 0, discard, local=True)
    assert [row["round"] for row in result["rows"]] == list(range(1 + setting.rounds_times * PLAN.rounds))
    assert all({"local", "global"} <= set(row) and row["seconds"] > 0 for row in result["rows"][1:])
    if name == "published":
        assert (result["groups"], result["layers"]) == (1, 3)
        assert all(row["accuracy"] == row["accuracy_plain"] for row in result["rows"])


def test_caching_the_lower_layers_beforehand_changes_no_result() -> None:
    def federated(layers: LayerChoice) -> Federation:
        return Federation(build("llama"), DATASET, [examples(20), examples(24)], examples(8), layers)

    lazy, cached = federated("upper_half"), federated("upper_half")
    assert not any(member.calibrator._activations._hidden for member in cached.clients)
    assert cached.cache_lower_layers() > 0
    assert all(len(member.calibrator._activations._hidden) == member.examples for member in cached.clients)
    last_rows = [
        run_calibration(federation, texts(8), SETTINGS["ours"], PLAN, 0, discard, local=False)["rows"][-1]
        for federation in (lazy, cached)
    ]
    assert last_rows[0]["loss"] == pytest.approx(last_rows[1]["loss"], abs=1e-6)
    assert federated("all").cache_lower_layers() == 0.0


def test_the_first_release_has_its_own_settings_whatever_the_defaults_are() -> None:
    policy = OURS.policy_for(Plan())
    assert policy.model_dump(mode="json", include=set(FIRST_RELEASE)) == FIRST_RELEASE
    assert OURS.describe(Plan())["policy"] == FIRST_RELEASE
    spec = traffic.task_spec("model", DATASET, OURS, policy)
    assert (spec.head, spec.injection, spec.layers, spec.groups) == ("words", "all_tokens", "upper_half", min(64, OURS.groups))
    small = compact("int8")
    assert small.policy_for(Plan()) == policy.model_copy(update={"update_dtype": "int8"})
    assert (OURS.groups, small.groups) == (64, 16)
    published = PUBLISHED.policy_for(Plan())
    assert (published.initial_context_weight, published.logit_adjustment, published.label_bias) == (0.1, 0.0, False)
    assert local_plan(published, 5, 0).learning_rate_end == published.learning_rate


def test_compact_rounds_end_near_those_in_float32_and_send_less() -> None:
    def last(setting: Setting) -> dict[str, float]:
        federated = Federation(build("llama"), DATASET, [examples(20), examples(24)], examples(8), setting.layers)
        return dict(run_calibration(federated, texts(8), setting, PLAN, 0, discard, local=False)["rows"][-1])

    float32, float16, int8 = (last(SETTINGS[name]) for name in ("compact", "compact-float16", "compact-int8"))
    assert float32["body_up"] > float16["body_up"] > int8["body_up"]
    for other in (float16, int8):
        assert other["loss"] == pytest.approx(float32["loss"], rel=1e-2)
        assert other["loss"] != float32["loss"]


def test_a_prompt_has_demonstrations_in_order_as_far_as_they_fit() -> None:
    lm = build("llama")
    shown = [LabelledText("bad", 1), LabelledText("has {text} in it", 0), LabelledText("we liked it", 0)]
    template, count = few_shot_template(lm, DATASET, shown)
    assert count == 2
    before = "Review: bad\nSentiment: negative\n\nReview: we liked it\nSentiment: positive\n\n"
    assert template.template == before + DATASET.template
    fitting, fewer = few_shot_template(lm, DATASET, [LabelledText("bad " * 30, 1)] * 8)
    assert 0 < fewer < 8
    assert fitting.template.count("bad") == 30 * fewer
    assert few_shot_template(lm, DATASET, [LabelledText("bad " * 400, 1)])[1] == 0


def test_each_text_is_classified_by_one_client_with_its_own_demonstrations() -> None:
    lm, test = build("llama"), examples(7)
    parts = [[LabelledText("bad", 1)] * 3, [LabelledText("we liked it", 0)] * 3]
    result = few_shot(lm, DATASET, parts, texts(7), 2, 0)
    assert result["shots"] == 2
    correct = 0
    for index, example in enumerate(test):
        template, _ = few_shot_template(lm, DATASET, parts[index % 2][:2])
        (label_scores,) = score(lm, [ScoringItem(template.prompt(example.text), template.labels(DATASET.labels), None)])
        correct += int(np.argmax(label_scores) == example.label)
    assert result["accuracy"] == pytest.approx(correct / 7)
    assert zero_shot(lm, DATASET, examples(4), texts(7))["readings"]["plain"][A]["accuracy"] == pytest.approx(
        np.mean(np.argmax(scores(lm)[:7], axis=1) == [example.label for example in test])
    )


def test_a_counter_counts_every_byte_of_http() -> None:
    app, exchanges = FastAPI(openapi_url=None), []

    @app.put("/thing")
    async def take() -> str:
        return "stored"

    async def run() -> None:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        async with serve_counted(server) as counter, httpx.AsyncClient(base_url=counter.url, trust_env=False) as client:
            answer = await client.put("/thing", content=b"x" * 100_000)
            exchanges.append((counter.reset(), answer, counter.reset()))

    asyncio.run(run())
    ((count, answer, nothing),) = exchanges
    request = answer.request
    head = (
        f"{request.method} {request.url.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in request.headers.items()) + "\r\n"
    )
    assert count["up"] == len(head) + 100_000
    back = "HTTP/1.1 200 OK\r\n" + "".join(f"{k}: {v}\r\n" for k, v in answer.headers.items()) + "\r\n"
    assert count["down"] == len(back) + len(answer.content)
    assert nothing == {"up": 0, "down": 0}


def test_bytes_of_a_task_are_its_bodies_and_their_headers() -> None:
    identity = build("llama").identity
    counts = {name: traffic.count_task_bytes(identity, DATASET, setting, PLAN) for name, setting in SETTINGS.items()}
    for parts in counts.values():
        assert parts["context"]["up"] > parts["bodies"]["context"] + 300
        assert 300 < parts["round"]["up"] - parts["bodies"]["update"] < 1500
        assert 300 < parts["evaluation"]["up"] < 2500, (
            "a contribution without coefficients, and the request for an assignment after it"
        )
        assert parts["round"]["down"] < parts["evaluation"]["down"] < parts["round"]["down"] + 2000
    ups = [counts[name]["round"]["up"] for name in ("compact", "compact-float16", "compact-int8")]
    assert ups == sorted(ups, reverse=True)
    with lora.inject_adapters(build("llama"), 8, 0) as parameters:
        sent = traffic.count_lora_bytes(lora.copy_weights(parameters))
    for way in ("up", "down"):
        assert 0 < sent["round"][way] - sent["bodies"]["update"] < 1500

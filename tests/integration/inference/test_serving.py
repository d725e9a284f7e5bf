"""What a caller can rely on: versions, limits, access, overload, disconnects, deadlines, a responsive event loop, and draining."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import pytest

from ifed.cli.demo.stack import ServiceProcess, Stack
from ifed.clients import BlockingInferenceClient, InferenceClient
from ifed.errors import (
    DeadlineExceeded,
    NotFound,
    Overloaded,
    QueueFull,
    TooLarge,
    TooManyItems,
    TooManyTokens,
    Unauthenticated,
    UnknownTask,
    UnknownVersion,
)
from tests.integration.inference.conftest import KEY, Running, adapter_body, put

BEARER = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def slow_service(running: Running, folder: Path, **settings: str) -> Iterator[ServiceProcess]:
    """Start a second service, open to all, that runs one short text at a time."""
    defaults = {
        "ADAPTER_FOLDER": str(running.folder),
        "OPEN_ACCESS": "true",
        "MODEL": running.lm.name,
        "DTYPE": "float32",
        "THREADS": "1",
        "TOKEN_BUDGET": "16",
        "GATHER_SECONDS": "0",
    }
    with Stack(folder) as stack:
        service = stack.start("slow", "services.inference.app", defaults | settings)
        stack.wait_ready(service, seconds=120)
        yield service


@pytest.fixture(scope="module")
def busy(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A slow service whose queue takes four texts, or one request of any size while it is empty."""
    with slow_service(running, tmp_path_factory.mktemp("busy"), MAX_QUEUE="4") as service:
        yield service


async def metric(url: str, name: str) -> float:
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics")).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


class TestAnswers:
    """What every answer names, and what is refused."""

    async def test_every_answer_names_task_version_and_digest(self, running: Running) -> None:
        async with httpx.AsyncClient(base_url=running.url, headers=BEARER) as http:
            answer = await http.post("/v1/classify", json={"model": "sentiment", "input": "good", "top_k": 2})
        body = answer.json()
        assert (body["task"], body["adapter_version"]) == ("sentiment", 2)
        assert answer.headers["x-adapter-version"] == "2"
        assert answer.headers["x-adapter-digest"] == body["adapter_digest"]
        assert int(answer.headers["x-queue-time"]) >= 0
        assert int(answer.headers["x-inference-time"]) >= 0
        assert len(body["data"][0]["top"]) == 2

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/predict", {"model": "sentiment", "inputs": "good"}),
            ("/models/sentiment", {"inputs": "good"}),
            (
                "/v2/models/sentiment/infer",
                {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]},
            ),
        ],
    )
    async def test_every_other_route_names_them_too(self, running: Running, path: str, message: dict[str, Any]) -> None:
        async with httpx.AsyncClient(base_url=running.url, headers=BEARER) as http:
            answer = await http.post(path, json=message)
            known = await http.post("/v1/classify", json={"model": "sentiment", "input": "good"})
            half = await http.post(path, content=json.dumps(message).replace("good", "\\ud83d"))
        assert answer.status_code == 200, answer.text
        named = ("x-task", "x-adapter-version", "x-adapter-digest")
        assert [answer.headers[name] for name in named] == [known.headers[name] for name in named]
        assert half.status_code in (400, 422), half.text

    async def test_pinned_bare_and_few_shot_are_other_answers(self, running: Running) -> None:
        async with InferenceClient(running.url, KEY) as client:
            names = ("sentiment", "sentiment@2", "sentiment@1", "sentiment@base", "sentiment@few-shot:4")
            answers = {name: (await client.classify(name, "the film was good")) for name in names}
            assert [(await client.model(name)).id for name in names[:3]] == list(names[:3])
            with pytest.raises(UnknownVersion):
                await client.classify("sentiment@9", "good")
            with pytest.raises(UnknownTask):
                await client.classify("nothing", "good")
            with pytest.raises(NotFound, match="12 demonstrations were asked for and task 'sentiment' has 4"):
                await client.classify("sentiment@few-shot", "good")
        probabilities = {name: tuple(answer.data[0].probs) for name, answer in answers.items()}
        assert probabilities["sentiment"] == probabilities["sentiment@2"]
        assert len(set(probabilities.values())) == 4
        assert answers["sentiment@few-shot:4"].adapter_digest == "few-shot:4"
        assert answers["sentiment@few-shot:4"].usage.prompt_tokens > answers["sentiment"].usage.prompt_tokens

    async def test_several_tasks_in_one_request_answer_what_each_answers_alone(self, running: Running) -> None:
        for name, seed in (("near", 31), ("far", 32)):
            body = adapter_body(running.lm, name, 1, seed=seed)
            body.meta = body.meta.model_copy(update={"injection": "last_token"})
            put(running.folder, body)
        texts, models = ["the film was good", "", "we liked it a lot"], ["near", "topic", "sentiment@1", "far", "sentiment@base"]
        async with InferenceClient(running.url, KEY) as client:
            together = await client.classify(models, texts, raw_scores=True, top_k=1)
            alone = [await client.classify(model, texts, raw_scores=True, top_k=1) for model in models]
            with pytest.raises(UnknownTask, match="model 'nothing'"):
                await client.classify(["near", "nothing"], "good")
            with pytest.raises(TooManyItems):
                await client.classify(models, ["good"] * 20)
        assert [(entry.index, entry.model) for entry in together.data] == [(at, model) for at in range(3) for model in models]
        for place, answer in enumerate(alone):
            for entry, expected in zip(together.data[place :: len(models)], answer.data, strict=True):
                assert (entry.label, entry.error, entry.adapter_version) == (expected.label, expected.error, answer.adapter_version)
                assert entry.probs == pytest.approx(expected.probs, abs=1e-5)
        assert together.models is not None
        assert [model.adapter_digest for model in together.models] == [answer.adapter_digest for answer in alone]
        assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)

    async def test_a_new_file_is_served_within_a_second(self, running: Running) -> None:
        put(running.folder, adapter_body(running.lm, "moving", 1, seed=1))
        async with InferenceClient(running.url, KEY) as client:
            assert (await client.classify("moving", "good")).adapter_version == 1
            put(running.folder, adapter_body(running.lm, "moving", 2, seed=2))
            await asyncio.sleep(1)
            assert (await client.classify("moving", "good")).adapter_version == 2

    async def test_a_swap_under_load_fails_no_request_and_mixes_no_versions(self, running: Running) -> None:
        put(running.folder, adapter_body(running.lm, "swapped", 1, seed=1))
        async with InferenceClient(running.url, KEY) as client:
            answers = [await client.classify("swapped", "good")]
            for version in (2, 3):
                put(running.folder, adapter_body(running.lm, "swapped", version, seed=version))
                async with asyncio.timeout(30):
                    while answers[-1].adapter_version != version:
                        answers += await asyncio.gather(*(client.classify("swapped", "good") for _ in range(8)))
        seen = {(answer.adapter_version, answer.adapter_digest) for answer in answers}
        assert sorted(version for version, _ in seen) == [1, 2, 3], "one digest for each version"
        for version in (1, 2, 3):
            first, *others = [answer.data[0].probs for answer in answers if answer.adapter_version == version]
            assert all(probabilities == pytest.approx(first, abs=1e-5) for probabilities in others), (
                f"version {version} answered in two ways"
            )

    async def test_many_callers_of_many_tasks_get_their_own_answers(self, running: Running) -> None:
        names = ["sentiment", "sentiment@1", "topic", "sentiment@base"]
        texts = ["the film was good", "bad", "we liked it a lot because of the acting"]
        async with InferenceClient(running.url, KEY) as client:
            alone = {(name, text): (await client.classify(name, text)).data[0].probs for name in names for text in texts}
            pairs = [pair for pair in alone for _ in range(5)]
            answers = await asyncio.gather(*(client.classify(*pair) for pair in pairs))
        for pair, answer in zip(pairs, answers, strict=True):
            assert answer.data[0].probs == pytest.approx(alone[pair], abs=1e-5)

    async def test_a_request_beyond_a_limit_is_refused(self, running: Running) -> None:
        async with InferenceClient(running.url, KEY) as client:
            with pytest.raises(TooManyItems):
                await client.classify("sentiment", ["good"] * 65)
            with pytest.raises(TooManyTokens):
                await client.classify("sentiment", ["good " * 60] * 64)
            with pytest.raises(TooLarge, match="larger than the 100000 bytes"):
                await client.classify("sentiment", "good " * 30_000)

    async def test_any_number_of_texts_come_back_in_order(self, running: Running) -> None:
        texts = [f"{'good' if n % 3 else 'bad'} film number {n}" for n in range(150)]
        async with InferenceClient(running.url, KEY) as client:
            together = [result.probs async for result, _ in client.classify_all("sentiment", texts)]
            some = {n: (await client.classify("sentiment", texts[n])).data[0].probs for n in (0, 77, 149)}
        assert len(together) == 150
        for n, probs in some.items():
            assert together[n] == pytest.approx(probs, abs=1e-5)

    def test_the_blocking_client_gives_the_same_answers(self, running: Running) -> None:
        with BlockingInferenceClient(running.url, KEY) as client:
            assert client.classify("sentiment", "good").adapter_version == 2
            assert next(result.label for result, _ in client.classify_all("sentiment", ["good", "good"])) is not None
            assert "sentiment" in [result.id for result in client.models().data]
            with pytest.raises(UnknownTask):
                client.classify("nothing", "good")

    async def test_a_caller_without_a_valid_key_is_refused(self, running: Running) -> None:
        for key in (None, "another-key-of-some-length"):
            async with InferenceClient(running.url, key) as client:
                with pytest.raises(Unauthenticated):
                    await client.classify("sentiment", "good")
                with pytest.raises(Unauthenticated):
                    await client.models()

    async def test_log_and_metrics_show_the_request_but_not_its_text(self, running: Running) -> None:
        def accesses() -> list[str]:
            lines = running.service.log.read_text().splitlines()
            return [line for line in lines if '"logger": "access"' in line and "/v1/classify" in line and '"task"' in line]

        before = len(accesses())
        async with InferenceClient(running.url, KEY) as client:
            await client.classify("sentiment", "a secret word: xylophone")
        async with asyncio.timeout(10):
            while len(accesses()) == before:  # a line is written once its answer is sent
                await asyncio.sleep(0.02)
        log, last = running.service.log.read_text(), json.loads(accesses()[-1])
        assert (last["caller"], last["task"], last["status"], last["route"]) == ("tests", "sentiment", 200, "/v1/classify")
        async with httpx.AsyncClient() as http:
            shown = (await http.get(f"{running.url}/metrics")).text
        assert "xylophone" not in log + shown
        for name in ("requests_total", "items_total", "tokens_total", "queue_seconds_count", "request_seconds_bucket"):
            assert f"ifed_inference_{name}{{" in shown
        assert 'ifed_inference_adapter_version{task="sentiment"} 2.0' in shown
        assert "ifed_inference_batch_fill_count" in shown
        assert 'ifed_inference_label_share{label="positive",task="sentiment"}' in shown

    async def test_openapi_describes_every_message(self, running: Running) -> None:
        async with httpx.AsyncClient() as http:
            paths = (await http.get(f"{running.url}/openapi.json")).json()["paths"]
        assert "/v2/models/{model}/infer" in paths
        for path, operations in paths.items():
            for method, operation in operations.items():
                assert operation.get("responses", {}).get("200", {}).get("description"), f"{method} {path}"
                assert method == "get" or operation.get("requestBody", {}).get("content"), f"{method} {path}"


class TestUnderLoad:
    """A service with a short queue and a slow model."""

    async def test_overload_is_refused_with_a_time_to_retry(self, busy: ServiceProcess) -> None:
        async with InferenceClient(busy.url) as client:
            answers = await asyncio.gather(
                *(client.classify("sentiment", ["good film"] * 4) for _ in range(40)), return_exceptions=True
            )
        refused = [answer for answer in answers if isinstance(answer, QueueFull)]
        assert refused
        assert all(isinstance(refusal, Overloaded) and refusal.retry_after for refusal in refused)
        assert len(refused) < 40
        assert not [answer for answer in answers if isinstance(answer, BaseException) and not isinstance(answer, QueueFull)]

    async def test_a_caller_that_disconnects_leaves_the_queue(self, busy: ServiceProcess) -> None:
        disconnects = await metric(busy.url, "ifed_inference_hung_up_total")
        texts = await metric(busy.url, "ifed_inference_batch_items_sum")
        body = json.dumps({"model": "sentiment", "input": ["good film"] * 500})
        _reader, writer = await asyncio.open_connection("127.0.0.1", int(busy.url.rsplit(":", 1)[1]))
        head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        async with asyncio.timeout(30):
            while not await metric(busy.url, "ifed_inference_queue_items"):
                await asyncio.sleep(0.01)
            writer.close()
            while await metric(busy.url, "ifed_inference_queue_items"):
                await asyncio.sleep(0.01)
        assert await metric(busy.url, "ifed_inference_hung_up_total") == disconnects + 1
        assert await metric(busy.url, "ifed_inference_batch_items_sum") < texts + 500

    async def test_a_deadline_is_honoured(self, busy: ServiceProcess) -> None:
        async with InferenceClient(busy.url) as client:
            with pytest.raises(DeadlineExceeded):
                await client.classify("sentiment", ["good film"] * 500, deadline=0.05)
            assert await metric(busy.url, "ifed_inference_queue_items") == 0
            answer = await client.classify("sentiment", "good", deadline=60)
            assert answer.data[0].label
        async with httpx.AsyncClient(base_url=busy.url, headers={"X-Request-Timeout": "soon"}) as http:
            refused = await http.post("/v1/classify", json={"model": "sentiment", "input": "x"})
        assert (refused.status_code, refused.json()["error"]) == (422, "Malformed")

    async def test_a_busy_service_answers_at_once_and_finishes_its_requests_when_it_is_stopped(
        self, running: Running, tmp_path: Path
    ) -> None:
        """Forward passes are long enough to show an event loop that waits for them, on any machine."""
        with slow_service(running, tmp_path, MAX_QUEUE="100000", TOKEN_BUDGET="4096") as service:
            async with InferenceClient(service.url, timeout=240) as client, httpx.AsyncClient(base_url=service.url) as http:
                load = [asyncio.create_task(client.classify("sentiment", ["good film " * 10] * 400)) for _ in range(60)]
                while not await metric(service.url, "ifed_inference_batch_seconds_count"):
                    await asyncio.sleep(0.01)
                times = []
                while not all(task.done() for task in load) and len(times) < 60:
                    began = perf_counter()
                    assert (await http.get("/livez")).is_success
                    times.append(perf_counter() - began)
                    await asyncio.sleep(0.01)
                waiting = await metric(service.url, "ifed_inference_queue_items")
                passes = await metric(service.url, "ifed_inference_batch_seconds_sum")
                passes /= await metric(service.url, "ifed_inference_batch_seconds_count")
                for task in load:
                    task.cancel()
                await asyncio.gather(*load, return_exceptions=True)
            times.sort()
            assert waiting > 0, "the load must outlast the measurement"
            assert times[len(times) // 4] < 0.05, "milliseconds; the slower quarters may have met another process"
            assert times[len(times) // 2] < passes / 2, "no answer waits for the model"
            async with InferenceClient(service.url, timeout=60) as client:
                requests = [asyncio.create_task(client.classify("sentiment", ["good film " * 10] * 400)) for _ in range(4)]
                while not await metric(service.url, "ifed_inference_queue_items"):
                    await asyncio.sleep(0.01)
                service.process.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(*requests)
            assert [len(answer.data) for answer in answers] == [400] * 4
            # After a graceful shutdown uvicorn raises the signal again, so the exit status may be that of the signal.
            assert await asyncio.to_thread(service.process.wait, 30) in (0, -signal.SIGTERM)

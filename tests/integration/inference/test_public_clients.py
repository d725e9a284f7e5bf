"""Clients that people have already speak to the service as they are: only address and key are ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import requests
import tritonclient.http.aio as triton_aio
from huggingface_hub import InferenceClient as HubClient
from huggingface_hub.errors import HfHubHTTPError
from tritonclient.utils import InferenceServerException

from tests.integration.inference.conftest import KEY, LABELS, Running, adapter_body, put

TEXTS = ["the film was good", "bad", "we liked it a lot because of the acting"]
BEARER = {"Authorization": f"Bearer {KEY}"}


def by_label(running: Running, model: str = "sentiment") -> list[dict[str, float]]:
    """What our own route says, to hold the others against."""
    answer = httpx.post(f"{running.url}/v1/classify", json={"model": model, "input": TEXTS}, headers=BEARER).json()
    return [dict(zip(answer["labels"], result["probs"], strict=True)) for result in answer["data"]]


@pytest.fixture(scope="module")
def threshold(running: Running) -> float:
    """The threshold of the task `cautious`, which is the task `plain` but abstains from some of the texts."""
    put(running.folder, adapter_body(running.lm, "plain", 1, seed=12))
    highest = sorted(max(row.values()) for row in by_label(running, "plain"))
    threshold = (highest[0] + highest[-1]) / 2
    put(running.folder, adapter_body(running.lm, "cautious", 1, seed=12, abstain_below=threshold))
    return threshold


class TestAbstention:
    """A task with a threshold, in each protocol: where it knows no text without a label, the answer is as without one."""

    def test_a_text_below_the_threshold_has_a_null_label_and_the_others_have_theirs(
        self, running: Running, threshold: float
    ) -> None:
        answer = httpx.post(f"{running.url}/v1/classify", json={"model": "cautious", "input": [*TEXTS, ""]}, headers=BEARER).json()
        *results, refused = answer["data"]
        labels = [max(row, key=row.__getitem__) if max(row.values()) >= threshold else None for row in by_label(running, "plain")]
        assert [result["label"] for result in results] == labels
        assert None in labels
        assert set(labels) != {None}
        for result, row in zip(results, by_label(running, "plain"), strict=True):
            assert result["probs"] == pytest.approx(list(row.values()), rel=1e-4)
        assert ["error" in result for result in results] == [False] * 3
        assert (refused["label"], refused["error"]["error"]) == (None, "EmptyText")
        assert answer["abstain_below"] == threshold
        base = httpx.post(f"{running.url}/v1/classify", json={"model": "cautious@base", "input": TEXTS}, headers=BEARER).json()
        assert None not in [result["label"] for result in base["data"]]
        assert "abstain_below" not in base

    def test_lists_of_scores_are_whole_and_a_header_has_the_threshold(self, running: Running, threshold: float) -> None:
        answer = requests.post(
            f"{running.url}/predict", json={"model": "cautious", "inputs": [[text] for text in TEXTS]}, headers=BEARER
        )
        assert float(answer.headers["X-Abstain-Below"]) == threshold
        scores = [{result["label"]: result["score"] for result in row} for row in answer.json()]
        assert scores == [pytest.approx(row, rel=1e-4) for row in by_label(running, "plain")]
        labels = HubClient(model=f"{running.url}/models/cautious", token=KEY).text_classification(TEXTS[0])
        assert {result.label: result.score for result in labels} == pytest.approx(by_label(running, "plain")[0], rel=1e-4)

    @pytest.mark.parametrize("binary", [True, False])
    async def test_triton_reads_an_empty_label(self, running: Running, threshold: float, binary: bool) -> None:
        client = triton_aio.InferenceServerClient(running.url.removeprefix("http://"))
        tensor = triton_aio.InferInput("text", [3], "BYTES")
        tensor.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
        wanted = [triton_aio.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities", "error")]
        try:
            result = await client.infer("cautious", [tensor], outputs=wanted, headers=dict(BEARER))
        finally:
            await client.close()
        probabilities = result.as_numpy("probabilities")
        labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label").tolist()]
        assert labels == [LABELS[int(row.argmax())] if row.max() >= threshold else "" for row in probabilities]
        assert "" in labels
        assert not any(result.as_numpy("error")), "an abstention is no error"
        assert result.get_response()["parameters"]["abstain_below"] == threshold


class TestHuggingFace:
    """`huggingface_hub.InferenceClient.text_classification`."""

    def test_labels_come_best_first(self, running: Running) -> None:
        client = HubClient(model=f"{running.url}/models/sentiment", token=KEY)
        labels = client.text_classification(TEXTS[0])
        assert [result.score for result in labels] == sorted((result.score for result in labels), reverse=True)
        assert {result.label: result.score for result in labels} == pytest.approx(by_label(running)[0])

    def test_top_k_and_raw_scores_are_honoured(self, running: Running) -> None:
        client = HubClient(model=f"{running.url}/models/sentiment@1", token=KEY)
        (best,) = client.text_classification(TEXTS[0], top_k=1)
        (raw,) = client.text_classification(TEXTS[0], top_k=1, function_to_apply="none")
        assert best.label == raw.label
        assert raw.score == pytest.approx(np.log(best.score), rel=1e-4)

    def test_an_unknown_task_is_an_error_that_names_it(self, running: Running) -> None:
        with pytest.raises(HfHubHTTPError, match="404"):
            HubClient(model=f"{running.url}/models/nothing", token=KEY).text_classification(TEXTS[0])


class TestVllm:
    """`POST /v1/classify` as vLLM's own example client does it, with requests."""

    def test_the_answer_has_their_fields(self, running: Running) -> None:
        def post_http_request(payload: dict[str, object], api_url: str) -> requests.Response:
            headers = {"User-Agent": "Test Client"}
            return requests.post(api_url, headers=headers | BEARER, json=payload)

        payload = {"model": "sentiment", "input": TEXTS}
        answer = post_http_request(payload=payload, api_url=f"{running.url}/v1/classify").json()
        assert answer["object"] == "list"
        assert [result["index"] for result in answer["data"]] == [0, 1, 2]
        for result in answer["data"]:
            assert result["num_classes"] == 3
            assert result["label"] == LABELS[int(np.argmax(result["probs"]))]
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0

    def test_without_activation_the_scores_are_logarithms(self, running: Running) -> None:
        payload = {"model": "sentiment", "input": TEXTS, "use_activation": False, "top_k": 1}
        answer = requests.post(f"{running.url}/v1/classify", headers=BEARER, json=payload).json()
        for result, wanted in zip(answer["data"], by_label(running), strict=True):
            assert np.exp(result["probs"]) == pytest.approx(list(wanted.values()), rel=1e-4)
            assert result["top"] == [{"label": result["label"], "score": max(result["probs"])}]


class TestSglang:
    """`POST /v1/classify` as the page of SGLang on its classification API calls it."""

    def test_the_answer_has_the_fields_of_that_page(self, running: Running) -> None:
        answer = requests.post(
            f"{running.url}/v1/classify",
            headers={"Content-Type": "application/json"} | BEARER,
            json={"model": "sentiment", "input": "This is a test text", "user": "someone", "rid": "one", "priority": 1},
        )
        body = answer.json()
        assert {"id", "object", "created", "model", "data", "usage"} <= body.keys()
        assert {"index", "label", "probs", "num_classes"} <= body["data"][0].keys()
        assert body["usage"] == {
            "prompt_tokens": body["usage"]["total_tokens"],
            "total_tokens": body["usage"]["prompt_tokens"],
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        }


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, which this machine does not have")
class TestCurl:
    """The line in the README, with the address of this service and its key, as a shell runs it."""

    def test_the_readmes_curl_gets_the_answer_the_readme_shows(self, running: Running) -> None:
        readme = Path("README.md").read_text(encoding="utf-8")
        (command,) = re.findall(r"```bash\n(curl .*?)\n```", readme, re.DOTALL)
        (shown,) = re.findall(r"```json\n(.*?)\n```", readme, re.DOTALL)
        command = command.replace("http://127.0.0.1:8081", running.url) + f" -H 'Authorization: Bearer {KEY}'"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        shown_now, promised = json.loads(done.stdout), json.loads(shown)
        assert shown_now.keys() == promised.keys()
        assert shown_now["data"][0].keys() == promised["data"][0].keys()
        assert shown_now["usage"].keys() == promised["usage"].keys()
        assert shown_now["model"] == promised["model"] == "sentiment"


class TestTextEmbeddingsInference:
    """`POST /predict` as the clients of text-embeddings-inference send it."""

    def predict(self, running: Running, **body: object) -> requests.Response:
        return requests.post(f"{running.url}/predict", json=body, headers=BEARER)

    def test_one_text_gives_a_flat_list(self, running: Running) -> None:
        answer = self.predict(running, inputs=TEXTS[0]).json()
        assert {result["label"]: result["score"] for result in answer} == pytest.approx(by_label(running)[0])
        assert self.predict(running, inputs=[TEXTS[0]]).json() == answer

    def test_a_batch_keeps_its_order(self, running: Running) -> None:
        answer = self.predict(running, inputs=[[text] for text in TEXTS]).json()
        scores = [{result["label"]: result["score"] for result in row} for row in answer]
        for row, wanted in zip(scores, by_label(running), strict=True):
            assert row == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.parametrize("inputs", [["one", "other"], [["one", "other"]], [["one"], ["two", "three"]]])
    def test_a_pair_is_refused_with_a_hint(self, running: Running, inputs: object) -> None:
        answer = self.predict(running, inputs=inputs)
        assert (answer.status_code, answer.json()["error"]) == (422, "PairNotSupported")
        assert '[["first"], ["second"]]' in answer.json()["detail"]

    def test_raw_scores_are_logarithms(self, running: Running) -> None:
        scores = {result["label"]: result["score"] for result in self.predict(running, inputs=TEXTS[0], raw_scores=True).json()}
        assert {label: np.exp(score) for label, score in scores.items()} == pytest.approx(by_label(running)[0], rel=1e-4)

    def test_a_long_text_is_cut_only_when_that_is_wanted(self, running: Running) -> None:
        refused = self.predict(running, inputs="good " * 200)
        assert (refused.status_code, refused.json()["error"]) == (413, "TextTooLong")
        assert self.predict(running, inputs="good " * 200, truncate=True).status_code == 200

    def test_one_bad_text_does_not_fail_the_batch(self, running: Running) -> None:
        good, long, blank = self.predict(running, inputs=[["good"], ["good " * 200], [" "]]).json()
        assert len(good) == 3
        assert (long["error"], blank["error"]) == ("TextTooLong", "EmptyText")

    def test_info_tells_labels_and_limits(self, running: Running) -> None:
        answer = requests.get(f"{running.url}/info", headers=BEARER).json()
        assert answer["model_type"]["classifier"]["id2label"] == {"0": "negative", "1": "positive", "2": "mixed"}
        assert (answer["max_client_batch_size"], answer["max_input_length"], answer["model_sha"]) == (
            64,
            64,
            running.lm.fingerprint,
        )


class TestTriton:  # its client writes into the headers it is given, so each call gets its own
    """`tritonclient.http`, the client of the Open Inference Protocol."""

    @pytest.mark.parametrize("binary", [True, False])
    async def test_texts_in_and_tensors_out(self, running: Running, binary: bool) -> None:
        client = triton_aio.InferenceServerClient(running.url.removeprefix("http://"))
        try:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("sentiment", headers=BEARER)
            metadata = await client.get_model_metadata("sentiment", headers=BEARER)
            assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
            tensor = triton_aio.InferInput("text", [3], "BYTES")
            tensor.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
            wanted = [triton_aio.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
            result = await client.infer(
                "sentiment", [tensor], outputs=wanted, headers=dict(BEARER), request_id="one", model_version="1"
            )
        finally:
            await client.close()
        rows = by_label(running, "sentiment@1")
        assert result.as_numpy("probabilities") == pytest.approx(np.array([list(row.values()) for row in rows]), rel=1e-4)
        labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label").tolist()]
        assert labels == [max(row, key=row.__getitem__) for row in rows]
        assert (result.get_response()["model_version"], result.get_response()["id"]) == ("1", "one")

    async def test_an_error_of_one_text_is_an_output(self, running: Running) -> None:
        client = triton_aio.InferenceServerClient(running.url.removeprefix("http://"))
        tensor = triton_aio.InferInput("text", [2, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["good"], [""]], dtype=object))
        try:
            result = await client.infer("sentiment", [tensor], headers=dict(BEARER))
            with pytest.raises(InferenceServerException, match="UnknownTask"):
                await client.infer("nothing", [tensor], headers=dict(BEARER))
        finally:
            await client.close()
        assert result.as_numpy("label")[1] == b""
        assert result.as_numpy("error")[1].startswith(b"EmptyText")

    def test_the_synchronous_client_works_as_well(self, running: Running) -> None:
        program = """
import sys, json, numpy as np, tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
tensor = http.InferInput("text", [1], "BYTES")
tensor.set_data_from_numpy(np.array(["the film was good"], dtype=object))
result = client.infer("sentiment", [tensor], headers={"Authorization": "Bearer " + sys.argv[2]})
print(json.dumps([result.as_numpy("label")[0].decode(), result.as_numpy("probabilities").tolist()]))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, running.url.removeprefix("http://"), KEY], capture_output=True, text=True, check=True
        )
        label, probabilities = json.loads(done.stdout)
        (wanted, *_) = by_label(running)
        assert label == max(wanted, key=wanted.__getitem__)
        assert probabilities[0] == pytest.approx(list(wanted.values()), rel=1e-4)

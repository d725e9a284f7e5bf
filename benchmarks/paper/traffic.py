"""Bytes that one client sends and receives, by part of a task, with the product's own client and aggregator over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import structlog
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.datasets import Dataset
from benchmarks.paper.byte_counter import ByteCounter, serve_counted
from benchmarks.paper.lora import Weights, weights_body
from benchmarks.paper.methods import Plan, Setting
from ifed.clients import AggregatorClient
from ifed.messages.bodies import TENSORS, ContextBody, UpdateBody
from ifed.messages.enums import AssignmentKind
from ifed.messages.rounds import Assignment, ContributionMeta, JoinRequest
from ifed.messages.tasks import Layout, ModelIdentity, Policy, TaskSpec
from ifed.tensors.confidence import ConfidenceBins
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.updates import Update
from ifed.tensors.values import Coefficients, ContextVector, content_digest
from services.aggregator.app import serve
from services.aggregator.settings import Settings
from testing.factories import probe

ADMIN_TOKEN, CLIENT, TASK = "benchmark-admin-token-of-32-chars", "client-00", "paper"
HOLDOUT = 10
ByteCounts = dict[str, dict[str, int]]


def count_task_bytes(identity: ModelIdentity, dataset: Dataset, setting: Setting, plan: Plan) -> dict[str, Any]:
    """Count the bytes up and down of a task's parts, and the sizes of the bodies alone.

    The parts are joining, the context vector, a calibration round, and the evaluation with the request for an assignment that follows it.
    The values are random: the size of a body does not depend on them.
    """
    with warnings_only():
        return asyncio.run(_count_task_bytes(identity, dataset, setting, plan))


@contextlib.contextmanager
def warnings_only() -> Iterator[None]:
    """Keep the aggregator's log of requests out of the progress of a benchmark."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    try:
        yield
    finally:
        structlog.configure(**before)


async def _count_task_bytes(identity: ModelIdentity, dataset: Dataset, setting: Setting, plan: Plan) -> dict[str, Any]:
    policy = setting.policy_for(plan).model_copy(update={"clients_expected": 1, "rounds": 2})
    spec = task_spec(identity.name, dataset, setting, policy)
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite+aiosqlite:///{Path(folder) / 'aggregator.db'}"
        settings = Settings.model_validate(
            {"database_url": database, "admin_token": ADMIN_TOKEN, "tick_seconds": 0.05, "migrate_on_start": True}
        )
        async with serve_counted(serve(settings)) as counter, AggregatorClient(counter.direct_url, ADMIN_TOKEN) as admin:
            await admin.create_task(spec)
            await admin.start(TASK)
            token = (await admin.enrol(CLIENT)).token
            async with AggregatorClient(counter.url, token) as client:
                return await _take_part(client, counter, spec, identity, spec.layout(identity))


def task_spec(model: str, dataset: Dataset, setting: Setting, policy: Policy) -> TaskSpec:
    """Return the task whose bytes are counted."""
    return TaskSpec(
        name=TASK,
        labels=list(dataset.labels),
        template=dataset.template,
        model=model,
        layers=setting.layers,
        groups=setting.groups,
        head="words",
        injection="all_tokens",
        policy=policy,
    )


async def _take_part(
    client: AggregatorClient, counter: ByteCounter, spec: TaskSpec, identity: ModelIdentity, layout: Layout
) -> dict[str, Any]:
    """Make the requests of an agent in a task of two calibration rounds, and count their bytes."""
    counts: ByteCounts = {}
    await _next_assignment(client, AssignmentKind.JOIN)
    label_counts = dict.fromkeys(spec.labels, 15)
    request = JoinRequest(identity=identity, label_counts=label_counts, holdout=HOLDOUT, probe=probe(identity.num_layers))
    await client.join(TASK, request)
    counts["joining"] = counter.reset()
    context_round = await _next_assignment(client, AssignmentKind.CONTEXT)
    random = np.random.default_rng(0)
    vector = ContextVector(random.normal(size=layout.context_shape))
    meta = ContributionMeta(fingerprint=identity.fingerprint, examples=54, seconds=12.345)
    context = ContextBody(vector, meta).to_bytes()
    assert context_round.round is not None
    await client.submit_context(TASK, context_round.round, context)
    sent = counter.reset()
    first_calibration = await _next_assignment(client, AssignmentKind.CALIBRATION)
    counter.reset()  # the request for a round's assignment belongs to the round
    await client.context(TASK, version=first_calibration.context_version)
    counts["context"] = {way: sent[way] + count for way, count in counter.reset().items()}
    for index in range(2):
        assignment = first_calibration if index == 0 else await _next_assignment(client, AssignmentKind.CALIBRATION)
        start = await client.coefficients(TASK, version=assignment.version)
        update = _update_body(spec, identity, assignment, start, random)
        assert assignment.round is not None
        await client.submit_update(TASK, assignment.round, update)
        counts["round"] = counter.reset()  # the second round's stay, which contain the request for its assignment
    assignment = await _next_assignment(client, AssignmentKind.EVALUATION)
    await client.coefficients(TASK, version=assignment.version)
    assert assignment.round is not None
    await client.submit_update(TASK, assignment.round, _update_body(spec, identity, assignment, None, random))
    await _next_assignment(client, AssignmentKind.DONE)
    counts["evaluation"] = counter.reset()
    return counts | {"bodies": {"context": len(context), "update": len(update)}}


async def _next_assignment(client: AggregatorClient, kind: AssignmentKind) -> Assignment:
    """Return the next assignment, by long poll; raise `RuntimeError` if it is of another kind."""
    assignment = await client.assignment(TASK, wait=30)
    if assignment.kind is not kind:
        raise RuntimeError(f"the aggregator assigns {assignment.kind}, expected {kind}: {assignment.reason}")
    return assignment


def _update_body(
    spec: TaskSpec,
    identity: ModelIdentity,
    assignment: Assignment,
    start: Coefficients | None,
    random: np.random.Generator,
) -> bytes:
    """Encode a contribution to a calibration round or, without `start`, to the evaluation."""
    update: Update | None = None
    labels = len(spec.labels)
    if start is not None:
        step = random.normal(scale=0.05, size=start.values.shape).astype(np.float32)
        dtype = spec.policy.update_dtype
        update = Coefficients(start.values + step) if dtype == "float32" else QuantizedUpdate.of(step, dtype)
    means = np.full(labels, 1 / labels, np.float32) if spec.policy.label_bias else None
    meta = ContributionMeta(
        fingerprint=identity.fingerprint,
        examples=54,
        version=assignment.version,
        loss=None if start is None else float(np.log(2)),
        seconds=12.345,
    )
    confusion = (HOLDOUT // labels) * np.eye(labels, dtype=np.int64)
    confidence = _confidence(labels) if assignment.confidence else None
    return UpdateBody(update, confusion, meta, label_probabilities=means, confidence=confidence).to_bytes()


def _confidence(labels: int) -> ConfidenceBins:
    """Return the bins of right answers that are spread over all bins which so many labels can fill."""
    random = np.random.default_rng(0)
    tops = random.uniform(1 / labels, 1, size=HOLDOUT // labels * labels)
    truths = np.arange(len(tops)) % labels
    scores = np.repeat(((1 - tops) / (labels - 1))[:, None], labels, axis=1)
    scores[np.arange(len(tops)), truths] = tops
    return ConfidenceBins.of(truths.tolist(), np.log(scores).astype(np.float32))


def count_lora_bytes(weights: Weights) -> dict[str, Any]:
    """Count the bytes of a round that downloads the adapters and uploads them, in float32, with the headers of the product's client."""
    return asyncio.run(_count_lora_bytes(weights_body(weights)))


async def _count_lora_bytes(body: bytes) -> dict[str, Any]:
    app = FastAPI(openapi_url=None)

    @app.get("/v1/tasks/paper/adapters")
    async def download() -> Response:
        return Response(body, media_type=TENSORS, headers={"Content-Digest": content_digest(body)})

    @app.put("/v1/tasks/paper/rounds/2/adapters")
    async def upload(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    async with (
        serve_counted(server) as counter,
        httpx.AsyncClient(base_url=counter.url, headers=headers, trust_env=False) as client,
    ):
        downloaded = await client.get("/v1/tasks/paper/adapters")
        digest = {"Content-Type": TENSORS, "Content-Digest": content_digest(downloaded.content)}
        uploaded = await client.put("/v1/tasks/paper/rounds/2/adapters", content=downloaded.content, headers=digest)
        if uploaded.json() != {"bytes": len(body)}:
            raise RuntimeError("the adapters did not arrive complete")
        return {"round": counter.reset(), "bodies": {"update": len(body)}}

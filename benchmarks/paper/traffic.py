"""What one client sends and receives, by part of a task, with the product's own client and aggregator over HTTP. Runs no model."""

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

from benchmarks.datasets import Source
from benchmarks.paper.byte_counter import Meter, metered
from benchmarks.paper.lora import Weights, body_of
from benchmarks.paper.methods import Plan, Setting
from ifed.clients import AggregatorClient
from ifed.messages.bodies import TENSORS, ContextBody, UpdateBody
from ifed.messages.enums import AssignmentKind
from ifed.messages.rounds import Assignment, ContributionMeta, JoinRequest
from ifed.messages.tasks import Layout, ModelIdentity, Policy, TaskSpec
from ifed.tensors.quantization import QuantizedUpdate
from ifed.tensors.values import Coefficients, ContextVector, content_digest
from services.aggregator.app import serve
from services.aggregator.settings import Settings
from testing.factories import probe

ADMIN, CLIENT, TASK = "benchmark-admin-token-of-32-chars", "client-00", "paper"
Bytes = dict[str, dict[str, int]]


def of_coefficients(identity: ModelIdentity, source: Source, setting: Setting, plan: Plan) -> dict[str, Any]:
    """Bytes up and down of a task's parts: joining, the context vector, a calibration round, the evaluation with the question after it; and of
    the bodies alone.

    The values are drawn at random; bodies of numbers are as long whatever the numbers are.
    """
    with _hushed():
        return asyncio.run(_of_coefficients(identity, source, setting, plan))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what an aggregator says of every request, among the progress of a benchmark; warnings stay."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    try:
        yield
    finally:
        structlog.configure(**before)


async def _of_coefficients(identity: ModelIdentity, source: Source, setting: Setting, plan: Plan) -> dict[str, Any]:
    policy = setting.policy_for(plan).model_copy(update={"clients_expected": 1, "rounds": 2})
    spec = spec_of(identity.name, source, setting, policy)
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite+aiosqlite:///{Path(folder) / 'aggregator.db'}"
        given = Settings.model_validate(
            {"database_url": database, "admin_token": ADMIN, "tick_seconds": 0.05, "migrate_on_start": True}
        )
        async with metered(serve(given)) as meter, AggregatorClient(meter.direct, ADMIN) as admin:
            await admin.create_task(spec)
            await admin.start(TASK)
            token = (await admin.enrol(CLIENT)).token
            async with AggregatorClient(meter.url, token) as client:
                return await _part(client, meter, spec, identity, spec.layout(identity))


def spec_of(model: str, source: Source, setting: Setting, policy: Policy) -> TaskSpec:
    """The task whose bytes are counted."""
    template, labels = source.template, list(source.labels)
    return TaskSpec(
        name=TASK, labels=labels, template=template, model=model, layers=setting.layers, groups=setting.groups, policy=policy
    )


async def _part(client: AggregatorClient, meter: Meter, spec: TaskSpec, identity: ModelIdentity, layout: Layout) -> dict[str, Any]:
    """What an agent does in a task of two calibration rounds."""
    found: Bytes = {}
    await _asked(client, AssignmentKind.JOIN)
    counts = dict.fromkeys(spec.labels, 15)
    await client.join(TASK, JoinRequest(identity=identity, label_counts=counts, holdout=10, probe=probe(identity.num_layers)))
    found["joining"] = meter.taken()
    gathering = await _asked(client, AssignmentKind.CONTEXT)
    random = np.random.default_rng(0)
    vector = ContextVector(random.normal(size=layout.context_shape))
    meta = ContributionMeta(fingerprint=identity.fingerprint, examples=54, seconds=12.345)
    context = ContextBody(vector, meta).to_bytes()
    assert gathering.round is not None
    await client.submit_context(TASK, gathering.round, context)
    sent = meter.taken()
    calibrating = await _asked(client, AssignmentKind.CALIBRATION)
    meter.taken()  # the question for a round's assignment belongs to the round
    await client.context(TASK, version=calibrating.context_version)
    found["context"] = {way: sent[way] + count for way, count in meter.taken().items()}
    for turn in range(2):
        asked = calibrating if turn == 0 else await _asked(client, AssignmentKind.CALIBRATION)
        start = await client.coefficients(TASK, version=asked.version)
        update = _update(spec, identity, asked, start, random)
        assert asked.round is not None
        await client.submit_update(TASK, asked.round, update)
        found["round"] = meter.taken()  # of the second one, whose assignment is asked for within it
    asked = await _asked(client, AssignmentKind.EVALUATION)
    await client.coefficients(TASK, version=asked.version)
    assert asked.round is not None
    await client.submit_update(TASK, asked.round, _update(spec, identity, asked, None, random))
    await _asked(client, AssignmentKind.DONE)
    found["evaluation"] = meter.taken()
    return found | {"bodies": {"context": len(context), "update": len(update)}}


async def _asked(client: AggregatorClient, kind: AssignmentKind) -> Assignment:
    """The assignment, which must be of this kind; the question is held back until there is one."""
    given = await client.assignment(TASK, wait=30)
    if given.kind is not kind:
        raise RuntimeError(f"the aggregator asks for {given.kind}, expected was {kind}: {given.reason}")
    return given


def _update(
    spec: TaskSpec, identity: ModelIdentity, asked: Assignment, start: Coefficients | None, random: np.random.Generator
) -> bytes:
    """A contribution; to the evaluation where there is nothing to start from."""
    values, change, labels = None, None, len(spec.labels)
    if start is not None:
        step = random.normal(scale=0.05, size=start.values.shape).astype(np.float32)
        dtype = spec.policy.update_dtype
        change = None if dtype == "float32" else QuantizedUpdate.of(step, dtype)
        values = Coefficients(start.values + step) if change is None else None
    means = np.full(labels, 1 / labels, np.float32) if spec.policy.label_bias else None
    meta = ContributionMeta(
        fingerprint=identity.fingerprint,
        examples=54,
        version=asked.version,
        loss=None if start is None else float(np.log(2)),
        seconds=12.345,
    )
    counts = np.eye(labels, dtype=np.int64)
    return UpdateBody(values, counts, meta, change=change, label_probabilities=means).to_bytes()


def of_lora(weights: Weights) -> dict[str, Any]:
    """Bytes up and down of a round that gets the adapters and gives them back, float32, with the headers of the product's client."""
    return asyncio.run(_of_lora(body_of(weights)))


async def _of_lora(body: bytes) -> dict[str, Any]:
    app = FastAPI(openapi_url=None)

    @app.get("/v1/tasks/paper/adapters")
    async def give() -> Response:
        return Response(body, media_type=TENSORS, headers={"Content-Digest": content_digest(body)})

    @app.put("/v1/tasks/paper/rounds/2/adapters")
    async def take(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with metered(server) as meter, httpx.AsyncClient(base_url=meter.url, headers=headers, trust_env=False) as client:
        answer = await client.get("/v1/tasks/paper/adapters")
        digest = {"Content-Type": TENSORS, "Content-Digest": content_digest(answer.content)}
        sent = await client.put("/v1/tasks/paper/rounds/2/adapters", content=answer.content, headers=digest)
        if sent.json() != {"bytes": len(body)}:
            raise RuntimeError("the adapters did not arrive whole")
        return {"round": meter.taken(), "bodies": {"update": len(body)}}

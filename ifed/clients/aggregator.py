"""The client of the aggregator's HTTP API, for admins, client agents and readers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import TypeVar

import httpx
from httpx_sse import SSEError, aconnect_sse

from ifed.clients.transport import ServiceClient, check_content_encoding, parsed, raise_refusal
from ifed.errors import Malformed, Unavailable, UnreadableAnswer
from ifed.messages.bodies import (
    TENSORS,
    AdapterBody,
    HeadQuery,
    read_coefficients,
    read_context,
    read_head,
    read_standardization,
)
from ifed.messages.clients import AuditLine, ClientInfo, Enrolment, NewClient, TokenHolder
from ifed.messages.enums import Role
from ifed.messages.evaluations import EvaluationDetails
from ifed.messages.events import DeliveryInfo, Event, NewWebhook, WebhookInfo, WebhookSecret
from ifed.messages.rounds import (
    Assignment,
    ContextInfo,
    Extension,
    JoinRequest,
    LedgerEntry,
    Match,
    Matches,
    MatchRequest,
    Member,
    Receipt,
    Replay,
    Rollback,
    RoundInfo,
    Start,
    TaskChanges,
    TaskInfo,
    Withdrawal,
)
from ifed.messages.tasks import TaskSpec
from ifed.tensors.regression import LabelHead, Standardization
from ifed.tensors.values import Coefficients, ContextVector, TensorBody, check_content_digest, content_digest

Tensors = TypeVar("Tensors")
LONG_POLL_SLACK = 15.0
REPLAY_SECONDS = 600.0
SILENCE_SECONDS = 60.0  # a stream sends something every 15 seconds
RECONNECT_SECONDS = 1.0
MAX_HEADER_BYTES = 2**20  # of a safetensors file; that of an adapter holds its labels


class AggregatorClient(ServiceClient):
    """The client of the aggregator's API, for admins, client agents and readers. Every method raises the refusals of `ifed.errors`."""

    async def create_task(self, spec: TaskSpec) -> TaskInfo:
        return await self._post(TaskInfo, "/v1/tasks", spec)

    async def task(self, task: str) -> TaskInfo:
        return await self._get(TaskInfo, f"/v1/tasks/{task}")

    async def tasks(self) -> list[TaskInfo]:
        return [task async for task in self._pages(TaskInfo, "/v1/tasks")]

    async def change_task(self, task: str, changes: TaskChanges) -> TaskInfo:
        return await self._post(TaskInfo, f"/v1/tasks/{task}", changes, method="PATCH")

    async def delete_task(self, task: str) -> None:
        await self._send("DELETE", f"/v1/tasks/{task}")

    async def start(self, task: str, how: Start | None = None) -> TaskInfo:
        return await self._post(TaskInfo, f"/v1/tasks/{task}/start", how)

    async def match(self, task: str, *, limit: int = 5) -> list[Match]:
        return (await self._post(Matches, "/v1/tasks/match", MatchRequest(task=task, limit=limit))).items

    async def pause(self, task: str) -> TaskInfo:
        return await self._post(TaskInfo, f"/v1/tasks/{task}/pause")

    async def resume(self, task: str) -> TaskInfo:
        return await self._post(TaskInfo, f"/v1/tasks/{task}/resume")

    async def round(self, task: str, number: int) -> RoundInfo:
        return await self._get(RoundInfo, f"/v1/tasks/{task}/rounds/{number}")

    async def rounds(self, task: str) -> list[RoundInfo]:
        return [round_ async for round_ in self._pages(RoundInfo, f"/v1/tasks/{task}/rounds")]

    async def close_round(self, task: str, number: int) -> RoundInfo:
        return await self._post(RoundInfo, f"/v1/tasks/{task}/rounds/{number}/close")

    async def cancel_round(self, task: str, number: int) -> RoundInfo:
        return await self._post(RoundInfo, f"/v1/tasks/{task}/rounds/{number}/cancel")

    async def extend_round(self, task: str, number: int, seconds: float) -> RoundInfo:
        return await self._post(RoundInfo, f"/v1/tasks/{task}/rounds/{number}/extend", Extension(seconds=seconds))

    async def rollback(self, task: str, version: int) -> TaskInfo:
        return await self._post(TaskInfo, f"/v1/tasks/{task}/rollback", Rollback(version=version))

    async def ledger(self, task: str) -> list[LedgerEntry]:
        return [entry async for entry in self._pages(LedgerEntry, f"/v1/tasks/{task}/ledger")]

    async def evaluation(self, task: str, version: int) -> EvaluationDetails:
        """Return the newest evaluation of a version by label and by client."""
        return await self._get(EvaluationDetails, f"/v1/tasks/{task}/evaluations/{version}", timeout=REPLAY_SECONDS)

    async def audit(self, *, after: int = 0) -> list[AuditLine]:
        """Return what admins requested, oldest first, from the line after a number."""
        return [line async for line in self._pages(AuditLine, "/v1/audit", after=str(after))]

    async def contexts(self, task: str) -> list[ContextInfo]:
        """Return the versions of the task's context vector."""
        return [context async for context in self._pages(ContextInfo, f"/v1/tasks/{task}/contexts")]

    async def replay_context(self, task: str, version: int) -> Replay:
        return await self._get(Replay, f"/v1/tasks/{task}/contexts/{version}/replay", timeout=REPLAY_SECONDS)

    async def withdraw(self, task: str, client: str | None = None) -> Withdrawal:
        """Withdraw from a task permanently; an admin names the `client` to withdraw."""
        return await self._post(Withdrawal, f"/v1/tasks/{task}{'' if client is None else f'/clients/{client}'}/withdraw")

    async def replay(self, task: str, number: int) -> Replay:
        return await self._get(Replay, f"/v1/tasks/{task}/rounds/{number}/replay", timeout=REPLAY_SECONDS)

    async def events(self, *, after: int | None = None, task: str | None = None) -> AsyncGenerator[Event, None]:
        """Yield events from now on, or those after an event number, without end; reconnect and continue after a broken connection."""
        while True:
            try:
                async for number, event in self._stream(after, task):
                    after = number
                    if event is not None:
                        yield event
            except (httpx.TransportError, SSEError, Unavailable):
                if after is None:
                    raise
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _stream(self, after: int | None, task: str | None) -> AsyncIterator[tuple[int, Event | None]]:
        """Yield the numbers and events of one connection."""
        params = {} if task is None else {"task": task}
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        timeout = httpx.Timeout(self._http.timeout.connect, read=SILENCE_SECONDS)
        async with aconnect_sse(self._http, "GET", "/v1/events", params=params, headers=headers, timeout=timeout) as source:
            if (response := source.response).is_error:
                body = await self._read(response)
                raise_refusal(
                    httpx.Response(response.status_code, headers=response.headers, content=body, request=response.request)
                )
            check_content_encoding(response)
            async for message in source.aiter_sse():
                try:
                    yield int(message.id), Event.model_validate_json(message.data) if message.data else None
                except ValueError as reason:
                    raise UnreadableAnswer(f"{response.url} sent an event that cannot be read") from reason

    async def register_webhook(self, webhook: NewWebhook) -> WebhookSecret:
        return await self._post(WebhookSecret, "/v1/webhooks", webhook)

    async def webhooks(self) -> list[WebhookInfo]:
        return [webhook async for webhook in self._pages(WebhookInfo, "/v1/webhooks")]

    async def remove_webhook(self, name: str) -> None:
        await self._send("DELETE", f"/v1/webhooks/{name}")

    async def deliveries(self, name: str) -> list[DeliveryInfo]:
        return [delivery async for delivery in self._pages(DeliveryInfo, f"/v1/webhooks/{name}/deliveries")]

    async def enrol(self, name: str, role: Role = Role.CLIENT) -> Enrolment:
        return await self._post(Enrolment, "/v1/clients", NewClient.model_validate({"name": name, "role": role}))

    async def rotate(self, name: str) -> Enrolment:
        return await self._post(Enrolment, f"/v1/clients/{name}/rotate")

    async def revoke(self, name: str) -> None:
        await self._send("DELETE", f"/v1/clients/{name}")

    async def enrolled(self) -> list[ClientInfo]:
        return [client async for client in self._pages(ClientInfo, "/v1/clients")]

    async def whose(self, token: str) -> TokenHolder:
        """Return the party that holds `token`, which need not be this client's own."""
        return await self._get(TokenHolder, "/v1/token", headers={"Authorization": f"Bearer {token}"})

    async def join(self, task: str, request: JoinRequest) -> Member:
        return await self._post(Member, f"/v1/tasks/{task}/join", request)

    async def assignment(self, task: str, *, wait: float = 0.0) -> Assignment:
        """Return what to do next; wait up to `wait` seconds while there is nothing to do."""
        return await self._get(Assignment, f"/v1/tasks/{task}/assignment", params={"wait": wait}, timeout=wait + LONG_POLL_SLACK)

    async def submit_context(self, task: str, number: int, body: bytes) -> Receipt:
        """Contribute the bytes of a `ContextBody`; sending the same bytes again gives the same receipt."""
        return await self._contribute(f"/v1/tasks/{task}/rounds/{number}/context", body)

    async def submit_update(self, task: str, number: int, body: bytes) -> Receipt:
        """Contribute the bytes of an `UpdateBody`; sending the same bytes again gives the same receipt."""
        return await self._contribute(f"/v1/tasks/{task}/rounds/{number}/update", body)

    async def submit_head(self, task: str, number: int, body: bytes) -> Receipt:
        """Contribute the bytes of a `HeadBody`; sending the same bytes again gives the same receipt."""
        return await self._contribute(f"/v1/tasks/{task}/rounds/{number}/head", body)

    async def query(self, task: str, number: int) -> HeadQuery:
        """Return what a head round asks."""
        return _read_tensors(await self._send("GET", f"/v1/tasks/{task}/rounds/{number}/query"), HeadQuery.from_bytes)

    async def add_context(self, task: str, body: bytes) -> Receipt:
        """Add the bytes of a `ContextBody` to the context vector after its round; the same bytes again give the same receipt."""
        return await self._contribute(f"/v1/tasks/{task}/context", body, method="POST")

    async def _contribute(self, path: str, body: bytes, *, method: str = "PUT") -> Receipt:
        headers = {"Content-Type": TENSORS, "Content-Digest": content_digest(body)}
        response = await self._send(method, path, content=body, headers=headers)
        receipt = parsed(Receipt, response)
        if receipt.digest != hashlib.sha256(body).hexdigest():
            raise UnreadableAnswer(f"the receipt is for {receipt.digest}, not for what was sent; send it again")
        return receipt

    async def context(self, task: str, *, version: int | None = None) -> ContextVector:
        """Return the task's global context vector, shape (layer, site, d); by default the newest version."""
        params: Mapping[str, int] = {} if version is None else {"version": version}
        response = await self._send("GET", f"/v1/tasks/{task}/context", params=params)
        return _read_tensors(response, lambda body: read_context(TensorBody.from_bytes(body)))

    async def context_with_standardization(
        self, task: str, *, version: int | None = None
    ) -> tuple[ContextVector, Standardization | None]:
        """Return a context vector and the statistics of the final state that come with it; None for a task without a label head."""
        params: Mapping[str, int] = {} if version is None else {"version": version}
        response = await self._send("GET", f"/v1/tasks/{task}/context", params=params)
        body = _read_tensors(response, TensorBody.from_bytes)
        return _read_tensors(response, lambda _: (read_context(body), read_standardization(body)))

    async def version(self, task: str, version: int) -> tuple[Coefficients, LabelHead | None]:
        """Return a version's coefficients, and its label head if it has one."""
        response = await self._send("GET", f"/v1/tasks/{task}/coefficients", params={"version": version})
        body = _read_tensors(response, TensorBody.from_bytes)
        return _read_tensors(response, lambda _: (read_coefficients(body), read_head(body)))

    async def coefficients(self, task: str, *, version: int | None = None) -> Coefficients:
        """Return a version of the task's coefficients, shape (layer, site, coefficient, group); by default the newest."""
        params: Mapping[str, int] = {} if version is None else {"version": version}
        response = await self._send("GET", f"/v1/tasks/{task}/coefficients", params=params)
        return _read_tensors(response, lambda body: read_coefficients(TensorBody.from_bytes(body)))

    async def adapter(
        self, task: str, *, version: int | None = None, known: str | None = None, wait: float = 0.0
    ) -> tuple[str, AdapterBody] | None:
        """Return the adapter and its digest; None if its digest is still `known` after `wait` seconds."""
        params: dict[str, float] = {"wait": wait} | ({} if version is None else {"version": version})
        headers = {} if known is None else {"If-None-Match": f'"{known}"'}
        path, timeout = f"/v1/tasks/{task}/adapter", wait + LONG_POLL_SLACK
        response = await self._send("GET", path, params=params, headers=headers, timeout=timeout)
        if response.status_code == httpx.codes.NOT_MODIFIED:
            return None
        if not (digest := response.headers.get("ETag", "").strip('"')):
            raise UnreadableAnswer(f"{response.url} answered without the header ETag; does a proxy remove it?")
        return digest, _read_tensors(response, AdapterBody.from_bytes)


def _read_tensors(response: httpx.Response, read: Callable[[bytes], Tensors]) -> Tensors:
    """Read the tensors of an answer.

    Raises:
        UnreadableAnswer: they are not what they should be, or the header is too large to be parsed.
    """
    body = response.content
    try:
        check_content_digest(body, response.headers.get("Content-Digest"))
        if int.from_bytes(body[:8], "little") > MAX_HEADER_BYTES:
            raise Malformed(f"its header has more than {MAX_HEADER_BYTES} bytes")
        return read(body)
    except (Malformed, RecursionError, MemoryError, OverflowError) as reason:
        detail = reason.detail if isinstance(reason, Malformed) else "it is nested too deeply, or too large"
        raise UnreadableAnswer(f"{response.url} answered with tensors that cannot be read: {detail}") from reason

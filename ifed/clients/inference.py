"""The client of the inference service's HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from itertools import islice

from ifed.clients.transport import ServiceClient
from ifed.errors import Overloaded
from ifed.messages.inference import DEADLINE_HEADER, Classification, ClassifyRequest, ClassifyResponse, ServedModel, ServedModels

MOST_TRIES = 8


class InferenceClient(ServiceClient):
    """The client of the inference service's API. `BlockingInferenceClient` does the same for programs without an event loop."""

    async def classify(
        self,
        model: str | list[str],
        texts: str | list[str],
        *,
        top_k: int | None = None,
        truncate: bool = True,
        raw_scores: bool = False,
        deadline: float | None = None,
    ) -> ClassifyResponse:
        """Classify texts; the response has one entry of `data` for each text, in order, and of several tasks for each text and task.

        Args:
            model: a task, `task@7` for its version 7, `task@base` for the base model, `task@few-shot:12` for a prompt of demonstrations;
                or a list of such names, each of which answers for every text.
            top_k: the number of labels to list with their probabilities, the most probable first.
            truncate: whether to cut a text that is too long in the middle; otherwise its entry is a `TextTooLong` error.
            raw_scores: whether to return natural logarithms in place of probabilities.
            deadline: seconds after which the service gives the request up.

        Raises:
            IFedError: the class that the service names. If one text of several fails, its entry has an `error` instead.
        """
        request = ClassifyRequest(
            model=model, input=texts, top_k=top_k, truncate=truncate, use_activation=False if raw_scores else None
        )
        headers = {} if deadline is None else {DEADLINE_HEADER: str(deadline)}
        return await self._post(ClassifyResponse, "/v1/classify", request, headers=headers)

    async def classify_all(
        self, model: str, texts: Iterable[str], *, batch: int = 32, at_once: int = 4
    ) -> AsyncGenerator[tuple[Classification, ClassifyResponse], None]:
        """Classify any number of texts with a few concurrent requests, and yield the results in order. Wait while the service is full."""
        source, waiting = iter(texts), list[asyncio.Task[ClassifyResponse]]()
        try:
            while True:
                while len(waiting) < at_once and (part := list(islice(source, batch))):
                    waiting.append(asyncio.create_task(self._patiently(model, part)))
                if not waiting:
                    return
                answer = await waiting.pop(0)
                for result in answer.data:
                    yield result, answer
        finally:
            for task in waiting:
                task.cancel()

    async def models(self) -> ServedModels:
        return await self._get(ServedModels, "/v1/models")

    async def model(self, model: str) -> ServedModel:
        """Return a task, which the service fetches if it has not loaded it yet."""
        return await self._get(ServedModel, f"/v1/models/{model}")

    async def _patiently(self, model: str, texts: list[str]) -> ClassifyResponse:
        for _ in range(MOST_TRIES):
            try:
                return await self.classify(model, texts)
            except Overloaded as refusal:
                await asyncio.sleep(refusal.retry_after or 1)
        return await self.classify(model, texts)

"""The client of the inference service's HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from itertools import islice

from ifed.clients.transport import Service
from ifed.errors import Overloaded
from ifed.messages.inference import DEADLINE_HEADER, Classification, ClassifyRequest, ClassifyResponse, ServedModel, ServedModels

MOST_TRIES = 8


class InferenceClient(Service):
    """The inference service's API. `BlockingInferenceClient` is the same for programs without an event loop."""

    async def classify(
        self,
        model: str,
        texts: str | list[str],
        *,
        top_k: int | None = None,
        truncate: bool = True,
        raw_scores: bool = False,
        deadline: float | None = None,
    ) -> ClassifyResponse:
        """Labels and probabilities, one entry of `data` for each text, in order.

        Args:
            model: a task, `task@7` for its version 7, `task@bare` for the bare model, `task@few-shot:12` for a prompt of demonstrations.
            top_k: also list so many labels with their probability, the most probable first.
            truncate: cut a text that is too long in its middle; otherwise its entry says `TextTooLong`.
            raw_scores: natural logarithms in place of the probabilities.
            deadline: seconds after which the answer is of no use; the service then gives the place to someone else.

        Raises:
            IFedError: the class the service names. A text that fails among several has an `error` in its entry instead.
        """
        request = ClassifyRequest(
            model=model, input=texts, top_k=top_k, truncate=truncate, use_activation=False if raw_scores else None
        )
        headers = {} if deadline is None else {DEADLINE_HEADER: str(deadline)}
        return await self._post(ClassifyResponse, "/v1/classify", request, headers=headers)

    async def classify_all(
        self, model: str, texts: Iterable[str], *, batch: int = 32, at_once: int = 4
    ) -> AsyncGenerator[tuple[Classification, ClassifyResponse], None]:
        """Any number of texts, a few requests at once, in order; each with the answer it came in. Waits where the service is full."""
        source, waiting = iter(texts), list[asyncio.Task[ClassifyResponse]]()
        try:
            while True:
                while len(waiting) < at_once and (part := list(islice(source, batch))):
                    waiting.append(asyncio.create_task(self._patiently(model, part)))
                if not waiting:
                    return
                answer = await waiting.pop(0)
                for one in answer.data:
                    yield one, answer
        finally:
            for task in waiting:
                task.cancel()

    async def models(self) -> ServedModels:
        return await self._get(ServedModels, "/v1/models")

    async def model(self, model: str) -> ServedModel:
        """One task, fetched by the service if it does not hold it yet."""
        return await self._get(ServedModel, f"/v1/models/{model}")

    async def _patiently(self, model: str, texts: list[str]) -> ClassifyResponse:
        for _ in range(MOST_TRIES):
            try:
                return await self.classify(model, texts)
            except Overloaded as refusal:
                await asyncio.sleep(refusal.retry_after or 1)
        return await self.classify(model, texts)

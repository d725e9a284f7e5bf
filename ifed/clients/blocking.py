"""A blocking version of the inference client, for programs without an event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from ifed.clients.inference import InferenceClient
from ifed.messages.inference import Classification, ClassifyResponse, ServedModel, ServedModels


class BlockingInferenceClient:
    """`InferenceClient` with blocking calls; use it in a `with` block, from any thread.

    with BlockingInferenceClient("http://127.0.0.1:8081", token) as service:
        service.classify("sentiment", "I liked it.").data[0].label
    """

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 60.0, ca_file: Path | None = None, proxy: str | None = None
    ) -> None:
        self._url, self._token, self._timeout = url, token, timeout
        self._ca_file, self._proxy = ca_file, proxy
        self._parts = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        self._portal = self._parts.enter_context(start_blocking_portal())
        self._client = self._portal.call(self._connect)
        self._parts.callback(self._portal.call, self._client.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._parts.__exit__(kind, error, trace)
        self._portal = None

    async def _connect(self) -> InferenceClient:
        return InferenceClient(self._url, self._token, timeout=self._timeout, ca_file=self._ca_file, proxy=self._proxy)

    def classify(
        self,
        model: str | list[str],
        texts: str | list[str],
        *,
        top_k: int | None = None,
        truncate: bool = True,
        raw_scores: bool = False,
        deadline: float | None = None,
    ) -> ClassifyResponse:
        """Classify texts; see `InferenceClient.classify`."""

        async def call() -> ClassifyResponse:
            return await self._client.classify(
                model, texts, top_k=top_k, truncate=truncate, raw_scores=raw_scores, deadline=deadline
            )

        return self._inside.call(call)

    def classify_all(
        self, model: str, texts: Iterable[str], *, batch: int = 32, at_once: int = 4
    ) -> Iterator[tuple[Classification, ClassifyResponse]]:
        """Classify any number of texts; see `InferenceClient.classify_all`. `texts` is read in another thread."""
        answers = self._client.classify_all(model, texts, batch=batch, at_once=at_once)

        async def following() -> tuple[Classification, ClassifyResponse] | None:
            return await anext(answers, None)

        try:
            while (pair := self._inside.call(following)) is not None:
                yield pair
        finally:
            if self._portal is not None:
                self._portal.call(answers.aclose)

    def models(self) -> ServedModels:
        return self._inside.call(self._client.models)

    def model(self, model: str) -> ServedModel:
        """Return a task; see `InferenceClient.model`."""
        return self._inside.call(self._client.model, model)

    @property
    def _inside(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("use the client in a `with` block: it has no connection outside")
        return self._portal

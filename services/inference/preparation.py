"""Prepare texts and adapters for the model in a thread of its own, so that the event loop never waits for the tokenizer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from ifed.errors import IFedError
from ifed.messages.bodies import AdapterBody
from services.inference.adapters import Adapter
from services.inference.demonstrations import DemonstrationFolder

if TYPE_CHECKING:
    from services.inference.engine import SharedPrefix
    from services.inference.model import Item, LoadedAdapter, PreparedText, Prompts, Scorer

CHUNK_CHARACTERS = 20_000
MAX_FEW_SHOT_PROMPTS = 64
Returned = TypeVar("Returned")


class Preprocessor:
    """Call the tokenizer side of a `Scorer` in one thread; large requests are divided into chunks, between which others are served."""

    def __init__(self, scorer: Scorer, demonstrations: DemonstrationFolder) -> None:
        self._scorer, self._demonstrations = scorer, demonstrations
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preprocessor")
        self._few_shot: OrderedDict[tuple[str, int, str], LoadedAdapter] = OrderedDict()

    async def close(self) -> None:
        """Wait for the thread to finish its work."""
        await asyncio.to_thread(self._thread.shutdown)

    async def load_adapter(self, body: AdapterBody) -> LoadedAdapter:
        """Load an adapter onto the model's device; raises as `Scorer.load_adapter`."""
        return await self._in_thread(lambda: self._scorer.load_adapter(body))

    async def base(self, adapter: Adapter) -> LoadedAdapter:
        """Return the base model behind the adapter's template and labels."""
        return self._scorer.base(adapter.loaded)

    async def few_shot(self, adapter: Adapter, shots: int) -> LoadedAdapter:
        """Return the base model with the task's first `shots` demonstrations in its prompt, cached until their file changes.

        Raises:
            NoDemonstrations: the task has fewer demonstrations.
            BadData: the file of demonstrations is malformed.
            BadTemplate: they leave no room for a text.
        """
        demonstrations = await self._in_thread(lambda: self._demonstrations.load(adapter.meta.task))
        key = (adapter.digest, shots, demonstrations.digest)
        if key not in self._few_shot:
            self._few_shot[key] = await self._in_thread(
                lambda: self._scorer.few_shot(adapter.loaded, demonstrations.first(shots, adapter.meta.labels))
            )
        self._few_shot.move_to_end(key)
        loaded = self._few_shot[key]
        if len(self._few_shot) > MAX_FEW_SHOT_PROMPTS:
            self._few_shot.popitem(last=False)
        return loaded

    async def prepare(
        self, loaded: LoadedAdapter, texts: Sequence[str], *, truncate: bool, prompts: Prompts | None = None
    ) -> list[PreparedText | IFedError]:
        """Return each text prepared for the engine, or its refusal, in order.

        Args:
            prompts: of the request so far, for its other tasks of the same template.
        """
        prepared: list[PreparedText | IFedError] = []
        for chunk in _chunks(texts):
            prepared += await self._in_thread(
                lambda chunk=chunk: [self._scorer.prepare(loaded, text, truncate=truncate, prompts=prompts) for text in chunk]  # type: ignore[misc]  # a lambda's default
            )
        return prepared

    async def shared_prefixes(self, items: Sequence[Item]) -> list[Sequence[SharedPrefix]]:
        """Return, of each item, the prefixes that a forward pass may run once for several of the items."""
        return await self._in_thread(lambda: self._scorer.shared_prefixes(items))

    async def _in_thread(self, work: Callable[[], Returned]) -> Returned:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in order in chunks that occupy the thread for a few milliseconds at most."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and size + len(text) > CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk

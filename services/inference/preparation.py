"""One thread for all that reads texts and labels, so that the event loop never waits for a tokenizer. Knows no model."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from ifed.errors import IFedError
from ifed.messages.bodies import AdapterBody
from services.inference.adapters import Adapter
from services.inference.demonstrations import Demonstration, DemonstrationFolder
from services.inference.service import Prepared

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
CHARACTERS_AT_ONCE = 20_000
PROMPTS_KEPT = 64


class Reader(Protocol[Loaded, Item]):
    """What does the reading; `Scorer` is one."""

    def load_adapter(self, body: AdapterBody) -> Loaded: ...

    def bare(self, loaded: Loaded) -> Loaded: ...

    def few_shot(self, loaded: Loaded, demonstrations: Sequence[Demonstration]) -> Loaded: ...

    def prepare(self, loaded: Loaded, text: str, *, truncate: bool) -> Prepared[Item] | IFedError: ...


class Preprocessor(Generic[Loaded, Item]):
    """Hands everything to a reader in one thread, a large request in parts so that others come in between."""

    def __init__(self, reader: Reader[Loaded, Item], demonstrations: DemonstrationFolder) -> None:
        self._reader, self._demonstrations = reader, demonstrations
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="desk")
        self._few_shot: OrderedDict[tuple[str, int, str], Loaded] = OrderedDict()

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)

    async def load(self, body: AdapterBody) -> Loaded:
        """An adapter's body as the model takes it."""
        return await self._there(lambda: self._reader.load_adapter(body))

    async def bare(self, adapter: Adapter[Loaded]) -> Loaded:
        return self._reader.bare(adapter.loaded)

    async def few_shot(self, adapter: Adapter[Loaded], shots: int) -> Loaded:
        """The bare model behind the task's first `shots` demonstrations, read once for each adapter and state of their file."""
        shown = await self._there(lambda: self._demonstrations.of(adapter.meta.task))
        key = (adapter.digest, shots, shown.digest)
        if key not in self._few_shot:
            self._few_shot[key] = await self._there(
                lambda: self._reader.few_shot(adapter.loaded, shown.first(shots, adapter.meta.labels))
            )
        self._few_shot.move_to_end(key)
        found = self._few_shot[key]
        if len(self._few_shot) > PROMPTS_KEPT:
            self._few_shot.popitem(last=False)
        return found

    async def prepare(self, loaded: Loaded, texts: Sequence[str], *, truncate: bool) -> list[Prepared[Item] | IFedError]:
        """Each text as an item, or why it is none, in order."""
        found: list[Prepared[Item] | IFedError] = []
        for part in _parts(texts):
            found += await self._there(lambda part=part: [self._reader.prepare(loaded, text, truncate=truncate) for text in part])  # type: ignore[misc]  # a lambda's default
        return found

    async def _there(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in order, cut where they would keep the thread for more than some milliseconds."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > CHARACTERS_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part

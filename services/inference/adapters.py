"""One version of one task as it is held. Knows nothing of where it came from."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import structlog

from ifed.errors import IFedError, NotFound, OtherModel, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import ModelIdentity

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True, eq=False)
class Adapter(Generic[Loaded]):
    """One version of one task, ready for the model. Never changed; a newer version is another object."""

    digest: str
    meta: AdapterMeta
    loaded: Loaded
    size: int


@dataclass(slots=True)
class CacheEntry(Generic[Loaded]):
    """An adapter, and until when on the clock of `monotonic` it counts as fresh."""

    adapter: Adapter[Loaded]
    fresh_until: float


class Source(Protocol):
    """Where adapters come from; `ifed.clients.AggregatorClient` is one, a folder another."""

    async def adapter(
        self, task: str, *, version: int | None = None, known: str | None = None, wait: float = 0.0
    ) -> tuple[str, AdapterBody] | None: ...


class AdapterObserver(Protocol):
    """Told what becomes of adapters."""

    def looked_up(self, task: str, *, held: bool) -> None: ...

    def serves(self, task: str, version: int) -> None: ...

    def lets_go(self, task: str) -> None: ...

    def stale(self, task: str) -> None: ...


log = structlog.get_logger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
FRESH_SECONDS, LOST_SECONDS = 0.5, 5.0
Key = tuple[str, int | None]


class Adapters(Generic[Loaded]):
    """Adapters by task and pinned version, the least recently used let go when they are too many bytes together.

    The first `max_followed` tasks are each followed by a long poll. Any other is asked for again when it is used and the last look
    is half a second old, so that a promotion is seen within a second either way.

    Args:
        source: where adapters are read.
        identity: the model loaded here; an adapter of another one is refused.
        load: turns an adapter's body into what the model takes.
        wait: seconds a question for a newer adapter may be held back.
        max_followed: long polls at the same time; 0 for a source that cannot hold a question back.
        max_bytes: tensors held at the most; the one just asked for is always held.
    """

    def __init__(
        self,
        source: Source,
        identity: ModelIdentity,
        load: Callable[[AdapterBody], Awaitable[Loaded]],
        *,
        wait: float,
        max_followed: int,
        max_bytes: int,
        observer: AdapterObserver,
    ) -> None:
        self._source, self._identity, self._load, self._observer = source, identity, load, observer
        self._wait, self._max_followed, self._max_bytes = wait, max_followed, max_bytes
        self._held: OrderedDict[Key, CacheEntry[Loaded]] = OrderedDict()
        self._fetching: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._mending: asyncio.Task[None] | None = None
        self._wanted: set[str] = set()
        self.stale: dict[str, str] = {}

    @property
    def bytes_held(self) -> int:
        return sum(held.adapter.size for held in tuple(self._held.values()))

    def current(self) -> list[Adapter[Loaded]]:
        """What is served without a pin, by task."""
        held = tuple(self._held.items())  # at once, since /metrics asks from another thread
        return [one.adapter for key, one in sorted(held, key=lambda pair: pair[0][0]) if key[1] is None]

    async def get(self, task: str, version: int | None = None) -> Adapter[Loaded]:
        """The adapter of a task: the version that is served, or the one named.

        Raises:
            UnknownTask: the aggregator has no such task.
            NothingYet: the task has no adapter yet.
            UnknownVersion: no such version.
            OtherModel: the adapter is for another language model.
            Unavailable: it is not known here and the aggregator cannot be reached.
        """
        key = (task, version)
        if self._fresh(key):
            self._observer.looked_up(task, held=True)
            return self._touch(key, self._held[key])
        lock = self._fetching.setdefault(key, asyncio.Lock())
        async with lock:
            before = self._held.get(key)
            if not self._fresh(key):
                await (self._fetch(key) if before is None else self._look_again(task))
                self._observer.looked_up(task, held=False)
                if version is None:
                    self._keep_up(task)
            return self._touch(key, before)

    def want(self, tasks: Iterable[str]) -> None:
        """Fetch the adapters of `tasks` as soon as they are there, even if the task does not exist yet."""
        self._wanted.update(tasks)
        for task in self._wanted:
            self._keep_up(task)

    async def fetch_now(self, tasks: Iterable[str]) -> None:
        """Fetch the adapters of `tasks` once, from a source that cannot be followed; what cannot be had is told in `stale`."""
        for task in tasks:
            self._wanted.add(task)
            try:
                await self.get(task)
            except IFedError as refusal:
                self._lost(task, refusal)

    def _keep_up(self, task: str) -> None:
        if task not in self._followers and len(self._followers) < self._max_followed:
            self._followers[task] = asyncio.create_task(self._follow(task), name=f"follow {task}")

    async def close(self) -> None:
        running = [*self._followers.values(), *(() if self._mending is None else (self._mending,))]
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _fresh(self, key: Key) -> bool:
        held = self._held.get(key)
        return held is not None and (key[1] is not None or key[0] in self._followers or monotonic() < held.fresh_until)

    def _touch(self, key: Key, before: CacheEntry[Loaded] | None) -> Adapter[Loaded]:
        """What is held now, or was before others took its room."""
        if (held := self._held.get(key)) is not None:
            self._held.move_to_end(key)
        found = held or before
        assert found is not None
        return found.adapter

    async def _fetch(self, key: Key, *, wait: float = 0.0) -> None:
        """Ask the source; an adapter with another digest than the one held takes its place in one step."""
        task, version = key
        held = self._held.get(key)
        answer = await self._source.adapter(task, version=version, known=held.adapter.digest if held else None, wait=wait)
        until = monotonic() + FRESH_SECONDS
        if answer is not None:
            adapter = await self._adapter(*answer)
            self._held[key] = CacheEntry(adapter, until)
            self._make_room(key)
            log.info("adapter", task=task, version=adapter.meta.version, digest=adapter.digest[:12], pinned=version is not None)
        elif held is not None:
            held.fresh_until = until
            if key not in self._held:  # others took its room while the source was asked
                self._held[key] = held
                self._make_room(key)
        else:
            raise UnknownVersion(f"there is no version {version} of task {task!r}")
        if version is None:
            self._observer.serves(task, self._held[key].adapter.meta.version)
            self.stale.pop(task, None)

    async def _look_again(self, task: str) -> None:
        """Refresh what is held; where that fails, go on with it for a while before the next try."""
        try:
            async with asyncio.timeout(1):
                await self._fetch((task, None))
        except TimeoutError:
            self._lost(task, IFedError("the answer took longer than a second"))
        except IFedError as refusal:
            self._lost(task, refusal)
            if isinstance(refusal, UnknownTask):
                raise

    async def _follow(self, task: str) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                # After a loss without waiting, so that the end of it is told at once and not with the next promotion.
                await self._fetch((task, None), wait=0.0 if task in self.stale else self._wait)
                pause = FIRST_PAUSE
                continue
            except IFedError as refusal:
                self._lost(task, refusal)
                if isinstance(refusal, UnknownTask) and task not in self._wanted:
                    del self._followers[task]
                    return
                pause = FIRST_PAUSE if isinstance(refusal, NotFound) else min(LONGEST_PAUSE, 2 * pause)
            except Exception:  # the follower of a task lives as long as the service
                log.exception("adapter not refreshed", task=task)
            await asyncio.sleep(pause)

    async def _mend(self) -> None:
        """Look again for what is late and not followed, so that the end of a loss is told though nobody asks for the task.

        One after the other, and some seconds between one time and the next.
        """
        await asyncio.sleep(LONGEST_PAUSE)
        while late := [task for task in self.stale if task not in self._followers]:
            for task in late:
                try:
                    async with self._fetching.setdefault((task, None), asyncio.Lock()):
                        await self._look_again(task)
                except UnknownTask:
                    continue  # told by then
                except Exception:  # what is late is looked for as long as the service lives
                    log.exception("adapter not refreshed", task=task)
            await asyncio.sleep(LONGEST_PAUSE)

    def _lost(self, task: str, refusal: IFedError) -> None:
        """Go on with what is known and say so; a task the aggregator no longer has is no longer served.

        Late is what is served on and what a setting names: not what nobody has asked for since it was let go.
        """
        if task not in self.stale:
            log.warning("adapter not refreshed", task=task, error=type(refusal).__name__, detail=refusal.detail)
        if isinstance(refusal, UnknownTask):
            for key in [key for key in self._held if key[0] == task]:
                self._drop(key)
        held = self._held.get((task, None))
        if held is None and task not in self._wanted:
            self.stale.pop(task, None)
            return
        self.stale[task] = refusal.detail
        self._observer.stale(task)
        if task not in self._followers and (self._mending is None or self._mending.done()):
            self._mending = asyncio.create_task(self._mend(), name="look again for what is late")
        if held is not None:
            held.fresh_until = monotonic() + LOST_SECONDS

    def _make_room(self, wanted: Key) -> None:
        """Let the least recently used go. Requests under way keep what they hold until they are answered."""
        self._held.move_to_end(wanted)
        while self.bytes_held > self._max_bytes and len(self._held) > 1:
            oldest = next(iter(self._held))
            self._drop(oldest)
            if oldest[1] is None and (follower := self._followers.pop(oldest[0], None)) is not None:
                follower.cancel()

    def _drop(self, key: Key) -> None:
        del self._held[key]
        task, version = key
        if version is None:
            self.stale.pop(task, None)
            self._observer.lets_go(task)

    async def _adapter(self, digest: str, body: AdapterBody) -> Adapter[Loaded]:
        if not self._identity.agrees_with(body.meta.identity):
            raise OtherModel(
                f"task {body.meta.task!r} was calibrated on {body.meta.identity.name} ({body.meta.identity.fingerprint[:12]}…), "
                f"this service runs {self._identity.name} ({self._identity.fingerprint[:12]}…); load the task's model"
            )
        loaded = await self._load(body)
        return Adapter(digest, body.meta, loaded, size=2 * body.context.values.nbytes)  # λ·v and β, each as large as v

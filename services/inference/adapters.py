"""The cache of adapters: fetch them on first use, keep them up to date, and evict the least recently used."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

import structlog

from ifed.errors import IFedError, NotFound, OtherModel, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import ModelIdentity
from services.inference.metrics import Metrics

if TYPE_CHECKING:
    from services.inference.model import LoadedAdapter

log = structlog.get_logger(__name__)
FRESH_SECONDS = 0.5  # how long an adapter without a follower is used before the source is asked again
STALE_SECONDS = 5.0  # how long an adapter is used after a failed refresh
REFRESH_TIMEOUT = 1.0
MIN_PAUSE, MAX_PAUSE = 0.5, 5.0
Key = tuple[str, int | None]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One version of a task's adapter, loaded. Immutable: a newer version is another object.

    Attributes:
        digest: sha256 of its body, hexadecimal.
        meta: its task, version, labels and template.
        loaded: what the model scores with.
        nbytes: size of its tensors.
    """

    digest: str
    meta: AdapterMeta
    loaded: LoadedAdapter
    nbytes: int


@dataclass(slots=True)
class CacheEntry:
    """An adapter, and the time on the monotonic clock until which it is fresh."""

    adapter: Adapter
    fresh_until: float


class Source(Protocol):
    """Where adapters are read: `ifed.clients.AggregatorClient` or `AdapterFolder`."""

    async def adapter(
        self, task: str, *, version: int | None = None, known: str | None = None, wait: float = 0.0
    ) -> tuple[str, AdapterBody] | None:
        """Return digest and body of a version, the promoted one by default; None when its digest is `known`, after `wait` seconds."""
        ...


class AdapterCache:
    """Adapters by task and pinned version.

    The first `max_followed` tasks are each followed by a long poll. Any other task is refreshed when it is used and was not refreshed in
    the last half second. Either way a promotion is served within a second. When a refresh fails, the cached adapter stays in use and its
    task is listed in `stale`.

    Args:
        source: where adapters are read.
        identity: of the loaded model; adapters of another model are refused.
        load: load an adapter's body onto the model's device.
        wait: seconds of a long poll.
        max_followed: number of long polls; 0 for a source that has none.
        max_bytes: size of the cached tensors; the adapter requested last is always kept.
        metrics: records lookups, versions and stale adapters.

    Attributes:
        stale: why a task's adapter could not be refreshed, by task.
    """

    def __init__(
        self,
        source: Source,
        identity: ModelIdentity,
        load: Callable[[AdapterBody], Awaitable[LoadedAdapter]],
        *,
        wait: float,
        max_followed: int,
        max_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._source, self._identity, self._load, self._metrics = source, identity, load, metrics
        self._wait, self._max_followed, self._max_bytes = wait, max_followed, max_bytes
        self._entries: OrderedDict[Key, CacheEntry] = OrderedDict()
        self._fetch_locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._retrying: asyncio.Task[None] | None = None
        self._configured: set[str] = set()
        self.stale: dict[str, str] = {}

    @property
    def nbytes(self) -> int:
        """Size of the cached tensors in bytes. Safe to read from any thread."""
        return sum(entry.adapter.nbytes for entry in tuple(self._entries.values()))

    def current(self) -> list[Adapter]:
        """Return the adapters that are served without a pinned version, by task. Safe to call from any thread."""
        entries = tuple(self._entries.items())
        return [entry.adapter for (task, version), entry in sorted(entries, key=lambda pair: pair[0][0]) if version is None]

    async def get(self, task: str, version: int | None = None) -> Adapter:
        """Return the promoted adapter of a task, or a pinned version; fetch it unless it is cached and fresh.

        Raises:
            UnknownTask: the source has no such task.
            NothingYet: the task has no adapter yet.
            UnknownVersion: there is no such version.
            OtherModel: the adapter was calibrated on another language model.
            Unavailable: it is not cached and the source is unreachable.
        """
        key = (task, version)
        if self._is_fresh(key):
            self._metrics.record_lookup(task, cached=True)
            return self._use(key, self._entries[key])
        lock = self._fetch_locks.setdefault(key, asyncio.Lock())
        async with lock:
            previous = self._entries.get(key)
            if not self._is_fresh(key):
                await (self._fetch(key) if previous is None else self._refresh(task))
                self._metrics.record_lookup(task, cached=False)
                if version is None:
                    self._start_following(task)
            return self._use(key, previous)

    def follow(self, tasks: Iterable[str]) -> None:
        """Follow configured tasks: fetch each adapter as soon as it exists, even of a task that does not exist yet."""
        self._configured.update(tasks)
        for task in self._configured:
            self._start_following(task)

    async def preload(self, tasks: Iterable[str]) -> None:
        """Fetch the adapters of configured tasks once, from a source that cannot be followed; failures are listed in `stale`."""
        for task in tasks:
            self._configured.add(task)
            try:
                await self.get(task)
            except IFedError as refusal:
                self._mark_stale(task, refusal)

    async def close(self) -> None:
        """Cancel every follower."""
        running = [*self._followers.values(), *(() if self._retrying is None else (self._retrying,))]
        for background_task in running:
            background_task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _is_fresh(self, key: Key) -> bool:
        entry = self._entries.get(key)
        task, version = key
        return entry is not None and (version is not None or task in self._followers or monotonic() < entry.fresh_until)

    def _use(self, key: Key, previous: CacheEntry | None) -> Adapter:
        """Return the cached adapter and mark it as used; return the previous one if it was evicted meanwhile."""
        if (entry := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
        entry = entry or previous
        assert entry is not None
        return entry.adapter

    async def _fetch(self, key: Key, *, wait: float = 0.0) -> None:
        """Ask the source; an adapter with another digest replaces the cached one in one step."""
        task, version = key
        entry = self._entries.get(key)
        answer = await self._source.adapter(task, version=version, known=entry.adapter.digest if entry else None, wait=wait)
        fresh_until = monotonic() + FRESH_SECONDS
        if answer is not None:
            adapter = await self._load_adapter(*answer)
            self._entries[key] = CacheEntry(adapter, fresh_until)
            self._make_room(key)
            log.info(
                "adapter loaded", task=task, version=adapter.meta.version, digest=adapter.digest[:12], pinned=version is not None
            )
        elif entry is not None:
            entry.fresh_until = fresh_until
            if key not in self._entries:  # evicted during the request to the source
                self._entries[key] = entry
                self._make_room(key)
        else:
            raise UnknownVersion(f"task {task!r} has no version {version}")
        if version is None:
            self._metrics.set_version(task, self._entries[key].adapter.meta.version)
            self.stale.pop(task, None)

    async def _load_adapter(self, digest: str, body: AdapterBody) -> Adapter:
        if not self._identity.agrees_with(body.meta.identity):
            raise OtherModel(
                f"task {body.meta.task!r} was calibrated on {body.meta.identity.name} ({body.meta.identity.fingerprint[:12]}…), "
                f"this service runs {self._identity.name} ({self._identity.fingerprint[:12]}…); use a service with the task's model"
            )
        loaded = await self._load(body)
        return Adapter(digest, body.meta, loaded, nbytes=2 * body.context.values.nbytes)  # λ·v and β, each as large as v

    async def _refresh(self, task: str) -> None:
        """Refresh a cached adapter; after a failure keep using it, and try again `STALE_SECONDS` later."""
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT):
                await self._fetch((task, None))
        except TimeoutError:
            self._mark_stale(task, IFedError("the source took longer than a second to answer"))
        except IFedError as refusal:
            self._mark_stale(task, refusal)
            if isinstance(refusal, UnknownTask):
                raise

    def _start_following(self, task: str) -> None:
        if task not in self._followers and len(self._followers) < self._max_followed:
            self._followers[task] = asyncio.create_task(self._follow(task), name=f"follow {task}")

    async def _follow(self, task: str) -> None:
        pause = MIN_PAUSE
        while True:
            try:
                # A stale task does not wait for the next promotion, so that the first answer ends its staleness.
                await self._fetch((task, None), wait=0.0 if task in self.stale else self._wait)
                pause = MIN_PAUSE
                continue
            except IFedError as refusal:
                self._mark_stale(task, refusal)
                if isinstance(refusal, UnknownTask) and task not in self._configured:
                    del self._followers[task]
                    return
                pause = MIN_PAUSE if isinstance(refusal, NotFound) else min(MAX_PAUSE, 2 * pause)
            except Exception:  # a follower runs as long as the service
                log.exception("adapter refresh failed", task=task)
            await asyncio.sleep(pause)

    async def _retry_stale(self) -> None:
        """Retry stale adapters that have no follower, one after the other, until none is left."""
        await asyncio.sleep(MAX_PAUSE)
        while tasks := [task for task in self.stale if task not in self._followers]:
            for task in tasks:
                try:
                    async with self._fetch_locks.setdefault((task, None), asyncio.Lock()):
                        await self._refresh(task)
                except UnknownTask:
                    continue  # logged by `_mark_stale`
                except Exception:  # retries go on as long as the service runs
                    log.exception("adapter refresh failed", task=task)
            await asyncio.sleep(MAX_PAUSE)

    def _mark_stale(self, task: str, refusal: IFedError) -> None:
        """Record that a refresh failed. A task that no longer exists is evicted.

        A task is stale while its adapter is cached or a setting names it, but not after it was evicted and has not been requested since.
        """
        if task not in self.stale:
            log.warning("adapter refresh failed", task=task, error=type(refusal).__name__, detail=refusal.detail)
        if isinstance(refusal, UnknownTask):
            for key in [key for key in self._entries if key[0] == task]:
                self._evict(key)
        entry = self._entries.get((task, None))
        if entry is None and task not in self._configured:
            self.stale.pop(task, None)
            return
        self.stale[task] = refusal.detail
        self._metrics.mark_stale(task)
        if task not in self._followers and (self._retrying is None or self._retrying.done()):
            self._retrying = asyncio.create_task(self._retry_stale(), name="retry stale adapters")
        if entry is not None:
            entry.fresh_until = monotonic() + STALE_SECONDS

    def _make_room(self, newest: Key) -> None:
        """Evict the least recently used adapters but never the newest. Running requests keep their adapters."""
        self._entries.move_to_end(newest)
        while self.nbytes > self._max_bytes and len(self._entries) > 1:
            oldest = next(iter(self._entries))
            task, version = oldest
            self._evict(oldest)
            if version is None and (follower := self._followers.pop(task, None)) is not None:
                follower.cancel()

    def _evict(self, key: Key) -> None:
        del self._entries[key]
        task, version = key
        if version is None:
            self.stale.pop(task, None)
            self._metrics.remove_version(task)

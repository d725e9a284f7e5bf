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
from services.inference.lookup_limit import LookupLimit
from services.inference.metrics import Metrics

if TYPE_CHECKING:
    from services.inference.model import LoadedAdapter

log = structlog.get_logger(__name__)
FRESH_SECONDS = 0.5  # how long an adapter without a follower is used before the source is asked again
PINNED_SECONDS = 5.0  # how long a pinned version is used before the source is asked whether it may still be served
STALE_SECONDS = 5.0  # how long an adapter is used after a failed refresh
MISSING_SECONDS = 1.0  # how long the source's answer that there is nothing of a name is repeated
MAX_MISSING = 10_000
SHORT_WAIT = 0.1  # of a follower whose adapter is stale; the aggregator counts requests that wait apart from other requests
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


@dataclass(frozen=True, slots=True)
class MissingEntry:
    """The source's answer that there is nothing of a name, and the time on the monotonic clock until which it is repeated."""

    refusal: NotFound
    until: float


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
    the last half second. Either way a promotion is served within a second. When the source cannot be asked, the cached adapter stays in use
    and its task is listed in `stale`; when the source answers that it serves the task or version no longer, the adapter is evicted at once.

    Args:
        source: where adapters are read.
        identity: of the loaded model; adapters of another model are refused.
        load: load an adapter's body onto the model's device.
        wait: seconds of a long poll.
        max_followed: number of long polls; 0 for a source that has none.
        max_bytes: size of the cached tensors; the adapter requested last is always kept.
        lookups_per_minute: how often one caller may in a minute name what is not cached; None for no limit.
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
        lookups_per_minute: int | None = None,
        metrics: Metrics,
    ) -> None:
        self._source, self._identity, self._load, self._metrics = source, identity, load, metrics
        self._wait, self._max_followed, self._max_bytes = wait, max_followed, max_bytes
        self._lookup_limit = LookupLimit(lookups_per_minute)
        self._entries: OrderedDict[Key, CacheEntry] = OrderedDict()
        self._missing: OrderedDict[Key, MissingEntry] = OrderedDict()
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

    async def get(self, task: str, version: int | None = None, *, caller: str | None = None) -> Adapter:
        """Return the promoted adapter of a task, or a pinned version; fetch it unless it is cached and fresh.

        Args:
            caller: for whom it is looked up if it is not cached; None for the service itself, which always asks the source.

        Raises:
            UnknownTask: the source has no such task.
            NothingYet: the task has no adapter to serve, no longer or not yet.
            UnknownVersion: there is no such version.
            Overloaded: the caller has named too much that is not cached.
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
                await (self._look_up(key, caller) if previous is None else self._refresh(key))
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
                self._record_failure((task, None), refusal)

    async def close(self) -> None:
        """Cancel every follower."""
        running = [*self._followers.values(), *(() if self._retrying is None else (self._retrying,))]
        for background_task in running:
            background_task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _is_fresh(self, key: Key) -> bool:
        entry = self._entries.get(key)
        task, version = key
        return entry is not None and ((version is None and task in self._followers) or monotonic() < entry.fresh_until)

    def _use(self, key: Key, previous: CacheEntry | None) -> Adapter:
        """Return the cached adapter and mark it as used; return the previous one if it was evicted meanwhile."""
        if (entry := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
        entry = entry or previous
        assert entry is not None
        return entry.adapter

    async def _look_up(self, key: Key, caller: str | None) -> None:
        """Fetch what is not cached; for a caller, not if the source has just answered that there is nothing of this name."""
        if caller is None:
            await self._fetch(key)
            return
        if (known := self._known_missing(key)) is not None:
            raise type(known)(known.detail)
        self._lookup_limit.count(caller)
        try:
            await self._fetch(key)
        except NotFound as refusal:
            self._remember_missing(key, refusal)
            raise

    def _known_missing(self, key: Key) -> NotFound | None:
        task, _ = key
        for name in (key, (task, None)):
            missing = self._missing.get(name)
            # A task of which nothing is served may have versions; an unknown task has none.
            if missing is not None and monotonic() < missing.until and (name == key or isinstance(missing.refusal, UnknownTask)):
                return missing.refusal
        return None

    def _remember_missing(self, key: Key, refusal: NotFound) -> None:
        key = (key[0], None) if isinstance(refusal, UnknownTask) else key
        self._missing[key] = MissingEntry(refusal, monotonic() + MISSING_SECONDS)
        self._missing.move_to_end(key)
        while len(self._missing) > MAX_MISSING:
            self._missing.popitem(last=False)

    async def _fetch(self, key: Key, *, wait: float = 0.0) -> None:
        """Ask the source; an adapter with another digest replaces the cached one in one step."""
        task, version = key
        entry = self._entries.get(key)
        answer = await self._source.adapter(task, version=version, known=entry.adapter.digest if entry else None, wait=wait)
        fresh_until = monotonic() + (FRESH_SECONDS if version is None else PINNED_SECONDS)
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
        self._missing.pop(key, None)
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

    async def _refresh(self, key: Key) -> None:
        """Refresh a cached adapter. If the source cannot be asked, keep using it, and try again `STALE_SECONDS` later.

        Raises:
            NotFound: the source serves it no longer.
        """
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT):
                await self._fetch(key)
        except TimeoutError:
            self._record_failure(key, IFedError("the source took longer than a second to answer"))
        except IFedError as refusal:
            self._record_failure(key, refusal)
            if isinstance(refusal, NotFound):
                raise

    def _start_following(self, task: str) -> None:
        if task not in self._followers and len(self._followers) < self._max_followed:
            self._followers[task] = asyncio.create_task(self._follow(task), name=f"follow {task}")

    async def _follow(self, task: str) -> None:
        pause = MIN_PAUSE
        while True:
            try:
                # A stale task does not wait for the next promotion, so that the first answer ends its staleness.
                await self._fetch((task, None), wait=SHORT_WAIT if task in self.stale else self._wait)
                pause = MIN_PAUSE
                continue
            except IFedError as refusal:
                self._record_failure((task, None), refusal)
                if isinstance(refusal, NotFound) and task not in self._configured:
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
                        await self._refresh((task, None))
                except NotFound:
                    continue  # logged by `_record_failure`
                except Exception:  # retries go on as long as the service runs
                    log.exception("adapter refresh failed", task=task)
            await asyncio.sleep(MAX_PAUSE)

    def _record_failure(self, key: Key, refusal: IFedError) -> None:
        """Evict an adapter that the source serves no longer, and list a promoted one that could not be refreshed in `stale`.

        A task is stale while its adapter is cached or a setting names it, but not after it was evicted and has not been requested since.
        """
        task, version = key
        if isinstance(refusal, NotFound):
            self._end_serving(key, refusal)
        if (entry := self._entries.get(key)) is not None:
            entry.fresh_until = monotonic() + STALE_SECONDS
        if version is not None:
            log.warning("adapter refresh failed", task=task, pinned=version, error=type(refusal).__name__, detail=refusal.detail)
            return
        if task not in self.stale:
            log.warning("adapter refresh failed", task=task, error=type(refusal).__name__, detail=refusal.detail)
        if entry is None and task not in self._configured:
            self.stale.pop(task, None)
            return
        self.stale[task] = refusal.detail
        self._metrics.mark_stale(task)
        if task not in self._followers and (self._retrying is None or self._retrying.done()):
            self._retrying = asyncio.create_task(self._retry_stale(), name="retry stale adapters")

    def _end_serving(self, key: Key, refusal: NotFound) -> None:
        """Evict what the source serves no longer. Pinned versions of a task without a promoted one are asked for again at their next use."""
        task, version = key
        for other in [other for other in self._entries if other[0] == task]:
            if other == key or isinstance(refusal, UnknownTask):
                self._evict(other)
            elif version is None:
                self._entries[other].fresh_until = 0.0

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

"""KV caches of the prompt prefixes that many rows share, computed once for each injection."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from threading import Lock

import torch

from ifed.modeling.attention import KVCache
from ifed.modeling.batching import Batch, Row
from ifed.modeling.hooks import final_hidden, inject
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel

Tokens = tuple[int, ...]
DEFAULT_MAX_BYTES = 256 * 2**20
MIN_SAVED_TOKENS = 32  # tokens that need not be run again; a pass of its own costs about as much as 10


def before_last_token(injection: Injection | None) -> Injection | None:
    """Return the injection under which the tokens before the last one of a prompt are run: none, if it acts at the last token alone."""
    return None if injection is not None and injection.position == "last_token" else injection


class PrefixCache:
    """KV caches by prefix and injection, dropped together with their injection; thread-safe.

    Args:
        max_bytes: if another KV cache would not fit, all others are dropped.

    Attributes:
        hits: the number of lookups that returned a KV cache.
        misses: the number of KV caches that were computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._lock = max_bytes, Lock()
        self._bare: dict[Tokens, KVCache] = {}
        self._injected: weakref.WeakKeyDictionary[Injection, dict[Tokens, KVCache]] = weakref.WeakKeyDictionary()
        self.hits = self.misses = 0

    @property
    def nbytes(self) -> int:
        """The size of all stored KV caches in bytes."""
        with self._lock:
            return self._size()

    def get(self, ids: Tokens, injection: Injection | None) -> KVCache | None:
        """Return the KV cache of a prefix under an injection, None being the base model."""
        with self._lock:
            kv_cache = self._caches_of(injection).get(ids)
            self.hits += kv_cache is not None
            return kv_cache

    def put(self, ids: Tokens, injection: Injection | None, kv_cache: KVCache) -> None:
        """Store a KV cache that was just computed, unless it is larger than `max_bytes` by itself."""
        with self._lock:
            self.misses += 1
            if kv_cache.nbytes > self._max_bytes:
                return
            if self._size() + kv_cache.nbytes > self._max_bytes:
                self._bare.clear()
                self._injected.clear()
            self._caches_of(injection)[ids] = kv_cache

    def _caches_of(self, injection: Injection | None) -> dict[Tokens, KVCache]:
        return self._bare if injection is None else self._injected.setdefault(injection, {})

    def _size(self) -> int:
        return sum(kv_cache.nbytes for caches in (self._bare, *self._injected.values()) for kv_cache in caches.values())


class PrefixSharing:
    """Replaces the prefix of rows by its KV cache, computing it where that saves time.

    Args:
        persistent: whether it serves call after call, so that a prefix is computed even if only one row needs it now.
        min_length: tokens of the shortest prefix that is replaced; rows after a prefix take a slower kernel than complete ones.
        max_bytes: the size of its own cache. A larger KV cache is used for its rows and not stored.
        cache: the cache to use, if replicas of the model share one; `max_bytes` then has no effect.

    Attributes:
        enabled: whether the model and its options allow it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        persistent: bool = False,
        min_length: int = 1,
        max_bytes: int = DEFAULT_MAX_BYTES,
        cache: PrefixCache | None = None,
    ) -> None:
        self._lm, self._persistent, self._min_length = lm, persistent, min_length
        self.cache = cache or PrefixCache(max_bytes)
        self.enabled = lm.shares_prefixes

    @property
    def nbytes(self) -> int:
        """The size of all stored KV caches in bytes."""
        return self.cache.nbytes

    def remaining_tokens(self, row: Row) -> int:
        """Return how many tokens of a row are run once the KV cache of its prefix is stored."""
        replaced = self.enabled and self._persistent and row.prefix_length >= self._min_length
        return len(row.ids) - (row.prefix_length if replaced else 0)

    def apply(self, rows: Sequence[Row], injections: Sequence[Injection | None]) -> list[Row]:
        """Return the rows, those with a KV cache without their prefix. Call it, and use the result, in inference mode.

        Under an injection at the last token a prefix is that of the base model, so tasks share it.
        """
        if not self.enabled:
            return list(rows)
        injections = [before_last_token(injection) for injection in injections]
        keys = [(id(injection), row.ids[: row.prefix_length]) for row, injection in zip(rows, injections, strict=True)]
        count, current, result = Counter(keys), dict[tuple[int, Tokens], KVCache](), []
        for key, row, injection in zip(keys, rows, injections, strict=True):
            kv_cache = current.get(key) or self.cache.get(key[1], injection)
            saved_tokens = (count[key] - 1) * row.prefix_length
            saves_time = row.prefix_length >= self._min_length and (self._persistent or saved_tokens >= MIN_SAVED_TOKENS)
            if kv_cache is None and saves_time:
                kv_cache = self._compute(key[1], injection)
                self.cache.put(key[1], injection, kv_cache)
            if kv_cache is not None:
                current[key] = kv_cache
            result.append(row if kv_cache is None else row.after(kv_cache))
        return result

    def _compute(self, ids: Tokens, injection: Injection | None) -> KVCache:
        kv_cache = KVCache(len(ids), {}, {})
        batch = Batch.of([Row(ids, ())], layout="packed", device=self._lm.device)
        with torch.inference_mode(), inject(self._lm, injection):
            final_hidden(self._lm, batch, fill=kv_cache)
        return kv_cache

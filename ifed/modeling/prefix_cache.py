"""What the tokens that many rows begin with leave behind, computed once for each injection. Knows no labels and no texts."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from threading import Lock

import torch

from ifed.modeling.attention import Prefix
from ifed.modeling.batching import Batch, Row
from ifed.modeling.hooks import final_hidden, inject
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel

LIMIT = 256 * 2**20
LEAST_SAVED = 32  # tokens that need not be run again; a pass of its own costs about as much as 10
Tokens = tuple[int, ...]


class PrefixCache:
    """Prefixes by the injection they were run under, gone with it. Any thread may look, keep and count.

    Attributes:
        hits: times that a batch found a prefix kept.
        misses: prefixes that had to be run.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, Lock()
        self._bare: dict[Tokens, Prefix] = {}
        self._injected: weakref.WeakKeyDictionary[Injection, dict[Tokens, Prefix]] = weakref.WeakKeyDictionary()
        self.hits = self.misses = 0

    @property
    def nbytes(self) -> int:
        """What is kept now."""
        with self._lock:
            return self._size()

    def find(self, ids: Tokens, injection: Injection | None) -> Prefix | None:
        with self._lock:
            found = self._of(injection).get(ids)
            self.hits += found is not None
            return found

    def keep(self, ids: Tokens, injection: Injection | None, prefix: Prefix) -> None:
        """Keep a prefix that was just run, unless it is larger than the limit by itself; beyond the limit all others are forgotten."""
        with self._lock:
            self.misses += 1
            if prefix.nbytes > self._limit:
                return
            if self._size() + prefix.nbytes > self._limit:
                self._bare.clear()
                self._injected.clear()
            self._of(injection)[ids] = prefix

    def _of(self, injection: Injection | None) -> dict[Tokens, Prefix]:
        return self._bare if injection is None else self._injected.setdefault(injection, {})

    def _size(self) -> int:
        return sum(prefix.nbytes for kept in (self._bare, *self._injected.values()) for prefix in kept.values())


class Prefixes:
    """Cuts off rows what was run before, or runs it.

    Args:
        lasting: it serves call after call, so that a prefix pays though only one row needs it now.
        least: tokens of the shortest prefix that is cut off; rows after a prefix take a slower kernel than whole ones.
        limit: bytes that are kept; beyond, all are forgotten. A prefix that is larger by itself is used and not kept.
        kept: what is kept, where twins of the model share it; its own limit counts.
    """

    def __init__(
        self, lm: LanguageModel, *, lasting: bool = False, least: int = 1, limit: int = LIMIT, kept: PrefixCache | None = None
    ) -> None:
        self._lm, self._lasting, self._least = lm, lasting, least
        self.kept = kept or PrefixCache(limit)
        self.used = lm.options.share_prefix and lm.by_rows

    @property
    def nbytes(self) -> int:
        """What is kept now."""
        return self.kept.nbytes

    def left(self, row: Row) -> int:
        """Tokens of a row that are run once its prefix is there."""
        return len(row.ids) - (row.shared if self.used and self._lasting and row.shared >= self._least else 0)

    def cut(self, rows: Sequence[Row], injections: Sequence[Injection | None]) -> list[Row]:
        """The rows, those without their shared tokens for which that pays. To be called, and the result used, in inference mode."""
        if not self.used:
            return list(rows)
        keys = [(id(injection), row.ids[: row.shared]) for row, injection in zip(rows, injections, strict=True)]
        count, now, found = Counter(keys), dict[tuple[int, Tokens], Prefix](), []
        for key, row, injection in zip(keys, rows, injections, strict=True):
            prefix = now.get(key) or self.kept.find(key[1], injection)
            pays = row.shared >= self._least and (self._lasting or (count[key] - 1) * row.shared >= LEAST_SAVED)
            if prefix is None and pays:
                prefix = self._run(key[1], injection)
                self.kept.keep(key[1], injection, prefix)
            if prefix is not None:
                now[key] = prefix
            found.append(row if prefix is None else row.after(prefix))
        return found

    def _run(self, ids: Tokens, injection: Injection | None) -> Prefix:
        prefix = Prefix(len(ids), {}, {})
        batch = Batch.of([Row(ids, ())], layout="packed", device=self._lm.device)
        with torch.inference_mode(), inject(self._lm, injection):
            final_hidden(self._lm, batch, keep=prefix)
        return prefix

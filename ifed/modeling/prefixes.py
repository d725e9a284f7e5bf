"""What the tokens that many rows begin with leave behind, computed once for each injection. Knows no labels and no texts."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence

import torch

from ifed.modeling.attention import Prefix
from ifed.modeling.batching import Batch, Row
from ifed.modeling.hooks import final_hidden, inject
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel

LIMIT = 256 * 2**20
LEAST_SAVED = 32  # tokens that need not be run again; a pass of its own costs about as much as 10


class Prefixes:
    """Prefixes of rows, each with the injection it was run under.

    Args:
        lasting: it serves call after call, so that a prefix pays though only one row needs it now.
        least: tokens of the shortest prefix that is cut off; rows after a prefix take a slower kernel than whole ones.
        limit: bytes that are kept; beyond, all are forgotten. A prefix that is larger by itself is used and not kept.
    """

    def __init__(self, lm: LanguageModel, *, lasting: bool = False, least: int = 1, limit: int = LIMIT) -> None:
        self._lm, self._lasting, self._least, self._limit = lm, lasting, least, limit
        self.used = lm.options.share_prefix and lm.by_rows
        self._bare: dict[tuple[int, ...], Prefix] = {}
        self._kept: weakref.WeakKeyDictionary[Injection, dict[tuple[int, ...], Prefix]] = weakref.WeakKeyDictionary()

    @property
    def nbytes(self) -> int:
        """What is kept now."""
        return sum(prefix.nbytes for kept in (self._bare, *self._kept.values()) for prefix in kept.values())

    def cut(self, rows: Sequence[Row], injections: Sequence[Injection | None]) -> list[Row]:
        """The rows, those without their shared tokens for which that pays. To be called, and the result used, in inference mode."""
        if not self.used:
            return list(rows)
        keys = [(id(injection), row.ids[: row.shared]) for row, injection in zip(rows, injections, strict=True)]
        count, now, found = Counter(keys), dict[tuple[int, tuple[int, ...]], Prefix](), []
        for key, row, injection in zip(keys, rows, injections, strict=True):
            prefix = now.get(key) or self._of(injection).get(key[1])
            pays = row.shared >= self._least and (self._lasting or (count[key] - 1) * row.shared >= LEAST_SAVED)
            if prefix is None and pays:
                prefix = self._run(key[1], injection)
                self._keep(key[1], injection, prefix)
            if prefix is not None:
                now[key] = prefix
            found.append(row if prefix is None else row.after(prefix))
        return found

    def _of(self, injection: Injection | None) -> dict[tuple[int, ...], Prefix]:
        return self._bare if injection is None else self._kept.setdefault(injection, {})

    def _keep(self, ids: tuple[int, ...], injection: Injection | None, prefix: Prefix) -> None:
        if prefix.nbytes > self._limit:
            return
        if self.nbytes + prefix.nbytes > self._limit:
            self._bare.clear()
            self._kept.clear()
        self._of(injection)[ids] = prefix

    def _run(self, ids: tuple[int, ...], injection: Injection | None) -> Prefix:
        prefix = Prefix(len(ids), {}, {})
        batch = Batch.of([Row(ids, ())], layout="packed", device=self._lm.device)
        with torch.inference_mode(), inject(self._lm, injection):
            final_hidden(self._lm, batch, keep=prefix)
        return prefix

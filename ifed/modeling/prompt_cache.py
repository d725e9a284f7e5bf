"""What an injection at the last token leaves unchanged, computed once: keys and values of every token before it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ifed.modeling.attention import KVCache
from ifed.modeling.batching import Batch, Row, group_by_budget, run_with_halving
from ifed.modeling.hooks import layer_inputs_and_kv, replay
from ifed.modeling.language_model import LanguageModel

Tokens = tuple[int, ...]
LARGEST_HALF = float(torch.finfo(torch.float16).max)


class PromptCache:
    """Keys and values of the prompts of a fixed set of rows, and the hidden states that enter the first injected layer after them.

    Of each row that is everything before its first output position, the last token of its prompt. A pass then runs that token and the
    label tokens after it alone, in the injected layers. Everything is computed at the first use, with the base model. Rows that begin with
    the same prompt share its keys and values.

    Args:
        first_layer: the first injected layer.
        max_bytes: memory for the cache. A larger one is kept in 16 bits, and on disk if that is still too large.
        token_budget: tokens of one forward pass; the model's own by default.
        folder: on the disk that takes a cache which is too large; the system's temporary folder by default. The file has no name there.

    Attributes:
        enabled: whether the model supports it: a family whose attention is computed row by row.
    """

    def __init__(
        self,
        lm: LanguageModel,
        first_layer: int,
        rows: Sequence[Row],
        *,
        max_bytes: int,
        token_budget: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self._lm, self._first_layer, self._rows = lm, first_layer, rows
        self._max_bytes, self._token_budget, self._folder = max_bytes, token_budget or lm.token_budget, folder
        self.enabled = bool(rows) and lm.row_attention
        self._hidden: list[Tensor] = []
        self._caches: dict[Tokens, KVCache] = {}
        self._store: _Store | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the keys and values are in a file."""
        return self._store is not None and self._store.on_disk

    def is_of(self, first_layer: int, rows: Sequence[Row]) -> bool:
        """Return whether these rows, under an injection from `first_layer` on, have the same tokens and output positions."""
        own = [(row.ids, row.output_positions) for row in self._rows]
        return first_layer == self._first_layer and own == [(row.ids, row.output_positions) for row in rows]

    def row(self, index: int) -> Row:
        """Return the row from the last token of its prompt on, after the keys and values of the rest."""
        self.fill()
        row = self._rows[index]
        end = row.prompt_end
        positions = tuple(position - end for position in row.output_positions)
        return Row(row.ids[end:], positions, kv_cache=self._loaded(self._caches[row.ids[:end]]) if end else None)

    @contextlib.contextmanager
    def replayed(self, batch: Batch, indices: Sequence[int]) -> Iterator[None]:
        """Within the block, replay the lower layers for `batch`, which holds `row(index)` for these indices."""
        if not self.enabled or self._first_layer == 0:
            yield
            return
        self.fill()
        hidden = batch.arrange([self._hidden[index] for index in indices])
        with replay(self._lm, self._first_layer, hidden.to(self._lm.device)):
            yield

    def fill(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compute everything, unless that has been done.

        Args:
            progress: called after each batch with the rows done and the rows in all.
        """
        if self._hidden:
            return
        first_with: dict[Tokens, int] = {}
        for index, row in enumerate(self._rows):
            first_with.setdefault(row.ids[: row.prompt_end], index)
        tokens = sum(map(len, first_with))
        hidden: dict[int, Tensor] = {}

        def run(group: list[int]) -> None:
            batch = Batch.of([self._rows[index] for index in group], layout="packed", device=self._lm.device)
            states, kv_cache = layer_inputs_and_kv(self._lm, self._first_layer, batch)
            start = 0
            for index, row_states in zip(group, batch.split(states), strict=True):
                row = self._rows[index]
                prompt = row.ids[: row.prompt_end]
                hidden[index] = row_states[row.prompt_end :].cpu().clone()
                if prompt and first_with[prompt] == index:
                    self._store = self._store or _Store(kv_cache, tokens, self._max_bytes, self._folder)
                    self._caches[prompt] = self._store.add(kv_cache, start, len(prompt))
                start += len(row.ids)
            if progress is not None:
                progress(len(hidden), len(self._rows))

        # Not inference mode, even if called from it: the cached tensors enter backward passes later.
        with torch.inference_mode(False), torch.no_grad():
            for group in group_by_budget([len(row.ids) for row in self._rows], self._token_budget, "packed"):
                run_with_halving(group, run)
        self._hidden = [hidden[index] for index in range(len(self._rows))]

    def _loaded(self, kv_cache: KVCache) -> KVCache:
        """Return keys and values on the model's device and in its dtype."""
        if self._store is not None and not self._store.converted:
            return kv_cache
        keys, values = (
            {layer: tensor.to(self._lm.device, self._lm.dtype) for layer, tensor in tensors.items()}
            for tensors in (kv_cache.keys, kv_cache.values)
        )
        return KVCache(kv_cache.length, keys, values)


class _Store:
    """Memory, or a file, for the keys and values of a known number of tokens.

    Args:
        example: keys and values of any tokens, for their shapes, dtype and device.
        tokens: of all prompts together.
        max_bytes: more than that is kept in 16 bits, and if that is still too much in a file.
        folder: on the disk for the file; the system's temporary folder by default.

    Attributes:
        converted: whether the tensors are of another dtype or on another device than the model's.
    """

    def __init__(self, example: KVCache, tokens: int, max_bytes: int, folder: Path | None) -> None:
        tensors = [*example.keys.values(), *example.values.values()]
        numbers = tokens * sum(tensor.numel() // tensor.shape[2] for tensor in tensors)
        full, half = (numbers * dtype.itemsize for dtype in (tensors[0].dtype, torch.float16))
        fits = full <= max_bytes
        self._dtype = tensors[0].dtype if fits or tensors[0].dtype.itemsize == 2 else torch.float16
        self._buffer: Tensor | None = None
        self._used = 0
        self.on_disk = min(full, half) > max_bytes
        if self.on_disk:
            # Only its owner may enter the folder. The mapping outlives the file's name, so that no crash leaves private data behind.
            with tempfile.TemporaryDirectory(prefix="prompt-cache-", dir=folder) as private:
                path = str(Path(private) / "keys-and-values")
                self._buffer = torch.from_file(path, shared=True, size=numbers, dtype=self._dtype)
        self.converted = self._dtype != tensors[0].dtype or (self.on_disk and tensors[0].device.type != "cpu")

    def add(self, batch_cache: KVCache, start: int, length: int) -> KVCache:
        """Store the keys and values of `length` tokens of a batch, from token `start` on."""
        keys, values = (
            {layer: self._stored(tensor[:, :, start : start + length]) for layer, tensor in tensors.items()}
            for tensors in (batch_cache.keys, batch_cache.values)
        )
        return KVCache(length, keys, values)

    def _stored(self, tensor: Tensor) -> Tensor:
        if self._dtype == torch.float16 != tensor.dtype:
            tensor = tensor.clamp(-LARGEST_HALF, LARGEST_HALF)
        if self._buffer is None:
            return tensor.to(self._dtype, copy=True)
        place = self._buffer[self._used : self._used + tensor.numel()].view(tensor.shape)
        self._used += tensor.numel()
        return place.copy_(tensor)

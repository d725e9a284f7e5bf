"""The identity of a model: one sha256 over weights, configuration and tokenizer. Knows no forward pass.

Two folders have one fingerprint exactly when they hold the same numbers: how the tensors are spread over files, where the folder is
and what dtype the forward pass runs in do not enter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CACHE_FILE = ".ifed-fingerprint.json"
SCHEME = 1  # raise it when the way of computing changes: what was kept is then computed anew
WATCHED = (
    "*.safetensors",
    "config.json",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
UNIMPORTANT = frozenset({"dtype", "torch_dtype", "transformers_version", "use_cache", "architectures", "name_or_path"})
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def fingerprint_of_folder(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The fingerprint of a folder of safetensors, in hexadecimal.

    Hashing reads every byte, so the result is kept beside the files and used again while their sizes and times stay the same;
    in a folder that cannot be written it is computed each time.
    """
    stamp = _stamp(folder)
    if (known := _recall(folder, stamp)) is not None:
        return known
    digest = hashlib.sha256()
    shards = {name: (path, entry) for path in sorted(folder.glob("*.safetensors")) for name, entry in _entries(path)}
    for name, (path, entry) in sorted(shards.items()):
        _add_header(digest, name, entry["dtype"], entry["shape"])
        _add_bytes(digest, path, *entry["span"])
    _add_rest(digest, config, tokenizer)
    _keep(folder, stamp, digest.hexdigest())
    return digest.hexdigest()


def fingerprint_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The fingerprint of a model in memory: what its folder would have if it were saved as it is."""
    digest = hashlib.sha256()
    seen: set[int] = set()
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    tensors = model.state_dict()
    for name in sorted(tensors, key=lambda name: (name in tied, name)):
        tensors[name] = tensors[name].detach().cpu().contiguous()
        if tensors[name].data_ptr() in seen:
            del tensors[name]  # a second name for tied weights, which a saved file does not have either
        else:
            seen.add(tensors[name].data_ptr())
    for name, tensor in sorted(tensors.items()):
        _add_header(digest, name, DTYPES[tensor.dtype], list(tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    _add_rest(digest, model.config, tokenizer)
    return digest.hexdigest()


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and header entry of every tensor in one safetensors file, `span` being its bytes in the file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, {**entry, "span": (8 + size + begin, 8 + size + end)}


def _add_header(digest: hashlib._Hash, name: str, dtype: str, shape: list[int]) -> None:
    digest.update(json.dumps([name, dtype, shape]).encode())


def _add_bytes(digest: hashlib._Hash, path: Path, begin: int, end: int) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        digest.update(view[begin:end])


def _add_rest(digest: hashlib._Hash, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    for identity in (config_identity(config), tokenizer_identity(tokenizer)):
        digest.update(json.dumps(identity, sort_keys=True, default=str).encode())


def config_identity(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says beyond its class's defaults, so that a default added by a later release changes nothing."""
    defaults = type(config)().to_dict()
    told = {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith("_") and key not in UNIMPORTANT and (key not in defaults or defaults[key] != value)
    }
    return {**told, "model_type": config.model_type}


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer's own serialisation, without the padding and truncation that a call leaves behind in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    told.pop("padding", None)
    told.pop("truncation", None)
    return told


def _stamp(folder: Path) -> dict[str, Any]:
    files = {path.name: path.stat() for pattern in WATCHED for path in folder.glob(pattern)}
    return {"scheme": SCHEME, "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(files.items())}}


def _recall(folder: Path, stamp: dict[str, Any]) -> str | None:
    try:
        kept = json.loads((folder / CACHE_FILE).read_text())
        return str(kept["fingerprint"]) if kept["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: Path, stamp: dict[str, Any], fingerprint: str) -> None:
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=folder, prefix=f"{CACHE_FILE}-") as scratch:
        made = Path(scratch) / "made"
        made.write_text(json.dumps({"stamp": stamp, "fingerprint": fingerprint}))
        made.replace(folder / CACHE_FILE)

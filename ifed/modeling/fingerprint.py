"""The fingerprint of a model: one sha256 over weights, configuration and tokenizer.

Two folders have the same fingerprint exactly if transformers loads the same numbers from them: files beside the weights do not count, and neither the sharding of the tensors over files, nor the path
of the folder, nor the dtype of the forward pass matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ifed.modeling.weight_files import StoredTensor, stored_tensors

CACHE_FILE = ".ifed-fingerprint.json"
SCHEME = 2  # increment it when the computation changes, so that cached fingerprints are computed again
HASHED_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
IGNORED_CONFIG_KEYS = frozenset({"dtype", "torch_dtype", "transformers_version", "use_cache", "architectures", "name_or_path"})
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
    """Return the fingerprint of a folder of safetensors, in hexadecimal.

    Hashing reads every byte, so the result is cached beside the files and reused while their sizes and modification times stay the same; in a
    folder that is not writable it is computed each time.

    Raises:
        UnknownModel: a file of the weights is missing or damaged.
    """
    tensors = stored_tensors(folder)
    stamp = _stamp(folder)
    if (cached := _read_cached(folder, stamp)) is not None:
        return cached
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        _add_header(digest, name, tensor.dtype, tensor.shape)
        _add_bytes(digest, tensor)
    _add_identities(digest, config, tokenizer)
    _write_cached(folder, stamp, digest.hexdigest())
    return digest.hexdigest()


def fingerprint_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the fingerprint of a model in memory, equal to that of the folder it would be saved to."""
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
    _add_identities(digest, model.config, tokenizer)
    return digest.hexdigest()


def _add_header(digest: hashlib._Hash, name: str, dtype: str, shape: list[int]) -> None:
    digest.update(json.dumps([name, dtype, shape]).encode())


def _add_bytes(digest: hashlib._Hash, tensor: StoredTensor) -> None:
    with (
        tensor.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        digest.update(view[tensor.begin : tensor.end])


def _add_identities(digest: hashlib._Hash, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    for identity in (config_identity(config), tokenizer_identity(tokenizer)):
        digest.update(json.dumps(identity, sort_keys=True, default=str).encode())


def config_identity(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults of their class, so that a default added by a later release changes nothing."""
    defaults = type(config)().to_dict()
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith("_") and key not in IGNORED_CONFIG_KEYS and (key not in defaults or defaults[key] != value)
    }
    return {**settings, "model_type": config.model_type}


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the tokenizer's own serialisation, without the padding and truncation state that a call leaves in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    serialised: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    serialised.pop("padding", None)
    serialised.pop("truncation", None)
    return serialised


def _stamp(folder: Path) -> dict[str, Any]:
    """Return the sizes and modification times that a cached fingerprint is checked against."""
    files = {path.name: path.stat() for pattern in HASHED_FILES for path in folder.glob(pattern)}
    return {"scheme": SCHEME, "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(files.items())}}


def _read_cached(folder: Path, stamp: dict[str, Any]) -> str | None:
    try:
        cached = json.loads((folder / CACHE_FILE).read_text())
        return str(cached["fingerprint"]) if cached["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cached(folder: Path, stamp: dict[str, Any], fingerprint: str) -> None:
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=folder, prefix=f"{CACHE_FILE}-") as scratch:
        file = Path(scratch) / CACHE_FILE
        file.write_text(json.dumps({"stamp": stamp, "fingerprint": fingerprint}))
        file.replace(folder / CACHE_FILE)

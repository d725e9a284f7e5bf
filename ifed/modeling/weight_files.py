"""The safetensors files of a model's folder that transformers reads, checked before anything loads them.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifed.errors import UnknownModel

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/"
LENGTH_BYTES = 8  # of a safetensors file, in front of its header
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # never run code that comes with a model
NAMED = 3  # tensors or files that a refusal names


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, and the span of its bytes there."""

    path: Path
    dtype: str
    shape: list[int]
    begin: int
    end: int


def weight_files(folder: Path) -> list[Path]:
    """Return the files whose tensors `from_pretrained(folder, use_safetensors=True)` loads: all of them, and no other file's.

    Raises:
        UnknownModel: the folder holds no such files, one that it names is missing, or a file stands for another one that was not fetched.
    """
    if (folder / "adapter_config.json").is_file():
        raise UnknownModel(
            f"{folder} holds a LoRA adapter (adapter_config.json), which would be added to the weights without a word; "
            "merge it into the model, or move it away"
        )
    _refuse_pointers(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UnknownModel(f"{folder} holds no safetensors: neither {WEIGHTS} nor {INDEX}; convert the model first")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise UnknownModel(f"{folder / INDEX} is not an index of safetensors; fetch it again") from reason
    if missing := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
        raise UnknownModel(f"{folder} lacks {some_of(missing)}, which {INDEX} names; fetch the model again")
    return [folder / name for name in names]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of `weight_files` by name, from the headers of the files.

    Raises:
        UnknownModel: as `weight_files`; or a file is cut off or damaged, or two files hold a tensor of one name.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for name, tensor in _header_of(path):
            if name in tensors:
                raise UnknownModel(f"{path.name} and {tensors[name].path.name} in {folder} both hold the tensor {name}; remove one")
            tensors[name] = tensor
    return tensors


def require_all_tensors(source: Path, info: dict[str, Any]) -> None:
    """Refuse a model of which a tensor was not in its files, since it would be random, or that has not used one of them.

    Args:
        info: what `from_pretrained(…, output_loading_info=True)` returns beside the model.

    Raises:
        UnknownModel: names the first of the tensors.
    """
    if missing := [str(name) for name in info["missing_keys"]]:
        raise UnknownModel(
            f"{source} lacks {len(missing)} of the model's tensors, which would be random: {some_of(missing)}; "
            "take a checkpoint of the whole causal language model"
        )
    if unexpected := [str(name) for name in info["unexpected_keys"]]:
        raise UnknownModel(
            f"{source} holds {len(unexpected)} tensors that the model does not use: {some_of(unexpected)}; "
            "take a checkpoint of the causal language model alone"
        )


def some_of(names: list[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def _refuse_pointers(folder: Path) -> None:
    pointers = [path.name for path in folder.iterdir() if path.is_file() and _is_pointer(path)]
    if pointers:
        raise UnknownModel(
            f"{some_of(pointers)} in {folder} is a git-lfs pointer, a few lines in place of the file; run `git lfs pull` there, "
            "or fetch the model again"
        )


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _header_of(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors that the header of a safetensors file names; the file is exactly as long as its header says."""
    size = path.stat().st_size
    damaged = UnknownModel(f"{path} is cut off or damaged, or no safetensors file ({size} bytes); fetch it again")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > size - LENGTH_BYTES:
            raise damaged
        content = file.read(length)
    start = LENGTH_BYTES + length
    try:
        header: dict[str, Any] = json.loads(content)
        header.pop("__metadata__", None)
        tensors = {
            name: StoredTensor(path, entry["dtype"], entry["shape"], *(start + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as reason:
        raise damaged from reason
    if max((tensor.end for tensor in tensors.values()), default=start) != size:
        raise damaged
    yield from tensors.items()

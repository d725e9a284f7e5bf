"""The fingerprint of a model: the same for the same numbers, cached beside the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ifed.modeling.fingerprint import CACHE_FILE, fingerprint_of_model
from ifed.modeling.language_model import quiet
from ifed.modeling.loading import load, wrap
from testing.random_models import FAMILY_NAMES, build_model, build_tokenizer


def save(folder: Path, family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    with quiet():
        build_model(family, seed=seed, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
        build_tokenizer().save_pretrained(folder)
    return folder


def identity(folder: Path, cache: Path, **how: str) -> str:
    return load(str(folder), cache=cache, dtype="float32", **how).fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_model_has_the_fingerprint_it_had_in_memory(family: str, tmp_path: Path) -> None:
    loaded = load(str(save(tmp_path / "model", family)), cache=tmp_path, dtype="float32")
    assert wrap(build_model(family), loaded.tokenizer).fingerprint == loaded.fingerprint


def test_the_fingerprint_depends_on_neither_sharding_nor_path_nor_compute_dtype(tmp_path: Path) -> None:
    expected = identity(save(tmp_path / "a"), tmp_path)
    sharded = save(tmp_path / "elsewhere" / "b", shard="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert identity(sharded, tmp_path) == expected
    assert load(str(sharded), cache=tmp_path, dtype="bfloat16").fingerprint == expected


def test_other_weights_dtype_configuration_or_tokenizer_are_another_fingerprint(tmp_path: Path) -> None:
    fingerprints = {identity(save(tmp_path / "a"), tmp_path)}
    fingerprints.add(identity(save(tmp_path / "b", seed=1), tmp_path))
    fingerprints.add(identity(save(tmp_path / "c", dtype=torch.bfloat16), tmp_path))
    config = json.loads((save(tmp_path / "d") / "config.json").read_text())
    (tmp_path / "d" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    fingerprints.add(identity(tmp_path / "d", tmp_path))
    tokenizer = json.loads((save(tmp_path / "e") / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "e" / "tokenizer.json").write_text(json.dumps(tokenizer))
    fingerprints.add(identity(tmp_path / "e", tmp_path))
    assert len(fingerprints) == 5


def test_the_fingerprint_ignores_the_state_a_call_leaves_in_the_tokenizer() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    before = fingerprint_of_model(model, tokenizer)
    tokenizer.pad_token = "<pad>"
    tokenizer(["a", "good film"], padding=True, truncation=True, max_length=8)
    assert fingerprint_of_model(model, tokenizer) == before


def test_the_fingerprint_is_cached_beside_the_files_until_they_change(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    first = identity(folder, tmp_path)
    cached = json.loads((folder / CACHE_FILE).read_text())
    assert cached["fingerprint"] == first
    (folder / CACHE_FILE).write_text(json.dumps(cached | {"fingerprint": "cached"}))
    assert identity(folder, tmp_path) == "cached"
    save(folder, seed=1)
    assert identity(folder, tmp_path) not in {first, "cached"}


def test_a_read_only_folder_has_a_fingerprint_and_no_leftover_files(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (folder / CACHE_FILE).mkdir()  # in the way of the file, and of root too, who may write everywhere
    before = sorted(path.name for path in folder.iterdir())
    assert len(identity(folder, tmp_path)) == 64
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_damaged_cached_fingerprint_is_ignored(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    first = identity(folder, tmp_path)
    (folder / CACHE_FILE).write_text("[]")
    assert identity(folder, tmp_path) == first

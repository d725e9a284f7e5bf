"""A model is loaded from its own files, all of them, or refused in a sentence that names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ifed.errors import UnknownModel
from ifed.modeling.gguf import convert
from ifed.modeling.loading import load
from testing.random_models import HIDDEN, save_model
from tests.unit.modeling.test_gguf import write_gguf

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model."""
    return save_model("llama", tmp_path_factory.mktemp("saved") / "model")


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def without_head(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"})


def with_a_classifier(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {**tensors, "score.weight": torch.zeros(3, HIDDEN)})


def with_another_prefix(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {f"base.{name}": tensor for name, tensor in tensors.items()})


def with_nan(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors | {"model.norm.weight": torch.full((HIDDEN,), torch.nan)})


def with_weights_in_a_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    save_file({"x": torch.zeros(2)}, folder / "other.safetensors")


def with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def with_a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)


def with_a_pointer_for_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(POINTER)


def cut_off(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def of_another_kind(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((16).to_bytes(8, "little") + b'["no", "header"]')


def without_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


def with_weights_elsewhere(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without_head, r"lacks 1 of the model's tensors, which would be random: lm_head\.weight"),
        (with_a_classifier, r"holds 1 tensors that the model does not use: score\.weight"),
        (with_another_prefix, r"lacks \d+ of the model's tensors, .*and \d+ more"),
        (with_nan, r"model\.norm\.weight .* not finite"),
        (with_weights_in_a_bin, r"holds no safetensors"),
        (with_an_adapter, r"holds a LoRA adapter"),
        (with_a_pointer, r"model\.safetensors in .* is a git-lfs pointer.*git lfs pull"),
        (with_a_pointer_for_a_tokenizer, r"tokenizer\.json in .* is a git-lfs pointer"),
        (cut_off, r"model\.safetensors is cut off or damaged"),
        (of_another_kind, r"model\.safetensors is cut off or damaged"),
        (without_a_shard, r"lacks model-1\.safetensors"),
        (with_weights_elsewhere, r"transformers_weights"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(damage: Callable[[Path], None], sentence: str, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(UnknownModel, match=sentence):
        load(str(folder), cache=tmp_path, device="cpu", dtype="float32")


def test_weights_that_overflow_in_a_dtype_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    change_tensors(folder, lambda tensors: tensors | {"model.norm.weight": torch.full((HIDDEN,), 1e6)})
    load(str(folder), cache=tmp_path, device="cpu", dtype="float32")
    with pytest.raises(UnknownModel, match="not finite in float16"):
        load(str(folder), cache=tmp_path, device="cpu", dtype="float16")


def test_code_that_comes_with_a_model_is_not_run(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    for file, classes in (
        ("config.json", {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", "own.Own"]}),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {"auto_map": classes}))
    lm = load(str(folder), cache=tmp_path, device="cpu", dtype="float32")
    assert type(lm.model).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_files_beside_the_weights_are_no_part_of_the_fingerprint(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    save_file({"x": torch.zeros(2)}, folder / "consolidated.safetensors")
    load_path = {"cache": tmp_path, "device": "cpu", "dtype": "float32"}
    assert load(str(folder), **load_path).fingerprint == load(str(saved), **load_path).fingerprint  # type: ignore[arg-type]


def test_a_gguf_file_that_lacks_a_tensor_is_not_converted(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf")
    content = (tmp_path / "small.gguf").read_bytes().replace(b"blk.0.ffn_up.weight", b"blk.7.ffn_up.weight")
    (tmp_path / "small.gguf").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnknownModel, match=r"lacks 1 of the model's tensors"):
        convert(tmp_path / "small.gguf", tmp_path / "out")

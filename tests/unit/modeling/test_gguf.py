"""A small GGUF file, written here, becomes a folder that loads."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ifed.modeling.gguf import convert
from ifed.modeling.loading import load
from testing.random_models import build_tokenizer

WIDTH, INNER, HEADS = 32, 64, 4


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one layer with the tests' vocabulary; its tensors by GGUF name."""
    tokenizer = json.loads(build_tokenizer().backend_tokenizer.to_str())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,), "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    generator = np.random.default_rng(0)
    tensors = {f"{name}.weight": generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_a_folder_that_loads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = write_gguf(tmp_path / "small.gguf")
    original = gguf.GGUFReader
    convert(tmp_path / "small.gguf", tmp_path / "made")
    assert gguf.GGUFReader is original, "the reader of the library is put back"
    assert capfd.readouterr() == ("", "")
    weights = load_file(tmp_path / "made" / "model.safetensors")
    embedding = torch.tensor(tensors["token_embd.weight"]).bfloat16()
    assert torch.equal(weights["model.embed_tokens.weight"], embedding)
    lm = load(str(tmp_path / "made"), cache=tmp_path)
    assert (lm.family.name, lm.num_layers, lm.hidden_size) == ("llama", 1, WIDTH)
    words = "the film was good"
    assert lm.tokenizer(words, add_special_tokens=False).input_ids == build_tokenizer()(words, add_special_tokens=False).input_ids


def test_converting_twice_gives_one_fingerprint(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf")
    for name in ("one", "other"):
        convert(tmp_path / "small.gguf", tmp_path / name)
    fingerprint, other = (load(str(tmp_path / name), cache=tmp_path).fingerprint for name in ("one", "other"))
    assert fingerprint == other

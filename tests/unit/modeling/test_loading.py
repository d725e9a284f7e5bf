"""Models loaded from a folder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ifed.errors import UnknownModel, UnsupportedFamily
from ifed.modeling.language_model import quiet
from ifed.modeling.loading import load
from testing.random_models import CODE_PATHS, HIDDEN, LAYERS, POSITIONS, build_model, build_tokenizer


def save(folder: Path, family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    with quiet():
        build_model(family, seed=seed, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
        build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", CODE_PATHS)
def test_a_folder_is_loaded_frozen_and_ready(family: str, tmp_path: Path) -> None:
    lm = load(str(save(tmp_path / "model", family)), cache=tmp_path, dtype="float32")
    assert (lm.family.name, lm.num_layers, lm.hidden_size, lm.max_tokens) == (family, LAYERS, HIDDEN, POSITIONS)
    assert (lm.device.type, lm.dtype) == ("cpu", torch.float32)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.tokenizer.padding_side == "right"
    assert lm.tokenizer.pad_token is not None


def test_a_number_of_threads_is_set(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    load(str(save(tmp_path / "model")), cache=tmp_path, threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_the_default_dtype_follows_the_processor(tmp_path: Path) -> None:
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


def test_a_folder_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(UnknownModel):
        load(str(folder), cache=tmp_path)


def test_quiet_restores_the_verbosity() -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    with quiet():
        assert transformers_logging.get_verbosity() == logging.ERROR
    assert transformers_logging.get_verbosity() == before

"""A model by name into memory: device, dtype, threads, identity. Knows nothing of what is done with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ifed.errors import UnknownModel
from ifed.modeling.catalog import prepare
from ifed.modeling.families import family_of, refuse_unknown
from ifed.modeling.fingerprint import fingerprint_of_folder
from ifed.modeling.language_model import LanguageModel, Options, quiet, wrap
from ifed.modeling.optimizations import apply

__all__ = ["LanguageModel", "Options", "load", "wrap"]

DType = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str,
    *,
    cache: Path,
    device: str = "auto",
    dtype: DType = "auto",
    threads: int | None = None,
    options: Options = Options(),
    announce: Callable[[str], None] = lambda _: None,
) -> LanguageModel:
    """The model `name` (catalogue name, folder or Hugging Face id), frozen, on its device.

    Args:
        cache: where downloads and converted models are kept.
        device: as torch names it; `auto` is CUDA where there is one, else the CPU.
        dtype: of the forward pass; `auto` is bfloat16 on CUDA and on CPUs that compute in it, else float32.
        threads: CPU threads torch may use, in the whole process; torch's own choice when not set.
        options: ways to run it faster, or in less memory.
        announce: told in a sentence what takes time.

    Raises:
        UnknownModel: no such model, or an option that needs what is not installed.
        DownloadFailed: a part of a catalogue model could not be fetched.
        UnsupportedFamily: an architecture whose residual stream we do not know.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder = prepare(name, cache=cache, announce=announce)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            refuse_unknown(str(config.model_type))
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            fingerprint = fingerprint_of_folder(folder, config, tokenizer)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(dtype, place), local_files_only=True)
            nn.Module.to(model, place)  # the wrapper around PreTrainedModel.to hides its signature
    except (OSError, ValueError, StrictDataclassError) as reason:
        raise UnknownModel(f"{folder} does not hold a model and tokenizer that transformers can read ({reason})") from reason
    apply(options, model.requires_grad_(False), family_of(model))
    return wrap(model, tokenizer, name=name, fingerprint=fingerprint, options=options)


def _dtype(asked: DType, device: torch.device) -> torch.dtype:
    if asked != "auto":
        return DTYPES[asked]
    if device.type != "cpu":
        return torch.bfloat16
    can = torch.cpu.get_capabilities()
    return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else torch.float32

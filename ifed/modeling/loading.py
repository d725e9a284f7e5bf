"""Loading of a language model by name: device, dtype, threads and fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ifed.errors import IFedError, UnknownModel
from ifed.modeling.catalog import prepare
from ifed.modeling.families import family_of, require_known_family
from ifed.modeling.fingerprint import fingerprint_of_folder
from ifed.modeling.language_model import LanguageModel, Options, quiet, wrap
from ifed.modeling.optimizations import apply_options
from ifed.modeling.weight_files import LOCAL, require_all_tensors, weight_files

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
    """Return the model `name` (catalogue name, folder or Hugging Face id), frozen, on its device.

    Args:
        cache: the folder for downloads and converted models.
        device: as torch names it; `auto` is CUDA if there is one, else the CPU.
        dtype: of the forward pass; `auto` is bfloat16 on CUDA and on CPUs that compute in it, else float32.
        threads: CPU threads of torch in the whole process; torch's own choice by default.
        options: ways to run it faster or in less memory.
        announce: called with a sentence before a slow step.

    Raises:
        UnknownModel: there is no such model, its weights are not whole or not finite, it does not fit into the memory of the device, or
            an option needs a package or compiler that is not installed.
        DownloadFailed: a part of a catalogue model could not be downloaded.
        UnsupportedFamily: the architecture is not one of `FAMILIES`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder = prepare(name, cache=cache, announce=announce)
    torch_device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, **LOCAL)
            require_known_family(str(config.model_type))
            if getattr(config, "transformers_weights", None):
                raise UnknownModel(
                    f"config.json in {folder} names another file of weights in transformers_weights; remove that line"
                )
            weight_files(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
            fingerprint = fingerprint_of_folder(folder, config, tokenizer)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=_torch_dtype(dtype, torch_device), use_safetensors=True, output_loading_info=True, **LOCAL
            )
            model, info = loaded
            require_all_tensors(folder, info)
            nn.Module.to(model, torch_device)  # the wrapper around PreTrainedModel.to hides its signature
    except IFedError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as reason:
        raise UnknownModel(
            f"{name} does not fit into the memory of {torch_device}; take a smaller model, another device, or bfloat16"
        ) from reason
    except Exception as reason:  # what readers of damaged files raise is of many classes
        raise UnknownModel(f"{folder} does not hold a model and tokenizer that transformers can read ({reason})") from reason
    _require_finite(model, folder)
    apply_options(options, model.requires_grad_(False), family_of(model))
    return wrap(model, tokenizer, name=name, fingerprint=fingerprint, options=options)


def _require_finite(model: PreTrainedModel, folder: Path) -> None:
    """Raise UnknownModel if a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        # The sum needs no memory; where it is not finite, every value is looked at.
        if not torch.isfinite(parameter.sum(dtype=torch.float32)) and not torch.isfinite(parameter).all():
            raise UnknownModel(
                f"the tensor {name} of {folder} has values that are not finite in {str(parameter.dtype).removeprefix('torch.')}; "
                "fetch the model again, or load it in bfloat16 or float32"
            )


def _torch_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type != "cpu":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32

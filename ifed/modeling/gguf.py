"""Conversion of a GGUF file to a folder of bfloat16 safetensors and a tokenizer."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ifed.modeling.language_model import quiet
from ifed.modeling.weight_files import LOCAL, require_all_tensors


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of `gguf` to the existing `folder`, in the form that `loading.load` reads in a second.

    The weights are rounded to bfloat16, which is finer than the quantisation of the file.

    Raises:
        UnknownModel: the file lacks a tensor of the model, or holds one that the model does not use.
    """
    # The progress bar of the GGUF reader belongs to no logger; it writes to the stderr that is current when it is created.
    with quiet(), _parse_once(), contextlib.redirect_stderr(io.StringIO()):
        source: dict[str, Any] = {"gguf_file": gguf.name, **LOCAL}
        config = AutoConfig.from_pretrained(gguf.parent, **source)
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
        dequantized = GgufConfig(dequantize=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            config=config,
            dtype=torch.bfloat16,
            quantization_config=dequantized,
            output_loading_info=True,
            **source,
        )
        model, info = loaded
        require_all_tensors(gguf, info)
        model.save_pretrained(folder)


@contextlib.contextmanager
def _parse_once() -> Iterator[None]:
    """Within the block, parse each GGUF file once, on a plain array.

    Transformers parses it three times (configuration, tokenizer, weights), each time item by item through a memory map that makes
    every item a separate object: a model with a vocabulary of 262 144 tokens then takes 68 s instead of 23 s to convert.
    """
    import gguf
    import numpy as np

    original = gguf.GGUFReader
    readers: dict[Path, Any] = {}

    class Reader(original):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = mapped.view(np.ndarray)

    def read(path: str | Path) -> Any:
        if Path(path) not in readers:
            readers[Path(path)] = Reader(path)
        return readers[Path(path)]

    gguf.GGUFReader = read  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        gguf.GGUFReader = original  # type: ignore[misc]

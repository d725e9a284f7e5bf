"""A GGUF file into a folder of bfloat16 safetensors and a tokenizer. Knows no catalogue and no downloads."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ifed.modeling.language_model import quiet


def convert(gguf: Path, folder: Path) -> None:
    """Write what `gguf` holds to the existing `folder`, in the form that `loading.load` reads in a second.

    The weights are rounded to bfloat16, which is more than the quantised file knows of them.
    """
    # The progress bar of the GGUF reader belongs to no logger; it goes to whatever the error stream is when it is made.
    with quiet(), _one_reading(), contextlib.redirect_stderr(io.StringIO()):
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        config = AutoConfig.from_pretrained(gguf.parent, **source)
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
        plain = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, config=config, dtype=torch.bfloat16, quantization_config=plain, **source
        )
        model.save_pretrained(folder)


@contextlib.contextmanager
def _one_reading() -> Iterator[None]:
    """Within the block a GGUF file is parsed once, on a plain array.

    Transformers parses it three times (configuration, tokenizer, weights), each time item by item through a memory map that makes
    every item an object of its own: a vocabulary of 262 144 tokens then takes 68 s instead of 23 s to convert.
    """
    import gguf
    import numpy as np

    original = gguf.GGUFReader
    readings: dict[Path, Any] = {}

    class Reader(original):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = mapped.view(np.ndarray)

    def read(path: str | Path) -> Any:
        if Path(path) not in readings:
            readings[Path(path)] = Reader(path)
        return readings[Path(path)]

    gguf.GGUFReader = read  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        gguf.GGUFReader = original  # type: ignore[misc]

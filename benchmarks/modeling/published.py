"""The published procedure (I2CL, arXiv 2405.14660), written from the paper: one example at a time, float32, full logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ifed.messages.texts import LabelledText
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate


class Published:
    """A frozen float32 model with scalar coefficients in every layer, as the paper trains and uses them.

    Attributes:
        coefficients: (layer, site, 2): λ from 0.1, β from 1.
    """

    def __init__(self, lm: LanguageModel, template: PromptTemplate, names: Sequence[str]) -> None:
        self._lm, self._template = lm, template
        self._labels = template.labels(names)
        self._modules = [lm.family.sites(layer) for layer in lm.family.layers(lm.model)]
        self.coefficients = torch.tensor([0.1, 1.0]).repeat(lm.num_layers, 2, 1)

    def extract(self, examples: Sequence[LabelledText[int]]) -> Tensor:
        """Return the context vector, (layer, site, d): the mean of the sites' outputs at the last token."""
        total = torch.zeros(self._lm.num_layers, 2, self._lm.hidden_size)
        for example in examples:
            outputs: dict[tuple[int, int], Tensor] = {}
            with (
                self._hooks(lambda layer, site, a, outputs=outputs: outputs.update({(layer, site): a[0, -1].clone()})),
                torch.no_grad(),
            ):
                self._logits([self._template.demonstration(example.text, example.label, self._labels)])
            total += torch.stack([torch.stack([outputs[layer, site] for site in (0, 1)]) for layer in range(self._lm.num_layers)])
        return total / len(examples)

    def calibrate(
        self, examples: Sequence[LabelledText[int]], context: Tensor, *, batch_size: int = 2, learning_rate: float = 0.01
    ) -> float:
        """Train the scalars for one epoch by AdamW, two examples a step, with the loss over the whole vocabulary; return the mean loss."""
        values = self.coefficients.clone().requires_grad_(True)
        optimiser = torch.optim.AdamW([values], lr=learning_rate)
        losses = []
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            rows = [self._template.demonstration(example.text, example.label, self._labels) for example in part]
            with self._injected(values, context):
                logits = self._logits(rows)
            loss = torch.zeros(())
            for row, ids, example in zip(logits, rows, part, strict=True):
                label = torch.tensor(self._labels.ids[example.label])
                loss = loss + nn.functional.cross_entropy(row[len(ids) - len(label) - 1 : len(ids) - 1], label)
            optimiser.zero_grad()
            (loss / len(part)).backward()
            optimiser.step()
            losses.append(float(loss.detach()) / len(part))
        return sum(losses) / len(losses)

    def classify(self, texts: Sequence[str], context: Tensor) -> list[int]:
        """Return the label whose first token is most probable, from the logits of every position."""
        first = torch.tensor([ids[0] for ids in self._labels.ids])
        labels = []
        for text in texts:
            with torch.no_grad(), self._injected(self.coefficients, context):
                labels.append(int(self._logits([self._template.prompt(text).ids])[0, -1, first].argmax()))
        return labels

    def _logits(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        longest = max(map(len, rows))
        ids = torch.tensor([row + (0,) * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        logits: Tensor = self._lm.model(input_ids=ids, attention_mask=mask).logits
        return logits

    def _injected(self, values: Tensor, context: Tensor) -> contextlib.AbstractContextManager[None]:
        return self._hooks(lambda layer, site, a: values[layer, site, 0] * context[layer, site] + values[layer, site, 1] * a)

    @contextlib.contextmanager
    def _hooks(self, change: Any) -> Iterator[None]:
        def hook_for(layer: int, site: int) -> Any:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
                changed = change(layer, site, output[0] if isinstance(output, tuple) else output)
                if changed is None:
                    return None
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return hook

        places = [(layer, site, module) for layer, pair in enumerate(self._modules) for site, module in enumerate(pair)]
        hooks = [module.register_forward_hook(hook_for(layer, site)) for layer, site, module in places]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

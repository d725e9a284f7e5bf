"""The language model as the engine and the adapters need it. The only file of the service that reaches the torch room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from ifed.downloads import cache_folder
from ifed.errors import EmptyText, IFedError, TextTooLong
from ifed.messages.bodies import AdapterBody
from ifed.messages.tasks import TEXT_SLOT, ModelIdentity
from ifed.modeling.batching import Row, layout_for
from ifed.modeling.forward import run_rows
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import DType, Options, load
from ifed.modeling.prefix_cache import DEFAULT_MAX_BYTES, PrefixCache, PrefixSharing
from ifed.modeling.prompts import PromptTemplate, longest_prompt
from ifed.modeling.replicas import divide_threads, replicate
from ifed.modeling.scoring import ScoringItem, score, scoring_rows
from services.inference.demonstrations import Demonstration
from services.inference.engine import Scores
from services.inference.service import Prepared

Item = ScoringItem
PACKED_PASS = 2  # budgets of calibration: 512 tokens cost a tenth less each than 256, and no gradient needs the memory
SHORT_PASS = 192  # tokens: on a CPU, three texts of 58 take less than twice as long as one
WARM_UP_TOKENS = 16
LEAST_SHARED = 16  # tokens of a template's beginning that are worth keeping: demonstrations, instructions, not a word


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """What a task adds to the model: its prompt, its labels, and what is injected; None is the bare model."""

    template: PromptTemplate
    labels: LabelTokens
    injection: Injection | None


class Scorer:
    """One loaded model. Each of `lanes` is for one thread at a time, all that reads texts or labels for another one.

    Args:
        token_budget: tokens of one forward pass.
        max_tokens: of a text with its template.
        lanes: forward passes at once, of one set of weights.
        prefix_bytes: what is kept of the tokens that prompts of a task begin with.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        token_budget: int | None = None,
        max_tokens: int | None = None,
        lanes: int = 1,
        prefix_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._model, self._max_tokens = model, max_tokens
        self.prefixes = PrefixCache(prefix_bytes)
        self._ways = [
            (one, PrefixSharing(one, persistent=True, min_length=LEAST_SHARED, cache=self.prefixes))
            for one in replicate(model, lanes)
        ]
        self.padded, self.short_pass = layout_for(model) == "padded", SHORT_PASS
        self.token_budget = token_budget or model.token_budget * (1 if self.padded else PACKED_PASS)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        cache: Path | None,
        device: str,
        dtype: DType,
        threads: int | None,
        announce: Callable[[str], None],
        lanes: int | None = None,
        prefix_bytes: int = DEFAULT_MAX_BYTES,
        compiled: bool = False,
        int8: bool = False,
        token_budget: int | None = None,
        max_tokens: int | None = None,
    ) -> Self:
        """Load a model by catalogue name, Hugging Face id or folder.

        Raises:
            UnknownModel: it is none of these, or cannot be had, or an option needs what is not installed.
            UnsupportedFamily: an architecture whose residual stream we do not know.
            DownloadFailed: it could not be fetched.
        """
        options = Options(compiled=compiled, int8=int8, packed_weights=True, traced=True, share_prefix=prefix_bytes > 0)
        model = load(
            name, cache=cache_folder(cache), device=device, dtype=dtype, threads=threads, options=options, announce=announce
        )
        count = divide_threads(model, lanes, threads)
        return cls(model, token_budget=token_budget, max_tokens=max_tokens, lanes=count, prefix_bytes=prefix_bytes)

    @property
    def identity(self) -> ModelIdentity:
        return self._model.identity

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def longest_prompt(self) -> int:
        """Tokens of a text with its template at the most."""
        return longest_prompt(self._model, self._max_tokens)

    def load_adapter(self, body: AdapterBody) -> LoadedAdapter:
        """An adapter as tensors on the model's device.

        Raises:
            BadTemplate: its labels cannot be scored with this tokenizer.
            LayoutMismatch: its tensors do not fit its layers.
        """
        template = PromptTemplate.of(self._model, body.meta.template, chat=body.meta.chat, max_tokens=self._max_tokens)
        injection = injection_of(
            body.context, body.coefficients, body.meta.layout.layers, device=self._model.device, dtype=self._model.dtype
        )
        return LoadedAdapter(template, template.labels(body.meta.labels), injection)

    def bare(self, loaded: LoadedAdapter) -> LoadedAdapter:
        """The same prompt and labels, nothing injected."""
        return replace(loaded, injection=None)

    def few_shot(self, loaded: LoadedAdapter, demonstrations: Sequence[Demonstration]) -> LoadedAdapter:
        """The bare model with demonstrations in front of every prompt, each in the template with its label, a blank line after it.

        Raises:
            BadTemplate: they leave no room for a text in what the model takes.
        """
        whole, space = loaded.template.template, loaded.template.space
        shown = "".join(f"{whole.replace(TEXT_SLOT, one.text)}{space}{one.label}\n\n" for one in demonstrations)
        longest = longest_prompt(self._model, self._model.max_tokens)
        prompt = replace(loaded.template, template=shown + whole, max_tokens=longest)  # a chat stands in its template already
        return LoadedAdapter(prompt, loaded.labels, None)

    def prepare(self, loaded: LoadedAdapter, text: str, *, truncate: bool) -> Prepared[ScoringItem] | IFedError:
        """A text as tokens, with what is injected while they are read; or why it cannot be scored."""
        if not text.strip():
            return EmptyText("this text is empty; there is nothing to classify")
        prompt = loaded.template.prompt(text)
        if prompt.truncated and not truncate:
            return TextTooLong(
                f"this text is longer than the {loaded.template.max_tokens} tokens taken with its template; send less, or let it be cut"
            )
        return Prepared(ScoringItem(prompt, loaded.labels, loaded.injection), len(prompt.ids), prompt.truncated)

    def tokens(self, item: ScoringItem) -> int:
        """What a pass reads for it once what its prompt begins with is kept: labels of several tokens take several rows."""
        _, prefixes = self._ways[0]
        return sum(prefixes.remaining_tokens(row) for row in scoring_rows(item.prompt, item.labels))

    def warm_up(self) -> None:
        """Run each lane once, with one text and with several, so that no request waits for what is compiled or laid out at the first use."""
        token = int(self._model.tokenizer.eos_token_id or 0)
        for model, _ in self._ways:
            for count in (1, 2, 3):
                run_rows(model, [Row.for_last_token((token,) * WARM_UP_TOKENS)] * count, [None] * count)

    @property
    def lanes(self) -> list[Callable[[Sequence[ScoringItem]], list[Scores]]]:
        """Ways to `score` that may run at the same time, each once."""
        return [partial(self._through, one, prefixes) for one, prefixes in self._ways]

    def score(self, items: Sequence[ScoringItem]) -> list[Scores]:
        """Log-probabilities over each item's labels, float32, shape (labels,)."""
        return self.lanes[0](items)

    def _through(self, model: LanguageModel, prefixes: PrefixSharing, items: Sequence[ScoringItem]) -> list[Scores]:
        return score(model, items, token_budget=self.token_budget, prefixes=prefixes)

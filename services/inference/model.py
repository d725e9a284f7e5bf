"""The language model of the service, which prepares and scores texts; the only module of the service that imports torch."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from ifed.downloads import cache_folder
from ifed.errors import EmptyText, IFedError, LayoutMismatch, TextTooLong, UnknownModel
from ifed.messages.bodies import AdapterBody
from ifed.messages.tasks import TEXT_SLOT, ModelIdentity
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Row, layout_for
from ifed.modeling.forward import run_rows
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import DType, Options, load
from ifed.modeling.logits import vocabulary_logits
from ifed.modeling.prefix_cache import DEFAULT_MAX_BYTES, PrefixCache, PrefixSharing, before_last_token
from ifed.modeling.prefix_tree import ancestors, ancestors_of, share_prefixes
from ifed.modeling.prompts import Prompt, PromptTemplate, longest_prompt
from ifed.modeling.replicas import divide_threads, replicate
from ifed.modeling.scoring import ScoringItem, score, scoring_rows
from ifed.tensors.probes import TEXTS
from ifed.tensors.regression import LabelHead
from ifed.tensors.values import Float32
from services.inference.engine import SharedPrefix

Item = ScoringItem
Prompts = MutableMapping[tuple[PromptTemplate, str], Prompt]
PACKED_BUDGETS = 2  # times the budget of calibration: 512 tokens cost a tenth less each than 256, and no gradient needs the memory
SHORT_PASS = 192  # tokens: on a CPU, three texts of 58 take less than twice as long as one
WARM_UP_TOKENS = 16
MIN_PREFIX_TOKENS = 16  # cache prefixes such as demonstrations and instructions, not the single word of a short template


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter on the model's device.

    Attributes:
        template: the prompt around a text.
        labels: the label words, as tokens; None where they are not read.
        injection: None for the base model.
        head: the label head; None where it is not read.
    """

    template: PromptTemplate
    labels: LabelTokens | None
    injection: Injection | None
    head: LabelHead | None = None
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedText:
    """A text that is ready for the engine.

    Attributes:
        item: what the model scores.
        tokens: of the prompt, the text in its template.
        truncated: whether tokens were left out in the middle of the text.
    """

    item: Item
    tokens: int
    truncated: bool


class Scorer:
    """A loaded language model in one or more replicas, which share their weights and a prefix cache.

    Each of `replicas` may be called by one thread at a time; `load_adapter`, `few_shot` and `prepare`, which use the tokenizer, by another.

    Args:
        model: the language model.
        token_budget: tokens of one forward pass; the model's own by default.
        max_tokens: tokens of a text with its template; 1024, or what the model takes, by default.
        replicas: forward passes that may run at the same time.
        prefix_bytes: size of the cache of the prompts' prefixes.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        token_budget: int | None = None,
        max_tokens: int | None = None,
        replicas: int = 1,
        prefix_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._model, self._max_tokens = model, max_tokens
        self.prefixes = PrefixCache(prefix_bytes)
        self._replicas = [
            (replica, PrefixSharing(replica, persistent=True, min_length=MIN_PREFIX_TOKENS, cache=self.prefixes))
            for replica in replicate(model, replicas)
        ]
        self.padded, self.short_pass = layout_for(model) == "padded", SHORT_PASS
        self.token_budget = token_budget or model.token_budget * (1 if self.padded else PACKED_BUDGETS)

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
        replicas: int | None = None,
        prefix_bytes: int = DEFAULT_MAX_BYTES,
        compiled: bool = False,
        int8: bool = False,
        token_budget: int | None = None,
        max_tokens: int | None = None,
    ) -> Self:
        """Load a model by catalogue name, Hugging Face id or folder.

        Args:
            announce: called with a sentence before each step of the loading.

        Raises:
            UnknownModel: the name is none of these, the model is not available, or an option needs a package that is not installed.
            UnsupportedFamily: the residual stream of this architecture is not known.
            DownloadFailed: a file could not be downloaded.
        """
        options = Options(compiled=compiled, int8=int8, packed_weights=True, traced=True, share_prefix=prefix_bytes > 0)
        model = load(
            name, cache=cache_folder(cache), device=device, dtype=dtype, threads=threads, options=options, announce=announce
        )
        count = divide_threads(model, replicas, threads)
        return cls(model, token_budget=token_budget, max_tokens=max_tokens, replicas=count, prefix_bytes=prefix_bytes)

    @property
    def identity(self) -> ModelIdentity:
        """The name, fingerprint and shape of the model."""
        return self._model.identity

    @property
    def dtype(self) -> str:
        """The name of the model's dtype, such as `bfloat16`."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def longest_prompt(self) -> int:
        """The largest number of tokens of a text with its template."""
        return longest_prompt(self._model, self._max_tokens)

    @property
    def replicas(self) -> list[Callable[[Sequence[Item]], list[Float32]]]:
        """One scoring function per replica, as `score`; different ones may run at the same time."""
        return [partial(self._score, model, prefixes) for model, prefixes in self._replicas]

    def load_adapter(self, body: AdapterBody) -> LoadedAdapter:
        """Return an adapter as tensors on the model's device.

        Raises:
            BadTemplate: its labels cannot be scored with this tokenizer.
            LayoutMismatch: its tensors do not fit the model's layers.
        """
        template = PromptTemplate.of(self._model, body.meta.template, chat=body.meta.chat, max_tokens=self._max_tokens)
        injection = injection_of(
            body.context,
            body.coefficients,
            body.meta.layout.layers,
            device=self._model.device,
            dtype=self._model.dtype,
            position=body.meta.injection,
        )
        names = tuple(body.meta.labels)
        if body.meta.reading == "words":
            return LoadedAdapter(template, template.labels(names), injection, label_names=names)
        if body.head is None or body.head.weight.shape != (len(names), self._model.hidden_size):
            raise LayoutMismatch(
                f"the adapter reads {len(names)} labels by a head of {self._model.hidden_size} channels; it carries "
                f"{'none' if body.head is None else body.head.weight.shape}"
            )
        labels = template.labels(names) if body.meta.reading == "both" else None
        return LoadedAdapter(template, labels, injection, body.head, names)

    def base(self, adapter: LoadedAdapter) -> LoadedAdapter:
        """Return the adapter's template and label words without its injection and its head.

        Raises:
            BadTemplate: the labels cannot be read by their words with this tokenizer.
        """
        return LoadedAdapter(adapter.template, self._words(adapter), None, label_names=adapter.label_names)

    def _words(self, adapter: LoadedAdapter) -> LabelTokens:
        return adapter.labels or adapter.template.labels(adapter.label_names)

    def few_shot(self, adapter: LoadedAdapter, demonstrations: Sequence[LabelledText[str]]) -> LoadedAdapter:
        """Return the base model with demonstrations in front of every prompt.

        Each demonstration stands in the adapter's template with its label, followed by a blank line.

        Raises:
            BadTemplate: they leave no room for a text within what the model takes.
        """
        template, space = adapter.template.template, adapter.template.space
        shots = "".join(f"{template.replace(TEXT_SLOT, shot.text)}{space}{shot.label}\n\n" for shot in demonstrations)
        max_tokens = longest_prompt(self._model, self._model.max_tokens)
        prompt = replace(adapter.template, template=shots + template, max_tokens=max_tokens)  # includes a chat template already
        return LoadedAdapter(prompt, self._words(adapter), None, label_names=adapter.label_names)

    def prepare(
        self, adapter: LoadedAdapter, text: str, *, truncate: bool, prompts: Prompts | None = None
    ) -> PreparedText | IFedError:
        """Return a text in the adapter's template as tokens, or the refusal of a text that cannot be scored.

        Args:
            prompts: of this request so far, by template and text, for tasks of the same template.
        """
        if not text.strip():
            return EmptyText("this text is empty; there is nothing to classify")
        prompts = {} if prompts is None else prompts
        if (key := (adapter.template, text)) not in prompts:
            prompts[key] = adapter.template.prompt(text)
        prompt = prompts[key]
        if prompt.truncated and not truncate:
            return TextTooLong(
                f"this text is longer than {adapter.template.max_tokens} tokens with its template; shorten it or allow truncation"
            )
        item = ScoringItem(prompt, adapter.labels, adapter.injection, adapter.head)
        return PreparedText(item, len(prompt.ids), prompt.truncated)

    def tokens(self, item: Item) -> int:
        """Return the tokens that a pass runs for an item once its prefix is cached; labels of several tokens need several rows."""
        rows = self._rows_as_shared([item])[0]
        return sum(len(row.ids) for row in [*rows, *(row for row, _ in ancestors_of(rows))])

    def shared_prefixes(self, items: Sequence[Item]) -> list[Sequence[SharedPrefix]]:
        """Return, of each item, the prefixes of its prompt that a forward pass may run once for several of the items."""
        rows_by_item = self._rows_as_shared(items)
        chains = [list({id(row): row for row in rows for row in ancestors(row)}.values()) for rows in rows_by_item]
        known = {id(row): SharedPrefix(object(), len(row.ids)) for chain in chains for row in chain}
        return [[known[id(row)] for row in chain] for chain in chains]

    def _rows_as_shared(self, items: Sequence[Item]) -> list[list[Row]]:
        """Return the rows of each item as one forward pass of all of them would run them."""
        _, prefixes = self._replicas[0]
        rows, keys, counts = list[Row](), list[tuple[int, tuple[int, ...]]](), list[int]()
        for item in items:
            of_item = scoring_rows(item.prompt, item.labels)
            counts.append(len(of_item))
            for row in of_item:
                start = len(row.ids) - prefixes.remaining_tokens(row)
                rows.append(Row(row.ids[start:], tuple(position - start for position in row.output_positions)))
                keys.append((id(before_last_token(item.injection)), row.ids[:start]))
        shared = iter(share_prefixes(rows, keys) if self._model.shares_prefixes and not self.padded else rows)
        return [[next(shared) for _ in range(count)] for count in counts]

    def warm_up(self) -> None:
        """Run each replica with one, two and three texts, so that no request waits for compilation or lazy initialisation."""
        rows = [Row.for_last_token((token,) * WARM_UP_TOKENS) for token in range(3)]  # different, so that they share nothing
        for model, _ in self._replicas:
            for count in (1, 2, 3):
                run_rows(model, rows[:count], [None] * count)

    def require_finite_scores(self) -> None:
        """Read a few public texts.

        Raises:
            UnknownModel: the model's scores are not finite, because the dtype overflows for this model.
        """
        tokenized = [tuple(self._model.tokenizer(text).input_ids) for text in TEXTS]
        states = run_rows(self._model, [Row.for_last_token(ids) for ids in tokenized], [None] * len(TEXTS))
        if not all(bool(vocabulary_logits(self._model, state).isfinite().all()) for state in states):
            raise UnknownModel(
                f"{self._model.name} gives numbers that are not finite in {self.dtype}: set DTYPE to bfloat16 or float32"
            )

    def score(self, items: Sequence[Item]) -> list[Float32]:
        """Return log-probabilities over each item's labels, float32, shape (labels,), from the first replica."""
        return self.replicas[0](items)

    def _score(self, model: LanguageModel, prefixes: PrefixSharing, items: Sequence[Item]) -> list[Float32]:
        return score(model, items, token_budget=self.token_budget, prefixes=prefixes)

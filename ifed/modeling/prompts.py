"""Prompts: a text in a template as tokens, such that nothing in the text becomes a control token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ifed.errors import BadTemplate
from ifed.messages.tasks import TEXT_SLOT, check_template
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel

MAX_TOKENS = 1024  # of a prompt, unless the caller says otherwise
MAX_LABEL_TOKENS = 32
MIN_TEXT_TOKENS = 8
MAX_CHARACTERS_PER_TOKEN = 64
DIRECTIVES = ("-d", "-m", *"aAbBdfHIjmMpSyYZz")
TODAY = datetime(2024, 7, 26, tzinfo=UTC)  # of every chat template; Llama 3's own where no clock is given


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text in its template, as tokens.

    Attributes:
        ids: at least one token; the beginning-of-text token included if the tokenizer sets one.
        truncated: whether tokens were left out in the middle of the text.
        prefix_length: the number of leading tokens that the template puts in front of every text.
    """

    ids: tuple[int, ...]
    truncated: bool
    prefix_length: int = 0


@dataclass(frozen=True)
class PromptTemplate:
    """A template such as `"Review: {text}\\nSentiment:"`, bound to a tokenizer.

    Attributes:
        template: contains `{text}` once and does not end in white space, since a label follows after one space. Special tokens in it are
            read as such; in a text they are plain characters.
        tokenizer: of the model that will read the prompts.
        max_tokens: the longest prompt; in a longer one, tokens are left out in the middle of the text.
        chat: whether the template is a rendered chat template, which may end in white space; a label then follows it directly.

    Raises:
        BadTemplate: the template does not contain exactly one `{text}`, ends in white space, or leaves no room for a text in `max_tokens`.
    """

    template: str
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    max_tokens: int = MAX_TOKENS
    chat: bool = False

    def __post_init__(self) -> None:
        if self.template.count(TEXT_SLOT) != 1:
            count = self.template.count(TEXT_SLOT)
            raise BadTemplate(f"a template contains {TEXT_SLOT} exactly once; this one contains it {count} times")
        if self.template != self.template.rstrip() and not self.chat:
            raise BadTemplate("a template must not end in white space: the label follows after one space")
        if self._text_tokens < MIN_TEXT_TOKENS:
            used = self.max_tokens - self._text_tokens
            raise BadTemplate(
                f"the template alone takes {used} of at most {self.max_tokens} tokens; a text needs {MIN_TEXT_TOKENS}"
            )

    @classmethod
    def of(cls, lm: LanguageModel, template: str, *, chat: bool = False, max_tokens: int | None = None) -> PromptTemplate:
        """Return the template for a model, with prompts short enough for a label to follow.

        Args:
            chat: put the template into the model's chat template, as a user's message that the model is about to answer.
            max_tokens: the longest prompt, 1024 by default.

        Raises:
            BadTemplate: as the class; or the model has no chat template, or one that changes the message.
        """
        if chat:
            check_template(template)
            template = render_chat_template(lm.tokenizer, template)
        return cls(template, lm.tokenizer, longest_prompt(lm, max_tokens), chat)

    @property
    def prefix(self) -> str:
        """The template in front of the text."""
        return self.template.split(TEXT_SLOT)[0]

    @property
    def suffix(self) -> str:
        """The template after the text."""
        return self.template.split(TEXT_SLOT)[1]

    @property
    def space(self) -> str:
        """The characters between the template and a label: none after white space."""
        return "" if self.suffix[-1:].isspace() else " "

    def labels(self, names: Sequence[str]) -> LabelTokens:
        """Return the labels as the tokens that follow this template.

        Raises:
            BadTemplate: a label cannot be scored (see `LabelTokens`) or has too many tokens.
        """
        labels = LabelTokens.of(self.tokenizer, names, after=self.suffix or ".", space=self.space)
        if (longest := max(map(len, labels.ids))) > MAX_LABEL_TOKENS:
            raise BadTemplate(f"a label of {longest} tokens; {MAX_LABEL_TOKENS} at most")
        return labels

    def prompt(self, text: str) -> Prompt:
        """Return `text` in the template; tokens are left out only in the text, never in the template."""
        shortened = self._shortened(text)
        prompt_text = self.prefix + shortened + self.suffix
        encoding: Encoding = encode(self.tokenizer, self.prefix, shortened, self.suffix)
        ids, spans = list(encoding.ids), encoding.spans
        if not ids:
            ids = [self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id]
        excess = len(ids) - self.max_tokens
        if excess > 0:
            begin, end = len(self.prefix), len(prompt_text) - len(self.suffix)
            inside = [index for index in range(len(ids)) if begin <= spans[index][0] < spans[index][1] <= end]
            middle = (len(inside) - excess) // 2
            left_out = set(inside[middle : middle + excess])
            ids = [token for index, token in enumerate(ids) if index not in left_out]
        truncated = excess > 0 or len(prompt_text) < len(self.prefix) + len(text) + len(self.suffix)
        return Prompt(tuple(ids), truncated, prefix_length=_common_prefix_length(ids[:-1], self._prefix_ids))

    def demonstration(self, text: str, label: int, labels: LabelTokens) -> tuple[int, ...]:
        """Return the tokens of `text` in the template, followed by the label."""
        return self.prompt(text).ids + labels.ids[label]

    @cached_property
    def _text_tokens(self) -> int:
        """The tokens that the template leaves for a text."""
        return self.max_tokens - len(self.tokenizer(self.prefix + self.suffix).input_ids)

    @cached_property
    def _prefix_ids(self) -> list[int]:
        """The tokens in front of a text; the last one differs if it merges with the text."""
        return encode(self.tokenizer, self.prefix, "", "").ids

    def _shortened(self, text: str) -> str:
        """Return a text without a middle that would be left out anyway, so that a huge text is not tokenised."""
        characters = MAX_CHARACTERS_PER_TOKEN * self.max_tokens
        return text if len(text) <= 2 * characters else text[:characters] + text[-characters:]


def longest_prompt(lm: LanguageModel, max_tokens: int | None = None) -> int:
    """Return the tokens of the longest prompt: `max_tokens`, 1024 by default, and few enough for a label to follow."""
    return min(max_tokens or MAX_TOKENS, lm.max_tokens - MAX_LABEL_TOKENS)


def render_chat_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return a template as a user's message in the model's chat template, up to where the model begins to answer.

    A chat template that prints today's date prints `TODAY`, so that prompts are the same on every day and every machine.

    Raises:
        BadTemplate: the tokenizer has no chat template, or one that changes the message, fails, or is rendered otherwise each time.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadTemplate("this model has no chat template; set the task's chat to false")
    message = [{"role": "user", "content": template}]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    try:
        if "strftime_now" in (source := tokenizer.get_chat_template()):
            options["chat_template"] = _fixed_clock() + source
        rendered, again = (str(tokenizer.apply_chat_template(message, **options)) for _ in range(2))
    except Exception as reason:  # a template can raise anything
        raise BadTemplate(
            f"the model's chat template cannot be rendered ({reason}); set the task's chat to false, or repair the template"
        ) from reason
    if rendered != again:
        raise BadTemplate(
            "the model's chat template gives another prompt each time, so clients would differ; set the task's chat to false"
        )
    if rendered.count(TEXT_SLOT) != 1 or template not in rendered:
        raise BadTemplate("the model's chat template changes the message, so the task's template cannot be used with it")
    begin_token = tokenizer.bos_token
    adds_begin_token = bool(begin_token) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return rendered.removeprefix(str(begin_token)) if adds_begin_token else rendered


def _fixed_clock() -> str:
    """Return a Jinja macro that hides the clock of chat templates; transformers accepts no function in its place."""
    replacements = "".join(f"|replace('%{directive}', '{TODAY.strftime('%' + directive)}')" for directive in DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replacements} }}}}{{% endmacro %}}{{{{ '' }}}}"


@dataclass(frozen=True, slots=True)
class Encoding:
    """Tokens with the span of each in the full string, in characters; an empty span for tokens that a tokenizer adds."""

    ids: list[int]
    spans: list[tuple[int, int]]


def encode(tokenizer: PreTrainedTokenizerBase, prefix: str, text: str, suffix: str) -> Encoding:
    """Tokenise `prefix + text + suffix` as one string; special tokens are read in `prefix` and `suffix` alone.

    An end token that the tokenizer would add is left out, since a label follows.
    """
    full_text, special = prefix + text + suffix, _special_tokens(tokenizer)
    if all(full_text.count(token) == prefix.count(token) + suffix.count(token) for token in special):
        return _encode(tokenizer, full_text, 0)
    # No merge crosses a special token: cut at the last one before the text and the first one after it.
    begin = max([prefix.rfind(token) + len(token) for token in special if token in prefix], default=0)
    end = len(full_text) - len(suffix) + min([suffix.find(token) for token in special if token in suffix], default=len(suffix))
    head = _encode(tokenizer, full_text[:begin], 0) if begin else Encoding([], [])
    body = _encode(tokenizer, full_text[begin:end], begin, split_special_tokens=True, add_special_tokens=not begin)
    tail = _encode(tokenizer, full_text[end:], end, add_special_tokens=False)
    return Encoding(head.ids + body.ids + tail.ids, head.spans + body.spans + tail.spans)


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A template cut at the special tokens next to the text, for code that tokenises as `encode` does.

    Attributes:
        head: the tokens up to the last special token before the text; empty if there is none.
        left: the characters between it and the text.
        right: the characters between the text and the first special token after it.
        tail: the tokens from there on.
        ends: the number of tokens that the tokenizer appends to a string and that a label must not follow.
    """

    head: list[int]
    left: str
    right: str
    tail: list[int]
    ends: int


def prompt_parts(tokenizer: PreTrainedTokenizerBase, prefix: str, suffix: str) -> PromptParts:
    """Return the parts of a prompt that do not depend on its text."""
    special = _special_tokens(tokenizer)
    begin = max([prefix.rfind(token) + len(token) for token in special if token in prefix], default=0)
    end = min([suffix.find(token) for token in special if token in suffix], default=len(suffix))
    head = _encode(tokenizer, prefix[:begin], 0).ids if begin else []
    tail = _encode(tokenizer, suffix[end:], 0, add_special_tokens=False).ids
    ends = len(tokenizer("a").input_ids) - len(_encode(tokenizer, "a", 0).ids)
    return PromptParts(head, prefix[begin:], suffix[:end], tail, ends)


def _encode(tokenizer: PreTrainedTokenizerBase, part: str, offset: int, **options: Any) -> Encoding:
    encoded = tokenizer(
        part, return_offsets_mapping=True, return_special_tokens_mask=True, **({"split_special_tokens": False} | options)
    )
    ids, spans = list(encoded.input_ids), list(encoded.offset_mapping)
    while ids and encoded.special_tokens_mask[len(ids) - 1] and spans[len(ids) - 1][0] == spans[len(ids) - 1][1]:
        ids.pop()
    return Encoding(ids, list(_shifted(spans[: len(ids)], offset)))


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _shifted(spans: list[tuple[int, int]], offset: int) -> Iterator[tuple[int, int]]:
    for begin, end in spans:
        yield (begin, end) if begin == end else (begin + offset, end + offset)


def _common_prefix_length(ids: Sequence[int], other_ids: Sequence[int]) -> int:
    pairs = enumerate(zip(ids, other_ids, strict=False))
    return next((index for index, pair in pairs if pair[0] != pair[1]), min(len(ids), len(other_ids)))

"""Text and what stands around it into tokens, so that nothing in the text becomes a control token. Knows no task and no limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ifed.errors import BadTemplate
from ifed.messages.tasks import TEXT_SLOT, check_template
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens, and where in the whole each begins and ends, in characters; nothing for tokens that a tokenizer adds."""

    ids: list[int]
    spans: list[tuple[int, int]]


def encode(tokenizer: PreTrainedTokenizerBase, prefix: str, text: str, suffix: str) -> Encoded:
    """`prefix + text + suffix` as one string of tokens; special tokens are read in `prefix` and `suffix` and nowhere else.

    An end token that the tokenizer would add is left out, since a label comes there.
    """
    whole, special = prefix + text + suffix, _special(tokenizer)
    if all(whole.count(token) == prefix.count(token) + suffix.count(token) for token in special):
        return _encode(tokenizer, whole, 0)
    # A special token is a border that no merge crosses: cut at the last before the text and the first after it.
    begin = max([prefix.rfind(token) + len(token) for token in special if token in prefix], default=0)
    end = len(whole) - len(suffix) + min([suffix.find(token) for token in special if token in suffix], default=len(suffix))
    head = _encode(tokenizer, whole[:begin], 0) if begin else Encoded([], [])
    body = _encode(tokenizer, whole[begin:end], begin, split_special_tokens=True, add_special_tokens=not begin)
    tail = _encode(tokenizer, whole[end:], end, add_special_tokens=False)
    return Encoded(head.ids + body.ids + tail.ids, head.spans + body.spans + tail.spans)


def in_chat(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """A template as a user's words in the model's chat template, up to where the model begins to answer.

    Raises:
        BadTemplate: the tokenizer has no chat template, or it does not keep the words as they are.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadTemplate("this model has no chat template; set the task's chat to false")
    message = [{"role": "user", "content": template}]
    rendered = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    if rendered.count(TEXT_SLOT) != 1 or template not in rendered:
        raise BadTemplate("the model's chat template changes the words it is given, so the task's template cannot stand in it")
    begin = tokenizer.bos_token
    adds = bool(begin) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return rendered.removeprefix(str(begin)) if adds else rendered


def _special(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _encode(tokenizer: PreTrainedTokenizerBase, part: str, offset: int, **how: Any) -> Encoded:
    encoded = tokenizer(
        part, return_offsets_mapping=True, return_special_tokens_mask=True, **({"split_special_tokens": False} | how)
    )
    ids, spans = list(encoded.input_ids), list(encoded.offset_mapping)
    while ids and encoded.special_tokens_mask[len(ids) - 1] and spans[len(ids) - 1][0] == spans[len(ids) - 1][1]:
        ids.pop()
    return Encoded(ids, list(_shifted(spans[: len(ids)], offset)))


def _shifted(spans: list[tuple[int, int]], offset: int) -> Iterator[tuple[int, int]]:
    for begin, end in spans:
        yield (begin, end) if begin == end else (begin + offset, end + offset)


SLOT = "{text}"
MAX_TOKENS = 1024
ROOM_FOR_LABELS = 32
LEAST_ROOM = 8
LONGEST_TOKEN = 64


@dataclass(frozen=True, slots=True)
class Example:
    """A text with the index of its label."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text in its template, as tokens.

    Attributes:
        ids: at least one token; the beginning-of-text token included where the tokenizer sets one.
        truncated: whether tokens were left out in the middle of the text.
        shared: so many tokens at the beginning are those of the template in front of any text.
    """

    ids: tuple[int, ...]
    truncated: bool
    shared: int = 0


@dataclass(frozen=True)
class PromptTemplate:
    """A template such as `"Review: {text}\\nSentiment:"`, bound to a tokenizer.

    Attributes:
        template: holds `{text}` once and does not end in white space, since a label follows after one space. Special tokens in it are
            meant as such; in a text they are plain characters.
        tokenizer: of the model that will read the prompts.
        max_tokens: the longest prompt; in a longer one tokens are left out in the middle of the text.
        chat: the template is what stands in a chat template of the model, and may end as that ends; a label follows white space directly.

    Raises:
        BadTemplate: not exactly one `{text}`, white space at the end, or no room for a text within `max_tokens`.
    """

    template: str
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    max_tokens: int = MAX_TOKENS
    chat: bool = False

    def __post_init__(self) -> None:
        if self.template.count(SLOT) != 1:
            raise BadTemplate(f"a template holds {SLOT} exactly once; this one holds it {self.template.count(SLOT)} times")
        if self.template != self.template.rstrip() and not self.chat:
            raise BadTemplate("a template must not end in white space: the label follows after one space")
        if self._room < LEAST_ROOM:
            taken = self.max_tokens - self._room
            raise BadTemplate(f"the template alone takes {taken} of at most {self.max_tokens} tokens; a text needs {LEAST_ROOM}")

    @classmethod
    def of(cls, lm: LanguageModel, template: str, *, chat: bool = False, max_tokens: int | None = None) -> PromptTemplate:
        """The template for a model: prompts of `max_tokens` at most (1024 unless told), and short enough for the label to follow.

        Args:
            chat: put the template into the model's chat template, as what a user says and a model is about to answer.

        Raises:
            BadTemplate: see the class; also a chat with a model that has no chat template, or one that changes the words.
        """
        if chat:
            check_template(template)
            template = in_chat(lm.tokenizer, template)
        return cls(template, lm.tokenizer, longest_prompt(lm, max_tokens), chat)

    @property
    def prefix(self) -> str:
        return self.template.split(SLOT)[0]

    @property
    def suffix(self) -> str:
        return self.template.split(SLOT)[1]

    @property
    def space(self) -> str:
        """What stands between the template and a label: nothing after white space."""
        return "" if self.suffix[-1:].isspace() else " "

    def labels(self, names: Sequence[str]) -> LabelTokens:
        """The labels as the tokens that follow this template.

        Raises:
            BadTemplate: labels that cannot be scored; see `LabelTokens`.
        """
        labels = LabelTokens.of(self.tokenizer, names, after=self.suffix or ".", space=self.space)
        if (longest := max(map(len, labels.ids))) > ROOM_FOR_LABELS:
            raise BadTemplate(f"a label of {longest} tokens; {ROOM_FOR_LABELS} at most")
        return labels

    def prompt(self, text: str) -> Prompt:
        """`text` in the template. Tokens are left out only in the text, never in what stands around it."""
        shortened = self._shortened(text)
        whole = self.prefix + shortened + self.suffix
        encoded: Encoded = encode(self.tokenizer, self.prefix, shortened, self.suffix)
        ids, spans = list(encoded.ids), encoded.spans
        if not ids:
            ids = [self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id]
        excess = len(ids) - self.max_tokens
        if excess > 0:
            begin, end = len(self.prefix), len(whole) - len(self.suffix)
            inside = [at for at in range(len(ids)) if begin <= spans[at][0] < spans[at][1] <= end]
            middle = (len(inside) - excess) // 2
            left_out = set(inside[middle : middle + excess])
            ids = [token for at, token in enumerate(ids) if at not in left_out]
        truncated = excess > 0 or len(whole) < len(self.prefix) + len(text) + len(self.suffix)
        return Prompt(tuple(ids), truncated, shared=_common(ids[:-1], self._before))

    def demonstration(self, text: str, label: int, labels: LabelTokens) -> tuple[int, ...]:
        """The tokens of `text` in the template, one space and the label."""
        return self.prompt(text).ids + labels.ids[label]

    @cached_property
    def _room(self) -> int:
        """Tokens left for a text."""
        return self.max_tokens - len(self.tokenizer(self.prefix + self.suffix).input_ids)

    @cached_property
    def _before(self) -> list[int]:
        """Tokens in front of a text; the last may be another one where the text melts with it."""
        return encode(self.tokenizer, self.prefix, "", "").ids

    def _shortened(self, text: str) -> str:
        """A text so long that most of it will be left out, without its middle, which need not be tokenised first."""
        keep = LONGEST_TOKEN * self.max_tokens
        return text if len(text) <= 2 * keep else text[:keep] + text[-keep:]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))


def longest_prompt(lm: LanguageModel, max_tokens: int | None = None) -> int:
    """Tokens of the longest prompt: `max_tokens`, 1024 unless told, and so few that the label can follow."""
    return min(max_tokens or MAX_TOKENS, lm.max_tokens - ROOM_FOR_LABELS)

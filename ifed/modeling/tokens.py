"""Text and what stands around it into tokens, so that nothing in the text becomes a control token. Knows no task and no limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ifed.errors import BadTemplate
from ifed.tasks import TEXT_SLOT


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

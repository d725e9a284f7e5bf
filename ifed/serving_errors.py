"""Refusals that only the inference service gives, here so that its callers get the same classes. Knows no HTTP."""

from __future__ import annotations

from ifed.errors import Conflict, IFedError, Malformed, NotFound, Overloaded, TooLarge


class TooManyItems(TooLarge):
    """A request holds more texts than the service takes at once."""


class TooManyTokens(TooLarge):
    """The texts of a request are more tokens together than the service takes at once."""


class TextTooLong(TooLarge):
    """A text is longer than the model takes, and the caller did not want it cut."""


class EmptyText(Malformed):
    """A text without a character that is not white space; the answer would be the model's prejudice alone."""


class PairNotSupported(Malformed):
    """A pair of texts, as cross-encoders take it, where single texts are classified."""


class NoDefaultTask(Malformed):
    """A request that names no task, and the service has none to fall back on."""


class NoDemonstrations(NotFound):
    """Few-shot prompting was asked for and the operator gave no demonstrations for this task."""


class QueueFull(Overloaded):
    """So many texts are waiting that this one would wait too long."""


class DeadlineExceeded(IFedError):
    """The caller's deadline passed before the answer was there."""

    status = 504


class OtherModel(Conflict):
    """The adapter was calibrated on another language model than the one loaded here."""

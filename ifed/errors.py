"""Every refusal, as an exception class with its HTTP status.

IFedError                        500
├── Malformed                    422  the request is malformed, whatever the state of the service
│   ├── LayoutMismatch                a tensor of the wrong shape or dtype
│   ├── NonFinite                     NaN or Inf in a tensor
│   ├── DigestMismatch                the body does not match its Content-Digest header
│   ├── BadUrl                        an address that no webhook may have
│   ├── BadArguments                  a command line with a file, an address or a token that cannot be used
│   ├── BadTemplate                   a prompt template or label that cannot be scored
│   └── BadData                       a private data file that cannot be used; bad rows are named by line
│       └── TooFewExamples            fewer texts than an agent lets into a context vector
├── Unauthenticated              401  no token, or one that is not known
├── Forbidden                    403  a known token of another role
├── NotFound                     404
│   ├── UnknownTask
│   ├── UnknownClient
│   ├── UnknownRound
│   ├── UnknownVersion
│   ├── UnknownWebhook
│   ├── UnknownModel                  a model name that is no catalogue name, folder or hub id
│   └── NothingYet                    the task exists, but what was asked for does not, not yet or no longer
├── Conflict                     409  well-formed, but in conflict with the current state
│   ├── AlreadyExists
│   ├── NotJoined
│   ├── Withdrawn                     this client has withdrawn from the task, or an admin withdrew it
│   ├── RoundClosed                   late, or for a round that was never open to this client
│   ├── StaleUpdate                   computed from another version than the round's
│   ├── AlreadyContributed            other bytes from the same client for the same round
│   ├── QuotaExceeded                 a client has stored as much as it may
│   ├── FingerprintMismatch           another model, tokenizer or revision than the task's
│   ├── BeyondLimits                  an agent's own settings forbid what the aggregator asks for
│   ├── RepeatedContext               an agent's context vector was sent, and another subset of its texts is asked for
│   ├── ProbeMismatch                 the same fingerprint, but other activations or tokens for the probe texts
│   └── WrongState                    the task or round does not allow this now
├── BodyTimeout                  408  the body did not arrive in time
├── TooLarge                     413
├── UnsupportedFamily            422  an architecture that is not supported, or has no exact place for an exported injection
├── Overloaded                   429  carries Retry-After
├── DownloadFailed               502  a file that could not be downloaded, or is not the expected one
└── Unavailable                  503  carries Retry-After
    └── WrongClock                    the clock of the process and that of its database differ by minutes
    └── UnreadableAnswer              the service answered something that its client cannot read, or more than it takes
"""

from __future__ import annotations

from typing import ClassVar


class IFedError(Exception):
    """A refusal, with a sentence for the caller and the HTTP status of the response."""

    status: ClassVar[int] = 500
    retry_after: int | None = None
    known: ClassVar[dict[str, type[IFedError]]] = {}

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if retry_after is not None:
            self.retry_after = retry_after

    def __init_subclass__(cls) -> None:
        IFedError.known[cls.__name__] = cls

    @staticmethod
    def named(name: str, detail: str, *, status: int, retry_after: int | None = None) -> IFedError:
        """Return the exception that an error body names, so that a caller can catch the class that the service raised.

        A name that this version does not know becomes a plain `IFedError` with the status of the response.
        """
        if (known := IFedError.known.get(name)) is not None:
            return known(detail, retry_after=retry_after)
        unknown = IFedError(f"{name}: {detail}", retry_after=retry_after)
        unknown.status = status  # type: ignore[misc]  # an instance of no known class speaks for itself
        return unknown


class Malformed(IFedError):
    status = 422


class LayoutMismatch(Malformed): ...


class NonFinite(Malformed): ...


class DigestMismatch(Malformed): ...


class BadUrl(Malformed): ...


class BadArguments(Malformed): ...


class BadTemplate(Malformed): ...


class BadData(Malformed): ...


class TooFewExamples(BadData): ...


class Unauthenticated(IFedError):
    status = 401


class Forbidden(IFedError):
    status = 403


class NotFound(IFedError):
    status = 404


class UnknownTask(NotFound): ...


class UnknownClient(NotFound): ...


class UnknownRound(NotFound): ...


class UnknownVersion(NotFound): ...


class UnknownWebhook(NotFound): ...


class UnknownModel(NotFound): ...


class NothingYet(NotFound): ...


class Conflict(IFedError):
    status = 409


class AlreadyExists(Conflict): ...


class NotJoined(Conflict): ...


class Withdrawn(Conflict): ...


class RoundClosed(Conflict): ...


class StaleUpdate(Conflict): ...


class AlreadyContributed(Conflict): ...


class QuotaExceeded(Conflict): ...


class FingerprintMismatch(Conflict): ...


class BeyondLimits(Conflict): ...


class RepeatedContext(Conflict): ...


class ProbeMismatch(Conflict): ...


class WrongState(Conflict): ...


class BodyTimeout(IFedError):
    status = 408


class TooLarge(IFedError):
    status = 413


class UnsupportedFamily(IFedError):
    status = 422


class NotFoldable(IFedError):
    status = 422


class Overloaded(IFedError):
    status = 429
    retry_after = 1


class DownloadFailed(IFedError):
    status = 502


class Unavailable(IFedError):
    status = 503
    retry_after = 2


class UnreadableAnswer(Unavailable): ...


class WrongClock(Unavailable): ...


class TooManyItems(TooLarge):
    """A request contains more texts than the service accepts at once."""


class TooManyTokens(TooLarge):
    """The texts of a request have more tokens together than the service accepts at once."""


class TextTooLong(TooLarge):
    """A text is longer than the model can read, and the caller did not allow truncation."""


class EmptyText(Malformed):
    """A text consists of white space only, so the answer would be nothing but the model's label prior."""


class PairNotSupported(Malformed):
    """A pair of texts, as for a cross-encoder, where only single texts are classified."""


class NoDefaultTask(Malformed):
    """A request names no task, and the service has no default task."""


class NoDemonstrations(NotFound):
    """Few-shot prompting was requested for a task without demonstrations on this service."""


class QueueFull(Overloaded):
    """The queue is full: this text would wait too long."""


class DeadlineExceeded(IFedError):
    """The caller's deadline passed before the answer was ready."""

    status = 504


class OtherModel(Conflict):
    """The adapter was calibrated on another language model than the one that this service runs."""

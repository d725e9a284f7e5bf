"""Models from the Hugging Face hub or a mirror of it, and a sentence for each way in which it can refuse.

Importing this module does not import huggingface_hub, which takes half a second.
"""

from __future__ import annotations

from pathlib import Path

from ifed.downloads import explained_disk_errors
from ifed.errors import UnknownModel

FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def download(name: str) -> Path:
    """Return the folder of the model `org/name` or `org/name@revision` in the hub's cache; fetch what is not there.

    Raises:
        UnknownModel: the hub refused, could not be reached, or has no such model; the detail says what to do.
        DownloadFailed: the cache cannot be written to, or its disk is full.
    """
    import huggingface_hub
    from huggingface_hub import constants

    repository, _, revision = name.partition("@")
    try:
        with explained_disk_errors(Path(constants.HF_HUB_CACHE), "HF_HOME"):
            return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:  # a mirror's answer may be anything
        raise UnknownModel(
            f"the model {name!r} could not be downloaded from {constants.ENDPOINT}: {_sentence(reason, repository)}"
        ) from reason


def _sentence(reason: Exception, repository: str) -> str:
    """Return why the hub has not given a model, and what to do about it."""
    from huggingface_hub import constants, errors

    causes = _causes(reason)
    answers = [cause for cause in causes if getattr(cause, "response", None) is not None]
    status = getattr(getattr(answers[0], "response", None), "status_code", None) if answers else None
    match reason:
        case errors.GatedRepoError():
            return (
                f"it is gated. Accept its terms at {constants.ENDPOINT}/{repository}, and set HF_TOKEN to a token of that account"
            )
        case errors.RevisionNotFoundError():
            return "there is no such revision of it. Look for its name or commit at the hub"
        case errors.RepositoryNotFoundError():
            return (
                "there is no model of this name, or it is private. Check the spelling, or set HF_TOKEN to a token that may read it"
            )
        case errors.HFValidationError():
            return "this is not the form of a name there, which is org/name or org/name@revision"
    if status in (401, 403):
        return f"it answered {status}: HF_TOKEN is not valid there or may not read this model"
    if status is not None:
        return f"it answered {status}. Try again later, or check HF_ENDPOINT if that names a mirror"
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return f"HF_HUB_OFFLINE is set and the model is not in {constants.HF_HUB_CACHE}. Fetch it once with a connection, or name a folder"
    if isinstance(reason, errors.FileMetadataError) or not isinstance(reason, OSError):
        return "what answers there is no hub. Check HF_ENDPOINT, and whether a proxy answers in its place"
    root = type(causes[-1]).__name__
    return (
        f"it could not be reached ({root}) and the model is not whole in {constants.HF_HUB_CACHE}. Check the connection, HTTPS_PROXY and "
        "HF_ENDPOINT, or name a folder"
    )


def _causes(reason: BaseException) -> list[BaseException]:
    """Return an exception and those that it was raised from, the first one last."""
    causes = [reason]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes

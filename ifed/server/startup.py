"""Read the settings of a process, or end it with a sentence for its operator and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from ifed.errors import IFedError
from ifed.messages.validation import field_problems

Chosen = TypeVar("Chosen", bound=BaseModel)


def settings_or_exit(kind: Callable[[], Chosen], *, service: str, secrets: Callable[[Chosen], object] = lambda _: None) -> Chosen:
    """Read and check the settings; exit with code 2 and an explanation if something is missing or wrong.

    Args:
        kind: the settings class.
        service: the name of the process in the explanation.
        secrets: reads what settings only name, such as the file of a token, so that a missing file is reported at the start.
    """
    try:
        settings = kind()
        secrets(settings)
    except ValidationError as reason:
        problems = "\n".join(
            f"  {field.upper() or 'SETTINGS'}: {problem.removeprefix('Value error, ')}"
            for field, problem in field_problems(reason.errors())
        )
        _end(f"{service}: these settings, read from the environment, are missing or wrong:\n{problems}")
    except (ValueError, IFedError) as reason:
        _end(f"{service}: a setting, or the file it names, is of no use: {reason}")
    except OSError as reason:
        _end(f"{service}: a file or folder that a setting names cannot be read: {reason}")
    return settings


def _end(words: str) -> NoReturn:
    sys.stderr.write(f"{words}\n")
    sys.exit(2)

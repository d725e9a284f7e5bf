"""Files that the command line names: read them, or say in one sentence why not; write secrets for their owner alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ifed.errors import BadArguments
from ifed.private_files import make_private_file


def unusable(path: object, reason: OSError) -> BadArguments:
    """Return the refusal of a file that cannot be used."""
    return BadArguments(f"{path} cannot be used: {(reason.strerror or type(reason).__name__).lower()}")


def read_file(path: Path) -> str:
    """Return the text of a file.

    Raises:
        BadArguments: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as reason:
        raise unusable(path, reason) from reason
    except UnicodeDecodeError as reason:
        raise BadArguments(f"{path} is not UTF-8 (byte {reason.start}); save it as UTF-8") from reason


def check_readable(path: Path) -> None:
    """Check that a file can be read.

    Raises:
        BadArguments: it cannot.
    """
    try:
        path.open("rb").close()
    except OSError as reason:
        raise unusable(path, reason) from reason


def read_token(path: Path) -> str:
    """Return the token that a file holds.

    Raises:
        BadArguments: the file cannot be read, or is empty.
    """
    if not (token := read_file(path).strip()):
        raise BadArguments(f"{path} is empty and should hold a token")
    return token


@contextmanager
def private_output(path: Path) -> Iterator[Callable[[str], None]]:
    """Make sure that a secret can be written to a file, before the secret is requested; yield what writes it.

    The file appears whole, readable by its owner alone, or stays as it was.

    Raises:
        BadArguments: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        if path.is_dir():
            raise BadArguments(f"{path} cannot be used: is a directory")
        make_private_file(part)
    except OSError as reason:
        raise unusable(path, reason) from reason

    def write(secret: str) -> None:
        part.write_text(f"{secret}\n")
        part.replace(path)

    try:
        yield write
    finally:
        part.unlink(missing_ok=True)

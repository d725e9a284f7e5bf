"""Files and folders that only their owner can read, and whether others can."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def make_private_folder(folder: Path) -> None:
    """Create a folder and the missing ones above it, each of mode 0700; close `folder` if it exists and others can use it.

    Raises:
        OSError: it cannot be created.
    """
    if folder.is_dir():
        _close(folder, FOLDER_MODE)
        return
    for missing in reversed([folder, *(parent for parent in folder.parents if not parent.exists())]):
        missing.mkdir(mode=FOLDER_MODE, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Create an empty file of mode 0600 if there is none; close one that others can read.

    Raises:
        OSError: it cannot be created.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE))
    _close(path, FILE_MODE)


def close_to_others(path: Path) -> None:
    """Take the rights of everyone but the owner from a file that others can read; do nothing if there is no such file."""
    if path.exists():
        _close(path, FILE_MODE)


def others_can_read(path: Path) -> bool:
    """Return whether users other than the owner and its group can read a file.

    They cannot where a folder above it is closed to them. A file on a read-only file system counts as closed: container engines mount
    secrets like that, with a mode that nobody can change there.
    """
    path = path.resolve()
    if not path.stat().st_mode & stat.S_IROTH or os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)


def _close(path: Path, mode: int) -> None:
    # A mode that lets a group in, like 0640, is an operator's choice and stays.
    if path.stat().st_mode & stat.S_IRWXO:
        with contextlib.suppress(PermissionError):  # another user's; the start warns
            path.chmod(mode)

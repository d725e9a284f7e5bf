"""Each way in which a hub or a mirror refuses a model is one sentence with what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ifed.errors import DownloadFailed, UnknownModel
from ifed.modeling import hub
from ifed.modeling.catalog import prepare

ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}, b""),
    "unknown": (404, {"X-Error-Code": "RepoNotFound"}, b""),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}, b""),
    "token": (403, {}, b""),
    "broken": (418, {}, b""),
    "portal": (200, {"Content-Type": "text/html"}, b"<html>log in</html>"),
}


class _Handler(BaseHTTPRequestHandler):
    """A hub that answers every request for `a/NAME` with the answer of that name."""

    def do_GET(self) -> None:
        status, headers, body = next(answer for name, answer in ANSWERS.items() if f"/a/{name}" in self.path)
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # the name that the server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
        """Log nothing."""


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    """The URL of such a hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gated", r"it is gated\. Accept its terms at http.*/a/gated, and set HF_TOKEN"),
        ("unknown", r"there is no model of this name, or it is private"),
        ("revision@other", r"there is no such revision of it"),
        ("token", r"it answered 403: HF_TOKEN is not valid"),
        ("broken", r"it answered 418"),
        ("portal", r"what answers there is no hub\. Check HF_ENDPOINT"),
    ],
)
def test_each_refusal_of_a_hub_is_a_sentence(
    name: str, sentence: str, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(mirror, tmp_path, monkeypatch)
    with pytest.raises(UnknownModel, match=sentence):
        prepare(f"a/{name}", cache=tmp_path, announce=lambda _: None)


def test_a_hub_that_cannot_be_reached_or_asked_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    with pytest.raises(UnknownModel, match=r"could not be reached \(\w+\) and the model is not whole in"):
        hub.download("a/b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownModel, match=r"HF_HUB_OFFLINE is set"):
        hub.download("a/b")


def test_a_cache_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # in place of the folder; root may write to every folder
    with pytest.raises(DownloadFailed, match=r"cannot be written to \(.*\).*MODEL_CACHE"):
        prepare("smollm2-135m", cache=tmp_path / "file" / "cache", announce=lambda _: None)

"""The health check of the containers is silent for a ready service, prints the answer of another, and needs no library."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from testing.servers import free_port

pytestmark = pytest.mark.slow


class Page(BaseHTTPRequestHandler):
    """Respond with the status in the path."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()
        self.wfile.write(b'{"ready": false, "checks": {"database": "gone"}}')

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ifed.healthcheck", url],
        capture_output=True,
        text=True,
        check=False,
        env={"http_proxy": "http://127.0.0.1:9"},
    )


def test_a_ready_service_is_healthy_whatever_proxy_is_set(url: str) -> None:
    done = check(f"{url}/200")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_service_that_is_not_ready_is_unhealthy_with_its_answer(url: str) -> None:
    done = check(f"{url}/503")
    assert done.returncode == 1
    assert "answers 503" in done.stderr
    assert '"database": "gone"' in done.stderr


def test_a_service_that_does_not_answer_is_unhealthy() -> None:
    done = check(f"http://127.0.0.1:{free_port()}/readyz")
    assert done.returncode == 1
    assert "does not answer" in done.stderr


def test_it_needs_the_standard_library_alone() -> None:
    program = "import sys, ifed.healthcheck; print(sorted(name for name in sys.modules if name in ('httpx', 'pydantic', 'numpy', 'fastapi')))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"

"""What HAProxy does with the configuration of the containers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from testing.servers import free_port
from tests.house.sources import ROOT

PROXY = ROOT / "deploy/proxy"


def test_the_proxy_has_no_log_target_beside_standard_error() -> None:
    assert '"-db"' in (PROXY / "Dockerfile").read_text(), "with it HAProxy writes its log to standard error"
    assert not re.search(r"^\s*log ", (PROXY / "haproxy.cfg").read_text(), re.M)


def test_the_proxy_logs_that_a_replica_is_gone_once(tmp_path: Path) -> None:
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if binary is None:
        pytest.skip("needs haproxy on PATH, which Debian has as a package")
    written = (PROXY / "haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{free_port()}")
    # Replicas are found by the engine's name server, and here there is none.
    written = re.sub(r"server-template .*", f"server replica1 127.0.0.1:{free_port()}", written)
    written = written.replace(" resolvers docker resolve-prefer ipv4 init-addr none", "")
    (tmp_path / "haproxy.cfg").write_text(written)
    environment = os.environ | {"REPLICAS": "aggregator", "PROXY_TLS": "off"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([binary, "-W", "-db", "-f", tmp_path / "haproxy.cfg"], env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while "has no server available" not in (tmp_path / "log").read_text():
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(20)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sum("replica1 is DOWN" in line for line in lines) == 1

"""The same federation on Flower, from the package index, in a virtual environment of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.aggregator.report import Result
from benchmarks.aggregator.simulated_clients import Payload
from benchmarks.output import log_progress
from testing.servers import free_port

VERSION = "1.41.0"
APP = Path(__file__).parent / "flower_app"
CONFIG = '[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


def measure_flower(counts: Sequence[int], folder: Path, payload: Payload, rounds: int, timeout: float) -> list[Result]:
    """Measure each number of clients, up to the first that Flower does not complete within `timeout` seconds."""
    results: list[Result] = []
    for clients in counts:
        binaries = _install(folder.resolve())
        seconds = _run_federation(binaries, clients, payload, rounds, timeout)
        if seconds is None:
            log_progress(f"flower: {clients} clients were not finished after {timeout:.0f} s")
            break
        result = Result(
            "flower",
            str(payload),
            clients,
            len(seconds) / sum(seconds),
            clients * len(seconds) / sum(seconds),
            round_seconds=seconds,
        )
        log_progress(f"flower: {clients} clients, {result.contributions_per_second:.2f} contributions/s, rounds {seconds}")
        results.append(result)
    return results


def _install(folder: Path) -> Path:
    """Install Flower, which pins other versions of the aggregator's dependencies; return the folder of its programs."""
    if not (folder / "bin" / "flower-superlink").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", f"flwr=={VERSION}"], check=True)
    return folder / "bin"


def _run_federation(binaries: Path, clients: int, payload: Payload, rounds: int, timeout: float) -> list[float] | None:
    """Return the seconds of each round, or None if it did not end in time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifed-flower-")))
        out, port = folder / "out.json", free_port()
        (folder / "config.toml").write_text(CONFIG.format(port=port), encoding="utf-8")
        environment = {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        superlink: list[str | Path] = [
            binaries / "flower-superlink",
            "--insecure",
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
        ]
        stack.enter_context(_running(superlink, environment, folder / "superlink.log"))
        time.sleep(10)
        for rank in range(clients):
            node: list[str | Path] = [
                binaries / "flower-supernode",
                "--insecure",
                "--superlink",
                f"127.0.0.1:{port}",
                "--port",
                str(free_port()),
            ]
            stack.enter_context(_running(node, environment, folder / f"supernode-{rank}.log"))
        shape = f"layers={payload.layers} hidden={payload.hidden} groups={payload.groups}"
        config = f'clients={clients} rounds={rounds} {shape} out="{out}"'
        command: list[str | Path] = [binaries / "flwr", "run", APP, "bench", "--run-config", config]
        end = time.monotonic() + timeout
        try:
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=timeout)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as reason:
            log_progress(f"flower: `flwr run` ended with {type(reason).__name__}")
            return None
        while not out.exists():
            if time.monotonic() > end:
                return None
            time.sleep(0.5)
        return [float(seconds) for seconds in json.loads(out.read_text(encoding="utf-8"))]


@contextmanager
def _running(command: Sequence[str | Path], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a process in a group of its own, so that its children end with it."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(3)
            except (subprocess.TimeoutExpired, ProcessLookupError):
                continue

"""The same federation on Flower, from the package index, in an environment of its own. Starts and stops its processes."""

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

from benchmarks.aggregator.report import Figures
from benchmarks.aggregator.simulated_clients import Payload
from testing.servers import free_port

VERSION = "1.41.0"
APP = Path(__file__).parent / "flower_app"
CONNECTION = '[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


def measured(counts: Sequence[int], folder: Path, payload: Payload, rounds: int, limit: float) -> list[Figures]:
    """Figures of every count Flower gets through in `limit` seconds, up to the first that it does not."""
    found: list[Figures] = []
    for clients in counts:
        binaries = _installed(folder.resolve())
        took = _federation(binaries, clients, payload, rounds, limit)
        if took is None:
            print(f"flower: {clients} clients were not through after {limit:.0f} s", flush=True)
            break
        made = Figures("flower", str(payload), clients, len(took) / sum(took), clients * len(took) / sum(took), round_seconds=took)
        print(f"flower: {clients} clients, {made.contributions_per_second:.2f} contributions/s, rounds {took}", flush=True)
        found.append(made)
    return found


def _installed(folder: Path) -> Path:
    """The binaries of Flower's own environment: it pins other versions of what the aggregator uses too."""
    if not (folder / "bin" / "flower-superlink").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", f"flwr=={VERSION}"], check=True)
    return folder / "bin"


def _federation(binaries: Path, clients: int, payload: Payload, rounds: int, limit: float) -> list[float] | None:
    """Seconds of each round; None when it did not end in time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifed-flower-")))
        out, port = folder / "out.json", free_port()
        (folder / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
        own = {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        link = [binaries / "flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
        stack.enter_context(_running(link, own, folder / "superlink.log"))
        time.sleep(10)
        for rank in range(clients):
            node = [binaries / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            stack.enter_context(_running(node, own, folder / f"supernode-{rank}.log"))
        said = (
            f'clients={clients} rounds={rounds} layers={payload.layers} hidden={payload.hidden} groups={payload.groups} out="{out}"'
        )
        run = [binaries / "flwr", "run", APP, "bench", "--run-config", said]
        end = time.monotonic() + limit
        try:
            subprocess.run(run, env=own, check=True, capture_output=True, timeout=limit)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as reason:
            print(f"flower: `flwr run` ended with {type(reason).__name__}", flush=True)
            return None
        while not out.exists():
            if time.monotonic() > end:
                return None
            time.sleep(0.5)
        return [float(seconds) for seconds in json.loads(out.read_text(encoding="utf-8"))]


@contextmanager
def _running(command: Sequence[str | Path], own: dict[str, str], log: Path) -> Iterator[None]:
    """A process with all that it starts, in a group of its own, which is ended as one."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=own, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
                process.wait(3)
            except (subprocess.TimeoutExpired, ProcessLookupError):
                continue

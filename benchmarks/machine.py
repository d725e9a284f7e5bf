"""What a benchmark runs on, and how it ends there. Measures nothing."""

from __future__ import annotations

import platform
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import torch


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    load = psutil.getloadavg()[0]
    return {
        "cpu": names[0] if names else platform.processor(),
        "amx": bool(torch.cpu.get_capabilities().get("amx_bf16")),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average_at_the_end": round(load, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def end_whole() -> None:
    """From now on SIGTERM ends this process like an error would, so that the services it has started end too."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))

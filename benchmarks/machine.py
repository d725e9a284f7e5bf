"""What a benchmark ran on. Measures nothing."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import psutil
import torch


def machine() -> dict[str, Any]:
    """Processor, AMX, cores, memory in GB of 10⁹ bytes, load over the last minute, and versions; JSON-ready."""
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

"""How a benchmark that starts services ends. Starts nothing itself."""

from __future__ import annotations

import signal
import sys


def end_on_sigterm() -> None:
    """From now on SIGTERM ends this process as an error would, so that the services it has started end too."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))

"""Orderly shutdown of a benchmark that starts services."""

from __future__ import annotations

import signal
import sys


def exit_on_sigterm() -> None:
    """Turn SIGTERM into `SystemExit`, so that the services which this process has started are stopped too."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))

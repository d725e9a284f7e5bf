"""Two forward passes at once in one process, and the queue before them: `python -m benchmarks.lanes`."""

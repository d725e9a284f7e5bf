"""Two concurrent forward passes in one process, and the queue before them: `python -m benchmarks.lanes`."""

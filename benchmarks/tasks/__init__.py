"""Several tasks on one text, shared or one by one: `python -m benchmarks.tasks`."""

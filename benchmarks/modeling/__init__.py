"""The published procedure of in-context learning by injection against ours: `python -m benchmarks.modeling`."""

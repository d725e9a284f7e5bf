"""Whole rounds of the aggregator with many clients, beside the same federation on Flower: `python -m benchmarks.aggregator`."""

"""The federation of `python -m benchmarks.aggregator` as a Flower app. Imports Flower, and nothing of ours."""

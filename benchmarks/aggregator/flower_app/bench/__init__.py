"""The federation of `python -m benchmarks.aggregator` as a Flower app, which imports Flower and not this project."""

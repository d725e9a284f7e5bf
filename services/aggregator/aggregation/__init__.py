"""Aggregation rules and accumulators, in numpy."""

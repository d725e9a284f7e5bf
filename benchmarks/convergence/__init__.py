"""How calibration converges when clients have skewed labels: `python -m benchmarks.convergence`."""

"""How calibration converges when clients' labels are skewed: `python -m benchmarks.convergence`."""

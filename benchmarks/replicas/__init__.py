"""Speed and availability by the number of replicas: `python -m benchmarks.replicas`."""

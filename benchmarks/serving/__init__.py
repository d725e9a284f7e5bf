"""Speed of the inference service over loopback, beside a plain endpoint: `python -m benchmarks.serving`."""

"""What further replicas bring, in speed and in availability: `python -m benchmarks.replicas`."""

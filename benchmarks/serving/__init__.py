"""Speed of the inference service over loopback, beside what people write first."""

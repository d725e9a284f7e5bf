"""The services, which meet only over HTTP."""

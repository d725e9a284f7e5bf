"""The inference service: one frozen model, any number of tasks."""

"""What every service mounts: refusals, health, metrics, OpenAPI, logging, settings at start."""

"""The client agent: works where the private data is. Outbound HTTP only."""

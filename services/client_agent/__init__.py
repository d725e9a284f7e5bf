"""The client agent: works where the private data is, over outbound HTTP only."""

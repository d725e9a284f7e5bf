"""The `ifed` command."""

"""The rules of tasks and rounds, without I/O."""

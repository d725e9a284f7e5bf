"""`ifed demo`: four organisations train one classifier together on this machine, over HTTP, with a real language model."""

from ifed.cli.demo.command import demo

__all__ = ["demo"]

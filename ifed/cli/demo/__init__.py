"""`ifed demo`: four organisations train one classifier together on this machine, over HTTP, with a real language model."""

from ifed.cli.demo.command import demo
from ifed.cli.demo.sample import demo_texts

__all__ = ["demo", "demo_texts"]

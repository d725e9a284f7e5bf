"""The language model: the only package that imports torch or transformers."""

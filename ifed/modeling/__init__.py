"""The torch room: the only package that imports torch or transformers."""

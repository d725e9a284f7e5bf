"""Tensor values and their wire formats, in numpy."""

"""Measurements that print a table and write JSON. Never part of the tests."""

from ifed.logs import hush_imports

hush_imports()  # before any of them imports torch

"""Measurements that print a table and write JSON.

Importing the package keeps off the error stream what torchao says when it is imported, which must be asked for before torch is.
"""

from ifed.server.logs import hush_imports

hush_imports()

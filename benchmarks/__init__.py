"""Benchmarks of the services and of the modelling core; `benchmarks/README.md` lists them.

Importing the package silences what torchao logs on import, which has to be set up before torch is imported.
"""

from ifed.server.logs import hush_imports

hush_imports()

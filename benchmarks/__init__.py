"""Benchmarks of the services and of the modelling core; `benchmarks/README.md` lists them.

Importing the package silences the warnings of torchao's import, which must happen before torch is imported.
"""

from ifed.server.logs import hush_imports

hush_imports()

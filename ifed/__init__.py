"""Federated in-context learning as a service: the library that its services share."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ifed-icl")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"

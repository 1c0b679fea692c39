"""The version of patchcaption."""

__version__ = "0.1.0"

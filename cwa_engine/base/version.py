"""The version of cwtool."""

__version__ = "0.1.0"

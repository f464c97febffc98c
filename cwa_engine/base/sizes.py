"""Sizes in memory, in words."""

from __future__ import annotations


def memory_size(size_bytes: float) -> str:
    """ "1.4 GB", or "53.0 MB" of less than a tenth of a gigabyte."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 0.1e9 else f"{size_bytes / 1e6:.1f} MB"

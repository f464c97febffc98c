"""What a shell's locale asks of output."""

from __future__ import annotations

from collections.abc import Mapping


def locale_of(environ: Mapping[str, str]) -> str:
    """The locale of characters, "" where none is set, as in most containers."""
    return environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""


def is_c(environ: Mapping[str, str]) -> bool:
    """Whether a locale is set, and to C: Python takes that for UTF-8, and a terminal that was set so may show none of it."""
    return locale_of(environ) in ("C", "POSIX")

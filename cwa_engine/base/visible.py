"""Text from elsewhere with what cannot be seen spelled out: names of models, files and tokens may hold anything."""

from __future__ import annotations

import re

# C0 except tab and line feed, DEL, C1; marks of writing direction; line separators; lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def spelled_out(text: str) -> str:
    r"""The text with control characters as Python writes them (`\x1b`); tabs and line feeds stay."""
    return text if text.isprintable() else _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)

"""Spans of time as people write them: `30m`, `2h`, `7d`, `0`, `forever`."""

from __future__ import annotations

import math
import re

from cwa_engine.errors import InvalidInput

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(text: str) -> float:
    """The span in seconds, `math.inf` for "forever" and for negative numbers, as ollama has them. Raises InvalidInput."""
    if text == "forever":
        return math.inf
    found = re.fullmatch(r"(-?)(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if not found:
        raise InvalidInput(f"'{text}' is no span of time", hint="like 30m, 2h, 7d, 0 or forever")
    minus, number, unit = found.groups()
    return math.inf if minus else float(number) * _SECONDS[unit]

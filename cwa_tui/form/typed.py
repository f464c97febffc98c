"""The value of an option's field from what is typed for it, for the daemon in use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwa_engine import typed
from cwa_engine.options import OptionField
from cwa_tui.form.places import model_name


def typed_value(entry: OptionField, given: Sequence[str], base: Path | None = None) -> Any:
    """As `cwa_engine.typed.typed_value`, with models as that daemon knows them."""
    return typed.typed_value(entry, given, base, model_name)

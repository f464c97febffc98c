"""The tokens at which a model's texts end, as its files say: generation_config.json, else config.json, else its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cwa_engine.models.model_files import read_json

FILE = "generation_config.json"
FIELD = "eos_token_id"


def stored_end_tokens(folder: Path) -> tuple[tuple[int, ...] | None, str]:
    """(those of generation_config.json, or None if it names none; a note where it names something else).

    Raises ModelBroken for a file that is not JSON.
    """
    if not (folder / FILE).is_file():
        return None, ""
    named = read_json(folder / FILE).get(FIELD)
    if named is None:
        return None, ""
    found = _ids(named)
    return found, "" if found else f"{FILE} says {FIELD} = {str(named)[:60]}, which is no token: it is not used"


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens at which a text of this model ends; none where nothing names one."""
    named = (
        getattr(model.generation_config, FIELD, None),
        getattr(model.config.get_text_config(decoder=True), FIELD, None),
        tokenizer.eos_token_id,
    )
    return frozenset(next(filter(None, map(_ids, named)), ()))


def _ids(named: Any) -> tuple[int, ...] | None:
    """A token or several; None for what is neither."""
    several = named if isinstance(named, list) else [named]
    right = all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in several)
    return tuple(several) if several and right else None

"""The types of metadata values. A value of a wrong type is refused before it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import ModelBroken


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_Kind = tuple[str, Callable[[Any], bool]]
_TEXT: _Kind = ("text", lambda value: type(value) is str)
_FLAG: _Kind = ("true or false", lambda value: type(value) is bool)
_FLAG_OR_WHOLE: _Kind = ("true, false or a whole number", lambda value: isinstance(value, int) and value >= 0)
_WHOLE: _Kind = ("a whole number", lambda value: type(value) is int and value >= 0)
_COUNT: _Kind = ("a whole number above 0", lambda value: type(value) is int and value > 0)
_NUMBER: _Kind = ("a number", _number)
_NOT_NEGATIVE: _Kind = ("a number that is not negative", lambda value: _number(value) and value >= 0)
_POSITIVE: _Kind = ("a number above 0", lambda value: _number(value) and value > 0)

# Types by key, without the prefix of the architecture. All other keys are whole numbers.
_KINDS: dict[str, _Kind] = {
    r"rope\.scaling\.type|tensor_data_layout|tokenizer\.ggml\.(model|pre|tokens|merges)": _TEXT,
    r"attention\.causal|expert_weights_norm|rope\.scaling\.finetuned|ssm\.dt_b_c_rms|use_parallel_residual": _FLAG,
    r"tokenizer\.ggml\.(add_\w+|remove_extra_whitespaces|escape_whitespaces)": _FLAG,
    r"attention\.sliding_window_pattern": _FLAG_OR_WHOLE,
    r"block_count|context_length|embedding_length|shortconv\.\w+|ssm\.\w+": _COUNT,
    r"rope\.freq_base\w*|rope\.scaling\.(yarn_)?attn_factor|rope\.scaling\.yarn_beta_\w+": _POSITIVE,
    r"tokenizer\.ggml\.scores": _NUMBER,
    r".*(epsilon|scale|scale_linear|factor|softcapping|clamp_kqv|max_alibi_bias|yarn_\w+)": _NOT_NEGATIVE,
}


def checked(path: Path, key: str, value: Any, listed: bool, prefix: str = "") -> Any:
    """The value; a number as a float if its key allows fractions. `listed`: it must be a list.

    Raises ModelBroken for a value of another type than llama.cpp reads there.
    """
    what, fits = next((kind for pattern, kind in _KINDS.items() if re.fullmatch(pattern, key)), _WHOLE)
    if isinstance(value, list) != listed or not all(map(fits, value if listed else [value])):
        raise ModelBroken(
            f"{path.name} says {prefix}{key} = {shown(value)}: expected is {'a list, each entry ' * listed}{what}",
            hint="convert the model again with a current convert_hf_to_gguf.py of llama.cpp",
        )
    fraction = (what, fits) in (_NOT_NEGATIVE, _POSITIVE)
    return float(value) if fraction and not listed else value


def shown(value: Any) -> str:
    """The value for messages."""
    return str(value) if len(str(value)) < 60 else f"{str(value)[:60]}..."

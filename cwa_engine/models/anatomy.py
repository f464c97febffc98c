"""What a model is made of: its parameters in a fixed order, their decoder block, component and orientation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

COMPONENTS = ("embedding", "q", "k", "v", "qkv", "o", "up", "gate", "down", "norm", "head", "other")

# The module that owns a parameter, by the last parts of its path. First match wins, so the longer names stand first.
_COMPONENT_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"(wte|wpe|embed_in|embed_tokens|embed_positions|word_embeddings|project_in)$", "embedding"),
    (r"(lm_head|embed_out|output_embeddings|project_out)$", "head"),
    (r"(ln_\w+|\w*layer_?norm\w*|norm|norm\d|\w+_norm)$", "norm"),
    (r"(c_attn|query_key_value|qkv_proj|Wqkv)$", "qkv"),
    (r"(q_proj|query|q_attn)$", "q"),
    (r"(k_proj|key)$", "k"),
    (r"(v_proj|value)$", "v"),
    (r"(attn|attention|self_attn|self_attention)\.(c_proj|dense|out_proj|o_proj)$", "o"),
    (r"(gate_proj)$", "gate"),
    (r"(up_proj|c_fc|fc1|fc_in|dense_h_to_4h)$", "up"),
    (r"(down_proj|fc2|fc_out|dense_4h_to_h|mlp\.c_proj)$", "down"),
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One stored tensor. `order` breaks ties of scores; `transposed` marks storage as [in, out] (GPT-2's Conv1D)."""

    name: str
    order: int
    shape: tuple[int, ...]
    layer: int | None  # decoder block, None outside the blocks
    component: str
    transposed: bool

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def features(self, flat_index: int) -> tuple[int, int | None]:
        """(out_feature, in_feature) of a flat index into the stored tensor; in_feature is None for vectors.

        Tensors of more than two axes are read as [out, everything else].
        """
        if len(self.shape) == 1:
            return flat_index, None
        row, column = divmod(flat_index, self.numel // self.shape[0])
        return (column, row) if self.transposed else (row, column)


@dataclass(frozen=True)
class Anatomy:
    """The parameters of a model in the order the model names them, tied ones once, and where its blocks are."""

    parameters: dict[str, Parameter]
    blocks_path: str  # module path of the list of decoder blocks, "model.layers"
    blocks: int

    @property
    def numel(self) -> int:
        return sum(parameter.numel for parameter in self.parameters.values())


def component_of(module_path: str) -> str:
    """The component a module path belongs to: `model.layers.3.self_attn.o_proj` is "o"."""
    for pattern, component in _COMPONENT_PATTERNS:
        if re.search(rf"(^|\.){pattern}", module_path):
            return component
    return "other"


def blocks_path(model: nn.Module) -> str:
    """Path of the decoder blocks: the outermost ModuleList of modules of one class, the longest where there are several.

    Raises ValueError where the model has no list of modules at all.
    """
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [(n, m) for n, m in lists if not any(n.startswith(other + ".") for other, _ in lists)]
    if not outermost:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks")
    name: str = max(outermost, key=lambda entry: len(entry[1]))[0]
    return name


def dissect(model: nn.Module) -> Anatomy:
    """The anatomy of a loaded causal language model. Tied parameters count once, under their first name."""
    from transformers.pytorch_utils import Conv1D

    path = blocks_path(model)
    in_block = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    parameters = {}
    for order, (name, tensor) in enumerate(model.named_parameters(remove_duplicate=True)):
        owner, _, leaf = name.rpartition(".")
        block = in_block.match(name)
        parameters[name] = Parameter(
            name=name,
            order=order,
            shape=tuple(tensor.shape),
            layer=int(block[1]) if block else None,
            component=component_of(owner),
            transposed=leaf == "weight" and isinstance(model.get_submodule(owner), Conv1D),
        )
    return Anatomy(parameters, path, len(model.get_submodule(path)))  # type: ignore[arg-type]

"""The anatomy of a model: its parameters in a fixed order, with decoder block, component and orientation."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

COMPONENTS = (
    "embedding", "q", "k", "v", "qkv", "o", "up", "gate", "down", "norm", "head", "router", "expert", "other",
)  # fmt: skip

_ATTENTION = r"(\w*attn|\w*attention|\w*attentions\.\d+|self|mixer)"

# (pattern of the last parts of the owning module's path, component). The first match counts, so narrow patterns come
# first. A fused tensor has one component: keys with values are "qkv", gates with ups are "up".
_COMPONENT_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"(\w*norm\w*|ln(\d|_\w+)?|\w+_ln)", "norm"),
    (r"experts(\..+)?", "expert"),
    (r"((router|gate)(\.\w+)*|shared_expert_gate|wg)", "router"),
    (r"feed_forward\.key", "up"),  # RWKV's
    (r"feed_forward\.value", "down"),
    (r"(wte|wpe|w|\w*embed\w*|project_in)", "embedding"),
    (r"(lm_head|embed_out|output_embeddings|project_out|cls\.predictions\..+|\w*lm_head\.\w+)", "head"),
    (r"(c_attn|query_key_value|w?qkv(_\w+)?|in_proj_qkv\w*|kv_\w+|kv)", "qkv"),
    (rf"(q_\w*proj\w*|query(_proj)?|q_attn|q_lin|Wq|{_ATTENTION}\.q)", "q"),
    (rf"(k_proj|key(_proj)?|k_lin|Wk|{_ATTENTION}\.k)", "k"),
    (rf"(v_proj|value(_proj)?|v_lin|Wv|{_ATTENTION}\.v)", "v"),
    (rf"({_ATTENTION}\.(c_proj|dense|out_proj|o|proj|wo|out_lin|output(\.dense)?)|o_\w*proj)", "o"),
    (r"(gate_proj|w1|proj_up_gate)", "gate"),
    (
        r"(up_proj|gate_up_proj|c_fc|fc1|fc_in|dense_h_to_4h|w3|wi|lin1|layer_1|intermediate(\.dense)?|input_linear"
        r"|proj_up|ffn\.0)",
        "up",
    ),
    (
        r"(down_proj|fc2|fc_out|dense_4h_to_h|mlp\.c_proj|w2|wo|lin2|layer_2|output(\.dense)?|output_linear"
        r"|proj_down|ffn\.2)",
        "down",
    ),
)
_DOWN = "|".join(pattern for pattern, component in _COMPONENT_PATTERNS if component == "down")


@dataclass(frozen=True, slots=True)
class WeightPosition:
    """The indices of a weight. `in_feature` is None in a vector, `expert` is None outside of a stack of experts."""

    expert: int | None
    out_feature: int
    in_feature: int | None


@dataclass(frozen=True, slots=True)
class WeightPositions:
    """The indices of several weights; 0 for an axis that their parameter does not have. [weights] each"""

    experts: NDArray[np.int64]
    out_features: NDArray[np.int64]
    in_features: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One stored tensor. `order` breaks ties of scores; `transposed` marks storage as [in, out] (GPT-2's Conv1D).

    A stack of experts is stored as [experts, out, in], or as [experts, in, out] where transposed.
    """

    name: str
    order: int
    shape: tuple[int, ...]
    layer: int | None  # decoder block, None outside the blocks
    component: str
    transposed: bool = False
    experts: int | None = None
    head_size: int | None = None  # in_features of one attention head, for an attention's output projection
    offset: float = 0.0  # the layer multiplies by (stored value + offset): 1 in Gemma's norms

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """(out, in) or (in, out) as stored, or (out,) for a vector. Tensors of more axes count as [out, all other axes]."""
        one = self.shape if self.experts is None else self.shape[1:]
        return one if len(one) < 2 else (one[0], math.prod(one[1:]))

    @property
    def is_vector(self) -> bool:
        return len(self.matrix_shape) < 2

    @property
    def is_down(self) -> bool:
        """Whether it is the down projection of an MLP, or of the experts of a stack."""
        if self.is_vector or re.search("attn|attention", self.name):  # some models have attention experts
            return False
        of_experts = self.component == "expert" and _ends_in(_DOWN, self.name.removesuffix(".weight"))
        return self.component == "down" or of_experts

    @property
    def out_features(self) -> int:
        """Number of rows of the (out, in) matrix; the length of a vector."""
        return self.matrix_shape[-1 if self.transposed else 0] if self.shape else 1

    @property
    def in_features(self) -> int:
        """Number of columns of the (out, in) matrix; 1 for a vector."""
        return 1 if self.is_vector else self.matrix_shape[0 if self.transposed else 1]

    def flat_index(self, expert: int, out_feature: int, in_feature: int) -> int:
        """The index of a weight in the flattened stored tensor."""
        start = expert * self.out_features * self.in_features
        if self.transposed:
            return start + in_feature * self.out_features + out_feature
        return start + out_feature * self.in_features + in_feature

    def place(self, flat_index: int) -> WeightPosition:
        """The inverse of `flat_index`."""
        expert, rest = divmod(flat_index, self.out_features * self.in_features)
        if self.transposed:
            in_feature, out_feature = divmod(rest, self.out_features)
        else:
            out_feature, in_feature = divmod(rest, self.in_features)
        return WeightPosition(
            None if self.experts is None else expert, out_feature, None if self.is_vector else in_feature
        )

    def places(self, flat_indices: NDArray[np.int64]) -> WeightPositions:
        """`place` of each of these, all at once."""
        import numpy as np

        experts, rest = np.divmod(flat_indices, self.out_features * self.in_features)
        if self.transposed:
            in_features, out_features = np.divmod(rest, self.out_features)
        else:
            out_features, in_features = np.divmod(rest, self.in_features)
        return WeightPositions(experts, out_features, in_features)


@dataclass(frozen=True)
class Anatomy:
    """The parameters of a model in the order of the model, tied ones once, and the place of its blocks."""

    parameters: dict[str, Parameter]
    blocks_path: str  # module path of the list of decoder blocks, "model.layers"
    blocks: int

    @property
    def numel(self) -> int:
        return sum(parameter.numel for parameter in self.parameters.values())

    @cached_property
    def offsets(self) -> dict[str, float]:
        """Name -> offset, of the parameters whose offset is not 0."""
        return {name: parameter.offset for name, parameter in self.parameters.items() if parameter.offset}

    @cached_property
    def by_order(self) -> dict[int, Parameter]:
        """The parameters by `order`, the number that selections use."""
        return {parameter.order: parameter for parameter in self.parameters.values()}

    def only(self, include: Sequence[str], exclude: Sequence[str]) -> Anatomy:
        """The parameters whose name or component matches a pattern of `include` (if any) and none of `exclude`.

        Patterns are globs, like `*.mlp.*` or `down`. Raises InvalidInput for a pattern that matches nothing, and if
        no parameter is left.
        """
        for option, patterns in (("--include", include), ("--exclude", exclude)):
            for pattern in patterns:
                if not any(_matches(parameter, pattern) for parameter in self.parameters.values()):
                    present = dict.fromkeys(parameter.component for parameter in self.parameters.values())
                    near = did_you_mean(pattern, [*present, *self.parameters])
                    raise InvalidInput(
                        f"{option} '{pattern}' matches no parameter and no component",
                        hint=f"{near} components here: {', '.join(present)}; patterns look like '*.mlp.*'".strip(),
                    )
        kept = [
            name
            for name, parameter in self.parameters.items()
            if (not include or any(_matches(parameter, pattern) for pattern in include))
            and not any(_matches(parameter, pattern) for pattern in exclude)
        ]
        if not kept:
            raise InvalidInput("--include and --exclude leave no parameter", hint="exclude less")
        return self.subset(kept)

    def subset(self, names: Iterable[str]) -> Anatomy:
        """The same model with only these parameters in view."""
        return Anatomy({name: self.parameters[name] for name in names}, self.blocks_path, self.blocks)


def _matches(parameter: Parameter, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (parameter.name, parameter.component))


def component_of(module_path: str) -> str:
    """The component of a module path: `model.layers.3.self_attn.o_proj` is "o"."""
    return next((component for pattern, component in _COMPONENT_PATTERNS if _ends_in(pattern, module_path)), "other")


def _ends_in(pattern: str, module_path: str) -> bool:
    return re.search(rf"(^|\.)({pattern})(\.linear)?$", module_path, re.IGNORECASE) is not None


def blocks_path(model: nn.Module) -> str:
    """Module path of the decoder blocks; "" if there are none.

    It is the outermost list of modules in the text decoder, and the longest if there are several. Encoders of images and
    sounds do not count.
    """
    from torch import nn

    decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    for root in (decoder, model):
        lists = [name for name, module in root.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
        textual = [name for name in lists if not re.search("vision|image|audio", name)]
        outermost = [name for name in textual if not any(name.startswith(other + ".") for other in textual)]
        if outermost:
            longest = max(outermost, key=lambda name: len(root.get_submodule(name)))  # type: ignore[arg-type]
            prefix = next(name for name, module in model.named_modules() if module is root)
            return f"{prefix}.{longest}".strip(".")
    return ""


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy of a loaded causal language model. Tied parameters count once, under their first name."""
    from cwa_engine.models.norms import norm_offsets

    path = blocks_path(model)
    blocks = len(model.get_submodule(path)) if path else 0  # type: ignore[arg-type]
    in_block = re.compile(rf"{re.escape(path)}\.(\d+)\.") if path else None
    heads = config_number(model, "num_attention_heads") or 0
    parameters = {}
    for order, (name, tensor) in enumerate(model.named_parameters(remove_duplicate=True)):
        block = in_block.match(name) if in_block else None
        parameters[name] = _parameter(model, name, tuple(tensor.shape), order, int(block[1]) if block else None, heads)
    gains = [n for n, p in parameters.items() if p.component == "norm" and p.is_vector and not n.endswith("bias")]
    for name, offset in norm_offsets(model, gains).items():
        parameters[name] = dataclasses.replace(parameters[name], offset=offset)
    return Anatomy(parameters, path, blocks)


def _parameter(
    model: nn.Module, name: str, shape: tuple[int, ...], order: int, layer: int | None, heads: int
) -> Parameter:
    from transformers.pytorch_utils import Conv1D

    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    component = "head" if owner is model.get_output_embeddings() else component_of(owner_name)  # type: ignore[operator]
    is_stack = "Experts" in type(owner).__name__ and (len(shape) == 3 or (len(shape) == 2 and "bias" in leaf))
    is_transposed_stack = getattr(owner, "is_transposed", type(owner).__name__ == "Llama4TextExperts")
    transposed = (isinstance(owner, Conv1D) and leaf == "weight") or (
        is_stack and len(shape) == 3 and is_transposed_stack
    )
    parameter = Parameter(
        name=name,
        order=order,
        shape=shape,
        layer=layer,
        component="expert" if is_stack else component,
        transposed=transposed,
        experts=shape[0] if is_stack else None,
    )
    if component == "o" and not parameter.is_vector and heads and parameter.in_features % heads == 0:
        return dataclasses.replace(parameter, head_size=parameter.in_features // heads)
    return parameter


def config_number(model: nn.Module, *names: str) -> int | None:
    """The first of these fields with a whole number in the text model's config; None if blocks differ or none has one."""
    config: Any = model.config
    text_config = config.get_text_config(decoder=True)
    for name in names:
        try:
            value = getattr(text_config, name, None)
        except RuntimeError:  # blocks differ: the config refuses to give one number for all
            continue
        if isinstance(value, int) and value > 0:
            return value
    return None


def longest_sequence(model: nn.Module) -> int | None:
    """The most tokens of a sequence; None if the model names no limit."""
    names = "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions"
    limits = [config_number(model, *names), position_table_length(model)]
    return min((limit for limit in limits if limit), default=None)


def position_table_length(model: nn.Module) -> int | None:
    """The number of positions for tokens in a table of learned positions; None without such a table.

    Some tables begin after the padding index (RoBERTa), some after a fixed offset (OPT).
    """
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and re.search(r"(position_embeddings|embed_positions|wpe)$", name):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - int(getattr(module, "offset", first))
    return None

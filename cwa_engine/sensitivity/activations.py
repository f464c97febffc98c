"""What linear layers read and write: per feature norms, largest values and Gram matrices over the scoring texts.

A linear layer is a `Linear` or `Conv1D` module, or one expert of a stack of experts. Texts pass one at a time, so no
padding is among the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.metrics import Needs

DAMPING = 0.01  # of the mean diagonal of X X^T, as in SparseGPT

Take = Callable[[str, int, Tensor, Tensor], None]


class Activations:
    """Running statistics of the linear layers, by parameter name and feature."""

    def __init__(self, loaded: LoadedModel, needs: Needs) -> None:
        self._needs = needs
        self._loaded = loaded
        self._parameters = loaded.anatomy.parameters
        self._square_sum: dict[str, Tensor] = {}  # [experts, in]
        self._input_max: dict[str, Tensor] = {}  # [experts, in]
        self._output_max: dict[str, Tensor] = {}  # [experts, out]
        self._gram: dict[str, Tensor] = {}  # [experts, in, in]
        for name in linear_parameters(loaded):
            parameter = self._parameters[name]
            experts, ins, outs = parameter.experts or 1, parameter.in_features, parameter.out_features
            if Needs.INPUTS in needs:
                self._square_sum[name] = self._zeros(experts, ins)
                self._input_max[name] = self._zeros(experts, ins)
            if Needs.OUTPUTS in needs:
                self._output_max[name] = self._zeros(experts, outs)
            if Needs.INPUT_GRAM in needs:
                self._gram[name] = self._zeros(experts, ins, ins)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._precision, device=self._loaded.device)

    @property
    def _precision(self) -> torch.dtype:
        return torch.promote_types(self._loaded.model.dtype, torch.float32)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record whatever passes through the linear layers meanwhile."""
        with _linear_calls(self._loaded, self._take):
            yield

    def _take(self, name: str, expert: int, inputs: Tensor, outputs: Tensor) -> None:
        """`inputs` [tokens, in] and `outputs` [tokens, out] of one call; a call without tokens adds nothing."""
        if not len(inputs):
            return
        x = inputs.to(self._precision)
        if Needs.INPUTS in self._needs:
            self._square_sum[name][expert] += x.square().sum(0)
            self._input_max[name][expert].copy_(torch.maximum(self._input_max[name][expert], x.abs().amax(0)))
        if Needs.OUTPUTS in self._needs:
            largest = outputs.to(self._precision).abs().amax(0)
            self._output_max[name][expert].copy_(torch.maximum(self._output_max[name][expert], largest))
        if Needs.INPUT_GRAM in self._needs:
            self._gram[name][expert].addmm_(x.T, x)

    def fields(self, name: str, sequences: int, with_factor: bool) -> dict[str, Tensor]:
        """The fields of `WeightStats` that are known of a parameter, shaped to be multiplied with it."""
        parameter = self._parameters[name]
        fields = {}
        if name in self._square_sum:
            fields["input_norm"] = _along_inputs(parameter, (self._square_sum[name] / sequences).sqrt())
            fields["input_max"] = _along_inputs(parameter, self._input_max[name])
        if name in self._output_max:
            fields["output_max"] = _along_outputs(parameter, self._output_max[name])
        if name in self._gram and with_factor:
            fields["input_factor"] = _along_inputs(
                parameter, torch.stack([obs_factor(g, sequences) for g in self._gram[name]])
            )
        return fields


def obs_factor(gram: Tensor, sequences: int) -> Tensor:
    """d: the diagonal of the upper Cholesky factor of the damped inverse of X X^T. [in] from [in, in]

    As in SparseGPT, which divides X X^T by half the number of sequences, an input that is always zero counts there as 1 in
    the mean that damping is a share of. Its d is infinite, so that the scores of its weights are zero.
    """
    dead = gram.diagonal() == 0
    damped = gram.to(torch.double, copy=True)
    damped.diagonal().masked_fill_(dead, sequences / 2)
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).diagonal()
    return factor.to(gram.dtype).masked_fill(dead, torch.inf)


def linear_parameters(loaded: LoadedModel) -> dict[str, nn.Module]:
    """The weights of linear layers in the decoder blocks by name, each with the module that owns it.

    Where a model has no list of blocks, of all linear layers. The authors of these metrics leave out what is outside the
    blocks, so the head, and an embedding tied to it.
    """
    in_view = {n: p for n, p in loaded.anatomy.parameters.items() if p.layer is not None or not loaded.anatomy.blocks}
    names = {id(loaded.model.get_parameter(name)): name for name in in_view}
    found: dict[str, nn.Module] = {}
    for module in loaded.model.modules():
        # Subclasses that multiply in another way (in groups, say) are no linear layers in the sense of the metrics.
        is_plain = type(module).forward in (nn.Linear.forward, Conv1D.forward)
        if is_plain and isinstance(module.weight, Tensor) and id(module.weight) in names:
            found[names[id(module.weight)]] = module
    for name, parameter in in_view.items():
        if parameter.experts and not parameter.is_vector:
            found[name] = loaded.model.get_submodule(name.rpartition(".")[0])
    return found


def _along_inputs(parameter: Parameter, values: Tensor) -> Tensor:
    """[experts, in] as [1, in], or [in, 1] where transposed; with a leading axis in a stack of experts."""
    shaped = values.unsqueeze(-1 if parameter.transposed else -2)
    return shaped if parameter.experts else shaped[0]


def _along_outputs(parameter: Parameter, values: Tensor) -> Tensor:
    shaped = values.unsqueeze(-2 if parameter.transposed else -1)
    return shaped if parameter.experts else shaped[0]


@contextmanager
def _linear_calls(loaded: LoadedModel, take: Take) -> Iterator[None]:
    """Hand `take` every call of a linear layer: parameter name, expert, inputs, outputs."""

    def hook_for(name: str) -> Callable[[object, tuple[Tensor, ...], Tensor], None]:
        def hook(module: object, args: tuple[Tensor, ...], output: Tensor) -> None:
            take(name, 0, args[0].detach().flatten(0, -2), output.detach().flatten(0, -2))

        return hook

    linear = linear_parameters(loaded)
    stacks = {name for name in linear if loaded.anatomy.parameters[name].experts}
    handles = [linear[name].register_forward_hook(hook_for(name)) for name in linear if name not in stacks]
    try:
        if stacks:
            with one_expert_at_a_time(loaded), _ExpertCalls(loaded, stacks, take):
                yield
        else:
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def one_expert_at_a_time(loaded: LoadedModel) -> Iterator[None]:
    """The plain implementation of experts: its calls can be told apart, and it has second derivatives."""
    usual = getattr(loaded.model.config, "_experts_implementation", None)
    if usual is None:
        yield
        return
    loaded.model.set_experts_implementation("eager")
    try:
        yield
    finally:
        loaded.model.set_experts_implementation(usual)


class _ExpertCalls(TorchFunctionMode):
    """Sees products with one expert's matrix: `linear(x, stack[e])`, `x @ stack[e]` and `bmm(x, stack)`."""

    def __init__(self, loaded: LoadedModel, stacks: set[str], take: Take) -> None:
        super().__init__()
        self._take = take
        self._stacks = [(loaded.model.get_parameter(name), loaded.anatomy.parameters[name]) for name in stacks]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm):
            inputs, matrix = args[0], args[1]
            for stack, parameter in self._stacks:
                offset = matrix.data_ptr() - stack.data_ptr()  # a view of the stack begins inside of it
                if 0 <= offset < stack.nbytes:
                    self._tell(parameter, offset // stack[0].nbytes, inputs.detach(), matrix, result.detach())
        return result

    def _tell(self, parameter: Parameter, expert: int, inputs: Tensor, matrix: Tensor, outputs: Tensor) -> None:
        if matrix.dim() == 3:  # all experts at once: [experts, tokens, in]
            for number in range(len(matrix)):
                self._take(parameter.name, number, inputs[number], outputs[number])
        else:
            self._take(parameter.name, expert, inputs.flatten(0, -2), outputs.flatten(0, -2))

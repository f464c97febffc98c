"""What linear layers read and write: per feature norms, Gram matrices and largest outputs over the scoring texts.

A linear layer is a `Linear` or `Conv1D` module, or one expert of a stack of experts. Texts pass one at a time, so no
padding is among the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.precision import doubled
from cwa_engine.sensitivity.spikes import Rows, SpikeRecorder

DAMPING = 0.01  # of the mean diagonal of X X^T, as in SparseGPT

# (parameter, expert, inputs [tokens, in], outputs [tokens, out], which tokens these are, None if not known)
Take = Callable[[str, int, Tensor, Tensor, Rows | None], None]


class Activations:
    """Running statistics of the linear layers, by parameter name and feature."""

    def __init__(self, loaded: LoadedModel, needs: Needs, sequences: Sequence[TokenSequence] = ()) -> None:
        """`sequences` are all texts that may be read, in the order by which spikes number them from 1."""
        self._needs = needs
        self._numbers = {id(sequence): number for number, sequence in enumerate(sequences, start=1)}
        self._spikes = SpikeRecorder(loaded) if Needs.SPIKES in needs else None
        self._loaded = loaded
        self._parameters = loaded.anatomy.parameters
        self._square_sum: dict[str, Tensor] = {}  # [experts, in]
        self._gram: dict[str, Tensor] = {}  # [experts, in, in]
        for name in linear_parameters(loaded):
            parameter = self._parameters[name]
            experts, ins = parameter.experts or 1, parameter.in_features
            if Needs.INPUTS in needs:
                self._square_sum[name] = self._zeros(name, experts, ins)
            if Needs.INPUT_GRAM in needs:
                self._gram[name] = self._zeros(name, experts, ins, ins)

    def _zeros(self, name: str, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._precision, device=self._loaded.device_of(name))

    @property
    def _precision(self) -> torch.dtype:
        return torch.promote_types(self._loaded.model.dtype, torch.float32)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record whatever passes through the linear layers meanwhile."""
        with linear_calls(self._loaded, self._take):
            yield

    def reading(self, sequence: TokenSequence) -> None:
        """Say which text passes next."""
        if self._spikes:
            self._spikes.reading(self._numbers[id(sequence)], sequence.ids)

    def _take(self, name: str, expert: int, inputs: Tensor, outputs: Tensor, rows: Rows | None) -> None:
        """One call; a call without tokens adds nothing."""
        if not len(inputs):
            return
        if self._spikes:
            self._spikes.take(name, expert, inputs, outputs, rows)
        x = inputs.to(self._precision)
        if Needs.INPUTS in self._needs:
            self._square_sum[name][expert] += x.square().sum(0)
        if Needs.INPUT_GRAM in self._needs:
            self._gram[name][expert].addmm_(x.T, x)

    def fields(self, name: str, sequences: int, with_factor: bool) -> dict[str, Any]:
        """The fields of `WeightStats` that are known of a parameter, shaped to be multiplied with it."""
        parameter = self._parameters[name]
        fields: dict[str, Any] = {}
        if self._spikes:
            fields["spikes"] = self._spikes.of(name)
        if name in self._square_sum:
            fields["input_norm"] = _along_inputs(parameter, (self._square_sum[name] / sequences).sqrt())
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
    damped = doubled(gram, copy=True)
    damped.diagonal().masked_fill_(dead.to(damped.device), sequences / 2)
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).diagonal()
    return factor.to(gram.dtype).to(gram.device).masked_fill(dead, torch.inf)


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


@contextmanager
def linear_calls(loaded: LoadedModel, take: Take) -> Iterator[None]:
    """Hand `take` every call of a linear layer: parameter name, expert, inputs, outputs."""

    def hook_for(name: str) -> Callable[[object, tuple[Tensor, ...], Tensor], None]:
        def hook(module: object, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = args[0].detach().flatten(0, -2)
            is_routed = loaded.anatomy.parameters[name].component == "expert"
            take(name, 0, inputs, output.detach().flatten(0, -2), None if is_routed else Rows(None, len(inputs)))

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
    """Sees products with one expert's matrix: `linear(x, stack[e])`, `x @ stack[e]` and `bmm(x, stack)`.

    An expert is given the rows `hidden[tokens]` that were picked last; that is how its tokens are known.
    """

    def __init__(self, loaded: LoadedModel, stacks: set[str], take: Take) -> None:
        super().__init__()
        self._take = take
        self._stacks = [(loaded.model.get_parameter(name), loaded.anatomy.parameters[name]) for name in stacks]
        self._picked = Rows(None, 0)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm):
            inputs, matrix = args[0], args[1]
            for stack, parameter in self._stacks:
                offset = matrix.data_ptr() - stack.data_ptr()  # a view of the stack begins inside of it
                if 0 <= offset < stack.nbytes:
                    self._tell(parameter, offset // stack[0].nbytes, inputs.detach(), matrix, result.detach())
        elif (
            function is Tensor.__getitem__ and args[0].dim() == 2 and isinstance(args[1], Tensor) and args[1].dim() == 1
        ):
            self._picked = Rows(args[1], len(args[0]))
        return result

    def _tell(self, parameter: Parameter, expert: int, inputs: Tensor, matrix: Tensor, outputs: Tensor) -> None:
        if matrix.dim() == 3:  # all experts at once: [experts, tokens, in]
            for number in range(len(matrix)):
                self._take(parameter.name, number, inputs[number], outputs[number], Rows(None, len(inputs[number])))
        else:
            x, chosen = inputs.flatten(0, -2), self._picked.chosen
            picked = self._picked if chosen is not None and len(chosen) == len(x) else None
            self._take(parameter.name, expert, x, outputs.flatten(0, -2), picked)

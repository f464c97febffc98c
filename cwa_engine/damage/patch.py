"""Reversible edits of weights: verified when written, undone bit for bit whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from cwa_engine.base.errors import WeightsNotRestored
from cwa_engine.methods.controls import Selection
from cwa_engine.methods.perturbations import EditContext, Options, Perturbation

DEFAULTS = Options()
NO_OFFSETS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Receipt:
    """What an edit did to one parameter: flat indices, old and new values, all [n]."""

    parameter: str
    indices: Tensor
    old: Tensor
    new: Tensor

    @property
    def unchanged(self) -> int:
        """Weights whose new value has the same bits as the old one."""
        return int((_bits(self.old) == _bits(self.new)).sum())


@contextmanager
def patched(
    model: nn.Module,
    selection: Selection,
    perturbation: Perturbation,
    options: Options = DEFAULTS,
    offsets: Mapping[str, float] = NO_OFFSETS,
) -> Iterator[list[Receipt]]:
    """Perturb the selected weights, give the receipts, and put the old values back on exit.

    The same options, seed included, perturb the same weights in the same way. `offsets` are what layers add to the values
    of their parameters, as `Anatomy.offsets` has them.

    Raises WeightsNotRestored where a value read back is not the one written, before or after; AttributeError for a
    parameter that does not exist and IndexError for an index out of range, before anything is written.
    """
    generator = torch.Generator().manual_seed(options.seed)
    receipts = []
    for name, indices in selection.items():
        edit = EditContext(name, model.get_parameter(name).detach(), options, generator)
        receipts.append(_receipt(name, indices, perturbation, edit, offsets.get(name, 0.0)))
    try:
        for receipt in receipts:
            _write(model, receipt, receipt.new)
        yield receipts
    finally:
        failures = [failure for receipt in receipts if (failure := _failure_to_restore(model, receipt))]
        if failures:
            raise failures[0]


def _receipt(name: str, indices: object, perturbation: Perturbation, edit: EditContext, offset: float) -> Receipt:
    where = torch.as_tensor(indices, device=edit.weight.device)
    if len(where) and not 0 <= int(where.min()) <= int(where.max()) < edit.weight.numel():
        raise IndexError(f"{name} has {edit.weight.numel()} weights; an index of the selection lies outside")
    old = _flat(edit.weight)[where].clone()
    if offset and perturbation.on_norm_factor:
        new = perturbation.rewrite(old.double() + offset, edit) - offset
    else:
        new = perturbation.rewrite(old, edit)
    return Receipt(name, where, old, new.to(old.dtype))


def _failure_to_restore(model: nn.Module, receipt: Receipt) -> WeightsNotRestored | None:
    """Put the old values back; a failure is returned, so that the other parameters are restored all the same."""
    try:
        _write(model, receipt, receipt.old)
    except WeightsNotRestored as failure:
        return failure
    return None


def _flat(weight: Tensor) -> Tensor:
    """The tensor as a vector that shares its memory. `view` raises where that cannot be, so no edit lands in a copy."""
    return weight.detach().view(-1)


def _write(model: nn.Module, receipt: Receipt, values: Tensor) -> None:
    flat = _flat(model.get_parameter(receipt.parameter))
    flat[receipt.indices] = values
    if not torch.equal(_bits(flat[receipt.indices]), _bits(values)):
        raise WeightsNotRestored(
            f"{receipt.parameter} does not hold the values written to it",
            hint="`cwtool unload` the model; it is loaded afresh by the next run",
        )


def _bits(values: Tensor) -> Tensor:
    """The same memory as integers: equal bits, where == would call -0.0 equal to 0.0 and NaN unequal to itself."""
    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])

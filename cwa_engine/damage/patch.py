"""Reversible edits of weights: verified when written, undone bit for bit whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from cwa_engine.base.errors import WeightsNotRestored
from cwa_engine.methods.controls import Selection
from cwa_engine.methods.perturbations import EditContext, Options, Perturbation
from cwa_engine.models.precision import doubled

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
        _write(model, [(receipt, receipt.new) for receipt in receipts])
        yield receipts
    finally:
        _write(model, [(receipt, receipt.old) for receipt in receipts])


def _receipt(name: str, indices: object, perturbation: Perturbation, edit: EditContext, offset: float) -> Receipt:
    given = torch.as_tensor(indices)
    if len(given) and not 0 <= int(given.min()) <= int(given.max()) < edit.weight.numel():
        raise IndexError(f"{name} has {edit.weight.numel()} weights; an index of the selection lies outside")
    where = given.to(edit.weight.device)
    old = _flat(edit.weight)[where].clone()
    if offset and perturbation.on_norm_factor:
        new = perturbation.rewrite(doubled(old) + offset, edit) - offset
    else:
        new = perturbation.rewrite(old, edit)
    return Receipt(name, where, old, new.to(old))


def _flat(weight: Tensor) -> Tensor:
    """The tensor as a vector that shares its memory. `view` raises where that cannot be, so no edit lands in a copy."""
    return weight.detach().view(-1)


def _write(model: nn.Module, values: Sequence[tuple[Receipt, Tensor]]) -> None:
    """Write values to the places of receipts, and read all of them back. Raises WeightsNotRestored, after all are written.

    A device is waited for once, not once for each parameter: a draw of a control has weights in most of them.
    """
    differ = []
    for receipt, written in values:
        flat = _flat(model.get_parameter(receipt.parameter))
        flat[receipt.indices] = written
        differ.append(_bits(flat[receipt.indices]).ne(_bits(written)).any())
    for (receipt, _), lost in zip(values, _told(differ), strict=True):
        if lost:
            raise WeightsNotRestored(
                f"{receipt.parameter} does not hold the values written to it",
                hint="`cwtool unload` the model; it is loaded afresh by the next run",
            )


def _told(flags: Sequence[Tensor]) -> list[bool]:
    """Flags of any devices, brought to the CPU together."""
    if not flags:
        return []
    told: list[bool] = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    return told


def _bits(values: Tensor) -> Tensor:
    """The same memory as integers: equal bits, where == would call -0.0 equal to 0.0 and NaN unequal to itself."""
    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])

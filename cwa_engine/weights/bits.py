"""The bit map of a weight: what flipping each of its stored bits does, in three dtypes.

The weight's value is rounded to a dtype, one bit of it is flipped, and the result is written into the loaded model in place
of the weight. A flipped value that the model's own dtype cannot hold exactly is not measured, and its row says so: a
model in float32 holds all values of bfloat16 and float16, one in bfloat16 few of the others. Flips that give the same value
in the model are measured once. The texts are a few of the evaluation texts, evenly spaced, for there are 64 flips.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from cwa_engine.damage.measured import Measured
from cwa_engine.damage.measurement import MeasurementContext, prepare_measurement
from cwa_engine.damage.treatments import Treatment
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.methods.perturbations import STORED_BITS, Options, overwrite_with
from cwa_engine.rows import ValueDistribution, exp
from cwa_engine.weight_rows import BitFlip
from cwa_engine.weights.examined import Examination, ExaminedWeight, Measuring

BIT_TEXTS = 4  # of the evaluation texts, that every flip is measured on
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_EXPONENT = {"bfloat16": range(7, 15), "float16": range(10, 15), "float32": range(23, 31)}  # IEEE 754, and bfloat16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclasses.dataclass(frozen=True)
class Flip:
    """One bit of the weight's value in a dtype, and the flipped value in the dtype of the model."""

    dtype: str
    bit: int
    before: float
    after: float
    placed: Tensor  # [1], in the model's dtype
    held: bool  # whether `placed` is exactly the flipped value


def bit_map(examination: Examination, values: ValueDistribution) -> tuple[BitFlip, ...]:
    """Every bit of the weight in bfloat16, float16 and float32, the lowest bit first.

    `values` are those of its tensor: a flip is in range if |flipped| is at most their largest |value|.
    """
    weight = examination.weight
    stored = examination.loaded.model.get_parameter(weight.parameter.name).detach().reshape(-1)
    flips = flips_of(stored[weight.flat_index].reshape(1))
    context = _few_texts(examination)
    placed = {_bits(flip.placed): flip.placed for flip in flips if flip.held}
    measuring = Measuring(examination.run, context, "bits", len(placed), context.parts)
    measured = {bits: measuring.measure(weight.alone, _placing(weight, value)) for bits, value in placed.items()}
    largest = max((abs(end.value) for end in values.quantiles), default=0.0)
    return tuple(
        _row(context, flip, largest, measured.get(_bits(flip.placed)) if flip.held else None) for flip in flips
    )


def flips_of(stored: Tensor) -> list[Flip]:
    """Every flip of one value as the model stores it, [1] in any floating dtype."""
    found = []
    for name, dtype in DTYPES.items():
        before = stored.to(dtype)
        for bit in range(STORED_BITS[name]):
            integers = _INTEGERS[before.element_size()]
            mask = torch.ones(1, dtype=torch.int64, device=before.device).bitwise_left_shift(bit).to(integers)
            after = before.view(integers).bitwise_xor(mask).view(dtype)
            placed = after.to(stored.dtype)
            held = bool((placed.double() == after.double()) | (placed.isnan() & after.isnan()))
            found.append(Flip(name, bit, float(before.double()), float(after.double()), placed, held))
    return found


def _bits(value: Tensor) -> int:
    return int(value.view(_INTEGERS[value.element_size()]))


def _placing(weight: ExaminedWeight, value: Tensor) -> Treatment:
    placing = overwrite_with({weight.parameter.name: value})
    return Treatment("bit flip", placing, Options(), has_controls=False)


def _few_texts(examination: Examination) -> MeasurementContext:
    """What measuring on `BIT_TEXTS` of the evaluation texts needs."""
    whole = examination.context
    texts = len(whole.sequences)
    places = np.unique(np.linspace(0, texts - 1, min(BIT_TEXTS, texts)).round().astype(np.int64))
    intact = Evaluation(whole.intact.nll_sums[places], whole.intact.tokens[places])
    sequences = [whole.sequences[place] for place in places]
    return prepare_measurement(whole.loaded, sequences, intact, whole.spec, whole.batch_size)


def _row(context: MeasurementContext, flip: Flip, largest: float, measured: Measured | None) -> BitFlip:
    row = BitFlip(
        dtype=flip.dtype,
        bit=flip.bit,
        part=_part(flip.dtype, flip.bit),
        value=flip.before,
        flipped=flip.after,
        in_range=abs(flip.after) <= largest,  # False for NaN
        delta_nll=None,
        perplexity_ratio=None,
        collapsed_at=None,
        becomes=_becomes(flip.after),
        held=flip.held,
    )
    if measured is None:
        return row
    delta, low, high = context.reference.delta(measured)
    row = dataclasses.replace(row, collapsed_at=measured.collapsed_at, sequences=len(measured.places))
    if not math.isfinite(delta):
        return row
    return dataclasses.replace(
        row, delta_nll=delta, delta_low=_finite(low), delta_high=_finite(high), perplexity_ratio=exp(delta)
    )


def _finite(value: float) -> float | None:
    """One text has no interval."""
    return value if math.isfinite(value) else None


def _part(dtype: str, bit: int) -> str:
    if bit == STORED_BITS[dtype] - 1:
        return "sign"
    return "exponent" if bit in _EXPONENT[dtype] else "fraction"


def _becomes(value: float) -> str:
    if math.isfinite(value):
        return "finite"
    return "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"

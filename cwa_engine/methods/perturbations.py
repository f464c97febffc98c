"""The perturbations. Each is one function that maps the old values of some weights to new ones. Imports without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.registry import Registry, first_sentence

if TYPE_CHECKING:
    from torch import Generator, Tensor

STANDARD = ("zero", "mean", "resample")  # `--perturb standard`: zeroing alone overstates damage
STORED_BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of all perturbations. Each reads its own fields."""

    noise_scale: float = 1.0  # gaussian_noise: in units of the parameter's standard deviation
    scale_factor: float = 2.0  # scale: the factor
    bit: int | None = None  # bit_flip: 0 is the lowest bit of the mantissa; None draws one for each weight
    bits: int = 4  # quantize: bits of a weight
    seed: int = 0  # of all random draws


@dataclass(frozen=True, slots=True)
class EditContext:
    """What a perturbation may read beside the chosen values."""

    parameter: str
    weight: Tensor  # the whole parameter, intact
    options: Options
    generator: Generator


Rewrite = Callable[["Tensor", EditContext], "Tensor"]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """`rewrite` maps the chosen values of one parameter [n] to their new values [n], in any floating dtype.

    With `on_norm_factor`, `rewrite` gets the factor of the layer: 1 + w in a norm that multiplies by 1 + w.
    """

    name: str
    rewrite: Rewrite
    gerund: str = "changing"  # as in "zeroing the 10 weights ..."
    on_norm_factor: bool = False

    @property
    def summary(self) -> str:
        """Its sentence in help texts and tables."""
        return first_sentence(self.rewrite)


PERTURBATIONS: Registry[Perturbation] = Registry("perturbation")


def perturbation(name: str, gerund: str, on_norm_factor: bool = False) -> Callable[[Rewrite], Rewrite]:
    """Register a rewriting function under `name`."""

    def register(rewrite: Rewrite) -> Rewrite:
        PERTURBATIONS.add(name, Perturbation(name, rewrite, gerund, on_norm_factor))
        return rewrite

    return register


@perturbation("zero", "zeroing", on_norm_factor=True)
def zero(old: Tensor, edit: EditContext) -> Tensor:
    """Set each weight to zero."""
    return old.new_zeros(old.shape)


@perturbation("mean", "setting to the mean")
def mean(old: Tensor, edit: EditContext) -> Tensor:
    """Set each weight to the mean of its parameter."""
    return old.new_empty(old.shape).fill_(edit.weight.float().mean())


@perturbation("resample", "resampling")
def resample(old: Tensor, edit: EditContext) -> Tensor:
    """Set each weight to the value of a random weight of its parameter."""
    import torch

    places = torch.randint(edit.weight.numel(), old.shape, generator=edit.generator)
    return edit.weight.reshape(-1)[places.to(old.device)]


@perturbation("sign_flip", "flipping the sign of", on_norm_factor=True)
def sign_flip(old: Tensor, edit: EditContext) -> Tensor:
    """Flip the sign of each weight."""
    return -old


@perturbation("scale", "scaling", on_norm_factor=True)
def scale(old: Tensor, edit: EditContext) -> Tensor:
    """Multiply each weight by `--scale-factor`."""
    return (old if old.element_size() == 8 else old.float()) * edit.options.scale_factor


@perturbation("gaussian_noise", "adding noise to")
def gaussian_noise(old: Tensor, edit: EditContext) -> Tensor:
    """Add normal noise with a standard deviation of `--noise-scale` times that of the parameter."""
    deviation = edit.weight.float().std(correction=0) * edit.options.noise_scale
    noise = old.new_empty(old.shape, device="cpu").float().normal_(generator=edit.generator).to(old.device)
    return old.float() + noise * deviation


@perturbation("bit_flip", "flipping a bit of")
def bit_flip(old: Tensor, edit: EditContext) -> Tensor:
    """Flip one bit of each stored weight: bit `--bit`, or a random one for each weight.

    Bit 0 is the lowest bit of the mantissa, the highest bit is the sign. Raises InvalidInput if the dtype lacks the bit.
    """
    import torch

    width = 8 * old.element_size()
    chosen = edit.options.bit
    if chosen is not None and not 0 <= chosen < width:
        dtype = str(old.dtype).removeprefix("torch.")
        raise InvalidInput(
            f"{dtype} has no bit {chosen}", hint=f"its bits are 0 to {width - 1}, {width - 1} is the sign"
        )
    if chosen is None:
        places = torch.randint(width, old.shape, generator=edit.generator).to(old.device)
    else:
        places = torch.full(old.shape, chosen, device=old.device)
    integers = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    masks = torch.ones_like(places).bitwise_left_shift(places).to(integers)  # bit 31 of an int64 wraps to the sign
    return old.view(integers).bitwise_xor(masks).view(old.dtype)


@perturbation("quantize", "quantizing")
def quantize(old: Tensor, edit: EditContext) -> Tensor:
    """Round each weight to `--bits` bits, symmetric, with one step size for the whole parameter."""
    levels = 2 ** (edit.options.bits - 1) - 1
    step = edit.weight.float().abs().max() / levels
    return (old.float() / step).round() * step if float(step) else old


def overwrite_with(values: Mapping[str, Tensor]) -> Perturbation:
    """The perturbation that replaces the chosen weights of each parameter by given `values`: name -> [n]."""
    return Perturbation("place", lambda old, edit: values[edit.parameter].to(old.device))

"""Spikes: the largest outputs of the MLP's down projections, and which weights make them.

A down projection is y_ij = Σ_k x_ik w_jk over in_features k (and a bias). For each out_feature j only the token i is of
interest at which |y_ij| is largest over all texts: w_jk makes x_ik w_jk of it. Of what was read only the rows of such
tokens are kept, never more than there are out_features. Source: Yu et al. 2024, section 3.1.

Modules are made comparable by the size of what they usually write: the median over tokens of the root mean square of a
token's outputs. Half of the tokens would have to be spikes to move it; a mean square is made by the spikes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cwa_engine.data.token_text import token_text
from cwa_engine.models.chain import has_no_values
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import Spike, TopWeight

UNKNOWN = -1  # position and id of a token of which only the text is known; of an output that was never made, all three


class Rows(NamedTuple):
    """Which of a text's tokens the rows of a call are: the `chosen` of all `tokens`, or all in order."""

    chosen: Tensor | None
    tokens: int


@dataclass(frozen=True)
class Largest:
    """Of each out_feature of one matrix its largest output, where that was, and what was read there.

    `inputs` [rows, in] are rows that were read, `row` [out] says which of them belongs to an out_feature.
    """

    output: Tensor  # y_ij, with its sign [out]
    where: Tensor  # number of the text, position and id of the token [out, 3]
    row: Tensor  # [out]
    inputs: Tensor  # [rows, in]

    def merged(self, inputs: Tensor, outputs: Tensor, where: Tensor) -> Largest:
        """The same after more tokens: `inputs` [tokens, in], `outputs` [tokens, out], `where` [tokens, 3].

        Of equal outputs the first counts.
        """
        largest, token = outputs.abs().max(0)  # [out] each
        better = largest > self.output.abs()
        stay, old = torch.unique(self.row[~better], return_inverse=True)
        come, new = torch.unique(token[better], return_inverse=True)
        row = torch.empty_like(self.row)
        row[~better], row[better] = old, new + len(stay)
        return Largest(
            torch.where(better, outputs.gather(0, token[None])[0], self.output),
            torch.where(better[:, None], where[token], self.where),
            row,
            torch.cat([self.inputs[stay], inputs[come]]),
        )

    def joined(self, other: Largest) -> Largest:
        """The larger of both. Of equal outputs that of the earlier text counts."""
        size, others = self.output.abs(), other.output.abs()
        better = (others > size) | ((others == size) & (other.where[:, 0] < self.where[:, 0]))
        return Largest(
            torch.where(better, other.output, self.output),
            torch.where(better[:, None], other.where, self.where),
            torch.where(better, other.row + len(self.inputs), self.row),
            torch.cat([self.inputs, other.inputs]),
        )

    def numbered(self, part: int, parts: int) -> Largest:
        """As `Spikes.numbered`."""
        where = self.where.clone()
        known = where[:, 0] != UNKNOWN
        where[known, 0] = (where[known, 0] - 1) * parts + part + 1
        return replace(self, where=where)


@dataclass(frozen=True)
class Spikes:
    """The largest outputs of a down projection: of one matrix, or of each expert of a stack."""

    matrices: tuple[Largest, ...]
    sizes: Tensor  # root mean square of each token's outputs [tokens], of those that were not all zero
    transposed: bool
    stacked: bool

    @property
    def typical(self) -> float:
        """Median over tokens of the root mean square of a token's outputs; 1 where nothing was written."""
        return float(self.sizes.median()) if len(self.sizes) else 1.0

    def numbered(self, part: int, parts: int) -> Spikes:
        """The same with the texts numbered among all, of which this part had one in turn with the other parts."""
        return replace(self, matrices=tuple(matrix.numbered(part, parts) for matrix in self.matrices))

    def joined(self, other: Spikes) -> Spikes:
        """The larger outputs of these and of those on other texts."""
        pairs = zip(self.matrices, other.matrices, strict=True)
        matrices = tuple(one.joined(two) for one, two in pairs)
        return replace(self, matrices=matrices, sizes=torch.cat([self.sizes, other.sizes]))

    @property
    def inputs(self) -> Tensor:
        """x_ik at the token i of each weight's out_feature, shaped like the weight as it is stored."""
        read = torch.stack([matrix.inputs[matrix.row] for matrix in self.matrices])  # [experts, out, in]
        stored = read.mT if self.transposed else read
        return stored if self.stacked else stored[0]

    @property
    def largest(self) -> tuple[int, int, float]:
        """(expert, out_feature, y_ij) of the largest |y_ij| of all."""
        outputs = torch.stack([matrix.output for matrix in self.matrices])
        expert, out_feature = divmod(int(outputs.abs().argmax()), outputs.shape[1])
        return expert, out_feature, float(outputs[expert, out_feature])

    def read(self, expert: int, out_feature: int) -> Tensor:
        """x_ik at the token i of one out_feature. [in]"""
        matrix = self.matrices[expert]
        return matrix.inputs[matrix.row[out_feature]].to(matrix.output.dtype)

    def rows(self, start: int, stop: int) -> Spikes:
        """Those of the weights in rows `start` to `stop` of the first stored axis."""
        if self.stacked:
            return replace(self, matrices=self.matrices[start:stop])
        (whole,) = self.matrices
        if self.transposed:
            part = replace(whole, inputs=whole.inputs[:, start:stop])
        else:
            some = slice(start, stop)
            part = Largest(whole.output[some], whole.where[some], whole.row[some], whole.inputs)
        return replace(self, matrices=(part,))


class SpikeRecorder:
    """Keeps the largest outputs of the down projections in view while texts pass one at a time."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._found: dict[tuple[str, int], Largest] = {}  # by parameter and expert
        self._sizes: dict[str, list[Tensor]] = {}  # root mean squares of the outputs of tokens, by parameter
        self._text = torch.empty(0, 3, dtype=torch.long)  # number of the text, position and id of each of its tokens
        self._reserved: dict[tuple[str, int], Tensor] = {}

    def reading(self, number: int, ids: Sequence[int]) -> None:
        """What follows is of this text, its number being the first column of `where`."""
        columns = [[number] * len(ids), range(len(ids)), ids]
        self._text = torch.tensor([list(column) for column in columns], device=self._loaded.device).T

    def take(self, name: str, expert: int, inputs: Tensor, outputs: Tensor, rows: Rows | None) -> None:
        """`inputs` [tokens, in] and `outputs` [tokens, out] of one call, and which tokens these are, if that is known."""
        parameter = self._loaded.anatomy.parameters[name]
        if not parameter.is_down:
            return
        if has_no_values(outputs):  # a plan: as much as may have to be kept
            self._reserved[name, expert] = inputs.new_empty(parameter.out_features, parameter.in_features)
            return
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        known = self._found.get((name, expert)) or _nothing(inputs, precise)
        where = self._where(len(inputs), rows).to(outputs.device)
        self._found[name, expert] = known.merged(inputs, precise, where)
        self._sizes.setdefault(name, []).append(precise.square().mean(1).sqrt())

    def _where(self, tokens: int, rows: Rows | None) -> Tensor:
        """[tokens, 3]; of a call that does not tell which tokens it is given, only the text is known."""
        if rows is None or rows.tokens != len(self._text):
            nowhere = self._text[:1].clone()
            nowhere[:, 1:] = UNKNOWN
            return nowhere.expand(tokens, 3)
        return self._text if rows.chosen is None else self._text.to(rows.chosen.device)[rows.chosen]

    def of(self, name: str) -> Spikes | None:
        """What is known of a parameter; None for what is no down projection, or has read nothing."""
        if name not in self._sizes:
            return None
        parameter = self._loaded.anatomy.parameters[name]
        some = next(found for (of, _), found in self._found.items() if of == name)
        nothing = _nothing(some.inputs, some.output[None])
        matrices = tuple(self._found.get((name, expert), nothing) for expert in range(parameter.experts or 1))
        sizes = torch.cat(self._sizes[name])
        return Spikes(matrices, sizes[sizes > 0], parameter.transposed, parameter.experts is not None)


def _nothing(inputs: Tensor, outputs: Tensor) -> Largest:
    """Of a matrix that has read nothing: all outputs are zero, and so is the one row that was read."""
    outs = outputs.shape[1]
    numbers = torch.zeros(outs, 4, dtype=torch.long, device=outputs.device)
    return Largest(
        outputs.new_zeros(outs), numbers[:, :3] + UNKNOWN, numbers[:, 3], inputs.new_zeros(1, inputs.shape[1])
    )


def spike_of(loaded: LoadedModel, spikes: Spikes, weight: TopWeight) -> Spike:
    """What a single weight makes of the largest output of its out_feature."""
    assert weight.out_feature is not None and weight.in_feature is not None
    matrix = spikes.matrices[weight.expert or 0]
    output = float(matrix.output[weight.out_feature])
    read = float(spikes.read(weight.expert or 0, weight.out_feature)[weight.in_feature])
    text, position, token = matrix.where[weight.out_feature].tolist()
    known = position != UNKNOWN
    return Spike(
        rank=weight.rank,
        target=weight.target,
        module=weight.parameter.removesuffix(".weight"),
        output=output,
        times_typical=abs(output) / spikes.typical,
        share=read * weight.value / output if output else 0.0,
        token=token_text(loaded.tokenizer, token) if known else None,
        token_id=token if known else None,
        position=position if known else None,
        text=None if text == UNKNOWN else text,
    )

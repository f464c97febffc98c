"""Layouts: how parameters of transformers are made from the tensors of a GGUF file. They invert llama.cpp's converter.

Source: conversion/*.py of llama.cpp. Shapes are those of torch, with the outermost axis first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of attention heads: `query` of queries, `key` of keys and of values."""

    query: int
    key: int


Layout = Callable[[Sequence[Tensor], Heads], Tensor]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """The tensors that a parameter is made from, and how. `whole`: all numbers of the tensors go into it."""

    tensors: tuple[str, ...]
    layout: Layout | None = None  # None: the tensor as stored
    whole: bool = True


def of(*tensors: str, by: Layout | None = None, whole: bool = True) -> tuple[TensorSource, ...]:
    """A single way to make a parameter. Join alternatives with `+`: the first one whose tensors exist is used."""
    return (TensorSource(tensors, by, whole),)


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """Reorder features: llama.cpp rotates consecutive features (0,1), (2,3), ... of a head, transformers i with i + half."""
    paired = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return paired.transpose(1, 2).reshape(weight.shape)


def paired_queries(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    return halves_from_pairs(tensors[0], heads.query)


def paired_keys(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    return halves_from_pairs(tensors[0], heads.key)


def query_rows(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """The queries of a tensor with queries, keys and values one after the other."""
    return _rows(tensors[0], heads, 0)


def key_rows(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    return _rows(tensors[0], heads, 1)


def value_rows(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    return _rows(tensors[0], heads, 2)


def _rows(fused: Tensor, heads: Heads, part: int) -> Tensor:
    size = fused.shape[0] // (heads.query + 2 * heads.key)
    ends = [0, size * heads.query, size * (heads.query + heads.key), size * (heads.query + 2 * heads.key)]
    return fused[ends[part] : ends[part + 1]]


def paired_query_rows(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    return halves_from_pairs(query_rows(tensors, heads), heads.query)


def paired_key_rows(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    return halves_from_pairs(key_rows(tensors, heads), heads.key)


def grouped_qkv(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """For each key head its queries, its key and its value, as in Falcon, BLOOM and GPT-NeoX."""
    queries, keys, values = (_rows(tensors[0], heads, part) for part in range(3))
    rest = queries.shape[1:]
    groups = [part.reshape(heads.key, -1, *rest) for part in (queries, keys, values)]  # [key heads, features, ...]
    return torch.cat(groups, dim=1).reshape(tensors[0].shape)


def minus_one(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """A norm's weight w of transformers: llama.cpp stores the factor 1 + w."""
    return tensors[0].float() - 1


def transposed(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """[out, in] to [in, out], for GPT-2's Conv1D."""
    return tensors[0].T.contiguous()


def row(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """A vector to a matrix of one row; such a matrix is unchanged."""
    return tensors[0].reshape(1, -1)


def one_channel(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """[channels, width] to [channels, 1, width], for a convolution of each channel alone."""
    return tensors[0].reshape(tensors[0].shape[0], 1, -1)


def log_of_negative(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """A_log of Mamba's A = -exp(A_log)."""
    return torch.log(-tensors[0].float())


def stacked(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """Several [out, in] stacked along out: gate and up."""
    return torch.cat(list(tensors), dim=-2)


def experts_transposed(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """[experts, out, in] to [experts, in, out]."""
    return tensors[0].transpose(1, 2).contiguous()


def interleaved(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """Gate and up, [experts, out, in] each, to [experts, in, 2 out] with alternating features, for gpt-oss."""
    return torch.stack(list(tensors), dim=2).flatten(1, 2).transpose(1, 2).contiguous()


def interleaved_biases(tensors: Sequence[Tensor], heads: Heads) -> Tensor:
    """Gate and up, [experts, out] each, to [experts, 2 out] with alternating features."""
    return torch.stack(list(tensors), dim=2).flatten(1, 2)

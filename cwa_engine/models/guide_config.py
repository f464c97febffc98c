"""Models of the guide without any of their files: the config that models.toml has, and bytes in place of tokens."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cwa_engine.guide.catalog import CatalogModel

_BOS = "<s>"


def guide_config(entry: CatalogModel) -> PretrainedConfig:
    """The config of a model of the guide. What decides no shape has the value of the config class."""
    config: PretrainedConfig = AutoConfig.for_model(entry.model_type, **entry.config)
    return config


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that makes a token of every byte: texts have at least as many tokens as with any byte-level one."""
    alphabet = [_BOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerBase = make(tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_BOS)
    return made

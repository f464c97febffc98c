"""A tiny model of every causal architecture that transformers knows, built from its config class alone."""

from __future__ import annotations

from typing import Any

from tests.models import VOCABULARY

MOST_WEIGHTS = 30_000_000

# By the many names that configs have for the same things. A config takes those it knows.
_TINY: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "embedding_dim"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "hidden_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_size", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_headdim", "rotary_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"), 64),
    **dict.fromkeys(("ffn_hidden_size", "feed_forward_size", "shared_intermediate_size", "dim_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "altup_num_inputs"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim", "sliding_window", "attention_window"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "d_state", "ssm_state_size", "index_topk"), 8),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads", "time_step_rank", "laurel_rank", "linear_num_value_heads"), 4),
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_d_head": 16,
    "index_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
}

# What some need beyond that, or otherwise: sizes that must fit each other, kinds of blocks that are listed one by one.
_ONE_KEY_PER_HEAD = {"num_key_value_heads": 4}
_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _ONE_KEY_PER_HEAD),
    **dict.fromkeys(("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu", "hy_v4"), _ONE_KEY_PER_HEAD),
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"]},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "chunk_size": 8},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"], "hybrid_override_pattern": "M*"},
    "prophetnet": {"num_hidden_layers": None},
    "xlnet": {"max_position_embeddings": None},
    "xlstm": {"head_dim": None, "v_head_dim": None, "qk_head_dim": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {
        "n_mamba_heads": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
    },
}


def causal_architectures() -> list[str]:
    """Every model type that `AutoModelForCausalLM` has a class for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_architecture(model_type: str) -> Any:
    """A model of this type with two blocks of width 32 and random weights. Raises whatever its config or model raises."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    known = kind()
    wanted = _TINY | _SPECIAL.get(model_type, {})
    plain = {name: value for name, value in wanted.items() if _takes(known, name) and value is not None}
    plain |= {name: value for name, value in _SPECIAL.get(model_type, {}).items() if value is not None}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(_shrunk(kind(**plain))).eval()


def causal_tiny(model_type: str) -> tuple[Any, str]:
    """(a tiny model that sees no later tokens, the field of its config that was switched for that, if any).

    Raises ValueError where none is to be had.
    """
    from transformers import AutoModelForCausalLM

    from cwa_engine.models.causality import as_decoder, sees_later_tokens

    model, switched = tiny_architecture(model_type), ""
    if sees_later_tokens(model):
        switched = as_decoder(model.config) or ""
        model = AutoModelForCausalLM.from_config(model.config).eval()
        if sees_later_tokens(model):
            raise ValueError("it sees later tokens")
    return model, switched


def analyse_tiny(model_type: str) -> int:
    """Score, select, zero and undo on a tiny model. The number of its weights; raises AssertionError where any differs after.

    Raises MemoryError where its config cannot be made small.
    """
    import torch

    from cwa_engine.pipeline import analyze
    from cwa_engine.spec import RunSpec
    from tests.engine.conftest import wrap

    loaded = wrap(causal_tiny(model_type)[0])
    if loaded.anatomy.numel > MOST_WEIGHTS:
        raise MemoryError(f"its config cannot be made small: {loaded.anatomy.numel:,} weights")
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    # The tokenizer's BOS is token 0, which Gemma 3n keeps for padding, with an embedding of zeros.
    asked = RunSpec(
        model="tiny", topk=(5,), eval_limit=2, seq_len=24, control_seeds=1, controls=("random",), bos="never"
    )
    result = analyze(loaded, asked)
    critical = result.damage[0]
    assert len(result.rankings[0].weights) == critical.weights == 5
    assert (result.rankings[0].weights[-1].score or 0) > 0
    assert critical.delta_nll != 0, "zeroing the top weights changed nothing"
    for name, p in loaded.model.named_parameters():
        assert torch.equal(p, before[name]), f"{name} is not as before"
    return int(loaded.anatomy.numel)


def listed(page: str) -> tuple[list[str], list[str]]:
    """(those that pass, those that do not) of docs/architectures.md."""
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    names = [(name.strip(" `"), outcome.strip()) for name, outcome in rows]
    return [n for n, outcome in names if outcome == "yes"], [n for n, outcome in names if outcome != "yes"]


def _takes(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name) and not isinstance(getattr(config, name), (list, tuple, dict))
    except RuntimeError:  # a figure that differs from block to block
        return False


def _shrunk(config: Any) -> Any:
    """The configs inside of a config made small as well."""
    from transformers import PreTrainedConfig

    for inner in vars(config).values():
        if isinstance(inner, PreTrainedConfig):
            for name, value in _TINY.items():
                if _takes(inner, name):
                    setattr(inner, name, value)
            if isinstance(getattr(inner, "layer_types", None), list):
                inner.layer_types = inner.layer_types[: _TINY["num_hidden_layers"]]
            _shrunk(inner)
    return config

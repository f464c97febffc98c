"""What scoring takes of memory, in bytes, by counting."""

from __future__ import annotations

from cwa_engine.evaluation.perplexity import LOGITS
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.loading import LoadedModel

_EXPERTS_A_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)


def statistics_bytes(loaded: LoadedModel, needs: Needs) -> int:
    """Bytes of g, Fisher diagonals and diag H of all weights in view, in float32."""
    kept = sum(need in needs for need in (Needs.GRADIENT, Needs.FISHER, Needs.TOKEN_FISHER))
    if Needs.HESSIAN in needs:
        kept += 6  # sums of samples, of their squares and of one text; gradients, signs and their product with H
    return 4 * loaded.anatomy.numel * kept


def rough_bytes(loaded: LoadedModel, needs: Needs, source: str, tokens: int) -> int:
    """About what scoring takes beside the weights, without trying: more than it does, for most models."""
    blocks = max(1, loaded.anatomy.blocks) if source == "sweep" else 1
    return statistics_bytes(loaded, needs) // blocks + activation_bytes(loaded, tokens) // blocks


def activation_bytes(loaded: LoadedModel, tokens: int) -> int:
    """About what autograd keeps of so many tokens: twice what every matrix reads and writes, and some copies of logits.

    In a stack of experts each token goes through as many as the model's config says, or through all of them.
    """
    known = (getattr(loaded.model.config, name, None) for name in _EXPERTS_A_TOKEN)
    several = next((found for found in known if isinstance(found, int) and found), None)
    features = sum(
        (p.in_features + p.out_features) * (min(several or p.experts, p.experts) if p.experts else 1)
        for p in loaded.anatomy.parameters.values()
        if not p.is_vector
    )
    return 4 * (2 * features * tokens + 4 * LOGITS)

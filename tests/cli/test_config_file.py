"""Options in a TOML file: they mean what they mean when typed, what is typed beside them wins, what is no option is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_engine.base.errors import InvalidInput
from cwa_engine.command_line import config_text
from cwa_engine.spec import RunSpec
from cwa_tui.cli.config_file import read_config
from cwa_tui.cli.run_options import spec_of
from tests.cli.test_options import specs
from tests.conftest import SHORT, CommandLine


@settings(max_examples=150, deadline=None)
@given(specs())
def test_the_file_of_a_spec_asks_for_the_same_spec(tmp_path_factory: pytest.TempPathFactory, spec: RunSpec) -> None:
    file = tmp_path_factory.getbasetemp() / "spec.toml"
    file.write_text(config_text(spec))
    assert spec_of("run", read_config(str(file))) == spec


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip()))
def test_any_text_survives_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "text.toml"
    file.write_bytes(config_text(RunSpec(model="gpt2", text_column=text, data_file=Path("/a"))).encode())
    assert read_config(str(file))["text_column"] == [text]


def test_a_run_takes_its_options_from_a_file_and_what_is_typed_wins(cwtool: CommandLine) -> None:
    (cwtool.cwd / "run.toml").write_text(
        'model = "gpt2"\ntopk = [2, 5]\nmetric = "obd"\neval-limit = 4\nperturbations = []\ndtype = "bf16"\n'
    )
    assert cwtool.json("run", "--config", "run.toml", "-k", "3")["rankings"][0]["metric"] == "obd"
    spec = cwtool.json("jobs", "show")["spec"]
    assert (spec["topk"], spec["dtype"], spec["perturbations"], spec["eval_limit"]) == ([3], "bfloat16", [], 4)


def test_a_run_that_is_done_can_be_asked_for_again_by_its_file(cwtool: CommandLine) -> None:
    first = cwtool.json("run", *SHORT, "--metric", "obd", "--kl")
    (cwtool.cwd / "again.toml").write_text(cwtool("results", "show", first["run_id"], "--config").stdout)
    again = cwtool.json("run", "--config", "again.toml")
    assert again["rankings"] == first["rankings"] and again["damage"] == first["damage"]
    other = cwtool("plan", "--config", "again.toml", "distilgpt2")  # the revision in the file is one of gpt2
    assert "--model distilgpt2 --metric obd" in other.stdout and "--kl" in other.stdout


def test_ablate_says_that_it_leaves_out_what_a_file_perturbs(cwtool: CommandLine) -> None:
    (cwtool.cwd / "run.toml").write_text('model = "gpt2"\nperturb = ["zero"]\neval-limit = 4\n')
    told = cwtool("ablate", "--config", "run.toml", "--candidates", "5", "-k", "2", "--detach")
    assert "run.toml: perturb is left out" in told.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('modle = "gpt2"', "there is no option 'modle'"),
        ("topk = true", "topk is true"),
        ('kl = "yes"', "kl is 'yes'"),
        ("seed = 1.5", "seed is 1.5"),
        ("seed = [1, 2]", "seed takes one value"),
        ("topk = [[1]]", "topk is \\[1\\]"),
        ('[damage]\nperturb = "zero"', "there is no option 'damage'"),
        ('metric = "obd"\nmetrics = "obd"', "twice"),
        ("model = gpt2", "is no TOML"),
        ("model = " + "[" * 5000, "is no TOML"),
        ("\xff", "is no TOML"),
        ("#" * 1_100_000, "more than a megabyte"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_a_reason(tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(written.encode("latin-1"))
    with pytest.raises(InvalidInput, match=said) as caught:
        read_config(str(file))
    assert caught.value.hint


def test_a_file_that_is_not_there_is_named_beside_near_ones(cwtool: CommandLine) -> None:
    (cwtool.cwd / "run.toml").touch()
    assert "did you mean 'run.toml'" in cwtool("run", "--config", "runn.toml", rc=2).stderr  # codespell:ignore runn
    refused = json.loads(cwtool("run", "--config", ".", "--json", rc=2).stdout)["error"]
    assert "cannot be read" in refused["message"]

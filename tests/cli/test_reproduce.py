"""`cwtool reproduce`: lists, shows and runs claims, with exit codes that a script can rely on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.engine.conftest import write_texts
from tests.engine.test_claims import PLANTED, ROW, plain_losses
from tests.models import save_tiny


def test_every_claim_is_one_line_of_eighty_columns(cwtool: CommandLine) -> None:
    plain = cwtool.json("reproduce")["claims"]
    lines = cwtool("reproduce", "list", COLUMNS="80").stdout.splitlines()
    assert len(lines) == len(plain) + 2 and max(map(len, lines)) <= 80
    for claim, line in zip(plain, lines[1:], strict=False):
        assert line.split()[0] == claim["id"]
        assert claim["runnable_here"] == (claim["obstacle"] is None)
    some = cwtool.json("reproduce", "--search", "WANDA 4096")["claims"]
    assert some and all("Wanda" in claim["source"] and "4096" in claim["id"] for claim in some)


def test_a_claim_is_shown_with_its_source_its_runs_and_where_each_tolerance_comes_from(cwtool: CommandLine) -> None:
    said = " ".join(cwtool("reproduce", "show", "yu-2024-llama-7b-zeroed").stdout.split())
    assert "arxiv.org/abs/2411.07191" in said and "not pinned" in said
    assert "5.67 ± 2 %" in said and "1,211 ± 25 %" in said and "(gate)" in said
    plain = cwtool.json("reproduce", "show", "row-census-smollm2-135m")
    assert plain["revision"] == "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
    assert len(plain["expect"]) == 1 + 2 * 6  # the loss; a row and five others, at two doses
    assert "did you mean" in cwtool("reproduce", "show", "row-census-smollm2-135", rc=6).stderr


def test_a_claim_of_a_file_runs_on_the_daemon_and_its_runs_are_kept(cwtool: CommandLine) -> None:
    save_tiny("llama", cwtool.cwd / "llama")
    write_texts(cwtool.cwd)
    intact, zeroed = plain_losses()

    def planted(name: str, perplexity: float, change: float) -> str:
        (cwtool.cwd / name).write_text(PLANTED.format(row=ROW, perplexity=perplexity, change=change))
        return name

    right = planted("right.toml", math.exp(intact), zeroed - intact)
    wrong = planted("wrong.toml", math.exp(intact), zeroed - intact + 0.01)
    other = planted("other.toml", math.exp(intact) + 1, zeroed - intact)
    (found,) = cwtool.json("reproduce", "run", right)["claims"]
    assert found["outcome"] == "agrees"
    number = found["numbers"][1]
    assert number["measured"]["value"] == pytest.approx(zeroed - intact, abs=1e-4)
    report = cwtool.json("results", "show", found["runs"]["zeroed"])
    assert report["damage"][0]["critical"]["delta_nll"] == number["measured"]["value"]

    assert cwtool.json("reproduce", "run", wrong, rc=1)["claims"][0]["outcome"] == "does not agree"
    said = cwtool("reproduce", "run", other, rc=1, COLUMNS="80")
    assert "baseline does not agree: not measured" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    both = cwtool.json("reproduce", "run", right, wrong, "prisonbreak-2024", rc=1)["claims"]
    assert [claim["outcome"] for claim in both] == ["agrees", "does not agree", "not runnable here"]


def test_what_cannot_run_here_says_why_and_has_the_exit_code_of_the_reason(cwtool: CommandLine, tmp_path: Path) -> None:
    assert "not on disk" in cwtool("reproduce", "run", "row-census-smollm2-1.7b", rc=6).stdout
    assert "gated" in cwtool("reproduce", "run", "yu-2024-llama2-13b", rc=4).stdout
    assert "lm-eval" in cwtool("reproduce", "run", "yu-2024-llama-7b-zero-shot", rc=2).stdout
    assert "--all-runnable" in cwtool("reproduce", "run", rc=2).stderr
    (tmp_path / "bad.toml").write_text("[[claim]]\nid = 'x'\nwhen = 1\n")
    assert "nobody reads the key `when`" in cwtool("reproduce", "run", "bad.toml", rc=2).stderr


def test_a_stand_in_under_a_real_name_does_not_pass_the_gate(cwtool: CommandLine) -> None:
    """The cache holds a small model of random weights as Llama-2-7b."""
    (found,) = cwtool.json("reproduce", "run", "yu-2024-llama2-7b", rc=1)["claims"]
    assert found["outcome"] == "baseline does not agree: not measured"
    assert list(found["runs"]) == ["baseline"]
    assert [number["agreement"] for number in found["numbers"]][:2] == ["does not agree", "not measured"]

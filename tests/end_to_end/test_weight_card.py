"""`cwtool weight` through a real daemon: the card that is printed, saved and read back, and what is refused."""

from __future__ import annotations

import json
import shlex
import signal

import pytest

from cwa_engine.base.errors import VersionMismatch
from cwa_engine.base.plain import from_plain
from cwa_engine.command_line import weight_command_of
from cwa_engine.spec import CARD_METRICS, RunSpec
from cwa_engine.weight_rows import WeightCard
from tests.conftest import CommandLine

TARGET = "transformer.h.1.mlp.c_proj.weight[3,5]"
FEW = ("--eval-limit", "4")


def test_a_weight_is_examined_on_the_warm_model_and_its_damage_is_that_of_a_run(cwtool: CommandLine) -> None:
    shown = cwtool("weight", "gpt2", TARGET, *FEW, "--output", "card.json", "--page", "card.html")
    for section in ("rank among all weights", "the weight changed", "zeroed together", "one stored bit flipped",
                    "what its channels carry", "mean probability of tokens", "channel 3 of the residual stream"):  # fmt: skip
        assert section in shown.stdout
    assert TARGET in (cwtool.cwd / "card.html").read_text()
    saved = json.loads((cwtool.cwd / "card.json").read_text())
    card = from_plain(WeightCard, saved)
    assert (card.facts.target, len(card.bits), card.alone.weights) == (TARGET, 64, 1)

    run = cwtool.json("run", "--model", "gpt2", "--weights", TARGET, *FEW)
    (group,) = [group for group in run["damage"] if group["perturbation"] == "zero"]
    assert group["critical"]["delta_nll"] == card.alone.delta_nll
    again = cwtool.json("weight", "--model", "gpt2", TARGET, *FEW)  # behind --model the weight stands alone
    assert {**again, "timings": {}} == {**saved, "timings": {}}


def test_the_command_that_a_card_is_made_by_can_be_typed(cwtool: CommandLine) -> None:
    spec = RunSpec(model="gpt2", metrics=("magnitude",), topk=(7,), eval_limit=4, dtype="float32", matrices=False)
    command = weight_command_of(spec, TARGET)
    assert command == f"cwtool weight gpt2 '{TARGET}' --dtype float32 --metric magnitude --eval-limit 4"
    assert [row["metric"] for row in cwtool.json(*shlex.split(command)[1:])["ranks"]] == ["magnitude"]
    assert weight_command_of(RunSpec(model="gpt2", metrics=CARD_METRICS), TARGET) == f"cwtool weight gpt2 '{TARGET}'"


def test_at_80_columns_no_line_is_longer_and_no_number_is_cut(cwtool: CommandLine) -> None:
    shown = cwtool("weight", "gpt2", TARGET, *FEW, "--metric", "magnitude", "--dose", "0", "2", COLUMNS="80")
    assert "x 2" in shown.stdout and "…" not in shown.stdout


@pytest.mark.parametrize(
    ("target", "said", "hint"),
    [
        ("transformer.h.1.mlp.c_proj.weight[3,:]", "a card is of one", "cwtool run --weights"),
        ("transformer.h.1.mlp.c_prj.weight[3,5]", "no parameter transformer.h.1.mlp.c_prj.weight", "c_proj"),
        ("transformer.h.1.mlp.c_proj.weight[32,5]", "outside", "out 0 to 31"),
    ],
)
def test_what_is_no_single_weight_is_refused_by_name(cwtool: CommandLine, target: str, said: str, hint: str) -> None:
    refused = cwtool("weight", "gpt2", target, *FEW, rc=2)
    assert said in refused.stderr and hint in refused.stderr


@pytest.mark.parametrize("option", ["--output", "--page"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(cwtool: CommandLine, option: str) -> None:
    refused = cwtool("weight", "gpt2", TARGET, option, "nowhere/card", rc=2)
    assert f"{option} nowhere/card is in a folder that does not exist" in refused.stderr


def test_a_daemon_that_is_too_old_is_named(cwtool: CommandLine) -> None:
    cwtool("daemon", "start")
    with cwtool.client() as client:
        client._client._connection.minor = 6
        with pytest.raises(VersionMismatch, match="examines no weights"):
            client.weight(RunSpec(model="gpt2"), TARGET)


def test_without_a_weight_the_hint_shows_how_to_write_one(cwtool: CommandLine) -> None:
    refused = cwtool("weight", "gpt2", rc=2)
    assert "no weight is named" in refused.stderr and "cwtool weight gpt2 '" in refused.stderr


def test_a_weight_that_is_examined_can_be_left_with_ctrl_c_and_the_model_stays_as_it_was(cwtool: CommandLine) -> None:
    before = cwtool.json("weight", "gpt2", TARGET, *FEW, "--metric", "magnitude")
    command = cwtool.start("weight", "gpt2", TARGET)  # all texts and metrics
    assert command.stderr
    next(line for line in command.stderr if line.startswith("score"))
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 9 and "cancelled" in said
    after = cwtool.json("weight", "gpt2", TARGET, *FEW, "--metric", "magnitude")
    assert {**after, "timings": {}} == {**before, "timings": {}}

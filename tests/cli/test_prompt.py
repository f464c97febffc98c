"""`cwtool prompt` as people type it, through a daemon: values, layout, weights of a run, pipes, errors, several prompts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from cwa_engine.base.errors import VersionMismatch
from cwa_engine.prompt_rows import PromptAnswer, PromptToken
from cwa_engine.prompt_spec import PromptSpec
from cwa_engine.spec import RunSpec
from cwa_tui.cli.terminal import Terminal
from cwa_tui.tables import prompt_answer as view
from tests.conftest import CWTOOL, CommandLine
from tests.tmux import TmuxTerminal

DOWN = "model.layers.1.mlp.down_proj.weight"
TEXT = "The harbour was quiet"
TRAINED = "HuggingFaceTB/SmolLM2-360M"


@pytest.fixture(scope="module")
def cwtool(module_cwtool: CommandLine, ladder: Path) -> CommandLine:
    """The command line on trained models, whose predictions differ from place to place."""
    module_cwtool.env["HF_HOME"] = str(ladder)
    return module_cwtool


def typed(
    cwtool: CommandLine, *args: str, stdin: bytes = b"", rc: int = 0, **env: str
) -> subprocess.CompletedProcess[bytes]:
    where: dict[str, Any] = {"cwd": cwtool.cwd, "env": {**cwtool.env, **env}}
    done = subprocess.run(
        [CWTOOL, "prompt", *args], **where, input=stdin, capture_output=True, timeout=240, check=False
    )
    assert done.returncode == rc, done.stderr.decode()
    return done


def test_both_models_say_what_transformers_generates_from_the_same_files(cwtool: CommandLine, ladder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = next(ladder.glob("hub/models--HuggingFaceTB--SmolLM2-360M/snapshots/*"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([list(TEXT.encode())])  # its tokens are bytes
    said = []
    for row in (None, 5):
        if row is not None:
            with torch.no_grad():
                model.get_parameter(DOWN)[row] = -model.get_parameter(DOWN)[row]
        output = model.generate(prompt, max_new_tokens=40, do_sample=False)[0, len(TEXT) :].tolist()
        said.append(bytes(output).decode("utf-8", "replace"))
    found = cwtool.json("prompt", TRAINED, TEXT, "--weights", f"{DOWN}[5,:]", "--perturb", "sign_flip")
    assert [found["intact"], found["damaged"]] == said
    kl = [token["kl"] for token in found["tokens"]]
    assert kl[0] is None and all(nats >= 0 for nats in kl[1:]) and len(kl) == len(TEXT) + 40
    assert (found["model"], found["weights"], found["perturbation"]) == (
        TRAINED,
        model.config.intermediate_size,
        "sign_flip",
    )


@pytest.mark.parametrize(
    "columns, side_by_side", [("120", True), ("80", True), ("60", True), ("50", False), ("20", False)]
)
def test_both_texts_stand_beside_each_other_where_there_is_room(
    cwtool: CommandLine, columns: str, side_by_side: bool
) -> None:
    lines = cwtool("prompt", TRAINED, TEXT, "--weights", f"{DOWN}[:,:]", COLUMNS=columns).stdout.splitlines()
    assert max(map(cell_len, lines)) <= int(columns)
    titles = [line for line in lines if line.startswith("intact ")]
    assert len(titles) == 1 and ("damaged" in titles[0]) == side_by_side
    shown = " ".join(" ".join(lines).split())
    assert "the texts part at token" in shown and "KL in nats" in shown and "likeliest token changed for" in shown


def test_colours_are_signs_where_there_are_none(cwtool: CommandLine) -> None:
    weights = ("--weights", f"{DOWN}[:,:]", "--tokens")
    plain = cwtool("prompt", TRAINED, TEXT, *weights).stdout
    no_colour = typed(cwtool, TRAINED, TEXT, *weights, FORCE_COLOR="1", NO_COLOR="1").stdout.decode()
    coloured = typed(cwtool, TRAINED, TEXT, *weights, FORCE_COLOR="1", TERM="xterm").stdout.decode()
    legend = "0.01+ .  0.1+ :  1+ +  5+ #"
    assert "\x1b" not in plain and legend in plain
    assert legend in no_colour and "\x1b[31m" not in no_colour and "\x1b[33m" not in no_colour
    assert legend not in coloured and "\x1b[33m" in coloured
    rows = [line.split() for line in plain.split("\ntokens\n")[1].splitlines()]
    assert rows[0][:4] == ["#", "token", "KL", "nats"] and len(rows) == 1 + len(TEXT) + 40


def test_the_weights_of_a_finished_run_are_damaged_in_its_model(cwtool: CommandLine) -> None:
    run_id = cwtool("run", TRAINED, "-k", "20", "--eval-limit", "4", "--no-perturbation", "--bos", "always").stderr
    run_id = cwtool.json("results", "show")["run_id"]
    rows = cwtool.json("results", "topk", "-n", "5")["weights"]
    of_run = cwtool.json("prompt", "--run", run_id, "-k", "5", TEXT)
    named = cwtool.json("prompt", TRAINED, TEXT, "--bos", "always", "--weights", *(row["target"] for row in rows))
    assert {**of_run, "revision": None} == {**named, "revision": None}
    assert of_run["weights"] == 5 and of_run["bos"] == "<|endoftext|>"
    assert cwtool.json("prompt", "--run", "latest", TEXT)["weights"] == 10
    assert cwtool.json("prompt", TRAINED, TEXT, "--run", "latest")["weights"] == 10
    assert "more than the 20 weights" in cwtool("prompt", "--run", "latest", "-k", "21", TEXT, rc=2).stderr
    assert "no run" in cwtool("prompt", "--run", "nowhere", TEXT, rc=6).stderr
    assert "has no ranking" in cwtool("prompt", "--run", "latest", "--metric", "obd", TEXT, rc=6).stderr


def test_a_pipe_is_a_prompt_without_its_last_line_feed(cwtool: CommandLine) -> None:
    for stdin, prompt in ((b"two\nlines\n", "two\nlines"), (b"caf\xc3\xa9", "café"), (b"\x1b[31m\x00", "\x1b[31m\x00")):
        for asked in ((TRAINED, "-"), (TRAINED,)):
            found = json.loads(typed(cwtool, *asked, "--new-tokens", "2", "--json", stdin=stdin).stdout)
            assert found["prompt"] == prompt
            assert "".join(token["text"] for token in found["tokens"] if token["in_prompt"]) == prompt
    shown = typed(cwtool, TRAINED, "--new-tokens", "2", stdin=b"\x1b[31m\x00").stdout
    assert b"\x1b" not in shown and b"\x00" not in shown and b"\\x1b[31m\\x00" in shown
    assert json.loads(typed(cwtool, TRAINED, "--json", "--", "-5 degrees").stdout)["prompt"] == "-5 degrees"
    assert b"is not UTF-8: byte 4" in typed(cwtool, TRAINED, "-", stdin=b"caf\xe9", rc=2).stderr


@pytest.mark.parametrize(
    "args, rc, said",
    [
        ([], 2, "no model is given"),
        ([TRAINED, TEXT, "--metric", "obd"], 2, "--metric and --topk are about --run"),
        ([TRAINED, "--weights", f"{DOWN}[0,0]", TEXT], 2, "the text of the prompt stands before --weights"),
        ([TRAINED, TEXT, "--weights", "model.nowhere.weight[0]"], 2, "the model has no parameter model.nowhere.weight"),
        ([TRAINED, TEXT, "--weights", f"{DOWN}[0,0]", "--perturb", "zero", "mean"], 2, "one perturbation, not 2"),
        ([TRAINED, TEXT, "--run", "latest", "--weights", f"{DOWN}[0,0]"], 2, "--run and --weights both name weights"),
        ([TRAINED, "-", "--weights", "-"], 2, "standard input is either the prompt or --weights"),
        ([TRAINED, "x" * 400], 2, "tokens, and HuggingFaceTB/SmolLM2-360M takes"),
        ([TRAINED, "", "--bos", "never"], 2, "the prompt is empty"),
        ([TRAINED, TEXT, "--temperature", "-1"], 2, "--temperature -1 is negative"),
        ([TRAINED, b"caf\xe9".decode("utf-8", "surrogateescape")], 2, "the prompt is no text: character 4"),
        (["no-such/model", TEXT], 6, "no-such/model"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(cwtool: CommandLine, args: list[str], rc: int, said: str) -> None:
    done = typed(cwtool, *args, rc=rc)
    assert said in done.stderr.decode() and "Traceback" not in done.stderr.decode()
    assert done.stdout == b""


def test_an_older_daemon_is_named_as_one_that_answers_no_prompts(cwtool: CommandLine) -> None:
    with cwtool.client() as client:
        client._client._connection.minor = 6
        with pytest.raises(VersionMismatch, match="older than this client, and answers no prompts"):
            client.prompt(PromptSpec(model=TRAINED, prompt=TEXT))
        with pytest.raises(VersionMismatch, match="examines no weights"):
            client.weight(RunSpec(model=TRAINED), f"{DOWN}[0,0]")


def answer_of(pieces: list[str], damaged: list[str], kl: list[float]) -> PromptAnswer:
    """An answer with these texts of tokens; the first half is the prompt."""
    tokens = tuple(
        PromptToken(piece, piece, place, place < len(pieces) // 2, kl=nats, intact_top_id=0, damaged_top_id=place % 2)
        for place, (piece, nats) in enumerate(zip(pieces, kl, strict=False))
    )
    ends: dict[str, Any] = {"intact_end": "length", "damaged_end": "length", "collapsed_at": None}
    texts: dict[str, Any] = {"prompt": "", "bos": "", "intact": "", "damaged": "", "damaged_tokens": tuple(damaged)}
    how: dict[str, Any] = {"perturbation": "zero", "temperature": 0.0, "seed": 0, "weights": 1, "unchanged": 0}
    where: dict[str, Any] = {"model": "tiny", "revision": None, "dtype": "float32"}
    return PromptAnswer(**where, **how, **texts, **ends, tokens=tokens, first_difference=0 if damaged else None)


PIECES = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=20)


@given(PIECES, PIECES, st.lists(st.floats(0, 9), min_size=20, max_size=20), st.integers(10, 130))
def test_no_line_is_wider_than_the_terminal_whatever_the_models_say(
    pieces: list[str], damaged: list[str], kl: list[float], width: int
) -> None:
    answer = answer_of(pieces, damaged, kl)
    for signs in (True, False):
        for shown in (view.both_texts(answer, signs), view.Passage(view.prompt_text(answer), signs)):
            console = Terminal(width=width)
            with console.capture() as captured:
                console.print(shown)
            assert max(map(cell_len, captured.get().split("\n"))) <= width


def test_signs_stand_under_the_cells_of_their_tokens() -> None:
    answer = answer_of(["", "", "", "", "ab", "猫", " cd", "\x07"], [], [0, 0, 0, 0, 0.05, 0.5, 2, 7])
    console = Terminal(width=80)
    with console.capture() as captured:
        console.print(view.Passage(view.intact_text(answer), signs=True))
    assert captured.get().splitlines() == ["ab猫 cd\\x07", "..!!+++!###"]


def test_a_terminal_asks_for_one_prompt_after_the_other(cwtool: CommandLine) -> None:
    command = f"{CWTOOL} prompt {TRAINED} --weights '{DOWN}[:,:]' --new-tokens 8"
    terminal = TmuxTerminal(command, {**os.environ, **cwtool.env}, cwtool.cwd, 100, 40)
    try:
        terminal.until(">>>")
        terminal.type("The harbour was")
        terminal.keys("Enter")
        terminal.until(r"(?s)intact .*damaged .*mean KL.*>>>\s*$")
        terminal.type("/off")
        terminal.keys("Enter")
        terminal.until("no weights are damaged now")
        terminal.keys("C-l")
        terminal.type("Copper")
        terminal.keys("Enter")
        terminal.until(r"(?s)Copper.*no weights are damaged · .*intact · 8 tokens.*>>>\s*$")
        terminal.type("/weights model.norm.weight[99999]")
        terminal.keys("Enter")
        terminal.until(r"zero model.norm.weight\[99999\]")
        terminal.type("Tin")
        terminal.keys("Enter")
        terminal.until("lies outside of model.norm.weight")
        terminal.type(" /not a command")
        terminal.keys("Enter")
        terminal.until(r"(?s)lies outside of.*lies outside of model.norm.weight")
        terminal.type("/frobnicate")
        terminal.keys("Enter")
        terminal.until("/frobnicate is no command")
        terminal.keys("C-c")
        terminal.keys("C-d")
        assert terminal.until_ended() == 0
    finally:
        terminal.close()

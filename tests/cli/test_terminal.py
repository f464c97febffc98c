"""What a terminal is sent: every byte of it is recorded, while names, configs and errors try to command it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_tui.text.visible import SPELLED_OUT, visible
from tests.conftest import CWTOOL, SHORT, CommandLine

# Set the title, ring, clear the screen, step back; C1; from right to left; and what rich calls markup.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x08\x9b31m\u202e[bold red]:smile:[/]"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x08\x9b31m\u202e[bold red]:smile:[/]"
# What rich sends of its own accord: colours, and for live bars moves of the cursor, erased lines and a hidden cursor.
OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[12]K|\x1b\[1A|\r")


def on_terminal(cwtool: CommandLine, *args: str) -> str:
    """Everything that a command sends to a terminal, on both streams; without what rich sends of its own accord."""
    leader, follower = pty.openpty()
    environment = {**cwtool.env, "COLUMNS": "400"}
    with subprocess.Popen([CWTOOL, *args], cwd=cwtool.cwd, env=environment, stdout=follower, stderr=follower):
        os.close(follower)
        sent = b"".join(_read(leader))
    os.close(leader)
    return OWN.sub("", sent.decode())


def _read(leader: int) -> Iterator[bytes]:
    try:
        while chunk := os.read(leader, 65536):
            yield chunk
    except OSError:  # how Linux says that the other side of a terminal is closed
        return


def obeyed(sent: str) -> set[str]:
    """Characters that a terminal would obey, but for line feeds."""
    return set(re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", sent))


@pytest.fixture
def hostile_folder(cwtool: CommandLine, hub: Path) -> str:
    """A model that works, in a folder with a hostile name."""
    snapshot = next((hub / "hub" / "models--gpt2" / "snapshots").iterdir())
    shutil.copytree(snapshot, cwtool.cwd / HOSTILE)
    return f"./{HOSTILE}"


def test_a_folder_name_commands_no_terminal(cwtool: CommandLine, hostile_folder: str) -> None:
    ran = on_terminal(cwtool, "run", *SHORT, "--model", hostile_folder, "--no-perturbation")
    run_id = cwtool.json("jobs", "list", "--limit", "1")["jobs"][0]["run_id"]
    for command in (["ps"], ["jobs"], ["jobs", "show", run_id], ["results", "show", run_id], ["logs", run_id]):
        sent = on_terminal(cwtool, *command)
        assert not obeyed(sent), command
        assert SHOWN in sent or command[0] in ("jobs", "logs"), command
    assert not obeyed(ran) and SHOWN in ran
    assert SHOWN in on_terminal(cwtool, "jobs", "show", run_id)
    assert SHOWN in on_terminal(cwtool, "unload", hostile_folder)


def test_a_config_commands_no_terminal(cwtool: CommandLine, hub: Path) -> None:
    snapshot = next((hub / "hub" / "models--gpt2" / "snapshots").iterdir())
    shutil.copytree(snapshot, cwtool.cwd / "model")
    config = json.loads((snapshot / "config.json").read_text())
    (cwtool.cwd / "model" / "config.json").unlink()
    (cwtool.cwd / "model" / "config.json").write_text(
        json.dumps(config | {"model_type": HOSTILE, "architectures": [HOSTILE]})
    )
    ran = on_terminal(cwtool, "run", *SHORT, "--model", "model")
    assert not obeyed(ran) and SHOWN in ran
    for command in (["jobs"], ["jobs", "show"], ["logs"], ["daemon", "logs"]):
        sent = on_terminal(cwtool, *command)
        assert not obeyed(sent) and SHOWN in sent, command
    failed = cwtool("jobs", "show", "--json").stdout
    assert not obeyed(failed) and HOSTILE in json.loads(failed)["error"]["message"]


def test_json_holds_no_control_character_not_even_delete(cwtool: CommandLine) -> None:
    refused = cwtool("load", "./\x7f\x1b[2J", "--json", rc=6).stdout
    assert not obeyed(refused) and "\x7f\x1b[2J" in json.loads(refused)["error"]["message"]


@given(
    st.text(alphabet=st.characters(codec=None)), st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252", "shift_jis"])
)
def test_a_text_becomes_one_that_an_encoding_holds_and_no_terminal_obeys(text: str, encoding: str) -> None:
    shown = visible(text, encoding)
    assert not obeyed(shown) - {"\t"}
    assert shown.encode(encoding).decode(encoding) == shown
    assert visible(shown, encoding) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


@given(st.text(alphabet=st.characters(min_codepoint=0xA0, exclude_categories=["Cs"])))
def test_what_ascii_lacks_can_be_told_apart(text: str) -> None:
    assert text.encode("ascii", SPELLED_OUT).isascii()

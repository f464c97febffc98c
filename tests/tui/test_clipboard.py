"""Where a copied text goes: into tmux, or to the terminal, and into a file."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from cwa_tui.terminal.clipboard import MOST_BYTES, copy


def script(folder: Path, text: str) -> dict[str, str]:
    """An environment inside tmux, whose program tmux is this shell script."""
    program = folder / "tmux"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return {"TMUX": "/tmp/tmux-1000/default,1,0", "PATH": f"{folder}:{os.environ['PATH']}"}


def copied(text: str, folder: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """What the user is told, and what the terminal was given."""
    given: list[str] = []
    monkeypatch.setenv("PATH", environ.get("PATH", os.environ["PATH"]))
    monkeypatch.setenv("HOME", str(folder))
    told = asyncio.run(copy(text, given.append, folder / "state", environ))
    return told, given


def test_inside_tmux_its_clipboard_gets_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = script(tmp_path, f'echo "$@" > {tmp_path}/asked; cat > {tmp_path}/taken')
    told, given = copied("Δ model.layers.2[1,2]\n", tmp_path, environ, monkeypatch)
    assert (tmp_path / "asked").read_text() == "load-buffer -w -\n"
    assert (tmp_path / "taken").read_text() == "Δ model.layers.2[1,2]\n"
    assert told == "tmux's clipboard and ~/state/copied.txt"
    assert given == []


@pytest.mark.parametrize("failure", ["exit 1", "exec sleep 30"], ids=["old tmux", "tmux hangs"])
def test_a_tmux_that_does_not_take_it_is_passed_over(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwa_tui.terminal.clipboard.TMUX_PATIENCE_S", 0.2)
    told, given = copied("text", tmp_path, script(tmp_path, failure), monkeypatch)
    assert given == ["text"]
    assert told == "the clipboard and ~/state/copied.txt"


def test_outside_tmux_the_terminal_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, given = copied("text", tmp_path, {}, monkeypatch)
    assert given == ["text"]
    file = tmp_path / "state" / "copied.txt"
    assert file.read_text() == "text"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert told == "the clipboard and ~/state/copied.txt"


def test_what_is_too_long_for_a_terminal_is_in_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "ä" * MOST_BYTES
    told, given = copied(text, tmp_path, {}, monkeypatch)
    assert given == []
    assert told == "~/state/copied.txt, too long for a clipboard"
    assert (tmp_path / "state" / "copied.txt").read_text() == text

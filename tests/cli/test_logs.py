"""Logs: of the daemon as files that grow, are replaced and begin; of a run from its last lines on; what a job waits for."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from cwa_tui.cli.log_files import LogReader
from tests.conftest import LONG, SHORT, CommandLine


def said(reader: LogReader, *paths: Path) -> list[str]:
    return [line for _, line in reader.new_lines(paths)]


def test_the_last_lines_come_first_and_then_what_is_written(tmp_path: Path) -> None:
    log, other = tmp_path / "daemon.log", tmp_path / "worker-cpu.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    reader = LogReader(2)
    assert said(reader, log) == ["line 99998", "line 99999"]
    assert said(reader, log) == []
    with log.open("a") as file:
        file.write("half a ")
        file.flush()
        assert said(reader, log) == []
        file.write("line\nnext\n")
    other.write_bytes(b"a new worker\n\xff\n")
    assert list(reader.new_lines([log, other])) == [
        (None, "half a line"), (None, "next"), (other, "a new worker"), (None, "\\xff"),
    ]  # fmt: skip


def test_a_log_that_is_replaced_or_cut_short_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_text("old\n")
    reader = LogReader(5)
    assert said(reader, log) == ["old"]
    log.rename(tmp_path / "daemon.log.1")
    assert said(reader, log) == []
    log.write_text("new\n")
    assert said(reader, log) == ["new"]
    log.write_text("")
    assert said(reader, log) == []
    log.write_text("a\n")
    assert said(reader, log) == ["a"]


def test_no_lines_of_an_empty_log_and_all_of_a_short_one(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.touch()
    assert said(LogReader(3), log) == []
    log.write_text("a\n\nb")
    assert said(LogReader(3), log) == ["a", "", "b"]
    assert said(LogReader(0), log) == []


def test_the_daemons_log_is_followed_until_ctrl_c(own_cwtool: CommandLine) -> None:
    own_cwtool("daemon", "start")
    following = own_cwtool.start("daemon", "logs", "-f", "-n", "1")
    assert following.stdout
    first = following.stdout.readline()
    with next((own_cwtool.home / "logs").glob("daemon*.log")).open("a") as log:
        log.write("a line of the test\n")
    while (line := following.stdout.readline()) != "a line of the test\n":
        assert line, "the log ended"
    os.kill(following.pid, signal.SIGINT)
    following.communicate(timeout=60)
    assert first and following.returncode == 130


def test_the_last_lines_of_a_run_s_log(cwtool: CommandLine) -> None:
    run_id = cwtool.json("run", *SHORT, "--no-perturbation")["run_id"]
    everything = cwtool("logs", run_id).stdout.splitlines()
    assert cwtool("logs", run_id, "-n", "2").stdout.splitlines() == everything[-2:]
    assert cwtool("logs", run_id, "-f", "-n", "1").stdout.splitlines() == everything[-1:]


def test_a_rerun_may_begin_now_and_be_compared_later(cwtool: CommandLine) -> None:
    first = cwtool.json("run", *SHORT, "--no-perturbation")["run_id"]
    begun = cwtool("rerun", first, "--detach")
    again = begun.stdout.strip()
    assert f"cwtool rerun {first} --against {again}" in " ".join(begun.stderr.split())
    compared = cwtool.json("rerun", first, "--against", again)
    assert (compared["first"], compared["again"], compared["agree"]) == (first, again, True)
    assert "give one of them" in cwtool("rerun", first, "-d", "--against", again, rc=2).stderr


def test_a_plan_does_not_wait_for_a_run_and_a_load_says_at_once_what_it_waits_for(cwtool: CommandLine) -> None:
    running = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(running, "baseline")
    assert cwtool.json("plan", "gpt2", "-k", "5")["command"]
    loading: subprocess.Popen[str] = cwtool.start("load", "facebook/opt-350m")
    assert loading.stderr
    while f"{running[-4:]} runs on" not in (line := loading.stderr.readline()):
        assert line, "nothing was said"
    os.kill(loading.pid, signal.SIGINT)
    loading.communicate(timeout=60)
    assert loading.returncode == 9
    assert cwtool.json("jobs", "show")["run_id"] == running  # the latest run, not the latest load
    assert cwtool("logs", "-n", "1").stdout
    cwtool("jobs", "cancel", running)

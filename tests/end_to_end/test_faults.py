"""Nothing is lost when processes die, and nobody need lend a hand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil

from tests.conftest import LONG, SHORT, CommandLine

MEDIUM = (*SHORT, "--control-seeds", "150")  # to be caught in the middle by who is quick


def test_a_run_whose_worker_was_killed_is_run_again_under_its_name(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    undisturbed, worker = cwtool.json("run", *MEDIUM), cwtool.worker_pid()
    run_id = cwtool("run", *MEDIUM, "--detach").stdout.strip()
    later = cwtool("run", *SHORT, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    cwtool.kill(worker)
    said = cwtool("logs", "-f", run_id).stdout
    assert "was killed (SIGKILL)" in said and "queued again" in said
    job, after = cwtool.json("jobs", "show", run_id), cwtool.json("results", "show", run_id)
    assert (job["state"], [death["cause"] for death in job["deaths"]]) == ("done", ["others"])
    assert after["damage"] == undisturbed["damage"]
    cwtool("logs", "-f", later)
    assert cwtool.json("jobs", "show", later)["started"] > job["finished"]  # it kept its place
    assert "was killed (SIGKILL)" in " ".join(cwtool("jobs", "show", run_id).stdout.split())


def test_with_no_retries_a_worker_killed_in_the_middle_of_a_run_fails_that_run_alone(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    before = cwtool.json("run", *SHORT)
    run_id = cwtool("run", *LONG, "--retries", "0", "--detach").stdout.strip()
    waiting = cwtool("run", *SHORT, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    cwtool.kill(cwtool.worker_pid())

    said = cwtool("logs", "-f", run_id).stdout
    assert "was killed (SIGKILL)" in said
    failed = cwtool.json("jobs", "show", run_id)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "worker_died")
    assert "worker-cpu.log" in failed["error"]["hint"]
    cwtool("results", "show", run_id, rc=6)

    cwtool("logs", "-f", waiting)  # what waited behind it runs in a new worker, and finds the same
    after = cwtool.json("results", "show", waiting)
    assert after["damage"] == before["damage"]
    assert _leftovers(cwtool.home / "runs") == []


def test_a_client_that_is_following_hears_of_the_death_with_exit_code_1(own_cwtool: CommandLine) -> None:
    process = own_cwtool.start("run", *LONG, "--retries", "0")
    with own_cwtool.client() as client:
        while not client.jobs():
            pass
        run_id = client.jobs()[0].run_id
    own_cwtool.wait_for(run_id, "damage")
    own_cwtool.kill(own_cwtool.worker_pid())
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGKILL" in said
    assert "cwtool jobs retry" in said


def test_a_run_that_crashes_its_worker_twice_in_the_same_stage_is_not_tried_again(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    run_id = cwtool("run", *LONG, "--retries", "5", "--detach").stdout.strip()
    with cwtool.client() as client:
        crashes, sound = 0, False
        for event in client.follow(run_id):
            if event["kind"] == "state":
                sound = event["state"] == "running"
            elif event["kind"] == "damage" and sound:
                os.kill(cwtool.worker_pid(), signal.SIGSEGV)
                crashes, sound = crashes + 1, False
        job = client.job(run_id)
    assert crashes == 2
    assert job.state == "failed" and job.error
    assert "second time in stage 'perturb', so the job is not tried again" in job.error["message"]
    assert "worker-cpu.log" in job.error["hint"]
    cwtool("run", *SHORT)


def test_a_job_whose_daemon_and_worker_were_killed_is_run_again(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("run", *SHORT)
    daemon, worker = cwtool.json("daemon", "status")["pid"], cwtool.worker_pid()
    running = cwtool("run", *MEDIUM, "--detach").stdout.strip()
    queued = cwtool("run", *SHORT, "--detach").stdout.strip()
    cwtool.wait_for(running, "damage")
    cwtool.kill(daemon)
    cwtool.kill(worker)
    cwtool("logs", "-f", queued)  # starts a new daemon
    jobs = {job["run_id"]: job for job in cwtool.json("jobs")["jobs"]}
    assert [jobs[run_id]["state"] for run_id in (running, queued)] == ["done", "done"]
    assert [death["reason"] for death in jobs[running]["deaths"]] == ["the daemon ended while this ran"]


def test_stopping_the_daemon_queues_what_runs_again_and_leaves_nothing_behind(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("run", *SHORT)
    worker = cwtool.worker_pid()
    running = cwtool("run", *MEDIUM, "--retries", "0", "--detach").stdout.strip()
    queued = cwtool("run", *SHORT, "--detach").stdout.strip()
    cwtool.wait_for(running, "damage")
    said = cwtool("daemon", "stop").stderr
    assert f"{running} was interrupted; it runs again after the next start" in " ".join(said.split())
    assert not psutil.pid_exists(worker)
    assert not cwtool.settings.socket.exists()
    assert list(cwtool.settings.workers.iterdir()) == []

    cwtool("logs", "-f", queued)
    jobs = {job["run_id"]: job for job in cwtool.json("jobs")["jobs"]}
    assert [jobs[run_id]["state"] for run_id in (running, queued)] == ["done", "done"]
    assert [death["cause"] for death in jobs[running]["deaths"]] == ["stop"]


def test_a_worker_that_does_not_answer_a_cancel_is_killed(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool.env["CWTOOL_CANCEL_GRACE_S"] = "0.5"
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    psutil.Process(cwtool.worker_pid()).send_signal(signal.SIGSTOP)
    cwtool("jobs", "cancel", run_id)
    job = cwtool.json("jobs", "show", run_id)
    assert (job["state"], "it did not stop within" in job["error"]["message"]) == ("cancelled", True)
    cwtool("run", *SHORT)


def test_a_cancelled_run_leaves_the_warm_model_as_it_was(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    before = cwtool.json("run", *SHORT)
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    cwtool("jobs", "cancel", run_id)
    after = cwtool.json("run", *SHORT)
    assert cwtool.json("ps")["models"][0]["jobs_served"] == 3  # the same warm copy served all three
    assert (after["rankings"], after["damage"]) == (before["rankings"], before["damage"])


def test_a_model_saved_again_in_its_folder_is_loaded_again(own_cwtool: CommandLine, hub: Path) -> None:
    cwtool = own_cwtool
    snapshots = [next(hub.glob(f"hub/models--{name}/snapshots/*")) for name in ("gpt2", "EleutherAI--pythia-70m")]
    folder = cwtool.cwd / "mine"
    folder.mkdir()
    seen = []
    for snapshot in snapshots:
        for path in folder.iterdir():
            path.unlink()
        for path in snapshot.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        seen.append(cwtool.json("run", "--model", "mine", "--topk", "3", "--eval-limit", "2", "--no-perturbation"))
    assert seen[0]["model"]["files"] != seen[1]["model"]["files"]
    assert "its files have changed" in cwtool("logs").stdout


def test_the_manifest_says_what_is_needed_to_run_again(cwtool: CommandLine) -> None:
    folder = Path(cwtool.json("run", *SHORT)["folder"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec"]["topk"] == [5]
    assert manifest["model"]["revision"]
    assert all(len(digest) == 64 for digest in manifest["model"]["files"].values())
    assert set(manifest["versions"]) >= {"cwtool", "python", "torch", "transformers"}
    assert manifest["command"].endswith("--json")


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]

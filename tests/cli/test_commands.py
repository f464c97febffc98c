"""The commands, typed into the real program against a real daemon and worker."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cwa_engine.records.checksums import check_run
from cwa_engine.records.reading import read_manifest
from cwa_tui.cli.rerun import compare
from tests.conftest import CWTOOL, LONG, CommandLine
from tests.engine.test_verification import RUNS

SHORT = ("--model", "gpt2", "--topk", "5", "--eval-limit", "4")  # with as many draws as p-values need


def test_help_imports_neither_torch_nor_anything_else_that_is_slow() -> None:
    asked = [sys.executable, "-X", "importtime", CWTOOL, "--help"]
    imported = subprocess.run(asked, capture_output=True, text=True, check=True).stderr
    for heavy in ("torch", "transformers", "numpy", "pydantic", "zmq"):
        assert f"| {heavy}\n" not in imported.replace("  ", "")


@pytest.mark.parametrize(
    "command", ["run", "ablate", "plan", "jobs", "results", "daemon", "logs", "load", "models", "ps"]
)
def test_every_command_explains_itself(cwtool: CommandLine, command: str) -> None:
    assert "Usage: cwtool" in cwtool(command, "--help").stdout


def test_a_run_prints_its_findings_and_leaves_its_files(cwtool: CommandLine) -> None:
    done = cwtool(
        "run", *SHORT, "--metric", "grad_x_weight", "grad_squared", "--topk", "2", "5", "--output", "out/deep"
    )
    assert "critical weights by grad_squared" in done.stdout
    assert re.search(r"random_matched .* of 19 ", done.stdout)
    names = {path.name for path in (cwtool.cwd / "out/deep").iterdir()}
    assert names == {
        "summary.json",
        "manifest.json",
        "perturbation.csv",
        "log.txt",
        "topk_grad_x_weight.csv",
        "evaluation.csv",
        "topk_grad_squared.csv",
        "controls.csv",
        "scores.csv",
        "topk_grad_x_weight_matrices.csv",
        "topk_grad_squared_matrices.csv",
        "SHA256SUMS",
    }
    rows = list(csv.DictReader((cwtool.cwd / "out/deep/perturbation.csv").open()))
    assert len(rows) == 2 * 2 * (1 + 19 + 19) + 2 * 2 * (1 + 19)  # of matrices against random_matched alone
    assert [row["rank"] for row in csv.DictReader((cwtool.cwd / "out/deep/topk_grad_squared.csv").open())] == list(
        "12345"
    )


def test_ablate_prints_the_exact_ranking_what_it_took_and_the_smallest_set(cwtool: CommandLine) -> None:
    few = ["--eval-limit", "16", "--candidates", "30", "--topk", "3"]
    done = cwtool("ablate", "--model", "gpt2", *few, "--critical-set", "1.001", "--output", "out")
    for said in (
        "critical weights by ablation",
        "the exact ranking of 30 candidates",
        "multiplies perplexity by 1.001",
    ):
        assert said in " ".join(done.stdout.split())
    rows = list(csv.DictReader((cwtool.cwd / "out/ablation.csv").open()))
    top = list(csv.DictReader((cwtool.cwd / "out/topk_ablation.csv").open()))
    assert len(rows) == 30 and [row["target"] for row in rows[:3]] == [row["target"] for row in top]
    assert (cwtool.cwd / "out/critical_set.csv").is_file()
    without = cwtool.json("ablate", "--model", "gpt2", *few, "--critical-set", "0", "--metric", "magnitude")
    assert without["critical_set"] is None
    assert [ranking["metric"] for ranking in without["rankings"]] == ["magnitude", "ablation"]
    assert without["ablation"]["spent"] < without["ablation"]["naive"] == 31
    assert "20 candidates" in cwtool("ablate", "--model", "gpt2", "--candidates", "20", "--topk", "30", rc=2).stderr


def test_plan_tells_what_is_needed_and_the_command_it_gives_works(cwtool: CommandLine) -> None:
    asked = ["plan", "--model", "gpt2", "--topk", "5", "--eval-limit", "4"]
    found = cwtool.json(*asked)
    assert [(row["dtype"], row["gradients"]) for row in found["rows"]] == [
        ("float32", "resident"), ("float32", "sweep"), ("bfloat16", "resident"), ("bfloat16", "sweep"),
    ]  # fmt: skip
    assert found["device"] == "cpu" and all(row["fits"] and row["simulated"] for row in found["rows"])
    said = " ".join(cwtool(*asked).stdout.split())
    assert found["command"] in said and "all gradients fit at once" in said
    cwtool(*shlex.split(found["command"])[1:])
    assert "gpt2-medium" in cwtool("plan", "--model", "gpt2-med", rc=6).stderr
    planned = next(job for job in cwtool.json("jobs", "--kind", "plan")["jobs"] if job["state"] == "done")
    assert "was only to plan" in cwtool("results", "show", planned["run_id"], rc=6).stderr


def test_a_run_says_what_stands_before_its_texts_and_a_plan_passes_it_on(cwtool: CommandLine) -> None:
    asked = ["--model", "gpt2", "--topk", "5", "--eval-limit", "4", "--bos", "always"]
    done = cwtool("run", *asked, "--no-perturbation", "--output", "out")
    assert "each after <|end|>, which is not scored" in " ".join(done.stdout.split())
    manifest = json.loads((cwtool.cwd / "out/manifest.json").read_text())
    summary = json.loads((cwtool.cwd / "out/summary.json").read_text())
    assert (manifest["spec"]["bos"], summary["texts"]["bos"]) == ("always", "<|end|>")
    assert "--bos always" in cwtool.json("plan", *asked)["command"]
    assert "unknown bos 'yes'" in cwtool("run", *asked[:-1], "yes", rc=2).stderr


def test_questions_beyond_damage_each_have_their_table_and_their_file(cwtool: CommandLine) -> None:
    asked = ["--stability", "--fidelity", "30", "--individually", "--dose", "0", "-.5", "--position-test", "--kl"]
    done = cwtool("run", *SHORT, "--topk", "2", *asked, "--output", "out")
    for said in (
        "stability, two halves of the texts", "what metrics foretell", "each weight alone", "doses, bits and places",
        "scale -0.5", "values elsewhere, seed 0", "KL from the intact model", "numerical floor", "The critical set was",
    ):  # fmt: skip
        assert said in done.stdout
    names = {path.name for path in (cwtool.cwd / "out").iterdir()}
    assert {"stability.csv", "fidelity.csv", "interactions.csv", "evaluation.csv"} <= names


def test_super_weights_are_told_with_their_spikes_and_iterated_on_request(cwtool: CommandLine) -> None:
    asked = ["--metric", "super_weight", "--no-perturbation"]
    done = " ".join(cwtool("run", *SHORT, *asked, "--iterate", "--output", "out").stdout.split())
    for said in (
        "critical weights by super_weight",
        "largest outputs that these weights make",
        "no spike: the largest",
    ):
        assert said in done
    rows = list(csv.DictReader((cwtool.cwd / "out/spikes.csv").open(newline="")))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert all(row["module"].endswith("mlp.c_proj") and row["token"] for row in rows)
    assert (cwtool.cwd / "out/spike_removal.csv").is_file()
    refused = cwtool("run", *SHORT, "--iterate", "4", rc=2).stderr
    assert "add --metric super_weight" in refused


def test_weights_are_given_by_name_by_file_or_by_the_table_of_another_run(cwtool: CommandLine) -> None:
    target = "transformer.h.1.mlp.c_proj.weight[3,5]"
    plain = ["--no-perturbation", "--json"]
    (cwtool.cwd / "weights.txt").write_text(f"{target}  # the one\n")
    for given in (target, "weights.txt"):
        done = json.loads(cwtool("run", *SHORT, "--weights", given, *plain, "--output", "out").stdout)
        assert [row["target"] for row in done["rankings"][0]["top"]] == [target]
    done = json.loads(cwtool("run", *SHORT, "--weights", "out/topk_given.csv", *plain).stdout)
    assert (done["rankings"][0]["metric"], done["rankings"][0]["top"][0]["flat_index"]) == ("given", 5 * 32 + 3)
    assert "did you mean" in cwtool("run", *SHORT, "--weights", target.replace("c_proj", "c_prj"), rc=2).stderr
    assert "lies outside" in cwtool("run", *SHORT, "--weights", target.replace("3,", "32,"), rc=2).stderr
    assert "cannot be read" in cwtool("run", *SHORT, "--weights", "none.txt", rc=2).stderr


def test_a_rerun_says_whether_the_same_came_out(cwtool: CommandLine) -> None:
    run_id = json.loads(cwtool("run", *SHORT, "--perturb", "resample", "--json").stdout)["run_id"]
    done = cwtool("rerun", run_id)
    assert "perturbation.csv: the same bytes" in done.stdout
    assert "agree, byte for byte" in done.stdout
    table = cwtool.home / "runs" / run_id / "perturbation.csv"
    sound = table.read_bytes()
    table.write_bytes(sound.replace(b"1", b"2", 1))
    differs = cwtool("rerun", run_id, rc=1)
    assert "perturbation.csv: DIFFERENT" in differs.stdout
    assert "is altered; the bytes it had at first came out again" in " ".join(differs.stdout.split())
    assert "do NOT agree" in differs.stdout
    table.write_bytes(sound)
    manifest = table.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    assert "manifest.json is altered" in cwtool("rerun", run_id, rc=1).stderr


def test_runs_of_different_rules_for_controls_are_told_apart() -> None:
    early, now = (RUNS / name for name in ("controls_by_sample", "controls_by_elimination"))
    found = compare(read_manifest(early), read_manifest(now), check_run(early), check_run(now))
    assert not found.agree
    assert any("draws of controls" in change and "sample then, elimination now" in change for change in found.changed)


def test_verify_recomputes_a_run_of_the_daemon_and_a_folder_that_was_brought_elsewhere(cwtool: CommandLine) -> None:
    done = json.loads(cwtool("run", *SHORT, "--output", "out", "--json").stdout)
    found = cwtool("verify", done["run_id"][-4:])
    assert f"{done['run_id']} is sound as far as its files tell" in found.stdout
    assert "as the job database or you have it" in " ".join(found.stdout.split())
    away = cwtool.json("verify", "./out")
    assert (away["agrees"], away["check"]["known"], away["disagreements"]) == (True, False, [])
    assert away["check"]["fingerprint"] == done["fingerprint"]
    assert cwtool.json("verify", "./out", "--fingerprint", done["fingerprint"])["check"]["known"]
    wrong = cwtool("verify", "./out", "--fingerprint", "0" * 64, rc=1)
    assert "ALTERED: SHA256SUMS is not as it was when the run ended" in wrong.stdout
    assert "no SHA-256" in cwtool("verify", "./out", "--fingerprint", "12", rc=2).stderr
    summary = cwtool.cwd / "out/summary.json"
    told = json.loads(summary.read_text())
    told["damage"][0]["controls"][0]["p_value"] = 0.001
    summary.write_text(json.dumps(told))
    wrong = cwtool("verify", "./out", rc=1)
    said = " ".join(wrong.stdout.split())
    assert "ALTERED: summary.json is altered" in said
    assert "p_value: it says 0.001, recomputed 0." in said and "is NOT sound" in said
    assert "holds no run" in cwtool("verify", "./", rc=6).stderr


def test_files_that_are_not_what_the_run_wrote_are_never_shown_as_if_they_were(cwtool: CommandLine) -> None:
    run_id = json.loads(cwtool("run", *SHORT, "--json").stdout)["run_id"]
    folder = cwtool.home / "runs" / run_id
    shown = cwtool("results", "show", run_id)
    sums = (folder / "SHA256SUMS").read_bytes()
    assert f"fingerprint: {hashlib.sha256(sums).hexdigest()}" in shown.stdout.replace("\n", "")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}

    def altered(name: str, before: bytes, after: bytes) -> None:
        for path in folder.iterdir():
            path.write_bytes(kept[path.name])
        assert before in kept[name]
        (folder / name).write_bytes(kept[name].replace(before, after, 1))

    altered("summary.json", b'"perplexity": ', b'"perplexity": 1')
    assert "summary.json is altered" in cwtool("results", "show", run_id, rc=1).stderr
    assert "summary.json is altered" in " ".join(cwtool("results").stdout.split())
    altered("topk_grad_x_weight.csv", b",0", b",1")
    assert "topk_grad_x_weight.csv is altered" in cwtool("results", "topk", run_id, rc=1).stderr
    altered("evaluation.csv", b",intact,", b",critical,")
    seen = cwtool("results", "show", run_id, rc=1)
    assert "baseline perplexity" in seen.stdout and "evaluation.csv is altered" in seen.stderr
    assert json.loads(cwtool("results", "show", run_id, "--json", rc=1).stdout)["altered"] == {
        "evaluation.csv": "altered"
    }
    assert "evaluation.csv is altered" in cwtool("results", "fetch", run_id, "--output", "new", rc=1).stderr
    assert not list((cwtool.cwd / "new").iterdir())
    altered("log.txt", b"\n", b" \n")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del digests["SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))
    assert "SHA256SUMS is not as it was when the run ended" in cwtool("results", "show", run_id, rc=1).stderr
    for path in folder.iterdir():
        path.write_bytes(kept[path.name])
    cwtool("results", "show", run_id)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--structure", "rows"], "unknown structure 'rows'"),
        (["--scope", "block"], "unknown scope 'block'"),
        (["--include", "dwon"], "--include 'dwon' matches no parameter"),
        (["--bit", "all"], "--bit all is for --perturb bit_flip"),
        (["--bit", "last"], "--bit last is no whole number"),
        (["--dose", "much"], "--dose much is no number"),
        (["--stability", "1"], "--stability 1 is too small"),
        (["--metric", "super_weight", "--iterate", "0"], "--iterate 0 is too small"),
        (["--data-file", "a.txt", "--dataset", "b"], "exclude each other"),
        (["--dataset", "no/such"], "dataset no/such cannot be loaded"),
        (["--weights", "norm"], "cannot be read"),
        (["--structure", "head", "--topk", "1000"], "is more than the 4 heads"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_with_a_reason(
    cwtool: CommandLine, typed: list[str], said: str
) -> None:
    assert said in cwtool("run", *SHORT, *typed, rc=2).stderr


def test_several_perturbations_and_controls_are_measured_in_one_run(cwtool: CommandLine) -> None:
    asked = ["--perturb", "standard", "bit_flip", "--bit", "30", "--control", "random,bottom", "magnitude_matched"]
    done = cwtool("run", *SHORT, *asked, "--control-seeds", "2", "--output", "out")
    assert re.search(r"magnitude_matched .* of 50 ", done.stdout)
    rows = list(csv.DictReader((cwtool.cwd / "out/perturbation.csv").open()))
    assert {row["perturbation"] for row in rows} == {"zero", "mean", "resample", "bit_flip"}
    assert {row["selection"] for row in rows} == {"critical", "random", "bottom", "magnitude_matched"}
    assert "float32 has no bit 32" in cwtool("run", *SHORT, "--perturb", "bit_flip", "--bit", "32", rc=2).stderr


def test_json_has_standard_output_to_itself(cwtool: CommandLine) -> None:
    done = cwtool("run", *SHORT, "--json")
    summary = json.loads(done.stdout)
    assert summary["baseline"]["tokens"] > 0
    assert "baseline perplexity" in done.stderr  # plain progress, for there is no terminal
    assert "\x1b" not in done.stderr


def test_a_terminal_gets_live_bars(cwtool: CommandLine) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen([CWTOOL, "run", *SHORT], env=cwtool.env, stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other side of a terminal is closed
        pass
    os.close(leader)
    assert process.wait() == 0
    assert process.stdout and b"critical weights" in process.stdout.read()
    assert "━".encode() in shown
    assert b"perturb" in shown


def test_detach_prints_the_run_id_alone_and_the_run_goes_on(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *SHORT, "--detach").stdout.strip()
    assert "\n" not in run_id
    followed = cwtool("logs", "-f", run_id)
    assert followed.stdout.splitlines()[-1].endswith("done")
    assert cwtool.json("jobs", "show", run_id)["state"] == "done"
    assert cwtool.json("results", "show", run_id)["run_id"] == run_id


def test_a_run_may_be_named_by_a_part_of_its_id(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *SHORT, "--detach").stdout.strip()
    assert cwtool.json("jobs", "show", run_id[-4:])["run_id"] == run_id
    cwtool("logs", "-f", run_id)
    assert len(cwtool.json("results", "topk", run_id[-4:], "-n", "3")["weights"]) == 3


def test_the_first_interrupt_leaves_the_run_and_says_how_to_get_it_back(cwtool: CommandLine) -> None:
    process = cwtool.start("run", *LONG)
    run_id = _newest_running(cwtool)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"cwtool logs -f {run_id}" in said
    assert f"cwtool jobs cancel {run_id}" in said
    assert cwtool.json("jobs", "show", run_id)["state"] == "running"
    assert "cancelled" in cwtool("jobs", "cancel", run_id).stdout
    assert cwtool.json("jobs", "show", run_id)["state"] == "cancelled"


def test_cancel_on_interrupt_cancels_the_run(cwtool: CommandLine) -> None:
    process = cwtool.start("run", *LONG, "--cancel-on-interrupt")
    run_id = _newest_running(cwtool)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 9
    assert cwtool.json("jobs", "show", run_id)["state"] == "cancelled"


def test_a_queued_job_can_be_cancelled_before_it_runs(cwtool: CommandLine) -> None:
    running = cwtool("run", *LONG, "--detach").stdout.strip()
    queued = cwtool("run", *SHORT, "--detach").stdout.strip()
    cwtool("jobs", "cancel", queued)
    assert cwtool.json("jobs", "show", queued)["started"] is None
    cwtool("jobs", "cancel", running)


def test_retry_runs_the_same_thing_as_a_new_job(cwtool: CommandLine) -> None:
    first = cwtool("run", *SHORT, "--detach").stdout.strip()
    again = cwtool("jobs", "retry", first, "--detach").stdout.strip()
    cwtool("logs", "-f", again)
    shown = cwtool.json("jobs", "show", again)
    assert (shown["retry_of"], shown["state"]) == (first, "done")
    same = [
        Path(cwtool.json("results", "show", run)["folder"], "perturbation.csv").read_bytes() for run in (first, again)
    ]
    assert same[0] == same[1]


def test_load_warms_a_model_ps_shows_it_and_unload_frees_it(cwtool: CommandLine) -> None:
    cwtool("load", "facebook/opt-350m")
    assert "facebook/opt-350m" in [model["name"] for model in cwtool.json("ps")["models"]]
    assert "facebook/opt-350m" in cwtool("ps").stdout
    assert cwtool.json("unload", "facebook/opt-350m") == {"unloaded": ["facebook/opt-350m"]}
    assert "is not warm" in cwtool("unload", "facebook/opt-350m", rc=6).stderr


def test_models_lists_the_guide_and_what_is_on_disk(cwtool: CommandLine) -> None:
    assert "smollm2-135m" in cwtool("models").stdout
    assert "EleutherAI/pythia-70m" in cwtool.json("models", "pythia")["on_disk_bytes"]


def test_version_names_client_and_daemon(cwtool: CommandLine) -> None:
    cwtool("daemon", "start")
    shown = cwtool.json("version")
    assert shown["cwtool"] == shown["daemon"]
    assert cwtool("--version").stdout == f"cwtool {shown['cwtool']}\n"


BAD_INPUT = [
    ("--model gpt3", 6, "did you mean 'gpt2'"),
    ("--model meta-llama/Llama-3.1-8B", 4, "HF_TOKEN"),
    ("--model ./nowhere/model", 6, "no folder"),
    ("--model empty_folder", 6, "has no config.json"),
    ("--model broken_model", 1, "broken or truncated"),
    ("--model gpt2 --metric grad_x_wieght", 2, "did you mean 'grad_x_weight'"),
    ("--model gpt2 --topk 0", 2, "--topk 0"),
    ("--model gpt2 --topk ten", 2, "--topk ten"),
    ("--model gpt2 --topk 999999999 --eval-limit 2", 2, "more than the"),
    ("--model gpt2 --eval-limit 0", 2, "--eval-limit 0"),
    ("--model gpt2 --data-file missing.txt", 2, "does not exist"),
    ("--model gpt2 --data-file empty.txt", 2, "holds no text"),
    ("--model gpt2 --data-file binary.txt", 2, "is binary"),
    ("--model gpt2 --data-file short.txt", 2, "at least two tokens"),
    ("--model gpt2 --data-file wrong.jsonl", 2, "line 2"),
    ("--model gpt2 --output empty.txt/inside", 2, "cannot be written"),
    ("--model gpt2 --device cuda:7 --eval-limit 2", 2, "no device"),
    ("--model gpt2 --dtype float8", 2, "dtype"),
    ("", 2, "--model"),
]


@pytest.mark.parametrize(
    ("typed", "code", "expected"), BAD_INPUT, ids=[typed or "nothing" for typed, _, _ in BAD_INPUT]
)
def test_bad_input_is_named_with_a_hint_and_its_exit_code(
    cwtool: CommandLine, hub: Path, typed: str, code: int, expected: str
) -> None:
    (cwtool.cwd / "empty_folder").mkdir()
    _broken_copy(hub, cwtool.cwd / "broken_model")
    (cwtool.cwd / "empty.txt").touch()
    (cwtool.cwd / "binary.txt").write_bytes(b"\x00\x01\x02")
    (cwtool.cwd / "short.txt").write_text("a\n")
    (cwtool.cwd / "wrong.jsonl").write_text('{"text": "fine text"}\n{"txt": "not so"}\n')
    said = cwtool("run", *typed.split(), rc=code).stderr
    assert expected in said
    assert "Traceback" not in said


def test_an_error_in_json_mode_is_json(cwtool: CommandLine) -> None:
    error = cwtool.json("run", "--model", "gpt3", rc=6)["error"]
    assert (error["code"], "gpt2" in error["hint"]) == ("model_not_found", True)


def test_an_unknown_run_is_not_found(cwtool: CommandLine) -> None:
    assert "there is no run 'zzzz'" in cwtool("results", "show", "zzzz", rc=6).stderr


def test_without_a_daemon_status_says_so_and_starts_none(own_cwtool: CommandLine) -> None:
    assert "no daemon is running" in own_cwtool("daemon", "status", rc=3).stderr
    assert own_cwtool.json("ps") == {"models": [], "devices": [], "workers": []}
    assert not own_cwtool.home.exists()


def test_a_daemon_that_cannot_start_says_why(own_cwtool: CommandLine) -> None:
    own_cwtool.home.write_text("a file where the state folder should be")
    assert "cannot" in own_cwtool("jobs", rc=3).stderr
    own_cwtool.home.unlink()


def _newest_running(cwtool: CommandLine) -> str:
    """Run id of the job submitted last, once it measures damage."""
    with cwtool.client() as client:
        known = {job.run_id for job in client.jobs() if job.ended}
        run_id = None
        while run_id is None:  # each turn waits for the daemon's answer
            run_id = next((job.run_id for job in client.jobs() if job.run_id not in known), None)
    cwtool.wait_for(run_id, "damage")
    return run_id


def _broken_copy(hub: Path, target: Path) -> None:
    snapshot = next(hub.glob("hub/models--gpt2/snapshots/*"))
    target.mkdir()
    for path in snapshot.iterdir():
        content = path.read_bytes()
        (target / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)

"""`cwtool bundle`, and `cwtool verify` of what it wrote on a machine that knows nothing of the run."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CommandLine
from tests.upload_hub import TOKEN, upload_hub

ASKED = ("gpt2", "--topk", "2", "--eval-limit", "8", "--control-seeds", "2", "--control", "random")


@pytest.fixture(scope="module")
def run_id(module_cwtool: CommandLine) -> str:
    return str(module_cwtool.json("run", *ASKED)["run_id"])


@pytest.fixture
def fresh(tmp_path: Path, module_cwtool: CommandLine) -> Iterator[CommandLine]:
    """Another machine: another home, another state folder, no model, and no daemon."""
    home = tmp_path / "fresh"
    (home / "empty").mkdir(parents=True)
    command_line = CommandLine(home / "state", home, home / "empty")
    command_line.env |= {"HOME": str(home)}
    yield command_line
    assert not (home / "state" / "daemon.json").exists(), "a bundle is verified without a daemon"


def test_a_bundle_is_carried_to_another_machine_and_verified_there(
    module_cwtool: CommandLine, run_id: str, fresh: CommandLine
) -> None:
    told = module_cwtool.json("bundle", run_id, "--output", str(fresh.cwd / "run.zip"))
    found = fresh.json("verify", "run.zip", "--fingerprint", told["sha256"])
    assert found["agrees"] and found["runs"][0]["run_id"] == run_id and found["runs"][0]["compared"] > 20
    said = fresh("verify", "run.zip").stdout
    assert "run.zip is sound as far as its files tell" in said and f"run {run_id}, packed by cwtool" in said
    with zipfile.ZipFile(fresh.cwd / "run.zip") as bundle:
        everything = b"".join(bundle.read(name) for name in bundle.namelist())
    assert str(module_cwtool.home).encode() not in everything and str(module_cwtool.cwd).encode() not in everything


def test_one_byte_changed_is_refused_and_named(module_cwtool: CommandLine, run_id: str, fresh: CommandLine) -> None:
    module_cwtool("bundle", run_id, "--output", str(fresh.cwd / "run.zip"))
    content = bytearray((fresh.cwd / "run.zip").read_bytes())
    with zipfile.ZipFile(fresh.cwd / "run.zip") as bundle:
        entry = bundle.getinfo(f"runs/{run_id}/evaluation.csv")
    content[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 1
    (fresh.cwd / "run.zip").write_bytes(bytes(content))
    said = fresh("verify", "run.zip", rc=1).stdout
    assert f"ALTERED: runs/{run_id}/evaluation.csv" in said and "run.zip is NOT sound" in said
    assert "--fingerprint is no SHA-256" in fresh("verify", "run.zip", "--fingerprint", "abc", rc=2).stderr
    assert "there is no file" in fresh("verify", "none.zip", rc=6).stderr


def test_with_the_model_at_hand_a_bundle_runs_again_and_gives_the_same_bytes(
    module_cwtool: CommandLine, run_id: str
) -> None:
    module_cwtool("bundle", run_id, "--output", "again.zip")
    found = module_cwtool.json("verify", "again.zip", "--rerun")
    assert found["agrees"] and found["reruns"][0]["agree"] and found["reruns"][0]["tables"]["evaluation.csv"]
    other = module_cwtool("verify", "again.zip", "--rerun", "--model", "distilgpt2", rc=1).stdout
    assert "do NOT agree" in other and "changed since: model" in other


def test_a_rerun_needs_to_be_told_where_folders_and_texts_are(module_cwtool: CommandLine) -> None:
    texts = module_cwtool.cwd / "mine.txt"
    texts.write_text("\n\n".join(f"Text number {number} of the harbour and its boats." for number in range(8)))
    run_id = module_cwtool.json("run", *ASKED, "--data-file", str(texts))["run_id"]
    module_cwtool("bundle", run_id, "--output", "mine.zip")
    refused = module_cwtool("verify", "mine.zip", "--rerun", rc=2).stderr
    assert "'mine.txt', a file of another machine" in refused and "--data-file" in refused
    assert module_cwtool.json("verify", "mine.zip", "--rerun", "--data-file", str(texts))["agrees"]
    assert "are for --rerun" in module_cwtool("verify", "mine.zip", "--data-file", str(texts), rc=2).stderr
    assert "are for bundles" in module_cwtool("verify", run_id, "--rerun", rc=2).stderr


def test_a_study_is_carried_with_its_runs_and_its_answer(module_cwtool: CommandLine, fresh: CommandLine) -> None:
    asked = ("--models", "gpt2", "--seeds", "0", "1", *ASKED[1:])
    study = module_cwtool.json("study", "run", *asked)["study"]
    module_cwtool("bundle", study, "--output", str(fresh.cwd / "study.zip"))
    found = fresh.json("verify", "study.zip")
    assert found["agrees"] and len(found["runs"]) == 2 and found["about"]["id"] == study


def test_a_bundle_is_uploaded_only_where_that_is_asked_for(module_cwtool: CommandLine, run_id: str) -> None:
    with upload_hub() as hub:
        env: dict[str, Any] = {
            "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        module_cwtool("bundle", run_id, "--output", "quiet.zip", **env)
        assert hub.tokens == set()
        said = module_cwtool("bundle", run_id, "--output", "loud.zip", "--push", "ann/weights", "--private", **env)
        assert f"uploaded to {hub.endpoint}/datasets/ann/weights" in said.stdout
        assert hub.files["loud.zip"] == (module_cwtool.cwd / "loud.zip").read_bytes()
        refused = module_cwtool(
            "bundle", run_id, "-o", "no.zip", "--push", "ann/x", rc=4, **env | {"HF_TOKEN": "hf_no"}
        )
    assert "may not write to ann/x" in refused.stderr and (module_cwtool.cwd / "no.zip").exists()
    assert "names no data set" in module_cwtool("bundle", run_id, "--push", "x", rc=2).stderr
    assert "--private is for --push" in module_cwtool("bundle", run_id, "--private", rc=2).stderr


def test_a_tracker_that_fails_loses_no_run_and_one_that_works_is_told(module_cwtool: CommandLine) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    broken = module_cwtool.cwd / "file"
    broken.write_text("no folder")
    done = module_cwtool("run", *ASKED, "--track", "trackio", "--json", TRACKIO_DIR=str(broken / "db"))
    assert json.loads(done.stdout)["run_id"] and "trackio" in done.stderr.lower()
    kept = module_cwtool.cwd / "kept"
    told = module_cwtool("run", *ASKED, "--json", CWTOOL_TRACK="trackio:mine", TRACKIO_DIR=str(kept))
    assert json.loads(told.stdout)["run_id"] and (kept / "mine.db").is_file()
    assert "is no tracker" in module_cwtool("run", *ASKED, "--track", "trakio", rc=2).stderr
    shutil.rmtree(kept)

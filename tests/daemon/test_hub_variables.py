"""HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT: those of the shell one types in, whatever the daemon was started with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwa_daemon.client import stop_daemon
from tests.conftest import CommandLine
from tests.models import hub_cache
from tests.stand_in_hub import COMMIT, stand_in_hub

RANK = ("--topk", "2", "--no-perturbation", "--eval-limit", "4")
TOKEN_OF_THE_DAEMON, TOKEN_OF_THE_SHELL = "hf_wrong", "hf_shell_0123456789"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, for a Hub to serve."""
    hub_cache(tmp_path_factory.mktemp("served"), {"lab/present": "llama"})
    found = tmp_path_factory.getbasetemp().glob("served*/models--lab--present/snapshots/*")
    return next(found)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Iterator[CommandLine]:
    """A daemon that was started offline, with a token and an empty cache."""
    folder = tmp_path_factory.mktemp("machine")
    machine = CommandLine(folder / "state", folder, hub)
    machine(
        "daemon", "start",
        HF_HOME=str(folder / "empty"), HF_TOKEN=TOKEN_OF_THE_DAEMON, HF_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    yield machine
    stop_daemon(machine.settings)


@pytest.fixture
def online(daemon: CommandLine, served: Path, tmp_path: Path) -> Iterator[CommandLine]:
    """A shell that reaches a Hub, and has an empty cache."""
    with stand_in_hub(tmp_path / "hf", served) as env:
        shell = CommandLine(daemon.home, tmp_path, tmp_path / "hf")
        del shell.env["HF_HUB_OFFLINE"]
        shell.env |= {name: env[name] for name in ("HF_ENDPOINT", "NO_PROXY")}
        yield shell


def test_a_daemon_that_was_started_offline_downloads_for_a_shell_that_is_not(online: CommandLine) -> None:
    found = online.json("run", "--model", "lab/present", *RANK)
    assert found["model"]["revision"] == COMMIT
    assert list(online.cwd.glob("hf/hub/models--lab--present/snapshots/*/config.json"))
    assert online.json("plan", "--model", "lab/present")["rows"]
    offline = online("run", "--model", "lab/other", *RANK, HF_HUB_OFFLINE="1", rc=6).stderr
    assert "not in the cache, and HF_HUB_OFFLINE is set" in offline
    assert "not in the cache or on the Hub" in online("run", "--model", "lab/absent", *RANK, rc=6).stderr


def test_a_model_that_is_warm_from_another_cache_is_not_taken_for_the_one_of_this_shell(
    online: CommandLine, daemon: CommandLine, hub: Path
) -> None:
    here = daemon.json("run", "--model", "gpt2", *RANK)
    assert here["model"]["name"] == "gpt2"
    said = online("run", "--model", "gpt2", *RANK, HF_HUB_OFFLINE="1", rc=6).stderr
    assert "model 'gpt2' is not in the cache" in said
    hub_cache(online.cwd / "hf" / "hub", {"gpt2": "llama"})
    online.env["HF_HUB_OFFLINE"] = "1"
    other = online.json("run", "--model", "gpt2", *RANK)
    assert other["model"]["files"] != here["model"]["files"]
    assert f"{online.cwd}/hf/hub of" in online("logs").stdout.replace("\n", "")


def test_the_token_is_that_of_the_shell_and_is_written_nowhere(online: CommandLine) -> None:
    assert "needs a token" in online("run", "--model", "lab/gated", *RANK, rc=4).stderr
    said = online("run", "--model", "lab/gated", *RANK, HF_TOKEN=TOKEN_OF_THE_SHELL, rc=4).stderr
    assert "not been granted to this token" in said
    (online.cwd / "hf").mkdir(exist_ok=True)
    (online.cwd / "hf" / "token").write_text(f"{TOKEN_OF_THE_SHELL}\n")
    assert "not been granted to this token" in online("run", "--model", "lab/gated", *RANK, rc=4).stderr
    online("run", "--model", "lab/present", *RANK)
    spoilt = online("run", "--model", "lab/gated", *RANK, HF_TOKEN=f"{TOKEN_OF_THE_SHELL} x", rc=2).stderr
    assert "HF_TOKEN does not hold a token" in spoilt
    written = b"".join(path.read_bytes() for path in online.home.rglob("*") if path.is_file())
    assert b"lab/gated" in written
    for secret in (TOKEN_OF_THE_SHELL, TOKEN_OF_THE_DAEMON):
        assert secret.encode() not in written and secret not in said + spoilt


def test_a_dataset_is_looked_for_where_the_shell_has_its_datasets(
    online: CommandLine, daemon: CommandLine, tmp_path: Path
) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "texts").mkdir()
    lines = "".join(json.dumps({"text": f"This is text number {number}."}) + "\n" for number in range(6))
    (tmp_path / "texts" / "train.jsonl").write_text(lines)
    online.env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": daemon.env["HF_HOME"]}
    caches = {name: str(tmp_path / name) for name in ("one", "two")}
    for cache in caches.values():
        online("run", "--model", "gpt2", *RANK, "--dataset", "texts", HF_DATASETS_CACHE=cache)
        assert any(Path(cache).rglob("*.arrow"))

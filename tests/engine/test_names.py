"""Names of models and paths mean what they say, however they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwa_engine.base.errors import InvalidInput, ModelNotFound
from cwa_engine.base.files import user_path
from cwa_engine.hub.sources import HubAccess, SourceKind, absolute_name, name_and_revision, resolve
from cwa_engine.spec import RunSpec


@pytest.mark.parametrize(
    ("typed", "name", "revision"),
    [
        ("gpt2", "gpt2", None),
        (" gpt2\n", "gpt2", None),
        ("gpt2/", "gpt2", None),
        ("gpt2@main", "gpt2", "main"),
        ("EleutherAI/pythia-70m@step3000", "EleutherAI/pythia-70m", "step3000"),
        ("gpt2@refs/pr/7", "gpt2", "refs/pr/7"),
        ("https://huggingface.co/gpt2", "gpt2", None),
        ("https://huggingface.co/EleutherAI/pythia-70m/", "EleutherAI/pythia-70m", None),
        ("https://huggingface.co/EleutherAI/pythia-70m/tree/step3000", "EleutherAI/pythia-70m", "step3000"),
        ("https://huggingface.co/gpt2/tree/refs%2Fpr%2F7", "gpt2", "refs/pr/7"),
        ("https://huggingface.co/gpt2/blob/main/config.json?download=true#L3", "gpt2", "main"),
        ("http://www.HuggingFace.co/a/b/commit/0123abc", "a/b", "0123abc"),
        ("https://huggingface.co/a/b/discussions/3", "a/b", None),
        ("huggingface.co/a/b", "a/b", None),
        ("hf.co/a/b", "a/b", None),
        ("hf://a/b@v1", "a/b", "v1"),
    ],
)
def test_a_model_may_be_named_as_the_hub_names_it(typed: str, name: str, revision: str | None) -> None:
    assert name_and_revision(typed) == (name, revision)
    spec = RunSpec(model=typed)
    assert (spec.model, spec.revision) == (name, revision)
    assert RunSpec.model_validate(spec.model_dump()) == spec
    assert absolute_name(typed) == typed.strip()  # it is no path


def test_a_mirror_that_the_user_has_set_is_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"an address of hub\.example\.org, not of the Hub"):
        name_and_revision("https://hub.example.org/a/b")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    assert name_and_revision("https://hub.example.org/a/b/tree/v1") == ("a/b", "v1")
    monkeypatch.setenv("HF_ENDPOINT", "")
    with pytest.raises(InvalidInput, match="not of the Hub"):
        name_and_revision("https:///a/b")


@pytest.mark.parametrize(
    ("typed", "revision", "why"),
    [
        ("", None, "no model is given"),
        (" ", None, "no model is given"),
        ("gpt2", "", "the revision is empty"),
        ("gpt2@", None, "names no revision after the @"),
        ("gpt2@a", "b", "names the revision a, and --revision is b"),
        ("https://hf.co/gpt2/tree/a", "b", "names the revision a, and --revision is b"),
        ("/models/mine", "main", "is a path, and has no revision"),
        ("https://huggingface.co/datasets/a/b", None, "is a dataset, not a model"),
        ("https://huggingface.co/spaces/a/b", None, "is not the page of a model"),
        ("https://huggingface.co/", None, "is not the page of a model"),
        ("https://huggingface.co/a/b/blob/main/x.gguf", None, "is one file of a repository"),
        ("https://github.com/a/b", None, "is an address of github.com"),
    ],
)
def test_a_name_that_can_be_meant_in_no_way_or_in_two_is_refused(typed: str, revision: str | None, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as raised:
        name_and_revision(typed, revision)
    assert raised.value.hint
    with pytest.raises(InvalidInput, match=why):
        RunSpec(model=typed, revision=revision)


def test_the_same_revision_twice_is_one() -> None:
    assert name_and_revision("gpt2@main", "main") == ("gpt2", "main")


def test_a_revision_is_never_dropped_in_silence() -> None:
    with pytest.raises(InvalidInput, match="names a revision"):
        resolve("gpt2@main")
    assert resolve("https://huggingface.co/a/b").location == "a/b"


def test_a_path_is_made_absolute_whether_it_exists_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("model", "a@b", "~"):
        Path(folder).mkdir()
    for typed in ("model", "model/", "./model/", "~/model", f"{tmp_path}/model"):
        assert absolute_name(typed) == str(tmp_path / "model")
        assert resolve(absolute_name(typed)).kind is SourceKind.FOLDER
    assert absolute_name("a@b") == str(tmp_path / "a@b")
    assert name_and_revision(absolute_name("a@b")) == (str(tmp_path / "a@b"), None)
    assert absolute_name("./~") == str(tmp_path / "~")
    assert absolute_name("./modle") == str(tmp_path / "modle")  # codespell:ignore modle
    assert absolute_name("") == ""
    with pytest.raises(ModelNotFound, match="there is no folder") as raised:
        resolve(str(tmp_path / "modle"))  # codespell:ignore modle
    assert raised.value.hint == "did you mean 'model'?"


def test_a_path_of_the_user_is_absolute_and_begins_at_home_after_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert user_path("~/results", "--output") == Path("/home/ann/results")
    assert user_path("~", "--output") == Path("/home/ann")
    assert user_path("results", "--output") == tmp_path / "results"
    assert user_path("./~", "--output") == tmp_path / "~"
    for typed in ("", " ", "~nobody-of-that-name/x", "a\0b", "caf\udce9"):
        with pytest.raises(InvalidInput, match="--output"):
            user_path(typed, "--output")


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    unset = HubAccess.from_environment(), HubAccess.from_environment().cache
    for name in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    assert (HubAccess.from_environment(), HubAccess.from_environment().cache) == unset


def test_folders_named_by_variables_are_absolute_for_a_daemon_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", "hf")
    assert HubAccess.from_environment().cache == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "~/cache")
    assert HubAccess.from_environment().cache == tmp_path / "cache"

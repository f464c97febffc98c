"""Texts of dataset folders, as `save_to_disk` writes them and as plain files, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cwa_engine.data.corpus import load_texts
from cwa_engine.data.datasets import parse_dataset
from cwa_engine.errors import DataError

datasets = pytest.importorskip("datasets", reason="the extra `eval` is not installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def texts_of(name: str, limit: int | None = None) -> list[str]:
    return [text.content for text in load_texts(None, limit, name)]


def test_a_saved_dataset_gives_the_texts_of_its_test_split_or_of_the_one_asked_for(tmp_path: Path) -> None:
    saved = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict({"label": [1, 2], "text": ["a train text", "another"]}),
            "test": datasets.Dataset.from_dict({"label": [1, 2, 3], "text": ["one", " ", "two"]}),
        }
    )
    saved.save_to_disk(tmp_path / "saved")
    assert texts_of(str(tmp_path / "saved")) == ["one", "two"]
    assert texts_of(f"{tmp_path / 'saved'}:train", 1) == ["a train text"]
    with pytest.raises(DataError, match="no split 'dev', but train, test"):
        texts_of(f"{tmp_path / 'saved'}:dev")


def test_a_folder_of_files_is_a_dataset_too(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"content": f"text {i}"}) + "\n" for i in range(3)))
    assert texts_of(str(folder)) == ["text 0", "text 1", "text 2"]


def test_a_dataset_without_texts_says_which_columns_it_has(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": [1], "value": [2.0]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(DataError, match="no column of texts: label, value"):
        texts_of(str(tmp_path / "numbers"))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("wikitext", ("wikitext", None, None)),
        ("wikitext:wikitext-2-raw-v1", ("wikitext", "wikitext-2-raw-v1", None)),
        ("wikitext:wikitext-2-raw-v1:test", ("wikitext", "wikitext-2-raw-v1", "test")),
        ("ag_news:test", ("ag_news", None, "test")),
        ("a/b::train", ("a/b", None, "train")),
    ],
)
def test_a_name_may_carry_a_config_and_a_split(name: str, parts: tuple[str | None, ...]) -> None:
    assert parse_dataset(name) == parts


@pytest.mark.parametrize("name", ["a:b:c:d", ":test"])
def test_a_name_of_other_parts_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="names no dataset"):
        parse_dataset(name)


def test_a_dataset_that_is_neither_cached_nor_reachable_is_named() -> None:
    with pytest.raises(DataError, match="dataset nobody/nothing cannot be loaded"):
        texts_of("nobody/nothing")

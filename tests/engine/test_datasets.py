"""Texts of dataset folders, as `save_to_disk` writes them and as plain files, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.base.events import Event, Note
from cwa_engine.data.corpus import load_texts
from cwa_engine.data.datasets import DatasetName, absolute_dataset, parse_dataset

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
    with pytest.raises(DataError, match="no split 'dev', but: train, test"):
        texts_of(f"{tmp_path / 'saved'}:dev")


def test_a_folder_of_files_is_a_dataset_too(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"content": f"text {i}"}) + "\n" for i in range(3)))
    assert texts_of(str(folder)) == ["text 0", "text 1", "text 2"]


def test_a_dataset_without_texts_says_which_columns_it_has(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": [1], "value": [2.0]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(DataError, match="no column of strings, but: label, value"):
        texts_of(str(tmp_path / "numbers"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("wikitext", DatasetName("wikitext")),
        ("wikitext:wikitext-2-raw-v1", DatasetName("wikitext", "wikitext-2-raw-v1")),
        ("wikitext:wikitext-2-raw-v1:test", DatasetName("wikitext", "wikitext-2-raw-v1", "test")),
        ("ag_news:test", DatasetName("ag_news", None, "test")),
        ("a/b::train", DatasetName("a/b", None, "train")),
        ("a/b/", DatasetName("a/b")),
        ("a/b@v2:raw:test", DatasetName("a/b", "raw", "test", "v2")),
        ("https://huggingface.co/datasets/a/b", DatasetName("a/b")),
        ("https://hf.co/datasets/squad/tree/v1:test", DatasetName("squad", None, "test", "v1")),
        ("https://huggingface.co/datasets/a/b/viewer/raw/train", DatasetName("a/b", "raw", "train")),
        ("hf://datasets/a/b@main", DatasetName("a/b", None, None, "main")),
    ],
)
def test_a_name_may_carry_a_config_a_split_and_a_revision(name: str, meant: DatasetName) -> None:
    assert parse_dataset(name) == meant
    assert parse_dataset(str(meant)) == meant


@pytest.mark.parametrize("name", ["a:b:c:d", ":test", "a b", "a/b/c"])
def test_a_name_of_other_parts_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="names no dataset"):
        parse_dataset(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("https://huggingface.co/gpt2", "is a model, not a dataset"),
        ("https://huggingface.co/spaces/a/b", "is not the page of a dataset"),
        ("https://example.com/texts.jsonl", "an address of example.com, not of the Hub"),
        ("a/b@", "no revision after the @"),
    ],
)
def test_an_address_of_something_else_is_refused(name: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        parse_dataset(name)


def test_a_folder_is_found_from_the_working_folder_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "a:b", "wiki:test"):
        Path(name).mkdir()
    assert absolute_dataset("data:train") == f"{tmp_path}/data::train"
    assert absolute_dataset("./data") == f"{tmp_path}/data"
    assert absolute_dataset("a:b:raw:dev") == f"{tmp_path}/a:b:raw:dev"
    assert parse_dataset(absolute_dataset("wiki:test")) == DatasetName(f"{tmp_path}/wiki:test")
    assert parse_dataset(absolute_dataset("data:raw:")) == DatasetName(f"{tmp_path}/data", "raw")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_dataset("~/data:train") == f"{tmp_path}/data::train"


def test_what_is_no_dataset_folder_is_named_with_what_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "texts.jsonl").touch()
    with pytest.raises(DataError, match="there is no dataset folder") as raised:
        parse_dataset(f"{tmp_path}/foldr:train")
    assert "did you mean 'folder'?" in raised.value.hint
    with pytest.raises(DataError, match="is a file, not a dataset") as raised:
        parse_dataset(f"{tmp_path}/texts.jsonl")
    assert f"--data-file {tmp_path}/texts.jsonl" in raised.value.hint


def test_rows_without_a_text_are_left_out_and_counted_and_another_column_may_be_asked_for(tmp_path: Path) -> None:
    rows = {"text": ["one", None, "", "two"], "summary": ["1", "2", "3", "4"], "label": [1, 2, 3, 4]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    said: list[Event] = []
    assert [text.content for text in load_texts(None, None, str(tmp_path / "saved"), emit=said.append)] == [
        "one",
        "two",
    ]
    assert said == [Note(f"2 of 4 rows of {tmp_path / 'saved'} have no text and were left out", "warning")]
    assert [text.content for text in load_texts(None, 2, str(tmp_path / "saved"), "summary")] == ["1", "2"]
    with pytest.raises(DataError, match="has no column 'sumary', but: text, summary, label") as raised:
        load_texts(None, 2, str(tmp_path / "saved"), "sumary")  # codespell:ignore sumary
    assert "did you mean 'summary'?" in raised.value.hint
    with pytest.raises(DataError, match=r"column 'label' of .* holds no texts"):
        load_texts(None, 2, str(tmp_path / "saved"), "label")


def test_a_dataset_that_is_neither_cached_nor_reachable_is_named() -> None:
    with pytest.raises(DataError, match="dataset nobody/nothing cannot be loaded"):
        texts_of("nobody/nothing")

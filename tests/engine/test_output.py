"""Output folders: the files of one run, whole, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cwa_engine.base.errors import OutputError, OutputTaken
from cwa_engine.records.output import claim_output, copy_run
from cwa_engine.spec import RunSpec

SPEC = RunSpec(model="tiny")
OTHER = RunSpec(model="tiny", topk=(7,), seed=3)


def run(
    folder: Path, spec: RunSpec = SPEC, tables: tuple[str, ...] = ("topk_grad_x_weight.csv",), said: str = ""
) -> Path:
    """A run folder as it is written, with `said` in every table."""
    folder.mkdir()
    for name in ("summary.json", "log.txt", *tables):
        (folder / name).write_text(said)
    manifest = {"spec": spec.model_dump(mode="json"), "tables": dict.fromkeys(tables, "0")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_empty_or_missing_folder_gets_the_run(tmp_path: Path) -> None:
    copied = run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitkeep").touch()
    copy_run(copied, tmp_path / "empty")
    copy_run(copied, tmp_path / "deep" / "missing")
    assert files(tmp_path / "deep" / "missing") == files(copied)
    assert files(tmp_path / "empty") == files(copied) | {".gitkeep": b""}


def test_a_run_of_the_same_spec_is_replaced_with_all_its_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    copy_run(run(tmp_path / "first", tables=("topk_a.csv", "stability.csv"), said="old"), out)
    (out / "notes.txt").write_text("mine")
    again = run(tmp_path / "again", tables=("topk_a.csv",), said="new")
    copy_run(again, out)
    assert files(out) == files(again) | {"notes.txt": b"mine"}


def test_where_and_under_which_name_texts_were_read_makes_no_other_spec(tmp_path: Path) -> None:
    copy_run(
        run(tmp_path / "first", SPEC.model_copy(update={"output": tmp_path / "old", "data_name": "x"})),
        tmp_path / "out",
    )
    claim_output(tmp_path / "out", SPEC.model_copy(update={"output": tmp_path / "out"}), force=False)


def taken(folder: Path, spec: RunSpec = SPEC) -> str:
    """What an error says of a folder that a run of this spec may not write to; nothing there has changed."""
    before = files(folder)
    with pytest.raises(OutputTaken) as caught:
        claim_output(folder, spec, force=False)
    assert files(folder) == before and "--force" in caught.value.hint
    return caught.value.message


def test_a_run_of_another_spec_is_named_with_what_differs(tmp_path: Path) -> None:
    assert "holds a run with other topk, seed" in taken(run(tmp_path / "out", OTHER))


@pytest.mark.parametrize("name", ["summary.json", "notes.txt", "perturbation.csv"])
def test_a_folder_with_other_files_is_named_with_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of somebody else")
    assert f"holds {name}, and no run" in taken(tmp_path)


def test_of_many_files_some_are_named(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"file{number}").touch()
    assert "holds file0, file1, file2, file3, file4 and 4 more, and no run" in taken(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    ["{}", "[1]", "", "3", '{"spec": {"model": "tiny", "topk": "x"}, "tables": {}}', '{"spec": null, "tables": {}}'],
)
def test_a_manifest_of_another_program_makes_no_run(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    assert "holds manifest.json, and no run" in taken(tmp_path)


def test_tables_that_an_earlier_mixture_left_are_named(tmp_path: Path) -> None:
    out = run(tmp_path / "out")
    (out / "stability.csv").write_text("of another run")
    assert "holds stability.csv, which the run there has not written" in taken(out)


def test_force_replaces_what_is_of_a_run_and_leaves_the_rest(tmp_path: Path) -> None:
    out = run(tmp_path / "out", OTHER, tables=("topk_x.csv", "ablation.csv"))
    (out / "stability.csv").write_text("of a third run")
    (out / "notes.txt").write_text("mine")
    again = run(tmp_path / "again")
    copy_run(again, out, force=True)
    assert files(out) == files(again) | {"notes.txt": b"mine"}


def test_a_copy_that_was_interrupted_has_no_manifest_and_is_finished_by_the_next(tmp_path: Path) -> None:
    copied, out = run(tmp_path / "run", said="new"), run(tmp_path / "out", said="old")
    (out / "topk_grad_x_weight.csv").unlink()
    (out / "topk_grad_x_weight.csv").mkdir()  # a folder where the file should go
    with pytest.raises(OutputError, match=r"topk_grad_x_weight\.csv cannot be written") as caught:
        copy_run(copied, out)
    assert str(copied) in caught.value.hint
    assert not (out / "manifest.json").exists()
    assert "other topk, seed" in taken_by_other(out)
    (out / "topk_grad_x_weight.csv").rmdir()
    copy_run(copied, out)
    assert files(out) == files(copied)


def taken_by_other(folder: Path) -> str:
    with pytest.raises(OutputTaken) as caught:
        claim_output(folder, OTHER, force=False)
    return caught.value.message


def test_what_comes_to_the_folder_while_a_run_is_computed_is_not_overwritten(tmp_path: Path) -> None:
    copied = run(tmp_path / "run")
    with pytest.raises(OutputTaken, match="other topk") as caught:
        copy_run(copied, run(tmp_path / "out", OTHER))
    assert str(copied) in caught.value.hint

"""The files of a run: whole or not at all, and read back as they were written."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import Altered, NotFound, OutputError
from cwa_engine.base.files import check_output
from cwa_engine.pipeline import analyze
from cwa_engine.records.checksums import check_run, fingerprint_of
from cwa_engine.records.export import ModelRecord, RunRecord, run_tables, write_run
from cwa_engine.records.reading import read_manifest, read_summary, read_topk
from cwa_engine.result import RunResult
from cwa_engine.rows import Baseline, DamagePoint, Ranking, TextUse, TopWeight, to_plain
from cwa_engine.spec import RunSpec
from tests.engine.conftest import wrap, write_texts
from tests.models import tiny_model


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    llama = wrap(tiny_model("llama"))
    data_file = write_texts(tmp_path_factory.mktemp("texts"))
    spec = RunSpec(
        model="tiny", topk=(2, 7), data_file=data_file, metrics=("grad_x_weight", "magnitude"), matrices=False
    )
    model = ModelRecord(
        "tiny", "/nowhere", "folder", None, {"w": "0" * 64}, "float32", "cpu", "a cpu", llama.anatomy.numel
    )
    return RunRecord("20260101-000000-tiny-abcd", spec, "cwtool run", model, analyze(llama, spec), 0.0, ["a line"])


def as_by_an_earlier_version(folder: Path) -> None:
    """Leave of a run folder what versions without SHA256SUMS wrote, with the hashes of the tables as they are now."""
    (folder / "SHA256SUMS").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sums"]
    manifest["tables"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.csv")}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_files_have_the_names_and_columns_that_were_promised(record: RunRecord, tmp_path: Path) -> None:
    folder = tmp_path / record.run_id
    write_run(folder, record)
    assert {path.name for path in folder.iterdir()} == {
        "summary.json", "manifest.json", "log.txt", "perturbation.csv", "evaluation.csv", "controls.csv",
        "topk_grad_x_weight.csv", "topk_magnitude.csv", "scores.csv", "SHA256SUMS",
    }  # fmt: skip
    head = (folder / "topk_magnitude.csv").read_text().splitlines()
    columns = "rank,parameter,flat_index,out_feature,in_feature,value,score,layer,component,expert,target,stable"
    assert head[0] == columns + ",fan_out,standard_error"
    assert len(head) == 1 + 7
    assert (folder / "perturbation.csv").read_text().splitlines()[0] == (
        "metric,k,perturbation,selection,seed,weights,nll,perplexity,delta_nll,delta_low,delta_high,perplexity_ratio,"
        "kl,top1_agreement,collapsed_at,sequences"
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec_sha256"] == record.spec.sha256()
    assert (manifest["data"]["scored"], manifest["data"]["measured"]) == ([1, 3, 5, 7], [2, 4, 6, 8])


def test_numbers_read_back_as_they_were(record: RunRecord, tmp_path: Path) -> None:
    write_run(tmp_path / "run", record)
    metric, rows = read_topk(tmp_path / "run", "magnitude", 0, 100)
    assert (metric, tuple(rows)) == ("magnitude", record.result.rankings[1].weights)
    damage = list(csv.DictReader((tmp_path / "run/perturbation.csv").open()))
    assert [float(row["nll"]) for row in damage] == [point.nll for point in record.result.damage]
    summary = read_summary(tmp_path / "run")
    assert summary["baseline"] == to_plain(record.result.baseline)
    assert [g["critical"]["k"] for g in summary["damage"]] == [2, 7, 2, 7]
    assert [c["control"] for c in summary["damage"][0]["controls"]] == ["random", "random_matched"]


def test_a_ranking_is_read_page_by_page(record: RunRecord, tmp_path: Path) -> None:
    write_run(tmp_path / "run", record)
    pages = [read_topk(tmp_path / "run", None, offset, 3)[1] for offset in (0, 3, 6, 9)]
    assert [[row.rank for row in page] for page in pages] == [[1, 2, 3], [4, 5, 6], [7], []]
    with pytest.raises(NotFound, match="no ranking by 'obd'") as raised:
        read_topk(tmp_path / "run", "obd", 0, 10)
    assert "grad_x_weight, magnitude" in raised.value.hint
    as_by_an_earlier_version(tmp_path / "run")
    (tmp_path / "run" / "topk_magnitude.csv").unlink()
    with pytest.raises(NotFound, match=r"no topk_magnitude\.csv"):
        read_topk(tmp_path / "run", "magnitude", 0, 10)


def tables_of(**found: Any) -> dict[str, bytes]:
    """The tables of a run that found no more than this."""
    texts = TextUse("texts.txt", "", 2, 1, 1, False, 0)
    baseline = Baseline(1.0, math.e, 1.0, 1, 1, "")
    least: dict[str, Any] = {"parameters": 1, "eligible": 1, "texts": texts, "baseline": baseline, "rankings": ()}
    return dict(run_tables(RunResult(**least | found)))


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(finite, finite, st.none() | finite), min_size=1, max_size=4))
def test_any_float_of_a_ranking_reads_back_as_the_same_number(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[tuple[float, float, float | None]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    rows = tuple(
        TopWeight(rank, "a.weight", 7, 0, 7, value, score, None, "up", None, "a.weight[0,7]", standard_error=error)
        for rank, (value, score, error) in enumerate(numbers, 1)
    )
    summary = dict.fromkeys(("run_id", "model", "texts", "baseline", "damage")) | {
        "rankings": [{"metric": "magnitude"}]
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "topk_magnitude.csv").write_bytes(tables_of(rankings=(Ranking("magnitude", rows),))["topk_magnitude.csv"])
    assert tuple(read_topk(folder, None, 0, 10)[1]) == rows


def test_a_collapsed_point_is_written_and_reads_back_as_what_it_is() -> None:
    point = DamagePoint(
        "obd",
        1,
        "zero",
        "critical",
        None,
        1,
        math.inf,
        math.inf,
        math.inf,
        math.nan,
        math.nan,
        math.inf,
        None,
        None,
        "x",
    )
    (row,) = csv.DictReader(tables_of(damage=(point,))["perturbation.csv"].decode().splitlines())
    assert (float(row["nll"]), row["seed"]) == (math.inf, "")
    assert math.isnan(float(row["delta_low"]))


class DiskFull:
    """A log whose writing fails after other files are there."""

    def __iter__(self) -> Iterator[str]:
        yield "a line"
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "bad", [{"started": math.nan}, {"log": DiskFull()}], ids=["a number that JSON has not", "a full disk"]
)
def test_a_run_that_cannot_be_written_whole_is_not_there_at_all(
    record: RunRecord, tmp_path: Path, bad: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, OSError), match=r"JSON|No space"):
        write_run(tmp_path / "runs" / "run", replace(record, **bad))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_whose_place_is_no_folder_leaves_nothing(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_run(tmp_path / "file" / "run", record)
    assert [(path.name, path.read_text()) for path in tmp_path.glob("file*")] == [("file", "in the way")]


def test_a_run_that_is_there_is_never_overwritten(record: RunRecord, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "run", record)
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs/run").iterdir()}
    with pytest.raises(OSError):
        write_run(tmp_path / "runs" / "run", record)
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs/run").iterdir()} == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(tmp_path / "file" / "inside")


def test_a_folder_without_a_summary_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_summary(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"run_id": 1}'])
def test_a_file_of_a_run_that_is_broken_is_named(record: RunRecord, tmp_path: Path, name: str, content: bytes) -> None:
    write_run(tmp_path / "run", record)
    as_by_an_earlier_version(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(NotFound, match=rf"run/{name} cannot be read"):
        (read_summary if name == "summary.json" else read_manifest)(tmp_path / "run")


@pytest.mark.parametrize("content", ["rank\n1\n", "rank,parameter\nx,y\n"])
def test_a_ranking_that_is_broken_is_named(record: RunRecord, tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "run", record)
    ranking = tmp_path / "run" / "topk_grad_x_weight.csv"
    ranking.write_text(content)
    as_by_an_earlier_version(tmp_path / "run")
    with pytest.raises(NotFound, match=rf"run/{ranking.name} cannot be read: line"):
        read_topk(tmp_path / "run", None, 0, 10)


# Files that are not what the run wrote


FILES = (
    "summary.json", "manifest.json", "log.txt", "perturbation.csv", "evaluation.csv", "controls.csv",
    "topk_grad_x_weight.csv", "topk_magnitude.csv", "scores.csv",
)  # fmt: skip


def test_a_run_that_nobody_touched_is_as_it_was_written_and_sha256sum_says_so_too(
    record: RunRecord, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", record)
    found = check_run(tmp_path / "run", fingerprint_of(tmp_path / "run"))
    assert (found.altered, found.unchecked, found.known) == ({}, (), True)
    assert set(found.hashes) == {*FILES, "SHA256SUMS"}
    if sha256sum := shutil.which("sha256sum"):
        done = subprocess.run(
            [sha256sum, "--check", "--strict", "SHA256SUMS"],
            cwd=tmp_path / "run",
            capture_output=True,
            text=True,
            check=True,
        )
        assert sorted(done.stdout.splitlines()) == sorted(f"{name}: OK" for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_run_that_is_altered_or_missing_is_named(record: RunRecord, tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "run", record)
    altered = tmp_path / "run" / name
    altered.write_bytes(altered.read_bytes() + b" ")
    assert check_run(tmp_path / "run").altered == {name: "altered"}
    altered.unlink()
    assert check_run(tmp_path / "run").altered == {name: "missing"}


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "topk_magnitude.csv"])
def test_what_is_altered_is_never_read_as_if_it_were_sound(record: RunRecord, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    write_run(folder, record)
    readers = {
        "summary.json": lambda: read_summary(folder),
        "manifest.json": lambda: read_manifest(folder),
        "topk_magnitude.csv": lambda: read_topk(folder, "magnitude", 0, 10),
    }
    (folder / name).write_text((folder / name).read_text().replace("0", "1", 1))
    with pytest.raises(Altered, match="not as it was written"):
        readers[name]()


def test_a_run_whose_hashes_were_removed_is_not_taken_for_one_of_an_earlier_version(
    record: RunRecord, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", record)
    (tmp_path / "run" / "SHA256SUMS").unlink()
    with pytest.raises(Altered, match="SHA256SUMS is missing"):
        read_summary(tmp_path / "run")


def test_a_run_whose_hashes_were_made_anew_is_found_by_its_fingerprint(record: RunRecord, tmp_path: Path) -> None:
    write_run(tmp_path / "run", record)
    fingerprint = fingerprint_of(tmp_path / "run")
    forged = replace(record, log=["another line"])
    write_run(tmp_path / "forged", forged)
    assert check_run(tmp_path / "forged").altered == {}
    assert check_run(tmp_path / "forged", fingerprint).altered == {"SHA256SUMS": "not as it was when the run ended"}
    with pytest.raises(Altered):
        read_summary(tmp_path / "forged", fingerprint)


def test_a_table_that_a_run_did_not_write_is_named_and_other_files_are_nobodys_business(
    record: RunRecord, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", record)
    (tmp_path / "run" / "stability.csv").write_text("metric\n")
    (tmp_path / "run" / "notes.csv").write_text("mine\n")
    assert check_run(tmp_path / "run").altered == {"stability.csv": "not written by the run"}


def test_runs_of_earlier_versions_are_read_and_what_cannot_be_checked_is_said(
    record: RunRecord, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", record)
    as_by_an_earlier_version(tmp_path / "run")
    found = check_run(tmp_path / "run")
    assert (found.altered, found.unchecked) == ({}, ("log.txt", "manifest.json", "summary.json"))
    assert read_summary(tmp_path / "run")["run_id"] == record.run_id
    table = tmp_path / "run" / "topk_magnitude.csv"
    table.write_text(table.read_text().replace("0", "1", 1))
    with pytest.raises(Altered, match=r"topk_magnitude\.csv is altered"):
        read_topk(tmp_path / "run", "magnitude", 0, 10)


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"0  manifest.json\n", b"{}"])
def test_a_list_of_hashes_that_is_none_vouches_for_nothing(record: RunRecord, tmp_path: Path, content: bytes) -> None:
    write_run(tmp_path / "run", record)
    (tmp_path / "run" / "SHA256SUMS").write_bytes(content)
    assert check_run(tmp_path / "run").altered == {"SHA256SUMS": "no list of hashes"}
    with pytest.raises(Altered):
        read_manifest(tmp_path / "run")

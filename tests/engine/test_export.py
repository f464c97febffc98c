"""The files of a run, and the spec they carry."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cwa_engine.errors import InvalidInput, NotFound, OutputError
from cwa_engine.pipeline import analyze
from cwa_engine.reporting.export import (
    ModelRecord,
    RunRecord,
    check_output,
    copy_run,
    read_summary,
    read_topk,
    write_run,
)
from cwa_engine.result import to_plain
from cwa_engine.spec import RunSpec, parse_spec


@pytest.fixture
def record(llama: Any, data_file: Path) -> RunRecord:
    spec = RunSpec(model="tiny", topk=(2, 7), data_file=data_file, metrics=("grad_x_weight", "magnitude"))
    model = ModelRecord(
        "tiny", "/nowhere", "folder", None, {"w": "0" * 64}, "float32", "cpu", "a cpu", llama.anatomy.numel
    )
    return RunRecord("20260101-000000-tiny-abcd", spec, "cwtool run", model, analyze(llama, spec), 0.0, ["a line"])


def test_files_have_the_names_and_columns_that_were_promised(record: RunRecord, tmp_path: Path) -> None:
    folder = tmp_path / record.run_id
    write_run(folder, record)
    assert {path.name for path in folder.iterdir()} == {
        "summary.json", "manifest.json", "perturbation.csv", "log.txt", "topk_grad_x_weight.csv", "topk_magnitude.csv",
    }  # fmt: skip
    head = (folder / "topk_magnitude.csv").read_text().splitlines()
    assert head[0] == "rank,parameter,flat_index,out_feature,in_feature,value,score,layer,component"
    assert len(head) == 1 + 7
    assert (folder / "perturbation.csv").read_text().splitlines()[0] == (
        "metric,k,perturbation,selection,seed,weights,nll,perplexity,delta_nll,delta_low,delta_high,perplexity_ratio"
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
    assert [row.rank for row in read_topk(tmp_path / "run", None, 5, 10)[1]] == [6, 7]
    with pytest.raises(NotFound, match="no ranking by 'obd'"):
        read_topk(tmp_path / "run", "obd", 0, 10)


def test_a_run_that_cannot_be_written_whole_is_not_there_at_all(record: RunRecord, tmp_path: Path) -> None:
    bad = RunRecord(**{**vars(record), "started": float("nan")})  # JSON refuses it after other files are written
    with pytest.raises(ValueError, match="JSON"):
        write_run(tmp_path / "runs" / "run", bad)
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_output_folder_gets_the_same_files(record: RunRecord, tmp_path: Path) -> None:
    write_run(tmp_path / "run", record)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    copy_run(tmp_path / "run", tmp_path / "out")
    for path in (tmp_path / "run").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "run").iterdir()} | {
        "mine.txt"
    }


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(tmp_path / "file" / "inside")


def test_a_folder_without_a_summary_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metrics": ["grad_x_wieght"]}, "unknown metric"),
        ({"controls": ["rnadom"]}, "unknown control"),
        ({"perturbations": ["zeero"]}, "unknown perturbation"),
        ({"topk": [0]}, "--topk 0"),
        ({"bits": 1}, "--bits 1"),
        ({"bit": -1}, "--bit -1"),
        ({"noise_scale": -1.0}, "noise_scale"),
        ({"scale_factor": float("nan")}, "scale_factor"),
        ({"eval_limit": 0}, "--eval-limit 0"),
        ({"seq_len": 1}, "--seq-len 1"),
        ({"device": "gpu"}, "unknown device"),
        ({"model": ""}, "model"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_in_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as raised:
        parse_spec({"model": "gpt2", **fields})
    assert raised.value.hint


def test_a_spec_is_settled_and_its_hash_does_not_know_the_output_folder() -> None:
    spec = parse_spec({"model": "gpt2", "topk": [100, 1, 100], "metrics": ["magnitude", "magnitude"]})
    assert (spec.topk, spec.metrics, spec.largest_k) == ((1, 100), ("magnitude",), 100)
    assert spec.sha256() == spec.model_copy(update={"output": Path("/elsewhere")}).sha256()
    assert spec.sha256() != spec.model_copy(update={"seed": 1}).sha256()


def test_the_defaults_are_those_of_the_guide() -> None:
    spec = RunSpec(model="gpt2")
    assert (spec.metrics, spec.topk, spec.control_seeds) == (("grad_x_weight",), (100,), 3)

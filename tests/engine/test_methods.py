"""Methods paragraph, protocol line and limitations: what they say is what the run did, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwa_engine.pipeline import analyze
from cwa_engine.records.export import ModelRecord, RunRecord
from cwa_engine.records.run_report import RunReport, report_of
from cwa_engine.reports.methods import limitations, methods_paragraph, protocol_line
from cwa_engine.spec import RunSpec
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.report import StudyReport
from cwa_engine.studies.study import Study
from tests.engine.conftest import wrap, write_texts
from tests.engine.study_runs import Planted, planted_run, study_runs
from tests.models import tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """A real run on eight short texts, whose model knows nothing."""
    texts = write_texts(tmp_path_factory.mktemp("secret-folder"))
    spec = RunSpec(model="tiny", data_file=texts, metrics=("magnitude",), topk=(2,), matrices=False, control_seeds=3)
    result = analyze(wrap(tiny_model("llama")), spec)
    model = ModelRecord("tiny", "/nowhere", "folder", None, {}, "float32", "cpu", "", result.parameters)
    return report_of(RunRecord("20260101-000000-tiny-abcd", spec, "", model, result, 1.5, []))


def study_of(folder: Path, runs: list[RunReport], models: tuple[str, ...]) -> StudyReport:
    study = StudyFolder.create(Study(grid={"model": models}), folder)
    states = ["done" if number < len(runs) else "failed" for number in range(len(models))]
    progress = [CellProgress(cell, state) for cell, state in zip(study.cells, states, strict=True)]  # type: ignore[arg-type]
    return StudyReport(study, tuple(progress), tuple(study_runs(runs)), None)


def test_the_paragraph_has_all_that_is_needed_to_repeat_the_run(measured: RunReport) -> None:
    paragraph = methods_paragraph(measured)
    needed = [
        "tiny", "float32", measured.texts.sha256, measured.baseline.protocol, "magnitude (|w|; ", "k = 2 ",
        "zero (set each weight to zero)", "random (3 draws", "The seed was 0, those of the control draws 0 to 2",
        "comes out so far ahead of the draws that p <= 0.05", "by the root mean square over tokens",
        f"cwtool {measured.versions['cwtool']}", f"PyTorch {measured.versions['torch']}", measured.run_id,
        str(measured.fingerprint), f"{measured.baseline.tokens} scored tokens",
    ]  # fmt: skip
    assert [part for part in needed if part not in paragraph] == []


def test_folders_of_the_machine_are_not_named(measured: RunReport) -> None:
    assert "texts.txt (" in methods_paragraph(measured)
    assert "secret-folder" not in methods_paragraph(measured) + protocol_line(measured) + str(limitations(measured))


def test_the_paragraph_of_a_hub_model_names_its_commit_and_not_the_files() -> None:
    paragraph = methods_paragraph(planted_run("lab/model", revision=COMMIT, files={"a.safetensors": "beef"}))
    assert f"We analysed lab/model at commit {COMMIT}" in paragraph and "beef" not in paragraph
    assert "No damage was measured." in paragraph and "Controls" not in paragraph


def test_a_small_run_tells_that_it_is_small(measured: RunReport) -> None:
    said = " ".join(limitations(measured))
    for true in ("3 draws of a control are too few", "on 4 texts", "no better than guessing", "were not tested",
                 "loss on texts alone", "One model", "One set of texts", "zeroed and changed in no other way"):  # fmt: skip
        assert true in said, true
    for false in ("bfloat16", "cut at", "No damage", "Nothing was compared", "dequantised", "a quarter"):
        assert false not in said, false


def test_each_limit_is_told_only_where_it_is_true() -> None:
    strong = Planted(delta=0.5, error=0.01, worst=0.01)
    cases: list[tuple[str, RunReport, RunReport]] = [
        ("bfloat16", planted_run(dtype="bfloat16"), planted_run(dtype="float32")),
        ("rest on these few", planted_run(texts=20), planted_run(texts=200)),
        ("no better than guessing", planted_run(nll=10.8), planted_run(nll=3.0)),
        ("cut at 512", planted_run(truncated=3), planted_run()),
        ("contains no change", planted_run(damage=[Planted(delta=0.01, error=0.5)]), planted_run(damage=[strong])),
        ("not finite", planted_run(damage=[Planted(delta=float("inf"))]), planted_run(damage=[strong])),
        ("no more than rounding", planted_run(damage=[strong], floor=0.9), planted_run(damage=[strong])),
        ("Nothing was compared", planted_run(damage=[Planted(worst=None)]), planted_run(damage=[strong])),
        ("No damage was measured", planted_run(), planted_run(damage=[strong])),
        ("Bits per byte", planted_run(bits_per_byte=None), planted_run()),
        ("2 sequences of tests", planted_run(damage=[strong, Planted(metric="obd")]), planted_run(damage=[strong])),
    ]
    for words, true, false in cases:
        assert words in " ".join(limitations(true)), words
        assert words not in " ".join(limitations(false)), words


def test_the_protocol_line_has_texts_protocol_and_dtype(measured: RunReport) -> None:
    line = protocol_line(measured)
    assert measured.texts.sha256[:12] in line and measured.baseline.protocol in line and line.endswith("; float32")
    assert "\n" not in line


def test_a_study_says_once_what_its_runs_share_and_names_the_runs_that_differ(tmp_path: Path) -> None:
    runs = [planted_run("a", nll=3.0, texts=32), planted_run("b", dtype="bfloat16", texts=32)]
    report = study_of(tmp_path, runs, ("a", "b", "c"))
    paragraph = methods_paragraph(report)
    assert paragraph.count("Perplexity is") == 1 and paragraph.count("The seed was 0.") == 1
    assert "Run 1: We analysed a " in paragraph and "Run 2: We analysed b " in paragraph
    assert (
        "The study has 3 runs, of which 2 are done" in paragraph and f"{report.folder.id}, not registered." in paragraph
    )
    assert "2 protocols" in protocol_line(report)
    said = " ".join(limitations(report))
    assert "1 of the 3 runs of the study are not done" in said and "In 1 of 2 runs (2): The model computed" in said
    assert "One set of texts" in said and "One model" not in said


def test_a_study_of_nothing_is_told_as_such(tmp_path: Path) -> None:
    report = study_of(tmp_path, [], ("a",))
    assert protocol_line(report) == "no run of the study is done"
    assert "The study has 1 run, of which 0 are done" in methods_paragraph(report)
    assert any("1 of the 1 runs" in limit for limit in limitations(report))

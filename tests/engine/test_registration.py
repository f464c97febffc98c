"""A registered study: what was written before the runs, and what changed or ran since, told from hashes and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.local_runner import LocalRunner
from cwa_engine.studies import registration
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.registration import register, standing, surely_first
from cwa_engine.studies.report import study_report
from cwa_engine.studies.running import run_study
from cwa_engine.studies.study import Study
from tests.engine.conftest import TEXTS, write_texts
from tests.models import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("registered") / "llama")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[LocalRunner]:
    with LocalRunner(folder=tmp_path / "runs") as local:
        yield local


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, model: Path, texts: Path, runner: LocalRunner) -> StudyFolder:
    run: dict[str, Any] = {"metrics": ["magnitude"], "topk": [2], "perturbations": [], "data_file": str(texts)}
    study = Study(run=run, grid={"model": (str(model),), "seed": (0, 1)})
    return StudyFolder.create(study, tmp_path / "studies", runner.where)


def test_a_study_that_is_registered_first_stays_so_when_it_has_run(folder: StudyFolder, runner: LocalRunner) -> None:
    assert standing(folder).sentence == "not registered"
    register(folder)
    assert "before any run was made" in standing(folder).sentence
    run_study(folder, runner)
    report = study_report(folder, runner)
    found = standing(folder, report.runs)
    assert found.holds and found.runs == 2 and surely_first(folder)
    assert found.sentence.startswith("registered at ") and "before the first of its runs" in found.sentence
    assert report.to_plain()["registered"] is True


def test_the_hash_can_be_computed_by_hand_and_the_texts_are_those_that_runs_name(
    folder: StudyFolder, texts: Path, runner: LocalRunner
) -> None:
    said = register(folder)
    written = json.loads((folder.path / "registration.json").read_text())
    plain = json.dumps(written["content"], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(plain.encode()).hexdigest() == written["sha256"] == said["sha256"]
    assert written["sha256"] in standing(folder).sentence
    by_hand = hashlib.sha256(b"".join(text.encode() + b"\xff" for text in TEXTS)).hexdigest()
    assert written["content"]["texts"]["1"] == {"source": str(texts), "sha256": by_hand}
    run_study(folder, runner)
    assert {run.report.texts.sha256 for run in study_report(folder, runner).runs} == {by_hand}


def test_a_registration_is_written_once(folder: StudyFolder) -> None:
    register(folder)
    before = (folder.path / "registration.json").read_bytes()
    with pytest.raises(InvalidInput, match="is registered already"):
        register(folder)
    assert (folder.path / "registration.json").read_bytes() == before
    assert sorted(path.name for path in folder.path.iterdir()) == ["registration.json", "study.json"]


def test_runs_that_were_made_before_are_counted(folder: StudyFolder, runner: LocalRunner) -> None:
    run_study(folder, runner)
    register(folder)
    found = standing(folder)
    assert "after 2 runs of it had been made" in found.sentence and not found.holds and not surely_first(folder)
    assert study_report(folder, runner).to_plain()["registered"] is False


def test_a_run_that_was_there_before_the_study_counts_as_made_before(folder: StudyFolder, runner: LocalRunner) -> None:
    """What a study finds done was measured when that ran, and not when the study asked for it."""
    run_study(folder, runner)
    again = StudyFolder.create(folder.study, folder.path.parent, runner.where)
    register(again)
    assert "before any run" in standing(again).sentence
    runs = study_report(folder, runner).runs
    found = standing(again, runs)
    assert "after 2 runs" in found.sentence and set(found.before) == {run.report.run_id for run in runs}


def test_other_texts_are_told(folder: StudyFolder, texts: Path, runner: LocalRunner) -> None:
    register(folder)
    texts.write_text("Other words.\n\nAnd more of them.\n\nThree.\n\nFour texts are here.\n")
    run_study(folder, runner)
    said = standing(folder, study_report(folder, runner).runs).sentence
    assert "differs from what was registered: the texts" in said and "measured other texts" in said
    texts.unlink()
    assert "cannot be read any more" in standing(folder).sentence


def test_other_code_and_an_edited_study_are_told(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    register(folder)
    monkeypatch.setattr(registration, "code_sha256", lambda: "0" * 64)
    assert "the code that runs compute with" in standing(folder).sentence
    monkeypatch.undo()
    edited = folder.study.model_copy(update={"shared": {**folder.study.shared, "topk": [3]}})
    about = json.loads((folder.path / "study.json").read_text())
    fields = {**about, "study": edited.to_plain(), "sha256": edited.sha256()}
    (folder.path / "study.json").write_text(json.dumps(fields))
    said = standing(StudyFolder.at(folder.path)).sentence
    assert "what is asked" in said and "the specs of its runs" in said


def test_an_edited_registration_is_told(folder: StudyFolder) -> None:
    register(folder)
    path = folder.path / "registration.json"
    written = json.loads(path.read_text())
    written["content"]["registered"] -= 1000
    path.write_text(json.dumps(written))
    found = standing(folder)
    assert found.altered and not found.holds and "not what was written" in found.sentence and not surely_first(folder)
    for content in ("", "[]", "{}", '{"sha256": 1, "content": []}', "\0"):
        path.write_text(content)
        assert standing(folder).altered


def test_texts_that_cannot_be_read_are_not_registered(folder: StudyFolder, texts: Path) -> None:
    texts.unlink()
    with pytest.raises(DataError):
        register(folder)
    assert folder.registration is None

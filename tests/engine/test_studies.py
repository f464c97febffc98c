"""A study: its cells, what is submitted for it and what is not, how far it is, and what becomes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cwa_engine as cwa
from cwa_engine.base.errors import DaemonUnreachable, DataError, InvalidInput, NotFound, QueueFull
from cwa_engine.base.files import scratch_path
from cwa_engine.base.table import Table
from cwa_engine.hub.sources import absolute_name
from cwa_engine.questions.question import TableRows
from cwa_engine.rows import NumericalFloor
from cwa_engine.spec import RunSpec
from cwa_engine.studies import identity, registry
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.identity import identity_of
from cwa_engine.studies.report import study_report
from cwa_engine.studies.running import cancel_study, progress_of, run_study
from cwa_engine.studies.study import MOST_CELLS, Study, cells_of
from cwa_engine.studies.study_file import read_study
from tests.engine.fake_runner import FakeRunner
from tests.models import save_tiny

RUN = {"topk": 3, "controls": ["random"]}
Say = list[str]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("one text\n\nanother text\n")
    return path


@pytest.fixture
def ask(tmp_path: Path, texts: Path) -> Callable[..., StudyFolder]:
    """The folder of a study of these models and seeds."""

    def asked(*models: str, seeds: tuple[int, ...] = (0,), **fields: Any) -> StudyFolder:
        grid = {"model": models, "seed": seeds}
        study = Study(grid=grid, run={**RUN, "data_file": texts}, **fields)
        return StudyFolder.of(study, tmp_path / "studies")[0]

    return asked


def states(folder: StudyFolder, runner: FakeRunner) -> list[str]:
    return [cell.state for cell in progress_of(folder, runner)]


# cells


def test_cells_follow_each_other_so_that_each_model_is_loaded_once() -> None:
    cells = cells_of(Study(grid={"seed": [0, 1], "model": ["a@v1", "b"], "dtype": ["float32", "bfloat16"]}))
    assert [cell.label for cell in cells[:3]] == ["a@v1, dtype float32, seed 0", "a@v1, dtype float32, seed 1",
                                                  "a@v1, dtype bfloat16, seed 0"]  # fmt: skip
    loaded = [(cell.spec.model, cell.spec.dtype) for cell in cells]
    assert loaded == sorted(loaded, key=loaded.index) and len(cells) == 8
    assert (cells[0].spec.model, cells[0].spec.revision) == ("a", "v1")


def test_options_go_by_the_names_of_the_command_line_too() -> None:
    (cell,) = cells_of(
        Study(grid={"model": ["a"]}, run={"metric": "magnitude", "perturb": ["sign_flip"], "seq-len": 9})
    )
    assert (cell.spec.metrics, cell.spec.perturbations, cell.spec.seq_len) == (("magnitude",), ("sign_flip",), 9)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"grid": {"modle": ["a"]}}, "grid: there is no option 'modle'"),  # codespell:ignore modle
        ({"grid": {"model": ["a"]}, "run": {"topkk": 3}}, "run: there is no option 'topkk'"),
        ({"grid": {"model": "a"}}, "grid: model is 'a'"),
        ({"grid": {"model": []}}, "grid: model has no values"),
        ({"grid": {"seed": [1]}}, "no model is given"),
        ({"grid": {"model": ["a"]}, "run": {"model": "b"}}, "'model' is in the grid and in what all runs share"),
        ({"grid": {"model": ["a"]}, "run": {"output": "x"}}, "'output' is an option of a single run"),
        ({"grid": {"model": ["a"], "seed": range(MOST_CELLS + 1)}}, "5,001 cells, and a study at most 5,000"),
    ],
)
def test_a_study_that_makes_no_sense_says_why(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Study(**fields)


def test_a_cell_that_makes_no_sense_and_one_that_is_there_twice_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"b, topk 0: .*too small"):
        cells_of(Study(grid={"model": ["b"], "topk": [3, 0]}))
    with pytest.raises(InvalidInput, match="a is in the grid twice, as cells 1 and 2"):
        cells_of(Study(grid={"model": ["a", "a"]}))


def test_a_file_names_paths_from_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "study.toml").write_text(
        'name = "mine"\n[run]\ndata-file = "texts.txt"\nmetric = ["magnitude"]\n[grid]\nmodel = ["tiny", "gpt2@main"]\nk=[1]'
        .replace("k=", "topk = ")
    )  # fmt: skip
    study = Study(**read_study(str(tmp_path / "study.toml")))
    assert study.grid == {"model": (absolute_name(str(tmp_path / "tiny")), "gpt2@main"), "topk": ((1,),)}
    assert study.shared == {"data_file": str(tmp_path / "texts.txt"), "metrics": ("magnitude",)}
    assert study.name == "mine"


@pytest.mark.parametrize(
    ("content", "said", "hint"),
    [
        ("[grid]\nmodell = ['a']", r"s.toml: \[grid\]: there is no option 'modell'", "did you mean 'model'"),
        ("[grid]\nmodel = 'a'", r"s.toml: \[grid\] model is 'a'", "write a list"),
        ("[run]\ntopk = 'many'", "--topk many is no whole number", ""),
        ("[run]\nseed = 1.5", r"s.toml: \[run\] seed is 1.5", "write a whole number"),
        ("topk = 3", "s.toml: a study has no 'topk'", r"in \[run\]"),
        ("questoin = 'x'", "s.toml: a study has no 'questoin'", "did you mean 'question'"),  # codespell:ignore questoin
        ("grid = 3", "s.toml: grid is 3", "write a table"),
        ("question = 3", "s.toml: question is 3", "in quotes"),
        ("grid", "s.toml is no TOML", ""),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, content: str, said: str, hint: str) -> None:
    (tmp_path / "s.toml").write_text(content)
    with pytest.raises(InvalidInput, match=said) as found:
        read_study(str(tmp_path / "s.toml"))
    assert hint.replace("\\", "") in found.value.hint


# running


def test_every_cell_runs_once_however_often_the_study_is_asked_for(ask: Callable[..., StudyFolder]) -> None:
    runner = FakeRunner()
    folder = ask("a", "b", seeds=(0, 1))
    for _ in range(3):
        run_study(folder, runner)
        assert states(folder, runner) == ["done"] * 4
    assert runner.asked == ["a", "a", "b", "b"] and runner.times == {1}
    assert ask("a", "b", seeds=(0, 1)).id == folder.id  # the same study is the same folder


def test_studies_with_a_cell_in_common_run_it_once(ask: Callable[..., StudyFolder], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    model, runner = str(tmp_path / "model"), FakeRunner()
    run_study(ask(model, seeds=(0, 1)), runner)
    other = ask(model, seeds=(1, 2))
    run_study(other, runner)
    assert len(runner.runs) == 3
    assert [cell.reused for cell in progress_of(other, runner)] == [True, False]
    assert other.cells[1].label.endswith("seed 2")


def test_cancelling_a_study_leaves_runs_that_were_asked_for_before_it(
    ask: Callable[..., StudyFolder], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    model, runner = str(tmp_path / "model"), FakeRunner()
    run_study(ask(model, seeds=(0, 1)), runner, wait=False)
    other = ask(model, seeds=(1, 2))
    run_study(other, runner, wait=False)
    cancel_study(other, runner)
    assert states(other, runner) == ["queued", "cancelled"]
    run_study(other, runner, retry=True)
    assert states(other, runner) == ["done", "done"]


def test_a_model_that_is_not_known_yet_is_not_taken_for_the_same_in_another_study(
    ask: Callable[..., StudyFolder],
) -> None:
    runner = FakeRunner()
    run_study(ask("not-here/yet", seeds=(0, 1)), runner)
    run_study(ask("not-here/yet", seeds=(1, 2)), runner)
    assert len(runner.runs) == 4


def test_a_failed_cell_stops_no_other_and_runs_again_when_asked(ask: Callable[..., StudyFolder]) -> None:
    runner, said = FakeRunner(failing={"b"}), Say()
    folder = ask("a", "b", "c")
    run_study(folder, runner)
    assert states(folder, runner) == ["done", "failed", "done"]
    assert str(progress_of(folder, runner)[1].error) == "it has no weights"
    run_study(folder, runner)
    assert len(runner.runs) == 3  # not asked for
    runner.failing.clear()
    run_study(folder, runner, said.append, retry=True)
    assert states(folder, runner) == ["done"] * 3
    assert [cell.attempt for cell in progress_of(folder, runner)] == [1, 2, 1]


def test_changed_texts_models_and_code_make_cells_run_again_and_are_said(
    ask: Callable[..., StudyFolder], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"weights")
    runner, said = FakeRunner(), Say()
    folder = ask(str(tmp_path / "model"))
    run_study(folder, runner)

    texts.write_text("other texts\n")
    weights.write_bytes(b"others")
    monkeypatch.setattr(identity, "_code", lambda: "0" * 64)
    run_study(folder, runner, said.append)
    assert len(runner.runs) == 2
    assert "the model's files have changed and the texts have changed and cwtool or a library" in said[0]
    (tmp_path / "model" / "README.md").write_text("about it")  # which nobody loads
    run_study(folder, runner)
    assert len(runner.runs) == 2


def test_texts_that_are_as_they_were_find_the_run_that_they_had(ask: Callable[..., StudyFolder], texts: Path) -> None:
    runner, folder, before = FakeRunner(failing={"b"}), ask("a", "b"), texts.read_bytes()
    run_study(folder, runner)
    texts.write_text("other texts")
    run_study(folder, runner, retry=True)
    texts.write_bytes(before)
    runner.failing.clear()
    run_study(folder, runner, retry=True)
    assert [(cell.run_id, cell.state) for cell in progress_of(folder, runner)] == [("run-0", "done"), ("run-4", "done")]


def test_a_commit_that_the_cache_has_learned_of_makes_a_cell_run_again(
    ask: Callable[..., StudyFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    main = tmp_path / "models--org--tiny" / "refs" / "main"
    main.parent.mkdir(parents=True)
    main.write_text("1" * 40)
    runner, folder = FakeRunner(), ask("org/tiny")
    assert identity_of(folder.cells[0].spec).model == f"commit {'1' * 40}"
    run_study(folder, runner)
    main.write_text("2" * 40)
    run_study(folder, runner)
    assert len(runner.runs) == 2


def test_a_run_that_is_altered_or_gone_runs_again_and_that_is_said(ask: Callable[..., StudyFolder]) -> None:
    runner, said = FakeRunner(), Say()
    folder = ask("a", "b")
    run_study(folder, runner)
    first, second = progress_of(folder, runner)
    runner.runs[first.run_id].wrong = ("summary.json",)
    del runner.runs[second.run_id]
    run_study(folder, runner, said.append)
    assert len(said) == 2 and "summary.json of run-0 is not what the run wrote" in said[0] and "gone" in said[1]
    assert states(folder, runner) == ["done", "done"]
    assert not {first.run_id, second.run_id} & {cell.run_id for cell in progress_of(folder, runner)}


def test_a_full_queue_is_waited_for_or_told_of(ask: Callable[..., StudyFolder]) -> None:
    runner = FakeRunner(room=2)
    folder = ask("a", seeds=(0, 1, 2, 3, 4))
    with pytest.raises(QueueFull):
        run_study(folder, runner, wait=False)
    assert states(folder, runner) == ["queued", "queued", "waiting", "waiting", "waiting"]
    run_study(folder, runner)
    assert states(folder, runner) == ["done"] * 5 and runner.times == {1}

    crowded = FakeRunner(room=1)
    crowded.submit(folder.cells[0].spec, "of another")
    run_study(ask("b"), crowded)
    assert crowded.waits == 1


def test_a_study_is_not_gone_on_with_where_its_runs_are_not(ask: Callable[..., StudyFolder]) -> None:
    with pytest.raises(InvalidInput, match="are in the daemon of this machine, not in gpu-box"):
        run_study(ask("a"), FakeRunner(where="gpu-box", elsewhere=True))


def test_of_another_machine_neither_model_nor_code_is_known(texts: Path) -> None:
    (cell,) = cells_of(Study(grid={"model": ["a"]}, run={"data_file": texts}))
    found = identity_of(cell.spec, elsewhere=True)
    assert (found.model, found.code) == ("", "") and found.texts
    assert found.key(1, "one") != found.key(1, "two")


# what a death leaves


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 4000), garbage=st.binary(max_size=20))
def test_a_journal_cut_anywhere_with_anything_behind_makes_no_cell_run_twice(
    ask: Callable[..., StudyFolder], cut: int, garbage: bytes
) -> None:
    runner = FakeRunner(failing={"b"})
    folder = ask("a", "b", seeds=(0, 1))
    folder.journal.path.unlink(missing_ok=True)
    run_study(folder, runner)
    ended = states(folder, runner)
    folder.journal.path.write_bytes(folder.journal.path.read_bytes()[:cut] + garbage)
    run_study(folder, runner)
    assert runner.times == {1} and states(folder, runner) == ended


def test_lines_that_cannot_be_read_are_counted_and_stay(ask: Callable[..., StudyFolder]) -> None:
    runner, said = FakeRunner(), Say()
    folder = ask("a")
    folder.journal.path.write_bytes(b'{"event": "nothing"}\nhalf a li')
    run_study(folder, runner, said.append)
    assert "2 lines of" in said[0]
    assert folder.journal.path.read_bytes().startswith(b'{"event": "nothing"}\nhalf a li\n{"event": "submitting"')
    assert states(folder, runner) == ["done"]


def test_two_processes_at_once_are_harmless(ask: Callable[..., StudyFolder]) -> None:
    runner, folder = FakeRunner(), ask("a", "b")
    other = StudyFolder.at(folder.path)
    run_study(folder, runner, wait=False)
    run_study(other, runner, wait=False)
    run_study(folder, runner)
    run_study(other, runner)
    assert runner.times == {1}


def test_a_damaged_study_is_named_and_neither_hides_others_nor_is_replaced(ask: Callable[..., StudyFolder]) -> None:
    good, bad = ask("a"), ask("b")
    root = good.path.parent
    (bad.path / "study.json").write_text('{"half')
    (found,), (error,) = StudyFolder.all_and_damaged(root)
    assert found.id == good.id and bad.id in error.message
    with pytest.raises(DataError, match="cannot be read"):
        StudyFolder.open(bad.id, root)
    about = json.loads((good.path / "study.json").read_text())
    about["study"]["run"]["topk"] = [7]
    (good.path / "study.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="its hash differs"):
        StudyFolder.open(good.id, root)
    assert ask("b").id != bad.id and (bad.path / "study.json").read_text() == '{"half'


def test_a_study_that_a_living_process_is_still_writing_is_none_yet(ask: Callable[..., StudyFolder]) -> None:
    study = ask("a")
    half = scratch_path(study.path)
    shutil.copytree(study.path, half)
    assert [folder.id for folder in StudyFolder.all(study.path.parent)] == [study.id]
    assert StudyFolder.open("latest", study.path.parent).id == study.id


def test_a_study_is_found_by_a_part_of_its_id(ask: Callable[..., StudyFolder]) -> None:
    one, two = ask("a"), ask("b")
    root = one.path.parent
    assert StudyFolder.open(one.id[-4:], root).id == one.id
    assert StudyFolder.open("latest", root).id == max(one.id, two.id)
    with pytest.raises(InvalidInput, match="may be 2 studies"):
        StudyFolder.open(one.id[:8], root)
    with pytest.raises(NotFound, match="no study 'zzzz'"):
        StudyFolder.open("zzzz", root)


# what it answers


def count(runs: Any) -> Answer:
    rows = TableRows(Table("counts.csv", NumericalFloor), (NumericalFloor(0.0, 1.0),))
    return Answer("counting", f"{len(runs)} runs", (Finding("many", "fewer"),), (rows,), ("why",), "count them")


def check(study: Study) -> None:
    if len(study.grid["model"]) < 2:
        raise InvalidInput("counting needs two models", hint="give two")


COUNTING = StudyQuestion("counting", 1, "How many?", "models", check, count, {"topk": (7,), "metrics": ("magnitude",)})


def test_a_question_gives_its_runs_what_they_need_under_what_the_user_says(
    ask: Callable[..., StudyFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.STUDY_QUESTIONS, "counting", COUNTING)
    folder = ask("a", "b", question="counting")
    assert (folder.cells[0].spec.topk, folder.cells[0].spec.metrics) == ((3,), ("magnitude",))
    assert ask("a", "b", question="counting").id == folder.id
    with pytest.raises(InvalidInput, match="counting needs two models"):
        ask("a", question="counting")
    with pytest.raises(InvalidInput, match="no study asks 'countin'"):
        ask("a", "b", question="countin")  # codespell:ignore countin


def test_the_answer_is_written_when_all_cells_have_ended(
    ask: Callable[..., StudyFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.STUDY_QUESTIONS, "counting", COUNTING)
    runner = FakeRunner(failing={"c"})
    folder = ask("a", "b", "c", question="counting")
    run_study(folder, runner, wait=False)
    report = study_report(folder, runner)
    assert (report.complete, report.answer and report.answer.sentence) == (False, "0 runs")
    assert not (folder.path / "answer.json").exists()

    run_study(folder, runner)
    report = study_report(folder, runner)
    assert [type(run) for run in report.runs] == [StudyRun, StudyRun] and report.complete
    written = json.loads((folder.path / "answer.json").read_text())
    assert (written["sentence"], written["refused"], written["registered"]) == ("2 runs", ["why"], False)
    assert written["findings"] == [{"sentence": "many", "overturned_by": "fewer"}]
    assert [cell["error"] for cell in written["cells"]] == ["", "", "it has no weights"]
    assert {path.name for path in folder.path.iterdir()} >= {"answer.json", "counts.csv", "cells.csv"}


def test_a_question_may_ask_for_further_runs_of_those_that_are_done(
    ask: Callable[..., StudyFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def further(study: Study, runs: Any) -> list[RunSpec]:
        return [run.cell.spec.model_copy(update={"seed": 9}) for run in runs]

    monkeypatch.setitem(registry.STUDY_QUESTIONS, "counting", replace(COUNTING, further=further))
    runner, folder = FakeRunner(failing={"b"}), ask("a", "b", question="counting")
    run_study(folder, runner, wait=False)
    for run in runner.runs.values():
        list(run.events())
    assert not study_report(folder, runner).complete  # though all cells of the grid have ended
    for _ in range(2):
        run_study(folder, runner)
        assert states(folder, runner) == ["done", "failed", "done"] and runner.times == {1}
        assert study_report(folder, runner).complete

    monkeypatch.setitem(registry.STUDY_QUESTIONS, "counting", replace(COUNTING, further=lambda study, runs: []))
    none = ask("a", "c", question="counting")
    run_study(none, runner)
    assert study_report(none, runner).complete and len(none.cells) == 2


def test_a_daemon_that_is_gone_is_no_reason_to_call_a_run_failed(
    ask: Callable[..., StudyFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, folder = FakeRunner(), ask("a")
    run_study(folder, runner)

    def gone(run: Any) -> None:
        raise DaemonUnreachable("the daemon does not answer")

    monkeypatch.setattr("tests.engine.fake_runner.FakeRun.report", gone)
    with pytest.raises(DaemonUnreachable):
        study_report(folder, runner)


def test_texts_that_can_be_read_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is a pipe"):
        StudyFolder.create(Study(grid={"model": ["a"]}, run={"data_file": "/dev/stdin"}), tmp_path)


def test_the_hash_and_the_file_of_a_study_are_those_of_earlier_versions() -> None:
    asked = Study(question="scaling", name="x", grid={"model": ("a", "b"), "seed": (0, 1)}, run={"topk": [100]})
    assert asked.sha256() == "1f2e5de81fdf548f99aaf2c9eebc04fc7c10c921485326952c674a68b948d57f"
    fields = {"topk": [100]}
    grid = {"model": ["a", "b"], "seed": [0, 1]}
    assert asked.to_plain() == {"question": "scaling", "name": "x", "run": fields, "grid": grid}
    assert Study.model_validate(asked.to_plain()) == asked and cwa.Study(**asked.to_plain()).sha256() == asked.sha256()


def test_a_study_runs_on_a_runner_by_its_name_and_goes_on_there(tmp_path: Path) -> None:
    asked = cwa.Study(
        grid={"model": [str(save_tiny("gpt2", tmp_path / "model"))]}, run={"topk": 3, "perturbations": ()}
    )
    first, again = (
        asked.run(on=f"local:{tmp_path / 'runs'}", folder=tmp_path / "studies", say=print) for _ in range(2)
    )
    assert [cell.state for cell in first.cells] == ["done"] and first.cells == again.cells
    assert (tmp_path / "runs" / first.cells[0].run_id / "manifest.json").exists()
    with pytest.raises(InvalidInput, match="there is no runner 'rya'") as raised:
        asked.run(on="rya")
    assert "ray" in raised.value.hint
    with pytest.raises(InvalidInput, match="slots"):
        asked.run(on="local", slots=2)
    with pytest.raises(InvalidInput, match="slots"):
        asked.run(on=FakeRunner(), slots=2)

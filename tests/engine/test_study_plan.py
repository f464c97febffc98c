"""What a study will cost: passes as a run itself counts them, time and memory of past runs, and what is done already."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cwa_engine as cwa
from cwa_engine.base.events import Note
from cwa_engine.damage.elimination import SAMPLE_TEXTS
from cwa_engine.damage.measurement import NUDGES
from cwa_engine.spec import RunSpec
from cwa_engine.studies import passes
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.passes import Sequences, passes_of, sequences_of
from cwa_engine.studies.past_runs import Pace, PastRun
from cwa_engine.studies.plan import plan_study
from cwa_engine.studies.study import Study
from cwa_engine.text_use import FAST_LEAST, FAST_SHARE
from tests.engine.conftest import TEXTS
from tests.models import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("gpt2", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(f"{text} {number}" for number in range(5) for text in TEXTS) + "\n")
    return path


def test_the_constants_are_those_of_a_run() -> None:
    """They are written twice because a client must not import what computes."""
    of_run = (NUDGES, FAST_SHARE, FAST_LEAST)
    assert of_run == (passes.NUDGES, passes.FAST_SHARE, passes.FAST_LEAST)


def test_passes_are_counted_by_hand_for_a_small_run() -> None:
    spec = RunSpec(model="m", topk=(3,), controls=("random",), control_seeds=2, matrices=False)
    baseline, scoring, states, rounding_and_check = 4, 4 * 3, 4, 4 * 4
    damage = 4 + 2 * 4  # the critical set, and two draws on as many texts
    assert passes_of(spec, Sequences(4, 4)) == baseline + scoring + states + rounding_and_check + damage
    ranked = spec.model_copy(update={"perturbations": (), "metrics": ("magnitude",)})
    assert passes_of(ranked, Sequences(4, 4)) == 4  # the weights alone, and the baseline


@pytest.mark.parametrize(
    "fields",
    [{}, {"topk": (2, 5), "perturbations": ("zero", "sign_flip")}, {"fast_perturbation": True}, {"kl": True}],
    ids=str,
)
def test_passes_of_damage_are_those_that_the_run_says(model: Path, texts: Path, fields: dict[str, object]) -> None:
    spec = RunSpec(**{"model": str(model), "topk": (3,), "data_file": texts, "control_seeds": 3, **fields})  # type: ignore[arg-type]
    notes: list[str] = []
    options = spec.model_dump(exclude={"model", "data_name", "output"}, exclude_unset=True)
    cwa.analyze(str(model), emit=lambda event: notes.append(event.text) if isinstance(event, Note) else None, **options)
    (said,) = (
        found
        for note in notes
        if (found := re.search(r"at most ([\d.]+) passes over the evaluation texts \((\d+)\)", note))
    )
    sequences = sequences_of(spec)
    assert sequences and sequences.evaluation == int(said[2])
    without = spec.model_copy(update={"perturbations": ()})
    before = sequences.evaluation + (NUDGES + 1) * SAMPLE_TEXTS * (sequences.evaluation >= SAMPLE_TEXTS)
    before += (NUDGES + 1) * sequences.evaluation * (sequences.evaluation < SAMPLE_TEXTS)
    damage = passes_of(spec, sequences) - passes_of(without, sequences) - before
    assert damage / sequences.evaluation == pytest.approx(float(said[1]), abs=0.06)


def test_time_and_memory_are_those_of_past_runs_and_unknown_without_any(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    study = Study(grid={"model": [str(model)], "seed": [0, 1]}, run={"topk": 3, "data_file": texts, "control_seeds": 2})
    root, runs = tmp_path / "studies", tmp_path / "runs"
    plan = plan_study(study, root, runs)
    assert [(cell.seconds, cell.memory_bytes, cell.done) for cell in plan.cells] == [(None, None, False)] * 2
    assert (plan.seconds, plan.seconds_from[:7]) == (None, "unknown") and plan.passes

    one = Study(grid={"model": [str(model)]}, run={**study.shared, "seed": 0})
    with cwa.LocalRunner(runs) as runner:
        report = cwa.run_study(one, on=runner, folder=root)
    (run,) = report.runs
    assert not any(cell.done for cell in plan_study(study, root, runs).cells)  # the daemon would run it anew
    plan = plan_study(study, root, runs, where=str(runs))
    first, second = plan.cells
    assert (first.done, second.done) == (True, False)
    took = sum(seconds for stage, seconds in run.report.summary.timings.items() if stage not in ("load", "save"))
    assert second.seconds == pytest.approx(took)
    assert second.memory_bytes == run.report.summary.peak_memory_bytes
    assert run.report.run_id[-4:] in plan.seconds_from
    assert plan.seconds == second.seconds and plan.passes == second.passes

    bigger = plan_study(Study(grid={"model": ["gpt2"]}, run=study.shared), root, runs).cells[0]
    assert bigger.seconds is None  # a run of a model so small tells nothing of it
    assert bigger.memory_bytes == pytest.approx(124e6 * 4, rel=0.02)


def test_the_time_of_a_model_without_runs_is_that_of_models_of_its_size_by_their_weights() -> None:
    spec = RunSpec(model="a", perturbations=(), metrics=("magnitude",))  # as many passes as texts to evaluate

    def past(model: str, parameters: int, seconds: float) -> PastRun:
        return PastRun("run", spec, model, "cpu", "float32", parameters, Sequences(10, 10), seconds, 1)

    pace = Pace([past("a", 100, 10.0), past("b", 200, 60.0), past("tiny", 1, 90.0)])
    assert pace.seconds_a_pass("a", 100) == (1.0, [pace.runs[0]])
    assert pace.seconds_a_pass("c", 300) == (300 * (10 / 10 / 100 + 60 / 10 / 200) / 2, [*pace.runs[:2]])
    assert pace.seconds_a_pass("c", 3000) is None and pace.seconds_a_pass("c", None) is None


def test_where_texts_need_a_tokenizer_passes_are_unknown(texts: Path) -> None:
    plan = plan_study(Study(grid={"model": ["a"]}, run={"packed": True, "data_file": texts}))
    assert plan.passes is None and "unknown" in plan.passes_from


def test_planning_writes_nothing(texts: Path, tmp_path: Path) -> None:
    plan_study(Study(grid={"model": ["a"]}, run={"data_file": texts}), tmp_path / "studies")
    assert StudyFolder.all(tmp_path / "studies") == [] and not (tmp_path / "studies").exists()

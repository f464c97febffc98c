"""`--tasks`: scores of lm-evaluation-harness before and after damage, document by document."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import cwa_engine as cwa
from cwa_engine.base.errors import CwaError, DataError, InvalidInput
from cwa_engine.base.statistics import paired_mean, sign_flip_p
from cwa_engine.pipeline import analyze
from cwa_engine.questions.tasks import check_tasks, comparisons
from cwa_engine.records.verification import verify
from cwa_engine.reports.page import run_page
from cwa_engine.spec import RunSpec
from cwa_tui.tables.answers import tasks_table
from tests.engine.conftest import TEXTS, fingerprint
from tests.models import tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval", reason="needs pip install 'cwtool[eval]'")

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {test: colours.json}
output_type: multiple_choice
test_split: test
fewshot_split: test
num_fewshot: 2
doc_to_text: "The {{thing}} is"
doc_to_choice: [" red", " green as grass", " blue"]
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: mcc
metadata: {version: 3.0}
tag: [looks]
"""
WORD = """
task: words
dataset_path: csv
dataset_kwargs:
  data_files: {validation: words.csv}
output_type: loglikelihood
validation_split: validation
doc_to_text: "{{text}}"
doc_to_target: "{{last}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
  - metric: acc
tag: [looks]
"""
GROUP = "group: both\ntask: [colours, words]\n"
THINGS = ("sky", "grass", "blood", "sea", "leaf", "rose", "ink", "moss", "brick", "plum", "wheat", "snow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two task files and a group, with their data beside them."""
    there = tmp_path / "my tasks"
    there.mkdir()
    (there / "colours.yaml").write_text(CHOICE)
    (there / "words.yaml").write_text(WORD)
    (there / "both.yaml").write_text(GROUP)
    rows = [{"thing": thing, "answer": number % 3} for number, thing in enumerate(THINGS)]
    (there / "colours.json").write_text("\n".join(map(json.dumps, rows)))
    lines = [f'"{text[:-4]}","{text[-4:]}"' for text in TEXTS]
    (there / "words.csv").write_text("text,last\n" + "\n".join(line.replace("; ", " ") for line in lines) + "\n")
    return there


def analyzed(model: Any, folder: Path, **options: Any) -> cwa.RunReport:
    asked = {
        "metrics": ["magnitude"], "topk": [2, 20], "control_seeds": 4, "controls": ["random"], "matrices": False,
        "tasks": ["colours"], "task_path": folder,
    }  # fmt: skip
    return cwa.analyze(model, tokenizer=tiny_tokenizer(), texts=TEXTS, **{**asked, **options})


def by_the_package(model: Any, folder: Path, names: list[str], seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """task -> measure -> score of each document, by the package's own evaluation of the same model."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    before = Path.cwd()
    os.chdir(folder)  # where relative paths of data files begin
    try:
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=copy.deepcopy(model), tokenizer=copy.deepcopy(tiny_tokenizer()), batch_size=1),
            tasks=names, task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            fewshot_random_seed=seed, bootstrap_iters=0,
        )  # fmt: skip
    finally:
        os.chdir(before)
    assert found is not None
    return {
        task: {measure: [float(row[measure]) for row in rows] for measure in ("acc", "acc_norm") if measure in rows[0]}
        for task, rows in found["samples"].items()
    }


def scores(report: cwa.RunReport, selection: str, k: int | None = None) -> dict[str, dict[str, list[float | None]]]:
    found: dict[str, dict[str, list[float | None]]] = {}
    for row in report.task_scores:
        if row.selection == selection and row.k == k:
            found.setdefault(row.task, {}).setdefault(row.measure, []).append(row.score)
    return found


def zeroed(model: Any, report: cwa.RunReport, k: int) -> Any:
    """A copy with the k best weights set to zero by plain torch."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in report.topk()[:k]:
            changed.get_parameter(weight.parameter).view(-1)[weight.flat_index] = 0
    return changed


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_those_of_the_package_before_and_after_damage(family: str, folder: Path) -> None:
    model = tiny_model(family)
    report = analyzed(model, folder, tasks=["looks"])
    assert scores(report, "intact") == by_the_package(model, folder, ["colours", "words"])
    expected = by_the_package(zeroed(model, report, 20), folder, ["colours", "words"])
    assert scores(report, "critical", 20) == expected
    assert scores(report, "critical", 2) == {}  # the largest set alone
    for row in report.task_comparisons:
        if (row.selection, row.against) == ("critical", "intact"):
            assert row.after == pytest.approx(np.mean(expected[row.task][row.measure]), abs=1e-9)


def test_nothing_of_the_process_or_the_model_changes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    check_tasks(spec_of(folder))  # so that imports are done, which print in their own ways
    capfd.readouterr()
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)

    def state() -> tuple[Any, ...]:
        return (
            random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().numpy().tobytes(),
            dict(os.environ), torch.get_num_threads(), fingerprint(model), model.config.to_json_string(),
            model.generation_config.to_json_string(), tokenizer.padding_side, dict(tokenizer.special_tokens_map),
            model.training, [p.requires_grad for p in model.parameters()],
        )  # fmt: skip

    loaded = cwa.wrap(model, tokenizer)
    before = state()
    analyze(loaded, spec_of(folder), texts=TEXTS)
    assert state() == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def spec_of(folder: Path, *tasks: str, **fields: Any) -> RunSpec:
    asked = {"metrics": ("magnitude",), "topk": (20,), "control_seeds": 2, "controls": ("random",), "matrices": False}
    return RunSpec(**{"model": "tiny", **asked, "tasks": tasks or ("colours",), "task_path": folder, **fields})


def test_every_case_has_the_same_prompts_and_a_run_again_gives_the_same_bytes(folder: Path) -> None:
    model = tiny_model("llama")
    first, second = (analyzed(model, folder) for _ in range(2))
    assert first.files.read("tasks.csv") == second.files.read("tasks.csv")
    assert first.summary.tasks == second.summary.tasks
    (record,) = first.summary.tasks
    assert (record.documents, record.available, record.fewshot, record.requests) == (12, 12, 2, 36)
    assert (record.measures, record.left_out) == (("acc", "acc_norm"), ("mcc",))
    assert record.version == "3.0"
    other = analyzed(model, folder, seed=1).summary.tasks[0]
    assert other.prompts_sha256 != record.prompts_sha256  # other few-shot examples


def test_controls_are_the_leading_draw_and_two_others(folder: Path) -> None:
    report = analyzed(tiny_model("llama"), folder, control_seeds=6)
    rows = [row for row in report.task_comparisons if row.measure == "acc"]
    drawn = [row.seed for row in rows if row.selection == "random"]
    draws = [p for p in report.damage if p.selection == "random" and p.k == 20]
    worst = max(draws, key=lambda p: (p.sequences, abs(p.delta_nll))).seed
    assert drawn == [worst, *[seed for seed in range(6) if seed != worst][:2]]
    beside = next(row for row in rows if row.against == "random")
    of_control = next(row for row in rows if row.seed == worst)
    assert (beside.selection, beside.before) == ("critical", of_control.after)


def test_a_limit_takes_the_first_documents(folder: Path) -> None:
    model = tiny_model("llama")
    whole, part = (scores(analyzed(model, folder, task_limit=n), "intact") for n in (None, 5))
    assert part["colours"]["acc"] == whole["colours"]["acc"][:5]


def test_a_model_that_collapses_has_no_score(folder: Path) -> None:
    model = tiny_model("llama")
    report = analyzed(model, folder, perturbations=["scale"], scale_factor=1e38, controls=["random"])
    assert set(scores(report, "critical", 20)["colours"]["acc"]) == {None}
    row = next(row for row in report.task_comparisons if row.selection == "critical" and row.against == "intact")
    assert (row.after, row.difference, row.low, row.p_value, row.lost) == (None, None, None, None, 12)
    assert row.before is not None
    assert any("has collapsed on 12 of 12 documents" in line for line in report.log)


@pytest.mark.parametrize(
    ("change", "names", "error", "words"),
    [
        ({}, ["colors"], InvalidInput, "there is no task 'colors'.*colours"),
        ({"broken.yaml": "task: [unclosed"}, ["colours"], InvalidInput, "broken.yaml cannot be read"),
        ({"code.yaml": CHOICE + "process_docs: !function utils.f\n"}, ["colours"], InvalidInput, "code.yaml runs Python"),
        ({"code.yaml": "include: ../hidden.yml\ntask: x\n"}, ["x"], InvalidInput, "hidden.yml runs Python code"),
        ({"class.yaml": "task: x\nclass: os.system\n"}, ["x"], InvalidInput, "class.yaml runs Python code"),
        ({"hub.yaml": CHOICE.replace("acc_norm", "someone/metric")}, ["colours"], InvalidInput, "someone/metric"),
        ({"colours.yaml": CHOICE.replace("colours.json", "no.json")}, ["colours"], DataError, "colours cannot be loaded"),
        (
            {"colours.yaml": CHOICE.replace("{{thing}}", "{{cycler.__init__.__globals__.os.getcwd()}}")},
            ["colours"], DataError, "access to attribute '__init__' of 'type' object is unsafe",
        ),
        ({"colours.yaml": CHOICE.replace("{{thing}}", "{{things}}")}, ["colours"], DataError, "'things' is undefined"),
        ({"colours.yaml": CHOICE.replace("multiple_choice", "generate_until")}, ["colours"], InvalidInput, "writes answers"),
        ({"words.yaml": WORD.replace("  - metric: acc\n", "")}, ["words"], InvalidInput, "perplexity is no mean over doc"),
        ({"colours.yaml": CHOICE.replace("multiple_choice", "loglikelihood_rolling")}, ["colours"], InvalidInput, "perplex"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(
    folder: Path, change: dict[str, str], names: list[str], error: type[CwaError], words: str
) -> None:
    (folder.parent / "hidden.yml").write_text("process_results: !function utils.f\n")
    (folder / "utils.py").write_text("raise SystemExit('this code must not run')\n")
    for name, content in change.items():
        (folder / name).write_text(content)
    with pytest.raises(error) as caught:
        check_tasks(spec_of(folder, *names))
    assert re.search(words, f"{caught.value.message} {caught.value.hint}"), caught.value


def test_code_in_a_task_file_runs_only_where_code_is_trusted(folder: Path) -> None:
    (folder / "utils.py").write_text("def first(documents):\n    return documents.select(range(4))\n")
    (folder / "colours.yaml").write_text(CHOICE + "process_docs: !function utils.first\n")
    with pytest.raises(InvalidInput, match=r"runs Python code: !function utils\.first"):
        check_tasks(spec_of(folder))
    check_tasks(spec_of(folder), trust_code=True)


def test_without_the_package_a_run_ends_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match="lm-evaluation-harness") as caught:
        cwa.analyze("no/such-model", tasks=["colours"])
    assert caught.value.hint == "pip install 'cwtool[eval]'"


def test_a_task_of_the_package_offline_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"task boolq cannot be loaded.*may not use the network"):
        check_tasks(RunSpec(model="tiny", tasks=("boolq",)))


def test_the_package_is_imported_only_where_tasks_are_asked_for() -> None:
    code = "import sys, cwa_engine.pipeline, cwa_engine.questions.registry; assert 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"perturbations": ()}, "--tasks measures damaged models"),
        ({"tasks": (), "task_path": None, "task_limit": 3}, "are for --tasks"),
        ({"task_limit": 0}, "--task-limit 0 is too small"),
    ],
)
def test_options_that_make_no_sense_are_refused(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidInput, ValueError), match=words):
        RunSpec(**{"model": "tiny", "tasks": ("colours",), "task_path": tmp_path, **fields})


def test_altered_scores_are_found(folder: Path, tmp_path: Path) -> None:
    controls = ["random", "random_matched"]
    place = analyzed(tiny_model("llama"), folder, controls=controls, tasks=["both"]).save(tmp_path / "run")
    assert verify(place).agrees
    text = (place / "tasks.csv").read_text()
    assert ",12,0.0" in text
    (place / "tasks.csv").write_text(text.replace(",12,0.0", ",12,1.0"))
    assert any("task_comparisons" in found.where for found in verify(place).disagreements)


def test_tasks_by_another_draw_than_the_leading_one_are_found(folder: Path, tmp_path: Path) -> None:
    """Also where all that follows from their rows was made anew."""
    place = analyzed(tiny_model("llama"), folder).save(tmp_path / "run")
    with (place / "tasks.csv").open() as file:
        rows = list(csv.DictReader(file))
    leading, other = list(dict.fromkeys(row["seed"] for row in rows if row["selection"] == "random"))[:2]
    swapped = {leading: other, other: leading}
    for row in rows:
        row["seed"] = swapped.get(row["seed"], row["seed"]) if row["selection"] == "random" else row["seed"]
    with (place / "tasks.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "tasks.csv: cases, number 3" in [found.where for found in verify(place).disagreements]


def test_mcnemars_test_by_hand() -> None:
    """8 documents get worse, 1 better: 2 (1 + 9) / 2^9."""
    differences = np.array([-1.0] * 8 + [1.0] + [0.0] * 50)
    assert sign_flip_p(differences) == pytest.approx(2 * 10 / 512)
    assert sign_flip_p(np.zeros(30)) == 1.0
    assert sign_flip_p(np.array([3.0, 1.0, 2.0])) == 2 / 8  # all signs alike, or all turned


def test_random_signs_and_all_signs_agree() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        few = rng.normal(0.4, 1, 12)
        many = np.concatenate([few, [1e-9]])  # one more, of no weight, so signs are drawn
        assert sign_flip_p(many) == pytest.approx(sign_flip_p(few), abs=0.02)


@pytest.mark.parametrize("changed", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("documents", [10, 40, 200])
def test_a_damage_that_does_nothing_is_called_significant_at_most_one_time_in_twenty(
    changed: float, documents: int
) -> None:
    """Each document's answer turns with probability `changed`, as often from wrong to right as from right to wrong."""
    rng = np.random.default_rng(0)
    wrong = missed = 0
    for trial in range(1000):
        differences = rng.choice([-1.0, 0.0, 1.0], documents, p=[changed / 2, 1 - changed, changed / 2])
        wrong += sign_flip_p(differences, trial) < 0.05
        _, low, high = paired_mean(differences)
        missed += not low <= 0 <= high
    assert wrong <= 50 + 2 * 7 and missed <= 50 + 2 * 7  # 5 % of 1000, and two standard errors


def test_the_interval_covers_a_real_change_and_never_shrinks_to_nothing() -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(1000):
        differences = rng.choice([-1.0, 0.0, 1.0], 50, p=[0.25, 0.7, 0.05])
        _, low, high = paired_mean(differences)
        missed += not low <= -0.2 <= high
    assert missed <= 64
    mean, low, high = paired_mean(np.zeros(40))
    assert mean == 0 and low < 0 < high


def test_comparisons_need_the_rows_of_the_table_alone(folder: Path) -> None:
    report = analyzed(tiny_model("llama"), folder)
    assert tuple(comparisons(report.task_scores, report.spec.seed)) == report.task_comparisons


def test_the_printed_report_and_the_page_show_the_tasks(folder: Path) -> None:
    report = analyzed(tiny_model("llama"), folder)
    (first, *_) = report.task_comparisons
    console = Console(width=160, file=io.StringIO())
    with console.capture() as capture:
        console.print(tasks_table(report.task_comparisons))
    printed = capture.get()
    assert f"{first.before:.3f}" in printed and "colours acc" in printed and f"{first.difference:+.3f}" in printed
    page = run_page(report)
    assert "Tasks of lm-evaluation-harness" in page and "colours, acc" in page

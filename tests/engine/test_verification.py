"""`cwtool verify`: every figure follows from the tables, and whatever is altered is found, hashes made anew or not."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest

from cwa_engine.base.errors import NotFound
from cwa_engine.pipeline import analyze
from cwa_engine.records.checksums import fingerprint_of
from cwa_engine.records.export import ModelRecord, RunRecord, write_run
from cwa_engine.records.verification import Verification, verify
from cwa_engine.spec import RunSpec
from tests.engine.conftest import wrap
from tests.engine.eliminated_by_hand import by_hand, parts_of
from tests.engine.test_verdicts import TEXTS, planted_model

RUNS = Path(__file__).parent / "runs"  # by the rule that their manifests name
MANY = {
    "topk": (1, 4), "metrics": ("grad_x_weight", "magnitude"), "matrices": False, "individually": True, "stability": 3,
    "fidelity": 24, "dose": (0.0, 2.0), "position_test": True, "kl": True, "perturbations": ("zero", "resample"),
    "controls": ("random", "random_matched", "top_magnitude"),
}  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {
    "many questions": MANY,
    "no damage": {"perturbations": ()},
    "exact ablation": {"topk": (3,), "metrics": ("ablation",), "candidates": 30, "critical_set": 2.0},
    "rows": {"topk": (2,), "structure": "row"},
    "each layer": {"topk": (2,), "scope": "per_layer", "include": ("down",)},
    "given weights": {"metrics": (), "weights": ("model.norm.weight[9]", "model.norm.weight[3]")},
    "too few draws and texts": {"topk": (2,), "eval_limit": 8, "control_seeds": 3},
    "every bit": {"topk": (1,), "perturbations": ("bit_flip",), "bit": "all"},
    "packed": {"topk": (2,), "packed": True},
    "spikes": {"topk": (2,), "metrics": ("super_weight",), "iterate": 3},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def written(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of these questions, computed once."""
    home = tmp_path_factory.mktemp("runs")
    (home / "texts.txt").write_text("\n\n".join(TEXTS))
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            spec = RunSpec(model="tiny", data_file=home / "texts.txt", seq_len=32, **ASKED[name])
            source = ModelRecord("tiny", "/nowhere", "folder", None, {"w": "0"}, "float32", "cpu", "a cpu", 1)
            result = analyze(wrap(model), spec)
            made[name] = home / name.replace(" ", "-")
            write_run(made[name], RunRecord(name, spec, "cwtool run", source, result, 0.0, ["a line"]))
        return made[name]

    return folder


@pytest.fixture
def run(written: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the run with many questions."""
    return shutil.copytree(written("many questions"), tmp_path / "run")


def seal(folder: Path) -> None:
    """Make all hashes anew, as who hides an alteration does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tables"] = {path.name: sha256(path) for path in folder.glob("*.csv")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / name).open(newline="")))


def write_table(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / name).write_text(text.getvalue())


def said(found: Verification) -> str:
    """All that a verification complains of."""
    return "\n".join([*map(str, found.disagreements), *found.unreadable])


@pytest.mark.parametrize("name", ASKED)
def test_a_run_that_nobody_touched_is_sound(written: Callable[[str], Path], name: str) -> None:
    found = verify(written(name), fingerprint_of(written(name)))
    assert (said(found), found.check.altered, found.agrees) == ("", {}, True)
    assert found.compared > 60


# The figures, from the losses in evaluation.csv by nothing but numpy and mpmath


def t975(freedom: int) -> float:
    """97.5 % quantile of Student's t, by its distribution function."""

    def above(t: Any) -> Any:
        x = freedom / (freedom + t * t)
        return mpmath.betainc(mpmath.mpf(freedom) / 2, 0.5, 0, x, regularized=True) / 2 - 0.025

    return float(mpmath.findroot(above, 2.1))


class Losses:
    """NLL of every text in every case of evaluation.csv, and what docs/method.md makes of them."""

    def __init__(self, folder: Path) -> None:
        self.cases: dict[tuple[str, ...], dict[int, tuple[float, int]]] = {}
        for row in table(folder, "evaluation.csv"):
            case = tuple(row[name] for name in ("metric", "k", "perturbation", "selection", "seed"))
            self.cases.setdefault(case, {})[int(row["sequence"])] = float(row["nll_sum"]), int(row["tokens"])
        self.intact = self.cases.pop(("", "", "", "intact", ""))
        self.tokens = {text: tokens for text, (_, tokens) in self.intact.items()}

    def nll(self, of: dict[int, tuple[float, int]], where: list[int]) -> float:
        return math.fsum(of[n][0] for n in where) / sum(of[n][1] for n in where)

    def change(self, case: Any, where: Sequence[int] | None = None) -> float:
        places = list(where or sorted(self.cases[case]))
        return self.nll(self.cases[case], places) - self.nll(self.intact, places)

    def interval(self, case: tuple[str, ...]) -> tuple[float, float]:
        """Jackknife: each text left out in turn, Student's t, 1 + 2/n times as wide."""
        places = sorted(self.cases[case])
        n = len(places)
        without = np.array([self.change(case, [other for other in places if other != left]) for left in places])
        error = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
        reach = (1 + 2 / n) * t975(n - 1) * error
        return self.change(case) - reach, self.change(case) + reach


def found_of_blanks(run: Path) -> dict[str, Any]:
    """What is recomputed of a run all of whose figures are blanked, so that it can come from the losses alone."""
    blank = ("nll", "perplexity", "delta_nll", "delta_low", "delta_high", "perplexity_ratio")
    rows = table(run, "perturbation.csv")
    write_table(run, "perturbation.csv", [{**row, **dict.fromkeys(blank, "-1.0")} for row in rows])
    summary = json.loads((run / "summary.json").read_text())
    summary["baseline"]["nll"] = summary["baseline"]["perplexity"] = -1.0
    for group in summary["damage"]:
        group["outcome"] = group["verdict"] = "?"
        for control in group["controls"]:
            numbers = ("critical", "median", "as_extreme", "p_value", "largest", "largest_low", "largest_high", "ratio",
                       "largest_texts")  # fmt: skip
            control.update(dict.fromkeys(numbers, -1))
    (run / "summary.json").write_text(json.dumps(summary))
    seal(run)
    return {entry.where: entry.found for entry in verify(run).disagreements}


def test_the_figures_are_those_of_the_method_by_code_that_shares_nothing_with_ours(run: Path) -> None:
    found, losses = found_of_blanks(run), Losses(run)
    everything = sorted(losses.intact)
    assert found["summary.json: baseline, nll"] == pytest.approx(losses.nll(losses.intact, everything), rel=1e-9)
    assert found["summary.json: baseline, perplexity"] == pytest.approx(math.exp(losses.nll(losses.intact, everything)))
    assert len(everything) == 20
    for case, measured in losses.cases.items():
        metric, k, perturbation, selection, seed = case
        name = f"perturbation.csv: {metric} k={k} {perturbation} {selection}" + (f" seed {seed}" if seed else "")
        assert found[f"{name}, nll"] == pytest.approx(losses.nll(measured, sorted(measured)), rel=1e-9)
        assert found[f"{name}, delta_nll"] == pytest.approx(losses.change(case), rel=1e-6, abs=1e-12)
        low, high = losses.interval(case)
        # the t table has five digits
        assert found[f"{name}, delta_low"] == pytest.approx(low, rel=1e-4, abs=1e-4 * (high - low))
        assert found[f"{name}, delta_high"] == pytest.approx(high, rel=1e-4, abs=1e-4 * (high - low))
        assert found[f"{name}, perplexity_ratio"] == pytest.approx(math.exp(losses.change(case)))


def test_p_values_and_verdicts_are_those_of_the_method_by_code_that_shares_nothing_with_ours(run: Path) -> None:
    summary, found = json.loads((run / "summary.json").read_text()), found_of_blanks(run)
    losses = Losses(run)
    floor = summary["numerical_floor"]["rounding"]
    failed: set[tuple[str, str]] = set()
    compared = [group for group in summary["damage"] if group["controls"]]
    for group in sorted(compared, key=lambda group: -group["k"]):
        where = f"summary.json: damage, {group['metric']} k={group['k']} {group['perturbation']}"
        key = (group["metric"], str(group["k"]), group["perturbation"])
        ours, passed = (*key, "critical", ""), True
        for control in group["controls"]:
            drawn = [case for case in losses.cases if case[:4] == (*key, control["control"])]
            changes = [losses.change(case) for case in drawn]
            order, _ = by_hand(losses.change, ours, drawn, parts_of(20), losses.tokens)
            as_extreme = order.index(ours)
            largest: Any = next(case for case in order if case != ours)
            line = f"{where}, controls, {control['control']}"
            assert found[f"{line}, as_extreme"] == as_extreme
            assert found[f"{line}, median"] == pytest.approx(float(np.median(changes)), rel=1e-6, abs=1e-12)
            assert found[f"{line}, largest_texts"] == len(losses.cases[largest])
            assert found[f"{line}, largest"] == pytest.approx(losses.change(largest), rel=1e-6, abs=1e-12)
            size = max(abs(losses.change(largest)), floor)
            assert found[f"{line}, ratio"] == pytest.approx(abs(losses.change(ours)) / size, rel=1e-6)
            p_value = (1 + as_extreme) / (1 + len(drawn)) if control["control"] != "top_magnitude" else None
            assert found[f"{line}, p_value"] == pytest.approx(p_value)
            passed &= (p_value or 0) <= 0.05 and abs(losses.change(ours)) > abs(losses.change(largest))
        passed &= abs(losses.change(ours)) > floor
        outcome = "indistinguishable"
        if (group["metric"], group["perturbation"]) in failed:
            outcome = "not tested"
        elif passed:
            outcome = "harmful" if losses.change(ours) > 0 else "helpful"
        if outcome == "indistinguishable":
            failed.add((group["metric"], group["perturbation"]))
        assert found[f"{where}, outcome"] == outcome
    assert len({found[name] for name in found if name.endswith("outcome")}) > 1


# Alterations


def cells(name: str, chosen: Callable[[dict[str, str]], bool], **changed: str) -> Callable[[Path], None]:
    """Change these columns of the first row that is chosen."""

    def alter(folder: Path) -> None:
        rows = table(folder, name)
        next(row for row in rows if chosen(row)).update(changed)
        write_table(folder, name, rows)

    return alter


def without(name: str, left_out: Callable[[dict[str, str]], bool]) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        rows = table(folder, name)
        kept = [row for row in rows if not left_out(row)]
        assert len(kept) < len(rows)
        write_table(folder, name, kept)

    return alter


def field(name: str, *path: str | int, to: Any) -> Callable[[Path], None]:
    """Change one value of a JSON file."""

    def alter(folder: Path) -> None:
        whole = json.loads((folder / name).read_text())
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        assert inner[path[-1]] != to
        inner[path[-1]] = to
        (folder / name).write_text(json.dumps(whole))

    return alter


def one_draw_fewer(folder: Path) -> None:
    """A draw that does not fit is left out wherever it stands."""
    for name in ("evaluation.csv", "perturbation.csv"):
        without(name, lambda row: (row["selection"], row["seed"]) == ("random", "5"))(folder)
    without("controls.csv", lambda row: (row["control"], row["seed"]) == ("random", "5"))(folder)


def another_whole_draw(folder: Path) -> None:
    """The worst draw loses its place on all texts."""
    rows = table(folder, "evaluation.csv")
    counts: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = tuple(row[name] for name in ("metric", "k", "perturbation", "selection", "seed"))
        counts[key] = counts.get(key, 0) + 1
    worst = next(key for key, count in counts.items() if key[3] == "random" and count == 20)
    sample = {row["sequence"] for row in rows if row["selection"] == "elsewhere"}
    names = ("metric", "k", "perturbation", "selection", "seed")
    kept = [row for row in rows if tuple(row[n] for n in names) != worst or row["sequence"] in sample]
    write_table(folder, "evaluation.csv", kept)


def is_of_all(row: dict[str, str]) -> bool:
    """Whether a unit of fidelity.csv was drawn from all, so that nobody expected it to do much."""
    return row["stratum"].startswith("all")


def is_critical(row: dict[str, str]) -> bool:
    return row["selection"] == "critical"


ALTERATIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a loss": (cells("evaluation.csv", is_critical, nll_sum="99.5"), "critical"),
    "a loss of the intact model": (cells("evaluation.csv", lambda row: True, nll_sum="60.25"), "baseline, nll"),
    "a loss of one draw": (cells("evaluation.csv", lambda row: row["seed"] == "7", nll_sum="81.0"), "seed 7"),
    "a number of tokens": (cells("evaluation.csv", is_critical, tokens="3"), "other tokens"),
    "a text that was left out": (without("evaluation.csv", lambda row: row["sequence"] == "20"), "perturbation.csv"),
    "a draw that was left out": (one_draw_fewer, "random seed 5"),
    "the first draw on fewer texts": (another_whole_draw, "measured on 8 texts, not on the first 20"),
    "a draw that was out on fewer texts": (
        without("evaluation.csv", lambda row: row["selection"] == "random" and row["sequence"] == "20"),
        "not on the first 2"),
    "the rule of controls": (field("manifest.json", "control_rule", to="sample"), "sample of all draws"),
    "a rule that nobody knows": (field("manifest.json", "control_rule", to="lottery"), "lottery"),
    "a change of the loss": (cells("perturbation.csv", is_critical, delta_nll="0.5"), "delta_nll"),
    "an interval": (cells("perturbation.csv", is_critical, delta_low="0.01"), "delta_low"),
    "a case": (cells("perturbation.csv", is_critical, seed="3"), "cases"),
    "a weight more": (cells("perturbation.csv", is_critical, weights="9"), "weights"),
    "a row of the controls left out": (without("controls.csv", lambda row: row["seed"] == "2"), "random seed 2"),
    "the same weight twice in a draw": (
        lambda folder: write_table(folder, "controls.csv", (rows := table(folder, "controls.csv")) and
                                   [{**row, "target": rows[30 * 4]["target"] if row["k"] == "4" else row["target"]}
                                    for row in rows]), "different weights"),
    "a score of the ranking": (cells("topk_magnitude.csv", lambda row: True, score="7.5"), "rankings"),
    "a baseline": (field("summary.json", "baseline", "perplexity", to=3.25), "baseline, perplexity"),
    "a p-value": (field("summary.json", "damage", 0, "controls", 0, "p_value", to=0.03), "p_value"),
    "a ratio": (field("summary.json", "damage", 0, "controls", 0, "ratio", to=1e6), "ratio"),
    "a verdict": (field("summary.json", "damage", 0, "outcome", to="hopeless"), "outcome"),
    "a sentence": (field("summary.json", "damage", 0, "verdict", to="It is critical."), "verdict"),
    "a mean of stability": (field("summary.json", "stability", 0, "jaccard", to=0.99), "stability"),
    "a row of stability": (cells("stability.csv", lambda row: True, rbo="0.123"), "rbo"),
    "a correlation of fidelity": (field("summary.json", "fidelity", 0, "spearman", to=0.99), "fidelity"),
    "a measured change of fidelity": (cells("fidelity.csv", is_of_all, delta_nll="77.0"), "fidelity"),
    "a share": (cells("interactions.csv", lambda row: True, share="5.0"), "share"),
    "a role": (cells("interactions.csv", lambda row: row["role"] == "inert", role="together"), "role"),
    "what halves have in common": (field("summary.json", "halves", 0, "both", to=9), "halves"),
    "the model's name": (field("manifest.json", "model", "name", to="gpt5"), "model, name"),
    "the seed": (field("manifest.json", "spec", "seed", to=1), "seed"),
    "how many draws": (field("manifest.json", "spec", "control_seeds", to=10), "cases"),
    "the hash of the texts": (field("manifest.json", "data", "scored_sha256", to="0" * 64), "scored_sha256"),
    "the run id": (field("summary.json", "run_id", to="another"), "run_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_alteration_is_found_by_its_hash_and_with_hashes_made_anew_by_what_it_does_to_the_figures(
    run: Path, name: str
) -> None:
    alter, named = ALTERATIONS[name]
    fingerprint = fingerprint_of(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    alter(run)
    altered = {path.name: "altered" for path in run.iterdir() if path.read_bytes() != before[path.name]}
    assert altered and verify(run).check.altered == altered
    seal(run)
    found = verify(run)
    assert found.check.altered == {} and not found.agrees
    assert named in said(found)
    assert verify(run, fingerprint).check.altered == {"SHA256SUMS": "not as it was when the run ended"}


def test_a_hash_in_the_manifest_is_compared_with_the_table(run: Path) -> None:
    field("manifest.json", "tables", "evaluation.csv", to="0" * 64)(run)
    assert verify(run).check.altered == {"manifest.json": "altered"}
    digest = sha256(run / "manifest.json")
    sums = re.sub(r"(?m)^.*  manifest\.json$", f"{digest}  manifest.json", (run / "SHA256SUMS").read_text())
    (run / "SHA256SUMS").write_text(sums)
    found = verify(run)
    assert found.check.altered == {}
    assert [entry.where for entry in found.disagreements] == ["manifest.json: tables, evaluation.csv"]


@pytest.mark.parametrize("frozen", sorted(RUNS.iterdir()), ids=lambda folder: folder.name)
def test_runs_of_every_rule_of_controls_are_verified_by_their_own(frozen: Path, tmp_path: Path) -> None:
    found = verify(frozen)
    assert (said(found), found.check.altered, found.agrees) == ("", {}, True)
    assert found.compared > 800
    folder = shutil.copytree(frozen, tmp_path / "run")
    for control, name, to in ((0, "as_extreme", 3), (1, "largest", 0.5)):
        field("summary.json", "damage", 0, "controls", control, name, to=to)(folder)
    seal(folder)
    assert re.findall(r"(as_extreme|largest)\b", said(verify(folder))) == ["as_extreme", "largest"]


# Of these the files tell nothing more: each is named by `verify` among what is not known.
UNKNOWN = re.compile(
    r"timings|peak_memory_bytes|gradients|batch_size|scores_from|eligible|numerical_floor|protocol|vocabulary|bits_per_byte|"
    r"texts (truncated|repeated|seq_len|bos)|halves|kl|top1_agreement"
)


@pytest.mark.parametrize("name", ["packed", "rows"])
def test_every_number_of_the_summary_that_is_changed_is_found(
    written: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(written(name), tmp_path / "altered")
    text = (folder / "summary.json").read_text()
    missed = []
    for path, value in leaves(json.loads(text)):
        if not isinstance(value, (int, float)) or UNKNOWN.search(" ".join(map(str, path))):
            continue
        field("summary.json", *path, to=not value if isinstance(value, bool) else value * 1.001 + 1)(folder)
        seal(folder)
        if verify(folder).agrees:
            missed.append(path)
        (folder / "summary.json").write_text(text)
    assert missed == []


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    if not isinstance(value, (dict, list)):
        return [(path, value)]
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, entry in entries for leaf in leaves(entry, (*path, key))]


# Files that are none


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"a,b\n1,2\n", b"\xff\xfe\x00", b'{"run_id": 3, "spec": 1}']
)
@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "evaluation.csv", "perturbation.csv", "controls.csv",
                                  "topk_magnitude.csv", "fidelity.csv", "stability.csv", "interactions.csv"])  # fmt: skip
def test_a_file_that_is_broken_is_named_and_ends_nothing(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    if name != "manifest.json":
        seal(run)
    found = verify(run)
    assert not found.agrees
    assert said(found) or name in found.check.altered


def test_a_folder_without_a_run_is_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotFound):
            verify(folder)


def test_a_run_of_an_earlier_version_is_verified_as_far_as_it_goes(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["sums"], manifest["spec"]["iterate"]  # a field that came later
    manifest["versions"]["cwtool"] = "0.0.9"
    (run / "manifest.json").write_text(json.dumps(manifest))
    summary = json.loads((run / "summary.json").read_text())
    del summary["spike_removal"], summary["halves"]
    summary["damage"][0]["verdict"] = "The same, in words of then."
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "SHA256SUMS").unlink()
    found = verify(run)
    assert said(found) == "" and found.agrees
    assert found.check.unchecked == ("log.txt", "manifest.json", "summary.json")

"""Whether a run's figures follow from its tables: files alone are read, and every statistic is made anew. torch-free.

Hashes tell whether a file is what the run wrote. This tells whether what it says is true as far as other files tell: the
baseline, every change of the loss with its interval, controls, p-values, verdicts and means are recomputed from
evaluation.csv and the other tables by the rules of docs/method.md, and each figure that differs is named.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import CwaError, NotFound
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Row, Table, scored_metrics
from cwa_engine.base.version import __version__
from cwa_engine.damage.elimination import ELIMINATION, SAMPLE
from cwa_engine.damage.separation import separations, verdicts
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.methods.metrics import ABLATION
from cwa_engine.questions import ablation, critical_set, interactions, spike_removal, stability, tasks
from cwa_engine.questions.fidelity import fidelities, fidelity_table
from cwa_engine.questions.interactions import role_of
from cwa_engine.questions.stability import stability_means
from cwa_engine.records import remeasured, tables
from cwa_engine.records.checksums import ALWAYS, MANIFEST, Check, check_run, is_of_a_run
from cwa_engine.records.ledger import Disagreement, Ledger
from cwa_engine.records.reading import MANIFEST_KEYS, SUMMARY_KEYS, each_row, parse_map, parse_rows
from cwa_engine.records.summary import damage_groups, halves_of, numbers_of
from cwa_engine.rows import (
    GIVEN,
    SHOWN,
    Baseline,
    ControlDraw,
    DamagePoint,
    Ranking,
    TextUse,
    TopWeight,
    exp,
    to_plain,
)
from cwa_engine.spec import RunSpec, parse_spec

SUMMARY = "summary.json"
_SAME_PARAMETERS = ("random_matched", "magnitude_matched", "same_row", "same_column")  # controls that keep to them
_FROM_LOSSES = ("nll", "perplexity", "delta_nll", "delta_low", "delta_high", "perplexity_ratio", "sequences")


@dataclass(frozen=True)
class Verification:
    """What a verification found."""

    run_id: str
    folder: str
    version: str  # of cwtool, that wrote the run
    check: Check
    compared: int  # figures
    disagreements: tuple[Disagreement, ...]
    unreadable: tuple[str, ...]  # files or parts of them that are not as a run writes them
    unknown: tuple[str, ...]  # what the files do not tell

    @property
    def agrees(self) -> bool:
        """Whether every file is as it was written, and every figure follows from the tables."""
        return not (self.check.altered or self.disagreements or self.unreadable)


class _Run:
    """The files of a run, read without a look at their hashes: those are a matter of their own."""

    def __init__(self, folder: Path, check: Check) -> None:
        self.folder = folder
        self.hashes = check.hashes  # of all files
        self.manifest = parse_map(folder, MANIFEST, self.text(MANIFEST), MANIFEST_KEYS)
        self.summary = parse_map(folder, SUMMARY, self.text(SUMMARY), SUMMARY_KEYS)
        self.version = str(self.manifest.get("versions", {}).get("cwtool", "unknown"))
        self.spec: RunSpec = parse_spec(self.manifest["spec"])
        self.rankings = [self._ranking(entry) for entry in self.summary["rankings"]]

    def text(self, name: str) -> str:
        try:
            return self.content(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotFound(f"{name} cannot be read: {error}") from error

    def content(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"there is no {name}") from None
        except OSError as error:
            raise NotFound(f"{name} cannot be read: {error}") from error

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def rows(self, table: Table[Row]) -> list[Row]:
        return parse_rows(self.folder, table, self.content(table.name))

    def rows_if_any(self, table: Table[Row]) -> list[Row]:
        """Those of a table that not every run has."""
        return self.rows(table) if self.has(table.name) else []

    def each_if_any(self, table: Table[Row]) -> Iterator[Row]:
        """The same one by one."""
        if self.has(table.name):
            yield from each_row(self.folder, table, self.content(table.name))

    def _ranking(self, entry: JsonMap) -> Ranking:
        rows = self.rows(tables.topk_table(entry["metric"]))
        return Ranking(entry["metric"], tuple(rows), structure=entry["structure"])

    def top(self, metric: str, k: int) -> tuple[TopWeight, ...]:
        return next(ranking.top(k) for ranking in self.rankings if ranking.metric == metric)


def verify(folder: Path, fingerprint: str | None = None) -> Verification:
    """Check the hashes of a run's files, and recompute its figures. Raises NotFound for a folder that holds no run.

    `fingerprint` is what the run's is known to be, from the job database or from whoever published it.
    """
    check = check_run(folder, fingerprint)
    if MANIFEST not in check.hashes and SUMMARY not in check.hashes:
        raise NotFound(f"{folder} holds no run", hint="give a run id, or a folder with the files of a run")
    unknown = [] if check.known else ["whether all files were replaced together: compare the fingerprint"]
    try:
        run = _Run(folder, check)
    except (CwaError, KeyError, TypeError, ValueError, AttributeError) as error:
        return Verification(folder.name, str(folder), "unknown", check, 0, (), (_reason(error),), tuple(unknown))
    ledger, unreadable = Ledger(older=run.version != __version__), []
    for part in _PARTS:
        try:
            part(run, ledger, unknown)
        except (CwaError, KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
            unreadable.append(
                f"{(part.__doc__ or '').rstrip('.')}: {_reason(error)}"
            )  # files of any shape are read here
    return Verification(
        run_id=str(run.manifest["run_id"]),
        folder=str(folder),
        version=run.version,
        check=check,
        compared=ledger.compared,
        disagreements=tuple(ledger.disagreements),
        unreadable=tuple(unreadable),
        unknown=tuple(unknown),
    )


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, CwaError) else f"{type(error).__name__}: {error}"


def _manifest(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """The manifest and the summary are of the same run."""
    manifest, summary, spec = run.manifest, run.summary, run.spec
    texts = TextUse(**{**summary["texts"], "too_short": tuple(summary["texts"]["too_short"])})
    scored, measured = numbers_of(texts)
    ledger.same("summary.json: run_id", summary["run_id"], manifest["run_id"])
    ledger.same("summary.json: started", summary["started"], manifest["started"])
    ledger.same("summary.json: model", summary["model"], manifest["model"])
    ledger.same("summary.json: texts, packed", texts.packed, spec.packed)
    sizes = tuple(len(half) for half in halves_of(texts))
    ledger.same("summary.json: texts, scoring and evaluation", (texts.scoring, texts.evaluation), sizes)
    ledger.same("summary.json: texts, shared", texts.shared, texts.texts - len(texts.too_short) < 2)
    used = {
        "source": texts.source, "sha256": texts.sha256, "scored": scored, "scored_sha256": texts.scoring_sha256,
        "measured": measured, "measured_sha256": texts.evaluation_sha256, "too_short": list(texts.too_short),
        "overlap": texts.overlap,
    }  # fmt: skip
    ledger.same("manifest.json: data", manifest["data"], used)
    seeds = {"seed": spec.seed, "controls": [spec.seed + number for number in range(spec.control_seeds)]}
    ledger.same("manifest.json: seeds", manifest["seeds"], seeds)
    if not ledger.older:  # versions add fields to the spec, and with them its hash changes
        ledger.same("manifest.json: spec_sha256", manifest["spec_sha256"], spec.sha256())
    hashes = {name: digest for name, digest in run.hashes.items() if _is_table(name)}
    ledger.same("manifest.json: tables", manifest["tables"], hashes)
    unknown.append("command, versions, machine, and what was ranked: the manifest alone has them")
    unknown.append("the protocol of the perplexities, timings, memory and the batch size: the summary alone has them")


def _is_table(name: str) -> bool:
    return is_of_a_run(name) and name not in ALWAYS


def _rankings(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """The rankings of the summary are the first places of their tables."""
    for ranking, said in zip(run.rankings, run.summary["rankings"], strict=True):
        top = to_plain(ranking.weights[:SHOWN])
        ledger.same(f"summary.json: rankings, {ranking.metric}", said["top"], top)
    tables = sorted(path.name for path in run.folder.glob("topk_*.csv"))
    ledger.same("summary.json: rankings", sorted(f"topk_{r.metric}.csv" for r in run.rankings), tables)
    unknown.append(
        "scores, their counts below the ranking, and the rankings by halves of the texts: they take the model"
    )


def _scores(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """The counts of scores are of all that was ranked, and those of the tail are the first places of the ranking."""
    if ledger.older and not run.has(tables.SCORES.name):  # early versions counted none
        return
    rows = run.rows_if_any(tables.SCORES)
    counted = [r.metric for r in run.rankings if r.metric not in (GIVEN, ABLATION)]
    ledger.same("scores.csv: metrics", list(dict.fromkeys(row.metric for row in rows)), counted)
    for ranking in run.rankings:
        bins = [row for row in rows if row.metric == ranking.metric]
        if not bins:
            continue
        units = sum(entry["units"] for entry in run.manifest["ranked"] if ranking.metric in entry["metrics"])
        ledger.same(f"scores.csv: {ranking.metric}, all counts", sum(row.count for row in bins), units)
        estimated = any(weight.standard_error is not None for weight in ranking.weights)
        if run.spec.scope == "global" and not estimated:  # else places do not follow the scores that were counted
            listed = [weight.score for weight in ranking.weights if weight.score is not None]
            tail = [row for row in bins if row.sign == 1 and row.low is not None and row.low > min(listed)]
            found = [sum(row.low <= score < row.high for score in listed) for row in tail]  # type: ignore[operator]
            ledger.same(f"scores.csv: {ranking.metric}, the tail", [row.count for row in tail], found)


def _halves(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """What halves of the texts name is counted at the places that are shown, and can be."""
    largest = max(run.spec.topk)
    places = sorted({*run.spec.topk, min(SHOWN, largest)})
    said = run.summary.get("halves", [])
    ranked = list(dict.fromkeys(row["metric"] for row in said))
    names = [ranking.metric for ranking in run.rankings if ranking.metric in ranked]
    asked = [{"metric": metric, "k": k} for metric in names for k in places]
    ledger.same("summary.json: halves", [{"metric": row["metric"], "k": row["k"]} for row in said], asked)
    for row in said:
        least = row["first"], row["second"], row["common"]
        possible = 0 <= row["both"] <= min(least) and max(least) <= row["k"]
        ledger.same(f"summary.json: halves, {row['metric']} k={row['k']}, possible", possible, True)


def _damage(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """Baseline, damage, controls, p-values and verdicts follow from evaluation.csv."""
    summary, model = run.summary, run.manifest["model"]
    asked = list(remeasured.asked_of(run.spec, run.rankings, model["dtype"])) if run.spec.damages else []
    if not asked:
        ledger.same("summary.json: damage", summary["damage"], [])
        ledger.same("evaluation.csv: is there", run.has("evaluation.csv"), False)
        unknown.append("the baseline: without damage no table has the losses of the texts")
        return
    intact, cases = remeasured.losses(run.rows(tables.EVALUATION))
    published = run.rows(tables.PERTURBATION)
    points = {remeasured.case_of(point): point for point in published}
    wanted = [case for one in asked for case in one.cases]
    names = [str(case) for case in wanted]
    ledger.same("evaluation.csv: cases", [str(case) for case in cases], names)
    ledger.same("perturbation.csv: cases", [str(remeasured.case_of(point)) for point in published], names)
    baseline = _baseline(run, ledger, intact)
    floor = summary["numerical_floor"] or {"rounding": 0.0}
    reference = remeasured.reference_of(intact, float(floor["rounding"]), _rule_of_controls(run))
    found = []
    for one in asked:
        if not all(case in cases and case in points for case in one.cases):
            continue  # which are missing is said
        wrong = list(remeasured.misplaced(reference, one, cases))
        if not wrong:
            found.append(remeasured.compared(reference, one, cases, points))
        for case, why in wrong:
            ledger.same(f"evaluation.csv: {case}", why, "as docs/method.md has it")
    made = [damaged.point for entry in found for damaged in entry.damaged]
    for point in made:
        case = remeasured.case_of(point)
        ledger.same(f"perturbation.csv: {case}", *(_figures(row) for row in (points[case], point)))
        has_kl = run.spec.kl and point.selection == remeasured.CRITICAL
        for name in ("kl", "top1_agreement"):
            ledger.same(f"perturbation.csv: {case}, has {name}", getattr(point, name) is not None, has_kl)
        ledger.same(f"perturbation.csv: {case}, collapsed", bool(point.collapsed_at), not math.isfinite(point.nll))
    for entry in found:
        weights = len(run.top(entry.group[0], entry.group[1]))
        for damaged in entry.damaged if entry.comparison.structure == "weight" else ():
            where = f"perturbation.csv: {remeasured.case_of(damaged.point)}, weights"
            ledger.same(where, damaged.point.weights, weights)
    rows = separations(reference, found)
    groups = damage_groups(made, rows, verdicts(reference, baseline, found, rows))
    said = summary["damage"]
    if ledger.older:  # the rule is the same, its words may not be
        said, groups = ([{**group, "verdict": None} for group in some] for some in (said, groups))
    ledger.same("summary.json: damage", said, groups)
    unknown.append(
        f"the numerical floor ({floor['rounding']:.3g} nats per token), bits per byte, the vocabulary, KL divergence and the "
        "layers of a collapse: they are in no table"
    )


def _rule_of_controls(run: _Run) -> str:
    """By which rule the run measured draws of controls; the first runs did not say so."""
    rule = run.manifest.get("control_rule", SAMPLE)
    if rule not in (SAMPLE, ELIMINATION):
        raise NotFound(f"the rule of controls in {MANIFEST} is '{rule}'", hint="a later cwtool may know it")
    return str(rule)


def _baseline(run: _Run, ledger: Ledger, intact: Evaluation) -> Baseline:
    known = {f.name for f in dataclasses.fields(Baseline)}
    said = Baseline(**{name: value for name, value in run.summary["baseline"].items() if name in known})
    found = dataclasses.replace(
        said,
        nll=intact.nll,
        perplexity=intact.perplexity,
        sequences=len(intact.tokens),
        tokens=int(intact.tokens.sum()),
    )
    ledger.same("summary.json: baseline", to_plain(said), to_plain(found))
    ledger.same("summary.json: texts, damage", run.summary["texts"]["damage"], len(intact.tokens))
    return found


def _figures(point: DamagePoint) -> dict[str, Any]:
    return {name: getattr(point, name) for name in _FROM_LOSSES}


def _controls(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """Every draw of a control has as many weights as its critical set, no two the same."""
    asked = remeasured.asked_of(run.spec, run.rankings, run.manifest["model"]["dtype"]) if run.spec.damages else ()
    wanted: dict[tuple[str, int, str, int | None], list[TopWeight]] = {}
    for one in asked:
        for case in (case for draws in one.draws.values() for case in draws):
            top = run.top(one.comparison.metric, one.comparison.k)
            wanted[case.metric, one.comparison.k, case.selection, case.seed] = list(top)
    drawn: list[str] = []
    for key, rows in itertools.groupby(run.each_if_any(tables.CONTROLS), _draw_of):  # there may be millions of rows
        drawn.append(_draw_name(*key))
        targets, critical, name = [row.target for row in rows], wanted.get(key), f"controls.csv: {drawn[-1]}"
        if critical is None:
            continue
        ledger.same(f"{name}, weights", len(targets), len(critical))
        ledger.same(f"{name}, different weights", len(set(targets)), len(critical))
        if key[2] in _SAME_PARAMETERS:
            parameters = Counter(target.partition("[")[0] for target in targets)
            ledger.same(f"{name}, parameters", dict(parameters), dict(Counter(w.parameter for w in critical)))
    ledger.same("controls.csv: draws", drawn, [_draw_name(*key) for key in wanted])
    if wanted:
        unknown.append("whether controls were drawn as the seeds have it: `cwtool rerun` draws and measures them again")


def _draw_of(row: ControlDraw) -> tuple[str, int, str, int | None]:
    return row.metric, row.k, row.control, row.seed


def _draw_name(metric: str, k: int, control: str, seed: int | None) -> str:
    return f"{metric} k={k} {control}" + ("" if seed is None else f" seed {seed}")


def _interactions(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """Each weight's share is the damage of the set minus that without it, and its role follows."""
    rows = run.rows_if_any(interactions.TABLE)
    ledger.same("summary.json: interactions", run.summary.get("interactions"), to_plain(rows))
    if not rows:
        return
    points = {remeasured.case_of(point): point for point in run.rows(tables.PERTURBATION)}
    rounding = (run.summary["numerical_floor"] or {"rounding": 0.0})["rounding"]
    for row in rows:
        where = f"interactions.csv: {row.metric} k={row.k} {row.perturbation} {row.target}"
        joint = points[remeasured.Case(row.metric, row.k, row.perturbation, remeasured.CRITICAL, None)].delta_nll
        if math.isfinite(joint) and math.isfinite(row.without):
            ledger.same(f"{where}, share", row.share, joint - row.without)
        own = row.alone, row.alone_low, row.alone_high
        share = row.share, row.share_low, row.share_high
        ledger.same(f"{where}, role", row.role, role_of(own, share, row.without, joint, row.k, rounding))
    unknown.append("what each weight does alone, and the set without it: no table has these losses")


def _stability(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """The means of stability are those of its table."""
    rows = run.rows_if_any(stability.TABLE)
    ledger.same("summary.json: stability", run.summary.get("stability"), to_plain(stability_means(run.rankings, rows)))
    if rows:
        unknown.append("the rankings of the repeats, of which stability.csv has the agreement")


def _fidelity(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """Fidelity follows from the sampled units of its table."""
    found: list[Any] = []
    if run.has("fidelity.csv"):
        metrics = scored_metrics(run.content("fidelity.csv"))
        found = fidelities(run.rows(fidelity_table(metrics)), metrics)
        unknown.append("the measured changes in fidelity.csv: no table has these losses")
    ledger.same("summary.json: fidelity", run.summary.get("fidelity"), to_plain(found))


def _ablation(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """The exact ranking is that of its candidates."""
    rows = run.rows_if_any(ablation.TABLE)
    ledger.same("summary.json: ablation", bool(run.summary.get("ablation")), bool(rows))
    if not rows:
        return
    ledger.same("summary.json: ablation, candidates", run.summary["ablation"]["candidates"], len(rows))
    ledger.same("ablation.csv: place", [row.place for row in rows], list(range(1, len(rows) + 1)))
    ranked = next(ranking for ranking in run.rankings if ranking.metric == ABLATION).weights
    exact = [row for row in rows if row.exact]
    said = [{"target": w.target, "score": w.score} for w in ranked]
    found = [{"target": row.target, "score": row.delta_nll} for row in exact[: len(ranked)]]
    ledger.same("topk_ablation.csv:", said, found)
    descending = sorted((row.delta_nll for row in exact), reverse=True)
    ledger.same("ablation.csv: order", [row.delta_nll for row in exact], descending)
    unknown.append("the changes in ablation.csv: no table has the losses of the scoring texts")


def _critical_set(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """The smallest set is that of its table, and reaches its factor or not."""
    rows = run.rows_if_any(critical_set.TABLE)
    said = run.summary.get("critical_set") or {"steps": [], "reached": False, "factor": run.spec.critical_set}
    ledger.same("summary.json: critical_set, steps", said["steps"], to_plain(rows))
    ledger.same("summary.json: critical_set, factor", said["factor"], run.spec.critical_set)
    reached = bool(rows) and rows[-1].scoring_ratio >= said["factor"]
    ledger.same("summary.json: critical_set, reached", said["reached"], reached)
    for row in rows:
        where = f"critical_set.csv: {row.size} weights, perplexity_ratio"
        ledger.same(where, row.perplexity_ratio, exp(row.delta_nll))


def _spikes(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """The spikes of the summary are those of their tables."""
    rows = run.rows_if_any(spike_removal.SPIKES)
    ledger.same("summary.json: spikes", run.summary.get("spikes", []), to_plain(rows[:SHOWN]))
    steps = run.rows_if_any(spike_removal.TABLE)
    removal = run.summary.get("spike_removal") or {"steps": []}
    ledger.same("summary.json: spike_removal, steps", removal["steps"], to_plain(steps))
    if rows or steps:
        unknown.append("the outputs behind spikes: they take the model")


def _tasks(run: _Run, ledger: Ledger, unknown: list[str]) -> None:
    """What tasks come to follows from the scores of their documents, in the cases that damage names."""
    said = run.summary.get("task_comparisons", [])
    rows = run.rows_if_any(tasks.TABLE)
    if rows:
        points = {remeasured.case_of(point): point for point in run.rows_if_any(tables.PERTURBATION)}
        asked = list(remeasured.asked_of(run.spec, run.rankings, run.manifest["model"]["dtype"])) if points else []
        wanted = [str(case) for case in remeasured.cases_of_tasks(asked, points)]
        cases = list(dict.fromkeys(str(remeasured.case_of(row)) for row in rows))
        ledger.same("tasks.csv: cases", cases, wanted)
    found = to_plain(list(tasks.comparisons(rows, run.spec.seed)))
    ledger.same("summary.json: task_comparisons", said, found)
    if rows:
        unknown.append("the scores of documents in tasks.csv: they take the model and the data of the tasks")


_PARTS: tuple[Callable[[_Run, Ledger, list[str]], None], ...] = (
    _manifest, _rankings, _scores, _halves, _damage, _controls, _interactions, _stability, _fidelity, _ablation,
    _critical_set, _spikes, _tasks,
)  # fmt: skip

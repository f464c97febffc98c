"""What a run or a study cannot say: each sentence only where it is true of it. torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.p_values import LEVEL
from cwa_engine.damage.elimination import LEAST_DRAWS
from cwa_engine.damage.separation import LEAST_TEXTS
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import DamagePoint
from cwa_engine.studies.registration import standing
from cwa_engine.studies.report import StudyReport

FEW_TEXTS = 50  # below it an interval rests on so few texts that a reader must be told
FEW_DRAWS = 99  # below it p cannot be smaller than 0.01


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that cannot be said. Of a study, sentences of the same kind are told together."""

    kind: str
    sentence: str


def limitations(report: RunReport | StudyReport, registered: bool | None = None) -> tuple[str, ...]:
    """What it cannot say, in sentences; the most general first.

    `registered` is whether a study's registration holds, where that is read back instead of looked up anew.
    """
    if isinstance(report, RunReport):
        return tuple(limit.sentence for part in (_one_model, _one_text_set, *_PARTS) for limit in part(report))
    return tuple(_of_a_study(report, registered))


def _one_model(report: RunReport) -> Iterator[Limit]:
    yield Limit("model", "One model was analysed: nothing is said about other models, or about another training of it.")


def _one_text_set(report: RunReport) -> Iterator[Limit]:
    yield Limit(
        "texts", "One set of texts was used: on other texts, other weights may be critical and their damage may differ."
    )


def _loading(report: RunReport) -> Iterator[Limit]:
    model = report.model
    if model.notes:
        yield Limit("loading", f"The weights are not in all respects those of the files: {'; '.join(model.notes)}.")
    if not model.revision and not model.files:
        yield Limit("unknown weights", "Neither a commit nor hashes of files say which weights were analysed.")
    if model.dtype in ("bfloat16", "float16"):
        yield Limit("dtype", f"The model computed in {model.dtype}: scores and losses have the rounding of that dtype.")


def _baseline(report: RunReport) -> Iterator[Limit]:
    texts, baseline = report.texts, report.baseline
    if baseline.is_guessing:
        yield Limit(
            "guessing", "The intact model is no better than guessing on these texts, so damage to it says nothing."
        )
    if texts.shared:
        yield Limit("shared text", "There was one text: weights were scored and losses measured on the same tokens.")
    if texts.overlap:
        yield Limit("overlap", f"{texts.overlap} texts were both scored and measured.")
    if baseline.sequences < FEW_TEXTS:
        noun = ("window" if texts.packed else "text") + "s" * (baseline.sequences != 1)
        yield Limit(
            "few texts", f"Losses were measured on {baseline.sequences} {noun}: intervals rest on these few alone."
        )
    if texts.truncated:
        yield Limit(
            "cut texts", f"{texts.truncated} texts were cut at {texts.seq_len} tokens; what followed was not read."
        )
    if texts.too_short:
        yield Limit("short texts", f"{len(texts.too_short)} texts were left out, as no token of them could be scored.")
    if baseline.bits_per_byte is None:
        yield Limit("bytes", "Bits per byte are not known: perplexities of another tokenizer cannot be compared.")


def _ranking(report: RunReport) -> Iterator[Limit]:
    if not report.metrics:
        return
    weak = [row for row in report.summary.halves if row.common < row.k / 2]
    if weak:
        worst = min(weak, key=lambda row: row.common / row.k)
        yield Limit(
            "rankings by halves",
            f"Of {len(weak)} of {len(report.summary.halves)} top lists the two halves of the scoring texts have less than "
            f"half in common ({worst.metric}, k = {worst.k}: {worst.common}): other texts would name other weights.",
        )
    if not report.spec.stability:
        yield Limit("stability", "Whether resampled texts would rank the same weights first was not measured.")


def _damage(report: RunReport) -> Iterator[Limit]:
    if not report.summary.damage:
        yield Limit(
            "no damage", "No damage was measured: a high score does not show that the model depends on a weight."
        )
        return
    spec = report.spec
    if spec.perturbations == ("zero",) and not spec.dose:
        yield Limit("zeroing", "Weights were zeroed and changed in no other way; zeroing alone overstates damage.")
    points = _critical(report)
    if any(point.weights > 1 for point in points) and not spec.individually:
        yield Limit("together", "Weights were damaged together: what each of them does alone was not measured.")
    if spec.fast_perturbation:
        yield Limit("a quarter", "Damage was measured on a quarter of the evaluation texts.")
    collapsed = [point for point in points if not math.isfinite(point.nll)]
    if collapsed:
        yield Limit(
            "collapse", f"{_of(collapsed, points)} made the loss not finite: these have no size and no interval."
        )
    finite = [point for point in points if math.isfinite(point.delta_nll)]
    wide = [point for point in finite if not (point.delta_low > 0 or point.delta_high < 0)]
    if wide:
        yield Limit("intervals", f"{_of(wide, points)} have a 95 % interval that contains no change of the loss.")
    floor = report.floor
    lost = [point for point in finite if floor and abs(point.delta_nll) <= floor.rounding]
    if lost and floor:
        yield Limit(
            "rounding",
            f"{_of(lost, points)} change the loss by no more than rounding does ({floor.rounding:.2g} nats per token).",
        )
    if not spec.tasks:
        yield Limit("perplexity", "Damage was measured as loss on texts alone, not on downstream tasks.")


def _critical(report: RunReport) -> list[DamagePoint]:
    return [group.critical for group in report.summary.damage if group.critical]


def _of(some: Sequence[DamagePoint], points: Sequence[DamagePoint]) -> str:
    return f"{len(some)} of {len(points)} damaged critical sets"


def _tests(report: RunReport) -> Iterator[Limit]:
    if not report.summary.damage:
        return
    rows, verdicts = report.separations, report.verdicts
    if not rows:
        yield Limit(
            "no controls", "Nothing was compared with controls: as much damage by other weights is not excluded."
        )
        return
    random = [row for row in rows if CONTROLS[row.control].is_random]
    draws = min((row.draws for row in random), default=0)
    if not random:
        yield Limit("no random control", "No control was drawn at random, so there is no p-value.")
    elif draws < LEAST_DRAWS:
        yield Limit(
            "few draws", f"{draws} draws of a control are too few for a p-value; {LEAST_DRAWS} can show {LEVEL:g}."
        )
    elif draws < FEW_DRAWS:
        yield Limit("few draws", f"With {draws} draws of a control p cannot be smaller than {1 / (1 + draws):.2g}.")
    if report.baseline.sequences < LEAST_TEXTS:
        yield Limit(
            "too few texts",
            f"Nothing was tested: {LEAST_TEXTS} texts are needed, and {report.baseline.sequences} were measured.",
        )
    untested = [verdict for verdict in verdicts if verdict.outcome == "not tested"]
    if untested:
        yield Limit("not tested", f"{len(untested)} of {len(verdicts)} critical sets were not tested against controls.")
    families = {(v.metric, v.perturbation) for v in verdicts if v.outcome != "not tested"}
    if len(families) > 1:
        yield Limit(
            "several tests",
            f"{len(families)} sequences of tests, one for each metric and perturbation, were each made at p <= {LEVEL:g}, "
            "without a correction for their number.",
        )


def _record(report: RunReport) -> Iterator[Limit]:
    if report.fingerprint is None:
        yield Limit("no hashes", "An early version of cwtool wrote the run: not all of its files have hashes.")


_PARTS: tuple[Callable[[RunReport], Iterator[Limit]], ...] = (_loading, _baseline, _ranking, _damage, _tests, _record)


def _of_a_study(report: StudyReport, registered: bool | None) -> Iterator[str]:
    runs = [run.report for run in report.runs]
    missing = len(report.progress) - len(runs)
    if missing:
        yield f"{missing} of the {len(report.progress)} runs of the study are not done, and the answer is without them."
    if not (standing(report.folder, report.runs).holds if registered is None else registered):
        yield "The study was not registered before its first run, or is not as it was registered."
    if report.answer:
        yield from (f"Not concluded: {reason}" for reason in report.answer.refused)
    if not runs:
        return
    if len({(run.model.name, run.model.revision, tuple(run.model.files.values())) for run in runs}) == 1:
        yield next(_one_model(runs[0])).sentence
    if len({run.texts.sha256 for run in runs}) == 1:
        yield next(_one_text_set(runs[0])).sentence
    yield from _of_its_runs(runs)


def _of_its_runs(runs: Sequence[RunReport]) -> Iterator[str]:
    found: dict[str, dict[int, str]] = {}
    for number, run in enumerate(runs, start=1):
        for limit in (limit for part in _PARTS for limit in part(run)):
            found.setdefault(limit.kind, {})[number] = limit.sentence
    for sentences in found.values():
        numbers, first = list(sentences), next(iter(sentences.values()))
        same = len(set(sentences.values())) == 1
        if same and len(numbers) == len(runs):
            yield first
        else:
            which = f"{len(numbers)} of {len(runs)} runs ({', '.join(map(str, numbers))})"
            yield f"In {which}: {first}" if same else f"In {which}, for example in run {numbers[0]}: {first}"

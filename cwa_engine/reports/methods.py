"""How a run or a study was made, as a paragraph for a paper's methods section, and in a line. torch-free.

All of it is read from the reports: what is not in a run's files is not said. Texts are plain, without any markup. Folders of
the machine are not named: of a path the last part alone is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.p_values import LEVEL
from cwa_engine.damage.elimination import BEHIND, LEAST_DRAWS, LEAST_KEPT
from cwa_engine.damage.separation import LEAST_TEXTS
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.methods.metrics import METRICS
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.questions.registry import QUESTIONS
from cwa_engine.records.run_report import RunReport
from cwa_engine.reports.limitations import limitations
from cwa_engine.rows import GIVEN, MATRICES
from cwa_engine.studies.registration import standing
from cwa_engine.studies.registry import study_question
from cwa_engine.studies.report import StudyReport

__all__ = ["file_name", "limitations", "methods_paragraph", "protocol_line"]

Report = RunReport | StudyReport
_SCOPES = {
    "global": "",
    "per_layer": " of each decoder block",
    "per_parameter": " of each parameter",
    "per_component": " of each component",
}
_LIBRARIES = {"python": "Python", "torch": "PyTorch", "transformers": "Transformers"}


def methods_paragraph(report: Report, registration: str | None = None) -> str:
    """What was done, in the words of a methods section. Of a study what its runs have in common is said once.

    `registration` is what is said of a study's registration, where that is read back instead of looked up anew.
    """
    if isinstance(report, RunReport):
        return " ".join(said for part in _PARTS for said in part(report))
    runs = [run.report for run in report.runs]
    return " ".join([*_of_the_study(report), *_of_its_runs(runs), *_of_the_answer(report, registration)])


def protocol_line(report: Report) -> str:
    """Texts, protocol, dtype and how many texts were measured, in one line, as a caption has it."""
    if isinstance(report, RunReport):
        return _protocol(report)
    lines = list(dict.fromkeys(_protocol(run.report) for run in report.runs))
    if len(lines) > 1:
        return f"{len(lines)} protocols: {' | '.join(lines)}"
    return lines[0] if lines else "no run of the study is done"


def file_name(name: str) -> str:
    """The last part of a path; any other name as it is, so that of the Hub stays whole."""
    return PurePath(name).name or name if name.startswith(("/", "~", ".")) else name


def _protocol(report: RunReport) -> str:
    texts = report.texts
    measured = f"{report.baseline.sequences:,} {_sequences(report)}"
    source = f"{file_name(texts.source)} (SHA-256 {texts.sha256[:12]})"
    return f"{source}, {measured} measured; {report.baseline.protocol}; {report.model.dtype}"


def _sequences(report: RunReport) -> str:
    noun = "window" if report.texts.packed else "text"
    return noun if report.baseline.sequences == 1 else f"{noun}s"


def _model(report: RunReport) -> Iterator[str]:
    model = report.model
    commit = f" at commit {model.revision}" if model.revision else ""
    blocks = f" in {report.layers} decoder blocks" if report.layers else ""
    where = f" ({model.device_name})" if model.device_name else ""
    yield (
        f"We analysed {file_name(model.name)}{commit} ({model.parameters:,} parameters{blocks}) in {model.dtype} on "
        f"{model.device}{where}."
    )
    if not model.revision and model.files:
        digests = ", ".join(f"{name} {digest}" for name, digest in sorted(model.files.items()))
        yield f"Its weights are those of the files with these SHA-256: {digests}."
    for note in model.notes:
        yield f"On loading: {note}."


def _versions(report: RunReport) -> Iterator[str]:
    libraries = ", ".join(
        f"{shown} {report.versions[name]}" for name, shown in _LIBRARIES.items() if report.versions.get(name)
    )
    yield f"We used cwtool {report.versions.get('cwtool', 'of an unknown version')}" + (
        f" with {libraries}." if libraries else "."
    )


def _texts(report: RunReport) -> Iterator[str]:
    texts = report.texts
    count = f"{texts.texts:,} different text{'s' * (texts.texts != 1)}"
    if texts.shared:
        halves = "the only text was both scored and measured"
    else:
        halves = (
            f"weights were scored on {texts.scoring:,} of them and losses measured on others ({texts.evaluation:,}), with "
            f"{texts.overlap or 'no'} text on both sides"
        )
    yield f"The texts are {file_name(texts.source)} ({count}, SHA-256 {texts.sha256}): {halves}."


def _measure(report: RunReport) -> Iterator[str]:
    baseline = report.baseline
    yield (
        "Perplexity is the exponential of the mean negative log-likelihood of a token, padding excluded "
        f"({baseline.protocol}; {baseline.tokens:,} scored tokens in {baseline.sequences:,} {_sequences(report)})."
    )


def _ranking(report: RunReport) -> Iterator[str]:
    spec = report.spec
    unit = spec.structure
    if spec.weights:
        yield f"{len(spec.weights)} {unit}{'s' * (len(spec.weights) != 1)} were given by name."
    names = list(dict.fromkeys(name.removesuffix(MATRICES) for name in report.metrics))
    ranked = [name for name in names if name != GIVEN]
    if not ranked:
        return
    sizes = ", ".join(f"{k:,}" for k in spec.topk)
    metrics = "; ".join(_metric(name) for name in ranked)
    yield (
        f"We ranked {report.summary.eligible:,} weights{_as_structure(unit)} by {metrics}, and took the k = {sizes} "
        f"highest{_SCOPES[spec.scope]} as critical sets."
    )
    if any(name.endswith(MATRICES) for name in report.metrics):
        yield "The matrices of the decoder blocks were also ranked on their own."
    if spec.include or spec.exclude:
        chosen = [
            f"{word} {', '.join(globs)}" for word, globs in (("only", spec.include), ("not", spec.exclude)) if globs
        ]
        yield f"Parameters were restricted by name: {'; '.join(chosen)}."


def _as_structure(unit: str) -> str:
    return "" if unit == "weight" else f" as {unit}s"


def _metric(name: str) -> str:
    try:
        metric = METRICS[name]
    except InvalidInput:  # a run of another version may have metrics that this one does not know
        return name
    return f"{name} ({metric.formula}; {metric.source})" if metric.formula else f"{name} ({metric.source})"


def _damage(report: RunReport) -> Iterator[str]:
    spec = report.spec
    if not report.summary.damage:
        yield "No damage was measured."
        return
    ways = "; ".join(f"{name} ({_lower(PERTURBATIONS[name].summary)})" for name in spec.perturbations)
    changed = f"Each critical set was changed as a whole: {ways}; its" if ways else "The"
    yield (
        f"{changed} damage is the change of the loss in nats per token, paired by {_sequences(report).rstrip('s')} on "
        f"{report.baseline.sequences:,} {_sequences(report)}, with a 95 % interval by the leave-one-out jackknife with "
        "Student's t, widened by 1 + 2/n."
    )
    if spec.kl:
        yield "The KL divergence from the intact model and the agreement of likeliest tokens were measured too."
    if "gaussian_noise" in spec.perturbations:
        yield f"The noise had {spec.noise_scale:g} times the standard deviation of the parameter."
    if "scale" in spec.perturbations:
        yield f"The factor of scale was {spec.scale_factor:g}."
    if "quantize" in spec.perturbations:
        yield f"Weights were quantised to {spec.bits} bits."
    if "bit_flip" in spec.perturbations:
        places: dict[int | str | None, str] = {"all": "each bit in turn", None: "a drawn bit of each weight"}
        yield f"Flipped was {places.get(spec.bit, f'bit {spec.bit}')}."


def _floor(report: RunReport) -> Iterator[str]:
    if report.floor and report.floor.rounding:
        yield f"Rounding alone changes the loss by up to {report.floor.rounding:.2g} nats per token."


def _controls(report: RunReport) -> Iterator[str]:
    rows = report.separations
    if not rows:
        return
    draws = {row.control: max(each.draws for each in rows if each.control == row.control) for row in rows}
    described = "; ".join(
        f"{name} ({draws[name]} draw{'s' * (draws[name] != 1)}: {_lower(CONTROLS[name].summary)})" for name in draws
    )
    sample = max(row.texts for row in rows)
    if any(row.largest_texts is None for row in rows):  # a run of an early version
        yield (
            f"Controls were {described}. All draws were measured on the same {sample:,} {_sequences(report)}, and the draw of "
            f"each control that changes the loss most on all of them."
        )
        order = f"changes the loss more than so many draws on the same texts that p <= {LEVEL:g} (exact rank test"
        rival = "the worst draw on all texts"
    else:
        yield (
            f"Controls were {described}. The draws of a control and the critical set were compared on growing parts of "
            f"{sample:,} {_sequences(report)}; those that changed losses, by the root mean square over tokens, less than "
            f"1/{BEHIND} as much as the first were left out, as long as {LEAST_KEPT} went on. The leading draw, ahead of the "
            "others, was measured on more texts, up to all, until it was clear whether the critical set changes the loss more."
        )
        order = f"comes out so far ahead of the draws that p <= {LEVEL:g} (exact rank test"
        rival = "the leading draw"
    yield (
        f"A critical set counts as distinguishable from its controls if it {order}, for which {LEAST_DRAWS} draws are needed), "
        f"changes the loss more than {rival}, and more than rounding does. Sets of several sizes were "
        "tested from the largest on, and no further once one failed; with fewer draws, with fewer than "
        f"{LEAST_TEXTS} texts or with a model that guesses, nothing is tested."
    )


def _questions(report: RunReport) -> Iterator[str]:
    asked = [question.asks for question in QUESTIONS if question.asked(report.spec)]
    if asked:
        yield f"Also asked: {' '.join(asked)}"


def _seeds(report: RunReport) -> Iterator[str]:
    spec = report.spec
    drawn = [row.control for row in report.separations if CONTROLS[row.control].is_random]
    controls = ""
    if drawn:
        seeds = sorted({row.seed for row in report.damage if row.selection in drawn and row.seed is not None})
        controls = f", those of the control draws {seeds[0]} to {seeds[-1]}" if seeds else ""
    yield f"The seed was {spec.seed}{controls}."


def _identity(report: RunReport) -> Iterator[str]:
    fingerprint = f" (fingerprint {report.fingerprint})" if report.fingerprint else ""
    yield f"The run is {report.run_id}{fingerprint}."


_SHARED: tuple[Callable[[RunReport], Iterator[str]], ...] = (
    _model, _versions, _texts, _measure, _ranking, _damage, _floor, _controls, _questions, _seeds,
)  # fmt: skip
_PARTS = (*_SHARED, _identity)


def _of_the_study(report: StudyReport) -> Iterator[str]:
    study, cells = report.folder.study, report.folder.cells
    if study.question:
        yield f"The study asks: {study_question(study.question).asks}"
    grid = "; ".join(f"{name}: {', '.join(map(_shown, values))}" for name, values in study.grid.items())
    further = len(cells) - len(report.folder.grid)
    yield (
        f"The study has {len(cells)} run{'s' * (len(cells) != 1)}, of which {len(report.runs)} are done, over {grid}"
        + (f"; {further} of them were chosen by the reports of the others." if further else ".")
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_shown, value)) or "none"
    return file_name(str(value))


def _of_its_runs(runs: Sequence[RunReport]) -> Iterator[str]:
    """What all runs have in common once, and what differs with the numbers of the runs that it is true of."""
    for part in _SHARED if runs else ():
        numbers: dict[str, list[int]] = {}
        for number, run in enumerate(runs, start=1):
            numbers.setdefault(" ".join(part(run)), []).append(number)
        for said, of in numbers.items():
            if said:
                yield said if len(numbers) == 1 else f"{_runs(of)}: {said}"


def _runs(numbers: Sequence[int]) -> str:
    return f"Run{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _of_the_answer(report: StudyReport, registration: str | None) -> Iterator[str]:
    if report.answer and report.answer.rule:
        yield report.answer.rule if report.answer.rule.endswith(".") else f"{report.answer.rule}."
    said = standing(report.folder, report.runs).sentence if registration is None else registration
    yield f"The study is {report.folder.id}, {said}."


def _lower(sentence: str) -> str:
    """A summary as a part of a sentence."""
    return sentence[:1].lower() + sentence[1:].rstrip(".")

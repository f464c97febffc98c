"""In what two runs differ, and what of them may therefore not be compared. torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cwa_engine.options import option_fields
from cwa_engine.records.run_report import RunReport
from cwa_engine.spec import RunSpec

# Options that change what a perturbation does, and no other.
_SETTINGS = {
    "gaussian_noise": ("noise_scale", "seed"), "scale": ("scale_factor",), "bit_flip": ("bit", "seed"), "quantize": ("bits",),
}  # fmt: skip
# Change no result, or are told among the facts.
_IDLE = ("model", "revision", "output", "data_file", "data_name", "dataset")

NATS, BITS = "nats per token", "bits per byte"
# What losses are measured on and how, as reasons name it.
TEXTS_MEASURED, PROTOCOL, BEGINNINGS = "texts measured", "protocol", "beginnings of a sequence"
TOKENS_MEASURED, BYTES_MEASURED = "tokens measured", "bytes measured"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not the same in all runs. `values` has one for each run, in their order."""

    part: str  # "model", "texts", "options" or "versions"
    what: str
    values: tuple[str, ...]


def differences(reports: Sequence[RunReport]) -> Iterator[Difference]:
    """Everything known beforehand that is not the same in all runs: models, texts, options, versions."""
    for part, what, values in (*_facts(reports), *_options(reports), *_versions(reports)):
        if len(set(values)) > 1:
            yield Difference(part, what, tuple(values))


def _facts(reports: Sequence[RunReport]) -> Iterator[tuple[str, str, list[str]]]:
    yield "model", "model", [report.model.name for report in reports]
    yield "model", "revision", [report.model.revision or "-" for report in reports]
    yield "model", "files", [_digest(report) for report in reports]
    yield "model", "weights", [f"{report.model.parameters:,}" for report in reports]
    yield "model", "dtype", [report.model.dtype for report in reports]
    yield "model", "device", [report.model.device for report in reports]
    yield "model", "vocabulary", [f"{report.baseline.vocabulary:,}" for report in reports]
    yield "texts", "source", [report.texts.source for report in reports]
    yield "texts", "scored", [_texts(r.texts.scoring, r.texts.scoring_sha256) for r in reports]
    yield (
        "texts",
        "measured",
        [_texts(r.texts.damage or r.texts.evaluation, r.texts.evaluation_sha256) for r in reports],
    )
    yield "texts", "protocol", [report.baseline.protocol for report in reports]
    yield "texts", "tokens measured", [f"{report.baseline.tokens:,}" for report in reports]


def _options(reports: Sequence[RunReport]) -> Iterator[tuple[str, str, list[str]]]:
    for name, entry in option_fields(RunSpec).items():
        if name not in _IDLE:
            yield "options", entry.flag, [_option(getattr(report.spec, name)) for report in reports]


def _versions(reports: Sequence[RunReport]) -> Iterator[tuple[str, str, list[str]]]:
    for name in sorted({name for report in reports for name in report.versions}):
        yield "versions", name, [report.versions.get(name, "-") for report in reports]


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _texts(count: int, sha256: str) -> str:
    return f"{count} ({sha256[:8]})" if sha256 else str(count)


def _digest(report: RunReport) -> str:
    """The first letters of the hashes of the model's files, which tell two versions of a model apart."""
    return " ".join(dict.fromkeys(digest[:8] for _, digest in sorted(report.model.files.items()))) or "-"


def same_model(first: RunReport, second: RunReport) -> bool:
    """Whether both runs had the same weights: files with the same hashes. Of a model that was in memory nobody knows."""
    return bool(first.model.files) and first.model.files == second.model.files


def same_scoring(first: RunReport, second: RunReport) -> bool:
    """Whether both runs scored the same texts, cut in the same way."""
    return _of_texts(first, first.texts.scoring_sha256) == _of_texts(second, second.texts.scoring_sha256)


def same_source(first: RunReport, second: RunReport) -> bool:
    """Whether the texts of both runs are from one file or dataset, so that one may have scored texts of the other."""
    sources = ((run.texts.source, run.spec.data_file, run.spec.dataset) for run in (first, second))
    return len(set(sources)) == 1


def same_measuring(first: RunReport, second: RunReport) -> bool:
    """Whether both runs measured damage on the same texts, cut in the same way."""
    used = ((run.texts.damage, _of_texts(run, run.texts.evaluation_sha256)) for run in (first, second))
    return len(set(used)) == 1


def _of_texts(report: RunReport, sha256: str) -> tuple[object, ...]:
    texts = report.texts
    return sha256, texts.seq_len, texts.bos, texts.packed


def other_weights(first: RunReport, second: RunReport) -> str:
    """Why a weight of one run is none of the other's; "" where weights of the same name are the same place."""
    one, other = first.model.parameters, second.model.parameters
    if one != other:
        return f"the models differ in size: {one:,} and {other:,} weights"
    if same_model(first, second):
        return ""
    one, other = first.baseline.vocabulary, second.baseline.vocabulary
    if one != other:
        return f"the models differ in vocabulary: {one:,} and {other:,} tokens"
    one, other = first.baseline.tokens, second.baseline.tokens
    if same_measuring(first, second) and one != other:
        return f"the tokenizers differ: they make {one:,} and {other:,} tokens of the same texts"
    read, read_too = _bytes_measured(first, second)
    if same_measuring(first, second) and read != read_too:
        return f"the tokenizers differ: as many tokens of the same texts are {read} and {read_too} bytes"
    units = {row.parameter: row.units for row in first.ranked}
    shared = [row for row in second.ranked if row.parameter in units]
    if first.ranked and second.ranked and first.spec.structure == second.spec.structure:
        if not shared:
            return "no parameter has the same name in both models"
        if changed := [row.parameter for row in shared if row.units != units[row.parameter]]:
            return f"the models differ in shape: {changed[0]} is not of the same size"
    return ""


def other_rankings(first: RunReport, second: RunReport) -> str:
    """Why the lists of the two runs are not lists of the same things; "" where they are."""
    for name, what in (("structure", "rank"), ("scope", "take the top k")):
        one, other = getattr(first.spec, name), getattr(second.spec, name)
        if one != other:
            return f"the runs {what} by {name}: one by {one}, the other by {other}"
    return ""


def other_measuring(first: RunReport, second: RunReport) -> tuple[str, ...]:
    """Why the losses of two runs, in nats per token, are not of one kind, a reason each; empty where they are."""
    return tuple(_unlike(first, second).values())


def _unlike(first: RunReport, second: RunReport) -> dict[str, str]:
    """What was not the same when losses were measured -> the reason in words."""
    facts = (
        (TEXTS_MEASURED, [_texts(r.texts.damage, r.texts.evaluation_sha256) for r in (first, second)]),
        (PROTOCOL, [r.baseline.protocol for r in (first, second)]),
        (BEGINNINGS, [r.texts.bos or "none" for r in (first, second)]),
        (TOKENS_MEASURED, [f"{r.baseline.tokens:,}" for r in (first, second)]),
        (BYTES_MEASURED, _bytes_measured(first, second)),
        ("dtype", [r.model.dtype for r in (first, second)]),
    )
    return {what: f"other {what}: {one} and {other}" for what, (one, other) in facts if one != other}


def _bytes_measured(*reports: RunReport) -> list[str]:
    found = [report.baseline.scored_bytes for report in reports]
    return ["not known" if None in found else f"{count:,}" for count in found]


@dataclass(frozen=True, slots=True)
class Pairing:
    """How the damage of two runs is set against each other.

    `paired` where both measured the same texts: then text by text. `reasons` say why a difference is no fair one; it is then
    given only by force. Between tokenizers the unit is bits per byte, where both runs know it.
    """

    unit: str  # NATS or BITS
    paired: bool
    reasons: tuple[str, ...]


def pairing(first: RunReport, second: RunReport) -> Pairing:
    """How the changes of the loss in two runs may be subtracted."""
    unlike = _unlike(first, second)
    same_texts = not {TEXTS_MEASURED, PROTOCOL} & unlike.keys()
    bits = _other_tokenizers(first, second, unlike) and all(r.baseline.bits_per_byte for r in (first, second))
    if bits:  # what a byte costs does not depend on the tokens
        for what in (TOKENS_MEASURED, BYTES_MEASURED, BEGINNINGS):
            unlike.pop(what, None)
        if same_texts and first.texts.packed:
            unlike["windows"] = "windows of tokens are other texts with another tokenizer"
            same_texts = False
        elif same_texts and (first.texts.truncated or second.texts.truncated):
            unlike["ends"] = f"some texts were cut at {first.texts.seq_len} tokens, which is another place in each"
    reasons = (*unlike.values(), *filter(None, [other_rankings(first, second)]))
    return Pairing(BITS if bits else NATS, same_texts, reasons)


def _other_tokenizers(first: RunReport, second: RunReport, unlike: Mapping[str, str]) -> bool:
    """Whether other numbers of tokens or bytes come of other tokenizers, not of other texts or options."""
    if not {TOKENS_MEASURED, BYTES_MEASURED} & unlike.keys() or first.spec.bos != second.spec.bos:
        return False
    other_vocabulary = first.baseline.vocabulary != second.baseline.vocabulary
    return other_vocabulary or not {TEXTS_MEASURED, PROTOCOL} & unlike.keys()


def kind_of(perturbation: str) -> str:
    """What was asked for, of how a case is called: `bit_flip 3` is a kind of `bit_flip`."""
    return perturbation.split(" ", maxsplit=1)[0]


def other_settings(first: RunReport, second: RunReport) -> dict[str, tuple[str, ...]]:
    """Perturbation -> why it does not do the same in both runs; without those that do, or that one run did not ask for."""
    found = {}
    for perturbation in set(first.spec.perturbations) & set(second.spec.perturbations):
        values = {
            f"--{name.replace('_', '-')}": [_option(getattr(run.spec, name)) for run in (first, second)]
            for name in _SETTINGS.get(perturbation, ())
        }
        reasons = tuple(f"other {flag}: {one} and {other}" for flag, (one, other) in values.items() if one != other)
        if reasons:
            found[perturbation] = reasons
    return dict(sorted(found.items()))

"""The report of a finished run: what was measured, the top weights, the damage, and whether it means anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.base.p_values import shown_p
from cwa_engine.questions.ablation import cost_sentence
from cwa_engine.records.run_summary import DamageSummary, RunSummary
from cwa_engine.rows import (
    GIVEN,
    MATRICES,
    MOST_TIMES,
    Baseline,
    DamagePoint,
    HalfOverlap,
    Separation,
    TopWeight,
    exp,
    to_plain,
)
from cwa_tui.cli.lines import Field, LineTable, Row
from cwa_tui.tables.answers import (
    TABLE,
    VERDICT_STYLES,
    critical_set_table,
    fidelity_table,
    floor_sentence,
    interactions_table,
    spike_removal_table,
    spikes_table,
    stability_table,
    tasks_table,
)
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

FEW_TEXTS = 16  # below which nothing is tested


def run_report(summary: RunSummary, folder: str, fingerprint: str | None = None) -> RenderableType:
    """All that a finished run has to say: what was measured, the top weights, the damage, where the files are."""
    parts: list[RenderableType] = [_headline(summary)]
    for ranking in summary.rankings:
        parts += ["", topk_table(ranking.metric, ranking.top)]
        halves = [row for row in summary.halves if row.metric == ranking.metric]
        parts += [Text(_halves(row), style="dim") for row in halves]
    if summary.spikes:
        parts += ["", spikes_table(summary.spikes)]
    if summary.spike_removal:
        parts += ["", spike_removal_table(summary.spike_removal)]
    if summary.stability:
        parts += ["", stability_table(summary.stability)]
    compared = [group for group in summary.damage if group.controls]
    sweeps = [group for group in summary.damage if not group.controls]
    if compared:
        parts += ["", _damage(summary, compared), "", _against_controls(summary, compared)]
    if sweeps:
        parts += ["", _sweeps(summary, sweeps)]
    if summary.interactions:
        parts += ["", interactions_table(summary.interactions)]
    if summary.fidelity:
        parts += ["", fidelity_table(summary.fidelity)]
    if summary.critical_set:
        parts += ["", critical_set_table(summary.critical_set)]
    if summary.ablation:
        parts += ["", Text(cost_sentence(to_plain(summary.ablation)), style="dim")]
    if summary.task_comparisons:
        parts += ["", tasks_table(summary.task_comparisons)]
    if summary.damage:
        parts += ["", *_notes(summary)]
    sentences = [
        words(verdict.sentence, VERDICT_STYLES[verdict.outcome]) for group in compared if (verdict := group.judged)
    ]
    parts += ["", *sentences] if sentences else []
    parts += ["", words(f"texts: {summary.texts.source}\nfiles: {folder}", overflow="fold")]
    parts += [words(f"fingerprint: {fingerprint}", overflow="fold")] if fingerprint else []
    return Group(*parts)


def _headline(summary: RunSummary) -> Text:
    model, texts, baseline = summary.model, summary.texts, summary.baseline
    used = "the same text scored and measured" if texts.shared else f"{texts.scoring} texts scored"
    measured = texts.damage or texts.evaluation
    split = used if texts.shared else f"{used}, {measured} others measured"
    notes = "".join(f"{note}\n" for note in model.notes)
    bytewise = "" if baseline.bits_per_byte is None else f"{baseline.bits_per_byte:.3f} bits per byte · "
    return words(
        f"{model.name} · {model.parameters:,} weights · {model.dtype} on {model.device} · {split}\n{notes}"
        f"baseline perplexity {fmt.perplexity(baseline.perplexity)} · {baseline.nll:.4f} nats per token · "
        f"{bytewise}{baseline.tokens:,} tokens\n{baseline.protocol}"
    )


def _halves(row: HalfOverlap) -> str:
    """How much of a ranking either half of its texts names too."""
    return (
        f"of these {row.k:,}, {row.first} and {row.second} are in the top {row.k:,} by either half of the scoring "
        f"texts, {row.both} in both; the halves have {row.common} in common, {row.chance:.2g} by chance"
    )


def _ranking_title(metric: str) -> str:
    if metric == GIVEN:
        return "given weights"
    if metric.endswith(MATRICES):
        return f"critical weights by {metric.removesuffix(MATRICES)}, of the matrices in decoder blocks"
    return f"critical weights by {metric}"


def topk_table(metric: str, weights: Sequence[TopWeight]) -> LineTable:
    """Ranked weights, one line each. Of a long name the end is kept, and the layer beside it tells it from others."""
    fields = [
        Field("rank", right=True),
        Field("weight", least=34, cut="parts"),
        Field("value", right=True),
        Field("score", right=True),
        *([Field("standard error", right=True)] if any(w.standard_error is not None for w in weights) else []),
        Field("layer", optional=1, right=True),
        Field("component", optional=2),
        *([Field("fan-out", optional=3, right=True)] if any(w.fan_out != 1 for w in weights) else []),
    ]
    caption = f"{fmt.STABLE} in the list of every repeat" if any(weight.stable for weight in weights) else ""
    return LineTable(fields, [Row(_weight_cells(weight)) for weight in weights], _ranking_title(metric), caption)


def _weight_cells(weight: TopWeight) -> dict[str, str]:
    return {
        "rank": str(weight.rank),
        "weight": f"{weight.target} {fmt.STABLE}" if weight.stable else weight.target,
        "value": fmt.number(weight.value),
        "score": "-" if weight.score is None else fmt.number(weight.score),
        "standard error": fmt.standard_error(weight.standard_error),
        "layer": "-" if weight.layer is None else str(weight.layer),
        "component": weight.component,
        "fan-out": "-" if weight.fan_out is None else f"{weight.fan_out:,}",
    }


def _damage(summary: RunSummary, groups: Sequence[DamageSummary]) -> Table:
    """One line for the critical set and one for the draw of each control that did most."""
    table, shown = _grouped_table("damage", summary, groups)
    table.add_column("selection")
    for name in ("perplexity", "ratio", "Δ nats/token"):
        table.add_column(name, justify="right")
    table.add_column("95 % interval")
    for group in groups:
        lead: list[str | Text] = [*(str(getattr(group, name)) for name in shown), Text("critical", "bold")]
        if group.critical:
            table.add_row(*lead, *_point_cells(summary.baseline, group.critical))
        for control in group.controls:
            table.add_row(*[""] * len(shown), control.control, *_control_cells(summary.baseline, control), style="dim")
        table.add_section()
    return table


def _against_controls(summary: RunSummary, groups: Sequence[DamageSummary]) -> Table:
    """How far each critical set stands out from the draws of each control."""
    table, shown = _grouped_table("the critical set against its controls", summary, groups)
    table.add_column("control")
    for name in ("median Δ", "leading draw Δ", "|Δ| over leading", "ahead", "p"):
        table.add_column(name, justify="right")
    for group in groups:
        for number, control in enumerate(group.controls):
            lead = [str(getattr(group, name)) if number == 0 else "" for name in shown]
            changes = (_change(getattr(control, name)) for name in ("median", "largest"))
            count = f"{control.as_extreme} of {control.draws}"
            p_value = "too few draws" if control.p_value is None else shown_p(control.p_value)
            table.add_row(*lead, control.control, *changes, _times(control.ratio), count, p_value)
        table.add_section()
    return table


def _change(delta: float | None) -> str:
    return "collapsed" if delta is None else fmt.delta_of_any_size(delta)


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f">{MOST_TIMES:,}" if ratio > MOST_TIMES else f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def _grouped_table(title: str, summary: RunSummary, groups: Sequence[DamageSummary]) -> tuple[Table, list[str]]:
    """A table that begins with what tells the groups apart, and the names of these columns."""
    perturbations = list(dict.fromkeys(group.perturbation for group in groups))
    table = Table(title=f"{title} ({', '.join(perturbations)})", **TABLE)
    shown = ["metric"] * (len(summary.rankings) > 1) + ["perturbation"] * (len(perturbations) > 1) + ["k"]
    for name in shown:
        table.add_column(name, justify="right" if name == "k" else "left")
    return table, shown


def _sweeps(summary: RunSummary, groups: Sequence[DamageSummary]) -> Table:
    """Doses and bits of the critical set, and its values at other places: no controls, each is compared with the others."""
    table = Table(title="doses, bits and places", **TABLE)
    for name in ("metric", "k", "change", "Δ nats/token", "95 % interval"):
        table.add_column(name, justify="right" if name in ("k", "Δ nats/token") else "left")
    for group in groups:
        lead = group.metric, str(group.k)
        if critical := group.critical:
            table.add_row(*lead, group.perturbation, *_point_cells(summary.baseline, critical)[2:])
        for point in group.elsewhere:
            change = f"values elsewhere, seed {point.seed}"
            table.add_row(*lead, change, *_point_cells(summary.baseline, point)[2:])
    return table


def _control_cells(baseline: Baseline, control: Separation) -> tuple[str, str, str, str]:
    if control.largest is None:
        return "collapsed", "", "", ""
    return _damage_cells(baseline, control.largest, control.largest_low, control.largest_high)


def _point_cells(baseline: Baseline, point: DamagePoint) -> tuple[str, str, str, str]:
    if point.collapsed_at:
        return "collapsed", "", "", f"at {point.collapsed_at}"
    return _damage_cells(baseline, point.delta_nll, point.delta_low, point.delta_high)


def _damage_cells(baseline: Baseline, delta: float, low: float | None, high: float | None) -> tuple[str, str, str, str]:
    nll, vocabulary = baseline.nll + delta, baseline.vocabulary
    guessing = fmt.is_worse_than_guessing(nll, vocabulary)
    shown = "worse than guessing" if guessing else fmt.perplexity(exp(nll))
    known = fmt.is_known(low) and fmt.is_known(high)
    inside = f"[{fmt.delta_of_any_size(low)}, {fmt.delta_of_any_size(high)}]" if known else "-"
    return shown, fmt.ratio(exp(delta)), fmt.delta_of_any_size(delta), inside


def _notes(summary: RunSummary) -> list[Text]:
    lines = []
    if any(group.controls for group in summary.damage):
        lines += [
            f"ratio: perplexity over the baseline's. {_controls_by(summary)}",
        ]
    if floor := summary.numerical_floor:
        lines.append(floor_sentence(floor))
    for group in summary.damage:
        if (point := group.critical) and point.kl is not None:
            lines.append(
                f"{group.metric} k={group.k} {group.perturbation}: KL from the intact model {point.kl:.4g} nats "
                f"per token, top-1 agreement {point.top1_agreement:.1%}"
            )
    baseline = summary.baseline
    if any(fmt.is_worse_than_guessing(nll, baseline.vocabulary) for nll in _losses(summary)):
        lines.append(
            f"worse than guessing: a guess among all {baseline.vocabulary:,} tokens has perplexity {baseline.vocabulary:,}"
        )
    if (texts := summary.texts.damage) and texts < FEW_TEXTS:
        lines.append(f"{texts} texts are few: a verdict takes {FEW_TEXTS}, and what so few say of others is little")
    if summary.texts.shared:
        lines.append("there was only one text: weights were scored and damage was measured on the same one")
    return [words(line, "dim") for line in lines]


def _controls_by(summary: RunSummary) -> str:
    """How draws of controls were measured."""
    rows = [control for group in summary.damage for control in group.controls]
    known = sorted({row.largest_texts for row in rows if row.largest_texts is not None})
    if not known:  # a run of an early version
        return (
            "Of a control the draw that changes the loss most is shown, on all texts; median, count and p = (1 + draws whose "
            f"change is as large) / (1 + draws) are of {rows[0].texts} texts, on which every draw was measured"
        )
    return (
        f"Draws compete with the critical set on growing parts of {rows[0].texts} texts, and whoever is far behind is out; p = "
        "(1 + draws ahead of it) / (1 + draws). Of a control the leading draw, ahead of the others, is shown, on "
        f"{' or '.join(map(str, known))} texts; the median is of all draws, each on the texts it was measured on"
    )


def _losses(summary: RunSummary) -> Iterator[float]:
    """Of the critical sets, in nats per token."""
    for group in summary.damage:
        if (point := group.critical) and fmt.is_known(point.nll):
            yield point.nll

"""The page of a run: whether its weights matter, by how much, and all that is needed to judge that and to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cwa_engine.questions.ablation import cost_sentence
from cwa_engine.questions.critical_set import critical_set_sentence
from cwa_engine.questions.spike_removal import removal_sentence
from cwa_engine.questions.tasks import tasks_sentence
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.reports.methods import limitations
from cwa_engine.reports.page_figures import figure_section
from cwa_engine.reports.page_method import method_section, repeat_section
from cwa_engine.reports.page_parts import Block, Headline, Page, Prose, Section, Statement, Statements, TableBlock
from cwa_engine.reports.page_tables import Column, ends, interval, number, percent, ratio, shown, signed, table, text
from cwa_engine.rows import GIVEN, MATRICES, MOST_TIMES, Separation, TopWeight, to_plain

NATS = "Δ loss (nats/token)"
INTERVAL = "95 % interval"


def run_parts(report: RunReport) -> Page:
    """All that the page of a run says."""
    model, texts = report.model, report.texts
    return Page(
        subject=f"run {report.run_id}",
        kicker=f"Run {report.run_id}",
        title=model.name,
        question=_question(report),
        answer=tuple(_answer(report)),
        headlines=tuple(_headlines(report)),
        sections=(
            figure_section(report, "run", report.run_id),
            Section("damage", "Damage", tuple(_damage(report))),
            Section("weights", "Weights", tuple(_rankings(report))),
            Section("more", "What else was asked", tuple(_questions(report))),
            method_section(report),
            Section("limits", "Limits", (Statements(tuple(map(Statement, limitations(report)))),)),
            repeat_section(report, texts.source),
        ),
    )


def _question(report: RunReport) -> str:
    names = " or by ".join(_of_all(report.metrics))
    if not report.summary.damage:
        return f"Which weights of the model are first by {names}?"
    if GIVEN in report.metrics:
        return "Does changing the weights that were given change the loss more than changing others?"
    return f"Does the model depend on the few weights that are first by {names}, more than on others?"


def ranking_name(metric: str) -> str:
    """`grad_x_weight, matrices alone`."""
    return f"{metric.removesuffix(MATRICES)}, matrices alone" if metric.endswith(MATRICES) else metric


def _of_all(metrics: Sequence[str]) -> list[str]:
    """The metrics without their rankings of matrices alone, which the sections below have too."""
    return [
        metric for metric in metrics if metric.removesuffix(MATRICES) not in metrics or not metric.endswith(MATRICES)
    ]


def _answer(report: RunReport) -> Iterator[Statement]:
    """Of each metric the verdict on its largest set; without one, what was measured instead."""
    for metric in _of_all(report.metrics):
        group = report.summary.headline_of(metric)
        if group is None or group.critical is None:
            continue
        if group.verdict:
            yield Statement(group.verdict, outcome=group.outcome or "")
        else:
            yield Statement(f"{_set_name(group)}: {_change(group)}. It was compared with no control.")
    if found := report.critical_set:
        yield Statement(_sentence(critical_set_sentence(found)))
    if not report.summary.damage:
        yield Statement("No damage was measured: the ranking says which weights score high, not what they do.")


def _set_name(group: DamageSummary) -> str:
    return f"{group.perturbation} of the top {group.k:,} by {group.metric}"


def _change(group: DamageSummary) -> str:
    point = group.critical
    assert point
    if point.collapsed_at:
        return f"the loss is not finite, from {point.collapsed_at} on"
    return (
        f"the loss changes by {signed(point.delta_nll)} nats per token, {interval(point.delta_low, point.delta_high)}"
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def _headlines(report: RunReport) -> Iterator[Headline]:
    baseline = report.baseline
    yield Headline(
        "Perplexity of the intact model",
        number(baseline.perplexity),
        f"{number(baseline.nll)} nats per token; {baseline.tokens:,} tokens, {baseline.sequences:,} texts",
    )
    if not (group := report.summary.headline) or not (point := group.critical):
        return
    if point.collapsed_at:
        yield Headline(f"Loss, {_set_name(group)}", "not finite", f"from {point.collapsed_at} on")
    else:
        inside = f"{interval(point.delta_low, point.delta_high)} nats per token, 95 % interval"
        yield Headline(f"Change of the loss, {_set_name(group)}", signed(point.delta_nll), inside)
        yield Headline("Perplexity, over that of the intact model", f"× {ratio(point.perplexity_ratio)}")
    if worst := group.worst_control:
        inside = interval(worst.largest_low, worst.largest_high)
        below = f"{inside} nats per token; {worst.control}, {worst.draws:,} draws"
        yield Headline("Change by the leading draw of the controls", _change_of(worst.largest), below)
        if worst.ratio is not None:
            yield Headline("Change over that of the leading draw", f"{_times(worst.ratio)} times")
    tested = [control.p_value for control in group.controls if control.p_value is not None]
    if tested:
        yield Headline("p, largest of all controls", number(max(tested)))
    if floor := report.floor:
        yield Headline("Numerical floor", number(floor.largest), "nats per token; smaller changes mean nothing")


def _change_of(delta: float | None) -> str:
    """What a control does; None is a loss that is not finite."""
    return "not finite" if delta is None else signed(delta)


def _times(ratio: float | None) -> str:
    """How many times as much a critical set does as a draw."""
    return f">{MOST_TIMES:,}" if ratio is not None and ratio > MOST_TIMES else shown(ratio)


def _damage(report: RunReport) -> Iterator[Block]:
    groups = [group for group in report.summary.damage if group.critical]
    if not groups:
        return
    yield table(
        "Critical sets",
        groups,
        (
            *_KEY,
            Column(NATS, lambda g: g.critical.delta_nll, signed),
            Column(INTERVAL, lambda g: (g.critical.delta_low, g.critical.delta_high), lambda pair: interval(*pair)),
            Column("perplexity ratio", lambda g: g.critical.perplexity_ratio, ratio),
            Column("perplexity", lambda g: g.critical.perplexity),
            Column("KL (nats/token)", lambda g: g.critical.kl),
            Column("top-1 agreement", lambda g: g.critical.top1_agreement, percent),
            text("not finite from", lambda g: g.critical.collapsed_at),
            text("outcome", lambda g: g.outcome),
        ),
        "perturbation.csv",
        "Each interval is Student's t on a jackknife over the texts, paired with the intact model.",
    )
    yield from _controls(report.separations)
    sentences = [Statement(v.sentence, outcome=v.outcome) for v in report.verdicts]
    if len(sentences) > 1:
        yield Statements(tuple(sentences), "All verdicts")
    elsewhere = [point for group in report.summary.damage for point in group.elsewhere]
    if elsewhere:
        yield table(
            "The same values at other places",
            elsewhere,
            (
                *_KEY,
                Column("seed", "seed"),
                Column(NATS, "delta_nll", signed),
                ends(INTERVAL, "delta_low", "delta_high"),
            ),
            "perturbation.csv",
        )


_KEY = (text("metric", "metric"), Column("k", "k"), text("perturbation", "perturbation"))


_CONTROLS_BY = {
    True: "Draws and the critical set compete on growing parts of the texts, and whoever is far behind is out. Leading draw: "
    "the one that came out ahead of the others, with its interval, on so many texts. Median: of all draws, each on the "
    "texts that it was measured on. p = (1 + draws that came out ahead of the critical set) / (1 + draws).",
    False: "Leading draw: the one that changes the loss most, on all texts, with its interval. Median, count and p are of the "
    "texts on which every draw was measured; p = (1 + draws whose change is as large) / (1 + draws).",
}  # by whether the run was measured so, or all draws on the same texts as in early versions


def _controls(rows: Sequence[Separation]) -> Iterator[TableBlock]:
    if not rows:
        return
    yield table(
        "Beside the controls",
        rows,
        (
            *_KEY,
            text("control", "control"),
            Column("draws", "draws"),
            Column("median Δ", "median", _change_of),
            Column("leading draw Δ", "largest", _change_of),
            Column("texts of leading draw", "largest_texts"),
            ends(INTERVAL, "largest_low", "largest_high"),
            Column("|Δ| over leading draw", "ratio", _times),
            Column("draws ahead", "as_extreme"),
            Column("p", "p_value"),
        ),
        "perturbation.csv and summary.json",
        _CONTROLS_BY[rows[0].largest_texts is not None],
    )


def _rankings(report: RunReport) -> Iterator[Block]:
    for ranking in report.rankings:
        name = ranking_name(ranking.metric)
        title = "The weights that were given" if ranking.metric == GIVEN else f"First by {name}"
        yield table(title, ranking.weights, _weight_columns(ranking.weights), f"topk_{ranking.metric}.csv")
        for row in report.summary.halves:
            if row.metric == ranking.metric:
                yield Prose(
                    f"Of the top {row.k:,}, {row.first:,} and {row.second:,} are in the top {row.k:,} by either half of the "
                    f"scoring texts, {row.both:,} in both; the halves have {row.common:,} in common, {number(row.chance)} by "
                    "chance."
                )


def _weight_columns(weights: Sequence[TopWeight]) -> Iterator[Column]:
    yield Column("rank", "rank")
    yield text("weight", "target")
    yield Column("value", "value")
    yield Column("score", "score")
    yield Column("standard error", "standard_error")
    yield Column("layer", "layer")
    yield text("component", "component")
    if any(weight.fan_out not in (1, None) for weight in weights):
        yield Column("fan-out", "fan_out")
    yield text("in every repeat", "stable")


def _questions(report: RunReport) -> Iterator[Block]:
    """The answers to what a run may be asked besides."""
    summary = report.summary
    if summary.stability:
        yield table("Stability: rankings by other texts", summary.stability, _STABILITY, "stability.csv")
    if summary.fidelity:
        yield table(
            "Fidelity: what scores tell of the measured change of the loss", summary.fidelity, _FIDELITY, "fidelity.csv"
        )
    if report.interactions:
        yield table(
            "Each weight alone, and its share of the set", report.interactions, _INTERACTIONS, "interactions.csv"
        )
    if found := report.critical_set:
        yield table("Smallest set found", found.steps, _CRITICAL_SET, "critical_set.csv", critical_set_sentence(found))
    if report.spikes:
        yield table("Largest outputs that these weights make", report.spikes, _SPIKES, "spikes.csv")
    if removal := report.spike_removal:
        note = _sentence(removal_sentence(to_plain(removal)))
        yield table("Weights behind the largest spike, zeroed one after the other", removal.steps, _REMOVAL,
                    "spike_removal.csv", note)  # fmt: skip
    if summary.task_comparisons:
        yield table("Tasks of lm-evaluation-harness", summary.task_comparisons, _TASKS, "tasks.csv and summary.json",
                    tasks_sentence(summary.task_comparisons))  # fmt: skip
    if cost := summary.ablation:
        note = _sentence(cost_sentence(to_plain(cost)))
        yield table("Weights zeroed one by one", report.ablations, _ABLATION, "ablation.csv", note)


_STABILITY = (
    text("metric", "metric"), Column("k", "k"), Column("pairs", "pairs"), Column("Jaccard", "jaccard"),
    Column("by chance", "chance"), Column("rank-biased overlap", "rbo"), Column("Spearman", "spearman"),
    Column("in every repeat", "in_every_repeat"),
)  # fmt: skip
_FIDELITY = (
    text("metric", "metric"), Column("measured", "units"), Column("Spearman", "spearman"),
    Column("of the top", "top"), Column("among the most harmful", "overlap"),
)  # fmt: skip
_INTERACTIONS = (
    *_KEY, text("weight", "target"), Column("alone", "alone", signed), ends("95 % interval, alone", "alone_low", "alone_high"),
    Column("share of the set", "share", signed), ends("95 % interval, share", "share_low", "share_high"),
    text("matters", "role"),
)  # fmt: skip
_CRITICAL_SET = (
    Column("weights", "size"), text("with", "target"), Column("ratio, scoring texts", "scoring_ratio", ratio),
    Column("ratio, other texts", "perplexity_ratio", ratio), Column(NATS, "delta_nll", signed),
    ends(INTERVAL, "delta_low", "delta_high"),
)  # fmt: skip
_SPIKES = (
    Column("rank", "rank"), text("weight", "target"), Column("output", "output"), Column("times usual", "times_typical"),
    Column("share", "share", percent), text("token", "token"), Column("at", "position"), Column("text", "text"),
)  # fmt: skip
_REMOVAL = (
    Column("step", "step"), text("weight", "target"), Column("share", "share", percent),
    Column("times usual", "times_typical"), Column("then", "largest_after"), Column(NATS, "delta_nll", signed),
    text("token", "token"), Column("at", "position"), Column("text", "text"),
)  # fmt: skip
_TASKS = (
    text("task", "task"), text("measure", "measure"), *_KEY, text("case", "selection"), Column("draw", "seed"),
    text("beside", "against"), Column("documents", "documents"), Column("before", "before"), Column("after", "after"),
    Column("difference", "difference", signed), ends(INTERVAL, "low", "high"), Column("p", "p_value"),
    Column("collapsed on", "lost"),
)  # fmt: skip
_ABLATION = (
    Column("place", "place"), text("weight", "target"), Column(NATS, "delta_nll", signed),
    ends(INTERVAL, "delta_low", "delta_high"), Column("texts", "texts"), Column("tokens", "tokens"), text("exact", "exact"),
)  # fmt: skip

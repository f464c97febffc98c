"""The report of a finished run: what was measured, the top weights, the damage, and whether it means anything."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.result import GIVEN, cost_sentence, exp, to_plain
from cwa_tui import format as fmt
from cwa_tui.console.tables import TABLE
from cwa_tui.visible import words

SHOWN_ROWS = 30  # of tables that may be long; the whole is in the run's files


def run_report(summary: dict[str, Any], folder: str) -> RenderableType:
    """All that a finished run has to say: what was measured, the top weights, the damage, where the files are."""
    parts: list[RenderableType] = [_headline(summary)]
    for ranking in summary["rankings"]:
        parts += ["", topk_table(ranking["metric"], ranking["top"])]
    if summary["stability"]:
        parts += ["", _stability(summary["stability"])]
    compared = [group for group in summary["damage"] if group["controls"]]
    sweeps = [group for group in summary["damage"] if not group["controls"]]
    if compared:
        parts += ["", _damage(summary, compared), "", _against_controls(summary, compared)]
    if sweeps:
        parts += ["", _sweeps(sweeps)]
    if summary["interactions"]:
        parts += ["", _interactions(summary["interactions"])]
    if summary["fidelity"]:
        parts += ["", _fidelity(summary["fidelity"])]
    if summary["critical_set"]:
        parts += ["", _critical_set(summary["critical_set"])]
    if summary["ablation"]:
        parts += ["", Text(cost_sentence(summary["ablation"]), style="dim")]
    if summary["damage"]:
        parts += ["", *_notes(summary)]
    sentences = [
        words(group["verdict"], _VERDICT_STYLES[group["distinguishable"]]) for group in compared if group["verdict"]
    ]
    parts += ["", *sentences] if sentences else []
    parts += ["", words(f"texts: {summary['texts']['source']}\nfiles: {folder}", overflow="fold")]
    return Group(*parts)


_VERDICT_STYLES = {True: "bold green", False: "bold yellow"}


def _headline(summary: dict[str, Any]) -> Text:
    model, texts, baseline = summary["model"], summary["texts"], summary["baseline"]
    used = "the same text scored and measured" if texts["shared"] else f"{texts['scoring']} texts scored"
    measured = texts["damage"] or texts["evaluation"]
    split = used if texts["shared"] else f"{used}, {measured} others measured"
    notes = "".join(f"{note}\n" for note in model.get("notes", ()))
    bytewise = "" if baseline["bits_per_byte"] is None else f"{baseline['bits_per_byte']:.3f} bits per byte · "
    return words(
        f"{model['name']} · {model['parameters']:,} weights · {model['dtype']} on {model['device']} · {split}\n{notes}"
        f"baseline perplexity {fmt.perplexity(baseline['perplexity'])} · {baseline['nll']:.4f} nats per token · "
        f"{bytewise}{baseline['tokens']:,} tokens\n{baseline['protocol']}"
    )


def topk_table(metric: str, weights: list[dict[str, Any]]) -> Table:
    """Ranked weights, fields as in `TopWeight`."""
    table = Table(title="given weights" if metric == GIVEN else f"critical weights by {metric}", **TABLE)
    for name in ("rank", "weight", "value", "score", "layer", "component"):
        table.add_column(name, justify="left" if name in ("weight", "component") else "right", overflow="fold")
    for weight in weights:
        layer = "-" if weight["layer"] is None else str(weight["layer"])
        figures = fmt.number(weight["value"]), "-" if weight["score"] is None else fmt.number(weight["score"])
        target = f"{weight['target']} {fmt.STABLE}" if weight["stable"] else weight["target"]
        table.add_row(str(weight["rank"]), target, *figures, layer, weight["component"])
    if any(weight["stable"] for weight in weights):
        table.caption = f"{fmt.STABLE} in the list of every repeat"
    return table


def _damage(summary: dict[str, Any], groups: list[dict[str, Any]]) -> Table:
    """One line for the critical set and one for the mean draw of each control."""
    table, shown = _grouped_table("damage", summary, groups)
    table.add_column("selection")
    for name in ("perplexity", "ratio", "Δ nats/token"):
        table.add_column(name, justify="right")
    table.add_column("95 % interval")
    base = summary["baseline"]["nll"]
    for group in groups:
        lead: list[str | Text] = [*(str(group[name]) for name in shown), Text("critical", "bold")]
        table.add_row(*lead, *_point_cells(base, group["critical"]))
        for control in group["controls"]:
            damage = control["control_delta"], control["control_low"], control["control_high"]
            cells = ("collapsed", "", "", "") if damage[0] is None else _damage_cells(base, *damage)
            table.add_row(*[""] * len(shown), control["control"], *cells, style="dim")
        table.add_section()
    return table


def _against_controls(summary: dict[str, Any], groups: list[dict[str, Any]]) -> Table:
    """How far each critical set stands out from the draws of each control."""
    table, shown = _grouped_table("the critical set against its controls", summary, groups)
    table.add_column("control")
    for name in ("draws", "worst Δ", "separation", "p", "beyond all"):
        table.add_column(name, justify="right")
    for group in groups:
        for number, control in enumerate(group["controls"]):
            lead = [str(group[name]) if number == 0 else "" for name in shown]
            worst = "collapsed" if control["worst"] is None else fmt.delta(control["worst"])
            evidence = _separation(control["ratio"]), f"{control['p_holm']:.2g}", "yes" if control["beyond"] else "no"
            table.add_row(*lead, control["control"], str(control["draws"]), worst, *evidence)
        table.add_section()
    return table


def _grouped_table(title: str, summary: dict[str, Any], groups: list[dict[str, Any]]) -> tuple[Table, list[str]]:
    """A table that begins with what tells the groups apart, and the names of these columns."""
    perturbations = list(dict.fromkeys(group["perturbation"] for group in groups))
    table = Table(title=f"{title} ({', '.join(perturbations)})", **TABLE)
    shown = ["metric"] * (len(summary["rankings"]) > 1) + ["perturbation"] * (len(perturbations) > 1) + ["k"]
    for name in shown:
        table.add_column(name, justify="right" if name == "k" else "left")
    return table, shown


def _sweeps(groups: list[dict[str, Any]]) -> Table:
    """Doses and bits of the critical set, and its values at other places: no controls, each is compared with the others."""
    table = Table(title="doses, bits and places", **TABLE)
    for name in ("metric", "k", "change", "Δ nats/token", "95 % interval"):
        table.add_column(name, justify="right" if name in ("k", "Δ nats/token") else "left")
    for group in groups:
        lead = group["metric"], str(group["k"])
        if critical := group["critical"]:
            table.add_row(*lead, group["perturbation"], *_point_cells(0.0, critical)[2:])
        for point in group["elsewhere"]:
            change = f"values elsewhere, seed {point['seed']}"
            table.add_row(*lead, change, *_point_cells(0.0, point)[2:])
    return table


def _interactions(rows: list[dict[str, Any]]) -> RenderableType:
    """What each unit does alone, and what it adds to the set; those that matter come first."""
    table = Table(title="each weight alone, and its share of the set", **TABLE)
    for name in ("metric", "k", "change", "weight", "alone", "share of the set", "matters"):
        table.add_column(
            name, justify="right" if name in ("k", "alone", "share of the set") else "left", overflow="fold"
        )
    roles = ("together", "alone", "inert")
    for row in sorted(rows, key=lambda row: roles.index(row["role"]))[:SHOWN_ROWS]:
        figures = (fmt.NOT_FINITE if value is None else fmt.delta(value) for value in (row["alone"], row["share"]))
        table.add_row(row["metric"], str(row["k"]), row["perturbation"], row["target"], *figures, _ROLES[row["role"]])
    counts = {role: sum(row["role"] == role for row in rows) for role in roles}
    said = f"{counts['alone']} matter alone, {counts['together']} only together, {counts['inert']} not at all"
    more = f"; {len(rows) - SHOWN_ROWS} more in interactions.csv" if len(rows) > SHOWN_ROWS else ""
    return Group(table, Text(f"{said}{more}"))


_ROLES = {"together": "only together", "alone": "alone", "inert": "no"}


def _stability(rows: list[dict[str, Any]]) -> Table:
    """How far rankings by other texts agree, mean over all pairs of repeats."""
    pairs = rows[0]["pairs"]
    said = "two halves of the texts" if pairs == 1 else f"mean of {pairs} pairs of repeats"
    table = Table(title=f"stability, {said}", **TABLE)
    for name in ("metric", "k", "Jaccard", "by chance", "rank-biased overlap", "Spearman", "in every repeat"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in rows:
        spearman = "-" if row["spearman"] is None else f"{row['spearman']:.3f}"
        figures = f"{row['jaccard']:.3f}", f"{row['chance']:.2g}", f"{row['rbo']:.3f}", spearman
        table.add_row(row["metric"], str(row["k"]), *figures, str(row["in_every_repeat"]))
    return table


def _fidelity(rows: list[dict[str, Any]]) -> Table:
    """How well scores foretell the measured |loss change| of zeroing one unit."""
    table = Table(title="what metrics foretell of single weights", **TABLE)
    for name in ("metric", "measured", "Spearman", "top overlap"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in rows:
        spearman = "-" if row["spearman"] is None else f"{row['spearman']:.3f}"
        table.add_row(row["metric"], str(row["units"]), spearman, f"{row['overlap']} of {row['top']}")
    return table


def _critical_set(found: dict[str, Any]) -> Table:
    """The weights of the smallest set found, one after the other, and what they do together."""
    few = "smallest set found that multiplies" if found["reached"] else "no set found multiplies"
    table = Table(title=f"{few} perplexity by {found['factor']:g}", **TABLE)
    for name in ("weights", "with", "ratio, scoring texts", "ratio, others", "Δ nats/token", "95 % interval"):
        table.add_column(name, justify="left" if name in ("with", "95 % interval") else "right", overflow="fold")
    for step in found["steps"]:
        ratios = fmt.ratio(step["scoring_ratio"]), fmt.ratio(step["perplexity_ratio"])
        if step["delta_nll"] is None:
            damage = fmt.NOT_FINITE, ""
        else:
            damage = fmt.delta(step["delta_nll"]), fmt.interval(step["delta_low"], step["delta_high"])
        table.add_row(str(step["size"]), step["target"], *ratios, *damage)
    return table


def _point_cells(base: float, point: dict[str, Any]) -> tuple[str, str, str, str]:
    if point["collapsed_at"]:
        return "collapsed", "", "", f"at {point['collapsed_at']}"
    return _damage_cells(base, point["delta_nll"], point["delta_low"], point["delta_high"])


def _damage_cells(base: float, delta: float, low: float, high: float) -> tuple[str, str, str, str]:
    perplexity, ratio = to_plain(exp(base + delta)), to_plain(exp(delta))
    return fmt.perplexity(perplexity), fmt.ratio(ratio), fmt.delta(delta), fmt.interval(low, high)


def _separation(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:,.0f}" if abs(ratio) >= 100 else f"{ratio:.1f}"


def _notes(summary: dict[str, Any]) -> list[Text]:
    lines = []
    if any(group["controls"] for group in summary["damage"]):
        lines += [
            "ratio: perplexity over the baseline's; of a control the mean draw is shown. separation: Δ of the critical set "
            "over the mean |Δ| of the draws. p: (1 + draws at least as bad) / (1 + draws), Holm-corrected",
        ]
    if floor := summary["numerical_floor"]:
        lines.append(
            f"numerical floor: an edit that changes nothing {floor['null_edit']:+.2g}, "
            f"the baseline repeated {floor['repeat']:+.2g} nats per token"
        )
    for group in summary["damage"]:
        if (point := group["critical"]) and point["kl"] is not None:
            lines.append(
                f"{group['metric']} k={group['k']} {group['perturbation']}: KL from the intact model {point['kl']:.4g} nats "
                f"per token, top-1 agreement {point['top1_agreement']:.1%}"
            )
    if summary["texts"]["shared"]:
        lines.append("there was only one text: weights were scored and damage was measured on the same one")
    return [words(line, "dim") for line in lines]

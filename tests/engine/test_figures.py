"""Figures have the numbers of the files they are made of, and nothing that is not finite; pandas reads both."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pandas
import pytest

from cwa_engine.figures import registry
from cwa_engine.figures.figure import Figure, FigureKind, drawn_rows, figure_name
from cwa_engine.figures.registry import FIGURE_KINDS, figures_of
from cwa_engine.records.run_report import RunReport
from tests.engine import figure_sources as sources
from tests.engine.figure_sources import METRIC
from tests.engine.study_runs import planted_run


@pytest.fixture(scope="module")
def run() -> RunReport:
    return sources.measured_run()


@pytest.fixture(scope="module")
def figures(run: RunReport) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures_of(run, "run")}


def csv(report: RunReport, name: str) -> pandas.DataFrame:
    """A file of the run, as anyone reads it."""
    return pandas.read_csv(io.BytesIO(report.files.read(name)))


def table(figure: Figure) -> pandas.DataFrame:
    """The table that is saved beside a figure."""
    content = figure.table.table.to_bytes(figure.table.rows)
    return pandas.read_csv(io.BytesIO(content))


def all_figures() -> list[tuple[str, Figure]]:
    """(of what, figure) of every source of the tests."""
    return [(of, figure) for of, make in sources.SOURCES.items() for each in make() for figure in figures_of(each, of)]


def test_every_kind_of_figure_is_made_of_something_that_was_measured() -> None:
    for kind in FIGURE_KINDS:
        assert any(list(kind.make(source)) for source in sources.SOURCES[kind.of]()), (kind.of, kind.name)


def test_figures_have_names_for_files_titles_and_captions_that_say_what_was_measured_and_the_k() -> None:
    for of, figure in all_figures():
        assert (
            figure.name.replace("_", "").replace(".", "").isalnum() and figure.table.table.name == f"{figure.name}.csv"
        )
        assert (
            figure.title
            and figure.caption.endswith(".")
            and "None" not in figure.caption
            and "nan" not in figure.caption
        )
        assert "text" in figure.caption or of in ("weight", "comparison", "study"), figure.name
        assert figure.x.title or figure.x.scale == "category"


def test_figures_of_one_source_have_different_names() -> None:
    for source, of in (
        (sources.measured_run(), "run"),
        (sources.transfer(), "study"),
        (sources.comparison(), "comparison"),
    ):
        names = [figure.name for figure in figures_of(source, of)]  # type: ignore[arg-type]
        assert len(names) == len(set(names)) > 0


def test_every_column_that_is_drawn_is_in_the_table() -> None:
    for _, figure in all_figures():
        columns = set(figure.table.table.columns)
        drawn = {axis.field for axis in figure.axes} | {
            end for layer in figure.layers for end in (layer.low, layer.high) if end
        }
        assert drawn | {name for layer in figure.layers for name, _ in layer.where} <= columns, figure.name
        for axis in figure.axes:
            if axis.order:
                assert {getattr(row, axis.field) for row in figure.table.rows} <= set(axis.order), figure.name


# of a run


def test_a_damage_curve_has_the_critical_sets_of_perturbation_csv_with_their_intervals(
    run: RunReport, figures: dict[str, Figure]
) -> None:
    found = table(figures[f"damage_curve_{METRIC}_zero"])
    damage = csv(run, "perturbation.csv")
    measured = damage[(damage.metric == METRIC) & (damage.perturbation == "zero") & (damage.selection == "critical")]
    critical = found[found.series == "critical"]
    assert list(critical.k) == list(measured.k) == [1, 100]
    for ours, theirs in (("change", "delta_nll"), ("low", "delta_low"), ("high", "delta_high"), ("texts", "sequences")):
        assert list(critical[ours]) == list(measured[theirs])


def test_a_damage_curve_has_of_each_control_the_leading_draw_and_its_texts(
    run: RunReport, figures: dict[str, Figure]
) -> None:
    found = table(figures[f"damage_curve_{METRIC}_zero"])
    damage = csv(run, "perturbation.csv")
    draws = damage[(damage.metric == METRIC) & (damage.perturbation == "zero") & (damage.selection == "random")]
    worst = found[found.series == "random, leading draw"]
    for k, change in zip(worst.k, worst.change, strict=True):
        measured = draws[draws.k == k]
        on_all = measured[measured.sequences == measured.sequences.max()]
        assert abs(change) == on_all.delta_nll.abs().max()
    assert list(worst.texts) == [draws[draws.k == k].sequences.max() for k in worst.k]
    medians = found[found.series == "random, median draw"]
    assert len(medians) == 2
    assert medians.texts.isna().all()  # each draw on texts of its own: no number is that of all


def test_a_collapse_is_counted_in_the_caption_and_has_no_number() -> None:
    figure = next(
        figure for figure in figures_of(sources.damaged_run(), "run") if figure.name.startswith("damage_curve")
    )
    collapsed = [row for row in figure.table.rows if row.collapsed]
    assert [(row.k, row.change, row.low, row.high) for row in collapsed] == [(1000, None, None, None)]
    assert "1 of 12 rows has no finite number" in figure.caption
    marks = {layer.mark: list(drawn_rows(figure, layer)) for layer in figure.layers if layer.mark != "rule"}
    assert marks["beyond"] == collapsed
    assert not any(row in collapsed for mark in ("point", "interval") for row in marks[mark])


def test_a_heat_map_counts_the_weights_of_the_ranking_by_layer_and_component(
    run: RunReport, figures: dict[str, Figure]
) -> None:
    found = table(figures[f"heat_map_{METRIC}"])
    top = csv(run, f"topk_{METRIC}.csv")
    top["place"] = ["outside" if math.isnan(layer) else str(int(layer)) for layer in top.layer]
    counted = top.groupby(["place", "component"]).size()
    assert found["count"].sum() == len(top) == 100
    for _, row in found.iterrows():
        assert row["count"] == counted.get((str(row.layer), row.component), 0)
        assert row.share == row["count"] / 100


def test_chance_in_a_depth_profile_is_the_share_of_all_that_was_ranked(
    run: RunReport, figures: dict[str, Figure]
) -> None:
    found = table(figures[f"depth_profile_{METRIC}"]).set_index(["series", "layer"])
    ranked = json.loads(run.files.read("manifest.json"))["ranked"]
    units = [entry for entry in ranked if METRIC in entry["metrics"]]
    everything = sum(entry["units"] for entry in units)
    for layer, name in ((None, "outside"), (0, "0"), (1, "1")):
        share = sum(entry["units"] for entry in units if entry["layer"] == layer) / everything
        assert found.loc[("by chance", name)].share == pytest.approx(share, rel=1e-12)
    assert found.loc["top k"].share.sum() == pytest.approx(1)


def test_a_distribution_has_the_counts_of_scores_csv_and_the_tail_adds_up_to_the_top(
    run: RunReport, figures: dict[str, Figure]
) -> None:
    figure = figures[f"score_distribution_{METRIC}"]
    found, scores = table(figure), csv(run, "scores.csv")
    bins = scores[(scores.metric == METRIC) & (scores.sign == 1)]
    in_bin, at_least = (found[found.series == series] for series in ("in the bin", "at least so large"))
    assert list(in_bin.score) == list(at_least.score) == list(bins.low)
    assert list(in_bin.units) == list(bins["count"])
    assert list(at_least.units) == list(bins["count"][::-1].cumsum()[::-1])
    top = csv(run, f"topk_{METRIC}.csv")
    last = next(layer.at for layer in figure.layers if layer.mark == "rule")
    assert last == top.score.min()
    assert at_least[at_least.score > last].units.max() <= 100 <= at_least[at_least.score <= last].units.min()


def test_a_fidelity_scatter_has_the_scores_and_changes_of_fidelity_csv(
    run: RunReport, figures: dict[str, Figure]
) -> None:
    for metric in (METRIC, "magnitude"):
        found, measured = table(figures[f"fidelity_{metric}"]), csv(run, "fidelity.csv")
        measured = measured[measured[f"score_{metric}"].notna()]
        assert list(found.score) == list(measured[f"score_{metric}"])
        assert list(found.change) == list(measured.delta_nll) and list(found.low) == list(measured.delta_low)


def test_stability_has_every_pair_of_stability_csv_beside_its_mean_and_chance(
    run: RunReport, figures: dict[str, Figure]
) -> None:
    found, pairs = table(figures["rank_stability"]), csv(run, "stability.csv")
    ours = found[found.series == "pair of repeats"]
    assert list(ours.agreement) == list(pairs.jaccard)
    means = pairs.groupby(["metric", "k"], sort=False).jaccard.mean()
    assert list(found[found.series == "mean of pairs"].agreement) == pytest.approx(list(means))


def test_two_metrics_agree_in_as_many_weights_as_their_lists_share(run: RunReport, figures: dict[str, Figure]) -> None:
    found = table(figures["metric_agreement"]).set_index(["first", "second"])
    tops = {name: set(csv(run, f"topk_{name}.csv").target) for name in (METRIC, "magnitude")}
    for one, other in ((METRIC, "magnitude"), ("magnitude", METRIC)):
        assert found.loc[(one, other)].common == len(tops[one] & tops[other])


@pytest.mark.parametrize(
    ("kind", "prefix", "across"), [("dose_response", "scale ", "factor"), ("bit_map", "bit_flip ", "bit")]
)
def test_sweeps_have_every_dose_and_every_bit_of_perturbation_csv(
    run: RunReport, figures: dict[str, Figure], kind: str, prefix: str, across: str
) -> None:
    found, damage = table(figures[f"{kind}_{METRIC}"]), csv(run, "perturbation.csv")
    measured = damage[(damage.metric == METRIC) & damage.perturbation.str.startswith(prefix)]
    is_finite = measured.collapsed_at.isna()
    expected = {
        (f"top {k:,}", float(name.removeprefix(prefix))): change if finite else None
        for k, name, change, finite in zip(
            measured.k, measured.perturbation, measured.delta_nll, is_finite, strict=True
        )
    }
    top = "series" if kind == "dose_response" else "top"
    ours = {(row[top], float(row[across])): row.change for _, row in found.iterrows()}
    assert ours.keys() == expected.keys() and len(ours) == 2 * (4 if kind == "dose_response" else 16)
    for key, change in expected.items():
        assert math.isnan(ours[key]) if change is None else ours[key] == change


# of studies


def of_study(question: str, name: str) -> pandas.DataFrame:
    figures = {figure.name: figure for figure in figures_of(sources.STUDIES[question](), "study")}
    return table(figures[name])


def answer_table(question: str, name: str) -> pandas.DataFrame:
    answer = sources.STUDIES[question]().answer
    assert answer
    rows = next(found for found in answer.tables if found.table.name == name)
    return pandas.read_csv(io.BytesIO(rows.table.to_bytes(rows.rows)))


def test_a_scaling_fit_has_each_models_damage_the_law_and_the_worst_control() -> None:
    found = of_study("scaling", f"scaling_fit_{METRIC}_10_zero")
    points = answer_table("scaling", "scaling.csv")
    for series, column in (("measured", "damage"), ("power law", "power_law"), ("worst control", "worst_control")):
        assert list(found[found.series == series].damage) == list(points[column])
    assert list(found[found.series == "measured"].low) == list(points.low)
    sets = of_study("scaling", "kill_sets")
    assert list(sets["size"]) == list(answer_table("scaling", "kill_sets.csv")["size"])


def test_a_model_that_collapses_is_marked_in_a_scaling_fit_and_has_no_number() -> None:
    figure = figures_of(sources.scaling(largest=math.inf), "study")[0]
    collapsed = [row for row in figure.table.rows if row.collapsed]
    assert [(row.model, row.damage) for row in collapsed] == [("m100", None)]
    assert "no finite number" in figure.caption


def test_a_trajectory_has_the_shares_and_the_damage_of_each_revision() -> None:
    steps = answer_table("trajectory", "trajectory.csv")
    shares = of_study("trajectory", f"trajectory_pythia_{METRIC}")
    assert list(shares[shares.series == "in the top k"].share) == list(steps.common / steps.k)
    damage = of_study("trajectory", "trajectory_damage_pythia")
    assert list(damage.change) == list(steps.damage) and list(damage.low) == list(steps.low)
    assert list(damage.revision) == ["step1", "step1000", "step64000", "main"]


def test_a_transfer_matrix_has_the_base_beside_each_variant_and_variants_beside_each_other() -> None:
    found = of_study("transfer", f"transfer_matrix_{METRIC}_20").set_index(["first", "second"])
    rows = answer_table("transfer", "transfer.csv").set_index("variant")
    for variant in ("tuned", "other"):
        assert found.loc[("base", variant)].common == rows.loc[variant].common
        assert found.loc[("base", variant)].expected * 20 == pytest.approx(rows.loc[variant].expected_within)
    assert found.loc[("tuned", "other")].common == found.loc[("other", "tuned")].common == 0
    damage = of_study("transfer", f"transfer_damage_{METRIC}_20_zero").set_index(["series", "variant"])
    assert damage.loc[("base's weights here", "tuned")].change == rows.loc["tuned"].carried
    assert damage.loc[("own weights here", "other")].change == rows.loc["other"].own


def test_stability_of_a_study_has_the_pairs_that_tell_something() -> None:
    found = of_study("stability", "rank_stability")
    pairs = answer_table("stability", "stability_pairs.csv")
    told = pairs[pairs.nothing_new.isna()]
    ours = found[found.series == "taylor"]
    assert list(ours.common) == list(told.common) and set(ours.axis) == {"dataset", "seed"}


def test_metrics_have_their_correlations_with_intervals_and_what_they_share() -> None:
    found, rows = of_study("metrics", "metric_fidelity"), answer_table("metrics", "metrics.csv")
    for column in ("spearman", "low", "high"):
        assert list(found[column]) == list(rows[column])
    agreed = of_study("metrics", "metric_agreement_m1").set_index(["first", "second"])
    for row in answer_table("metrics", "metric_agreement.csv").itertuples():
        if row.model == "m1":
            assert agreed.loc[(row.first, row.second)].common == row.common


def test_profiles_and_smallest_sizes_have_the_shares_of_their_tables() -> None:
    found = of_study("architecture", f"profiles_component_{METRIC}")
    rows = answer_table("architecture", "profiles.csv")
    rows = rows[rows.by == "component"].set_index(["model", "part"])
    assert len(found) == len(rows)
    for row in found.itertuples():
        assert row.share == rows.loc[(row.model, row.part)].share
    sizes = of_study("min-size", f"min_size_{METRIC}_20_zero").set_index(["series", "model"])
    for row in answer_table("min-size", "min_size.csv").itertuples():
        assert sizes.loc[("passes" if row.passes else "fails", row.model)].share == row.share


# of comparisons and of weights


def test_a_comparison_has_the_damage_of_both_runs_and_says_that_they_were_not_measured_alike() -> None:
    figures = {figure.name: figure for figure in figures_of(sources.comparison(), "comparison")}
    curve = figures[f"damage_curve_{METRIC}_zero"]
    found = table(curve)
    for label, report in zip(("aaaa", "bbbb"), sources.comparison().reports, strict=True):
        damage = csv(report, "perturbation.csv")
        measured = damage[(damage.selection == "critical") & damage.collapsed_at.isna()]
        ours = found[(found.series == f"{label}: critical") & found.change.notna()]
        assert list(ours.change) == list(measured.delta_nll)
    assert "not measured alike: other texts measured" in curve.caption


def test_ranks_against_ranks_are_those_of_both_rankings() -> None:
    one, other = sources.comparison().reports
    figures = {figure.name: figure for figure in figures_of(sources.comparison(), "comparison")}
    found = table(figures[f"ranks_{METRIC}"]).set_index("target")
    for report, column in ((one, "first"), (other, "second")):
        ranks = csv(report, f"topk_{METRIC}.csv").set_index("target")["rank"]
        assert all(found.loc[target][column] == rank for target, rank in list(ranks.items())[:50])
    shares = table(figures[f"profiles_component_{METRIC}"])
    assert list(shares[shares.run == "aaaa"].share.sort_values()) == [0, 0.1, 0.3, 0.6]


def test_a_weight_has_its_doses_bits_and_channel() -> None:
    card = sources.card()
    figures = {figure.name: figure for figure in figures_of(card, "weight")}
    doses = table(figures["dose_response"])
    assert list(doses.change) == [
        point.delta_nll for point in sorted(card.doses, key=lambda p: float(p.perturbation[6:]))
    ]
    bits = table(figures["bit_map"])
    assert len(bits) == 64 and set(bits.case.str.split(",").str[0]) == {"bfloat16", "float16", "float32"}
    assert bits.change.notna().sum() == sum(flip.delta_nll is not None for flip in card.bits) > 0
    life = table(figures["channel_life"])
    assert list(life[life.series == "intact"].value) == [at.value for at in card.life]


def test_a_run_of_an_early_version_without_scores_or_layers_has_the_figures_of_what_it_has() -> None:
    report = sources.damaged_run()
    names = [figure.name for figure in figures_of(report, "run")]
    assert names == [f"damage_curve_{METRIC}_zero", f"heat_map_{METRIC}", f"depth_profile_{METRIC}"]


def test_a_run_that_was_asked_for_nothing_has_no_figure_of_it() -> None:
    assert figures_of(planted_run("m"), "run") == []


def test_names_that_differ_in_characters_of_no_file_get_files_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (figure, *_) = figures_of(sources.damaged_run(), "run")
    names = [figure_name("trajectory", model) for model in ("a/b", "a_b", "x" * 300, "x" * 301)]
    assert max(map(len, names)) < 140 and names[2] != names[3]
    kind = FigureKind("trajectory", 1, "run", "", lambda source: [replace(figure, name=name) for name in names])
    monkeypatch.setattr(registry, "FIGURE_KINDS", (kind,))
    found = figures_of(sources.damaged_run(), "run")
    assert [each.name for each in found[:2]] == ["trajectory_a_b", "trajectory_a_b_2"]
    assert [each.table.table.name for each in found] == [f"{each.name}.csv" for each in found]

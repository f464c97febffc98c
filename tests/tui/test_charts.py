"""What charts draw, from plain rows: nothing is dropped without a word, and all can be read without colour."""

from __future__ import annotations

import math
from typing import Any

from textual.app import App, ComposeResult

from cwa_engine.base.events import Progress, StageFinished, StageStarted
from cwa_engine.base.plain import from_plain
from cwa_engine.records.places import Places
from cwa_engine.rows import ControlDraw, DamagePoint, Quantile, TopWeight, ValueDistribution
from cwa_tui.store.events import JobEvent
from cwa_tui.store.stage_times import stages_after
from cwa_tui.tables.columns import shorten
from cwa_tui.tables.critical_places import drawn_layers, places_of
from cwa_tui.tables.ranking import RankingRows
from cwa_tui.widgets.damage_chart import DamageChart
from cwa_tui.widgets.damage_curve import ChartPoint, damage_curve
from cwa_tui.widgets.depth_profile import depth_profile
from cwa_tui.widgets.heat_map import heat_map
from cwa_tui.widgets.plot import LossAxis, ratio_of
from cwa_tui.widgets.weight_views import histogram
from tests.tui.fake_client import point, screen_text, until, weights


def points(*given: dict[str, object]) -> list[DamagePoint]:
    return [from_plain(DamagePoint, row) for row in given]


CALM = {"delta_nll": 0.01, "delta_low": -0.01, "delta_high": 0.03, "perplexity_ratio": 1.01}
DEAD: dict[str, Any] = {**dict.fromkeys(("nll", "perplexity", "delta_nll", "delta_low", "delta_high", "perplexity_ratio")),
        "collapsed_at": "model.layers.3"}  # fmt: skip


def test_a_curve_has_the_critical_sets_and_of_each_control_the_draw_measured_on_all_texts() -> None:
    rows = points(
        point(1), point(10, delta_nll=3.0, delta_low=2.5, delta_high=3.5),
        point(10, "random", 0, sequences=10, **{**CALM, "delta_nll": 0.5}), point(10, "random", 1, sequences=40, **CALM),
        point(10, metric="magnitude"), point(10, perturbation="scale"),
    )  # fmt: skip
    critical, random = damage_curve(rows, "grad_x_weight", "zero").series
    assert [(p.k, p.delta) for p in critical.points] == [(1, 1.8791), (10, 3.0)]
    assert random.points == (ChartPoint(10, 0.01, -0.01, 0.03),)
    assert [draw.delta for draw in random.draws] == [0.5, 0.01]
    assert critical.marker != random.marker


def test_a_collapsed_set_is_named_below_the_chart_and_marked_in_it() -> None:
    curve = damage_curve(points(point(1), point(100, **DEAD)), "grad_x_weight", "zero")
    assert curve.ks == [1, 100]
    assert curve.not_drawn == "beyond a float, drawn as ^ at the top: critical at k 100"


def test_where_a_draw_collapses_no_other_one_is_drawn_as_the_leading_draw() -> None:
    (random,) = damage_curve(
        points(point(10, "random", 0, sequences=16, **CALM), point(10, "random", 1, sequences=16, **DEAD),
               point(20, "random", 0, sequences=16, **CALM)), "grad_x_weight", "zero",
    ).series  # fmt: skip
    assert ([p.k for p in random.points], random.collapsed) == ([20], (10,))


class Chart(App[None]):
    def compose(self) -> ComposeResult:
        yield DamageChart("damage-chart")


async def test_the_chart_shows_markers_values_of_k_losses_and_ratios() -> None:
    app = Chart()
    async with app.run_test(size=(80, 24)) as pilot:
        chart = app.query_one(DamageChart)
        chart.show_curve(damage_curve([], "m", "zero"), "no damage yet")
        await until(lambda: "no damage yet" in screen_text(app))
        rows = points(point(1), point(100, **DEAD), point(1, "random", 0, **CALM), point(100, "random", 0, **CALM))
        chart.show_curve(damage_curve(rows, "grad_x_weight", "zero"), "no damage yet")
        await until(lambda: "+1 x2.72" in screen_text(app))
        text = screen_text(app)
        assert "● critical  ○ random, leading draw" in text
        assert "^" in text.partition("random")[2]
        assert "critical at k 100" in text
        assert "no damage yet" not in text
        await pilot.press("tab")
        await until(lambda: app.focused is not None)
        await pilot.press("+", "+")
        await until(lambda: screen_text(app).count("k 100") == 1)  # in the sentence alone
        await pilot.press("0")
        await until(lambda: screen_text(app).count("k 100") == 2)


def test_ticks_of_losses_are_few_round_and_have_a_true_zero() -> None:
    axis = LossAxis()
    assert axis.get_ticks(-0.12, 0.05) == [-0.1, -0.05, 0.0, 0.05]
    assert axis.get_labels_for_ticks([0.0, 1.0]) == ["+0 x1", "+1 x2.72"]
    assert ratio_of(1e6) == "x>1e304"


def test_a_map_counts_by_layer_and_component_with_a_shade_for_each_number() -> None:
    places = Places({(0, "down"): 1, (2, "down"): 8, (None, "embedding"): 4})
    lines = heat_map(places, 80).plain.splitlines()
    assert lines[0].split() == ["layer", "-", "0", "1", "2", "all"]
    assert lines[1].split() == ["down", "·", "░1", "·", "█8", "9"]
    assert lines[2].split() == ["embedding", "▒4", "·", "·", "·", "4"]
    assert "░ 1-2" in lines[-1]
    assert "█ 7-8" in lines[-1]


def test_a_map_of_a_deep_model_is_turned_where_it_would_not_fit() -> None:
    places = Places({(layer, "down"): layer + 1 for layer in range(40)})
    lines = heat_map(places, 60).plain.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[40].split() == ["39", "█40", "40"]


def test_a_profile_puts_neighbouring_layers_together_and_says_what_chance_gives() -> None:
    lines = depth_profile({0: 30, 7: 10}, dict.fromkeys(range(8), 5), 60, 6).plain.splitlines()
    assert lines[1].split()[:3] == ["0-1", "75.0%", "25.0%"]
    assert lines[4].split()[:3] == ["6-7", "25.0%", "25.0%"]
    assert max(map(len, lines)) <= 60
    assert "40 weights that random controls drew" in lines[-1]


def test_layers_of_random_draws_are_read_from_names_as_the_ranking_has_them() -> None:
    ranking = RankingRows.of([from_plain(TopWeight, row) for row in weights(3)])
    assert places_of(ranking).counts == {(layer, "down"): 1 for layer in (1, 2, 3)}
    draws = [
        ControlDraw("grad_x_weight", 1, control, 0, target)
        for control, target in (
            ("random", "model.layers.11.self_attn.q_proj.weight[1,2]"),
            ("random", "model.embed_tokens.weight[3,4]"),
            ("random_matched", "model.layers.11.mlp.down_proj.weight[1,2]"),
        )
    ]
    assert drawn_layers(draws, "grad_x_weight", ranking) == {11: 1, None: 1}


def test_a_histogram_marks_the_bin_of_the_value_and_says_how_high_it_is() -> None:
    spread = ValueDistribution(111, 0, 0.0, 1.0, (Quantile(0.0, -2.0),), (-2.0, -1.0, 0.0, 1.0, 2.0), (1, 100, 9, 1))
    lines = histogram(spread, 1.5, 60).plain.splitlines()
    assert lines[-3] == "   ▲"
    assert "100 values" in lines[-1]
    assert [column != " " for column in lines[0]] == [False, True, False, False]  # the highest reaches the top alone
    assert all(column != " " for column in lines[-4])


def test_names_are_shortened_to_what_tells_weights_apart() -> None:
    name = "model.layers.3.post_attention_layernorm.weight[247]"
    assert shorten(name, 60, "weight") == name
    assert shorten(name, 46, "weight") == "…layers.3.post_attention_layernorm.weight[247]"
    assert shorten(name, 39, "weight") == "…3.post_attention_layernorm.weight[247]"
    assert shorten(name, 24, "weight") == "…3.…ayernorm.weight[247]"


def event(moment: float, what: object) -> JobEvent:
    return JobEvent(1, moment, what)  # type: ignore[arg-type]


def test_an_end_is_foretold_only_once_enough_of_a_stage_was_seen() -> None:
    stages = stages_after({}, event(100.0, StageStarted("score")))
    for moment, done in ((100.0, 0), (100.5, 1)):
        stages = stages_after(stages, event(moment, Progress("score", done, 41, "sequence")))
    assert stages["score"].left(100.5) is None
    stages = stages_after(stages, event(120.0, Progress("score", 21, 41, "sequence")))
    assert math.isclose(stages["score"].left(125.0) or 0, 20 * 20 / 21 - 5)
    assert stages["score"].elapsed(125.0) == 25.0
    stages = stages_after(stages, event(130.0, StageFinished("score", 29.5)))
    assert (stages["score"].left(200.0), stages["score"].elapsed(200.0)) == (None, 29.5)

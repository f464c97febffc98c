"""The run screen, driven by keys at 80x24 and 160x48: a run that goes on, one that is done, one that failed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from cwa_engine.base.errors import RunFailed
from cwa_engine.spec import RunSpec
from cwa_tui.screens.run import RunScreen
from cwa_tui.screens.weight import WeightScreen
from cwa_tui.widgets.damage_table import DamageTable
from cwa_tui.widgets.topk_table import TopkTable
from tests.tui.fake_client import BASELINE, FakeDaemon, app_on, point, screen_lines, screen_text, until, weights
from tests.tui.finished_run import RUN_ID, finished

RUN = "20261123-190315-smollm2-135m-ecyg"
SMALL, LARGE = (80, 24), (160, 48)


class Terminal:
    """What a user sees and does."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        self.app = pilot.app

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def go(self, key: str, pane: str) -> None:
        """Press a key that leads to a pane."""
        await self.press(key)
        await until(lambda: self.app.focused and self.app.focused.id == pane)

    async def sees(self, *texts: str) -> None:
        """Wait until all of these are on screen, in one line or over the end of one."""

        def missing() -> list[str]:
            seen = f"{self.text}\n{' '.join(self.text.split())}"
            return [text for text in texts if text not in seen]

        try:
            await until(lambda: not missing())
        except TimeoutError:
            raise AssertionError(f"{missing()} is not on screen:\n{self.text}") from None

    async def sees_no(self, text: str) -> None:
        await until(lambda: text not in self.text)

    @property
    def text(self) -> str:
        return screen_text(self.app)

    def line(self, text: str) -> str:
        """The first line with a text in it."""
        return next(line for line in screen_lines(self.app) if text in line)

    @property
    def topk(self) -> TopkTable:
        return self.app.screen.query_one(TopkTable)


@asynccontextmanager
async def run_open(daemon: FakeDaemon, run_id: str, size: tuple[int, int] = SMALL) -> AsyncIterator[Terminal]:
    async with app_on(daemon).run_test(size=size, notifications=True) as pilot:
        await until(lambda: run_id in pilot.app.session.store._jobs)  # type: ignore[attr-defined]
        pilot.app.open_run(run_id)  # type: ignore[attr-defined]
        await until(lambda: isinstance(pilot.app.screen, RunScreen) and pilot.app.screen.query("#answers-text"))
        yield Terminal(pilot)


def scored(daemon: FakeDaemon, count: int = 10, **fields: Any) -> str:
    run_id = daemon.run(RUN, RunSpec(model="smollm2-135m", **{"topk": (1, 10), **fields}))
    daemon.say(run_id, "stage_started", stage="baseline")
    daemon.say(run_id, "baseline", baseline=BASELINE)
    daemon.say(run_id, "stage_finished", stage="baseline", seconds=12.2)
    daemon.say(run_id, "stage_started", stage="perturb")
    daemon.progress(run_id, "perturb", 3, 40)
    daemon.say(run_id, "topk", metric="grad_x_weight", partial=False, weights=weights(count))
    return run_id


def damaged(daemon: FakeDaemon, run_id: str, metric: str = "grad_x_weight") -> None:
    daemon.say(run_id, "damage", point=point(10, metric=metric))
    for seed, delta in enumerate((0.001, -0.004, 0.002)):
        ends = {
            "delta_nll": delta,
            "delta_low": delta - 0.01,
            "delta_high": delta + 0.01,
            "perplexity_ratio": 1 + delta,
        }
        daemon.say(run_id, "damage", point=point(10, "random", seed, metric=metric, **ends))


async def test_a_run_that_goes_on_shows_its_stages_its_baseline_and_the_losses_so_far() -> None:
    daemon = FakeDaemon()
    damaged(daemon, scored(daemon))
    async with run_open(daemon, RUN) as terminal:
        await terminal.sees("ecyg  ▶ running 0:42", "smollm2-135m on cpu", "✓ baseline 12 s", "▶ perturb 3/40")
        await terminal.sees("baseline perplexity 17.86", "k 10 zero: 116.95 (x6.55)")
        daemon.say(RUN, "stage_finished", stage="perturb", seconds=80.0)
        await terminal.sees("✓ 2 stages 1 min 32 s")


async def test_a_run_that_waits_says_for_what() -> None:
    daemon = FakeDaemon()
    daemon.add(RUN)
    daemon.jobs[RUN] = daemon.jobs[RUN].model_copy(update={"waits_for": "k7q2 runs on cpu (score 3/40)"})
    async with run_open(daemon, RUN) as terminal:
        await terminal.sees("○ queued", "waits for: k7q2 runs on cpu (score 3/40)")


async def test_keys_choose_the_pane_that_a_narrow_terminal_shows() -> None:
    daemon = FakeDaemon()
    damaged(daemon, scored(daemon))
    async with run_open(daemon, RUN) as terminal:
        for key, texts in (
            ("2", ["[2 damage]", "leading", "of 3 so far", "● critical"]),
            ("3", ["[3 profile]", "down", "layers", "critical"]),
            ("4", ["[4 log]", "rank 1 is"]),
            ("5", ["[5 answers]", "when the run is done"]),
            ("1", ["[1 top weights]", "weight [out,in]"]),
        ):
            await terminal.press(key)
            await terminal.sees(*texts)


async def test_a_wide_terminal_shows_weights_damage_chart_places_and_log_together() -> None:
    daemon = FakeDaemon()
    damaged(daemon, scored(daemon))
    async with run_open(daemon, RUN, LARGE) as terminal:
        await terminal.sees("top weights", "Δ nats", "● critical", "layers and components", "─ log")
        assert "model.layers.1.mlp.down_proj.weight[2533,1]" in terminal.text  # whole
        await terminal.press("5")
        await terminal.sees("━ answers")
        await terminal.sees_no("─ log")


async def test_controls_are_summed_up_and_d_shows_every_draw() -> None:
    daemon = FakeDaemon()
    damaged(daemon, scored(daemon))
    async with run_open(daemon, RUN) as terminal:
        await terminal.go("2", "damage")
        await terminal.sees("median", "of 3 so far")
        assert "-0.0040" in terminal.line("leading")
        assert "+0.0010" in terminal.line("median")
        await terminal.press("d")
        await terminal.sees("seed 0", "seed 1", "seed 2", "· each draw", "texts")
        await terminal.press("d")
        await terminal.sees_no("seed 1")


async def test_two_metrics_at_80_columns_keep_the_ratio() -> None:
    daemon = FakeDaemon()
    run_id = scored(daemon, metrics=("grad_x_weight", "magnitude"))
    damaged(daemon, run_id)
    damaged(daemon, run_id, "magnitude")
    async with run_open(daemon, RUN) as terminal:
        await terminal.go("2", "damage")
        await terminal.sees("damage · grad_x_weight", "ratio", "95 % interval")
        await terminal.press("a")
        await terminal.sees("magnit…", "x6.55", "95 % interval")
        await terminal.press("a", "m")
        await terminal.sees("damage · magnitude")


async def test_a_collapsed_set_says_where_in_table_and_chart() -> None:
    daemon = FakeDaemon()
    run_id = scored(daemon)
    nothing: dict[str, Any] = dict.fromkeys(
        ("nll", "perplexity", "delta_nll", "delta_low", "delta_high", "perplexity_ratio")
    )
    daemon.say(run_id, "damage", point=point(1))
    daemon.say(run_id, "damage", point=point(10, **nothing, collapsed_at="model.layers.3.mlp"))
    async with run_open(daemon, RUN) as terminal:
        await terminal.go("2", "damage")
        await terminal.sees("collapsed", "at model.layers.3", "beyond a float", "critical at k 10")


async def test_weights_are_sorted_filtered_and_jumped_to() -> None:
    daemon = FakeDaemon()
    scored(daemon, count=30)
    async with run_open(daemon, RUN) as terminal:
        await until(lambda: len(terminal.topk.source) == 30)
        await terminal.press("/", *"layer:3", "enter")
        await terminal.sees("1-1 of 1 (of 30)", "layers.3.mlp")
        await terminal.press("escape")
        await until(lambda: len(terminal.topk.source) == 30)
        await terminal.press("/", *"value>0", "enter")
        await terminal.sees("nothing matches /value>0")
        await terminal.press("escape", ":", *"27", "enter")
        await until(lambda: terminal.topk.cursor_key == "27")
        await terminal.press("G")
        await until(lambda: terminal.topk.cursor_key == "30")
        await terminal.press("g", "l", "l", "l", "l", "s")  # by score, the largest first
        await terminal.press("s")  # the smallest
        await until(lambda: terminal.topk.cursor_key == "30")


async def test_a_hundred_thousand_weights_of_a_finished_run_are_all_there() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    lines = "\n".join(f"{n},model.layers.{n % 9}.mlp.down_proj.weight,{n},{n},7,0.5,{1 / n},{n % 9},down,"
                      f"\"model.layers.{n % 9}.mlp.down_proj.weight[{n},7]\"" for n in range(1, 100_001))  # fmt: skip
    head = "rank,parameter,flat_index,out_feature,in_feature,value,score,layer,component,target\n"
    daemon.files[RUN_ID, "topk_grad_x_weight.csv"] = (head + lines).encode()
    async with run_open(daemon, RUN_ID) as terminal:
        await until(lambda: len(terminal.topk.source) == 100_000)
        await terminal.press("end")
        await terminal.sees("weight[100000,7]", "of 100,000")


async def test_a_finished_run_leads_with_its_verdict_and_has_all_answers() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    async with run_open(daemon, RUN_ID, LARGE) as terminal:
        sentence = max((v for v in report.verdicts if v.metric == "grad_x_weight"), key=lambda v: v.k).sentence
        await terminal.sees("✓ done", sentence[:60], f"{len(report.verdicts) - 1} more")
        await terminal.sees("by chance", f"{len(report.topk())} weights by grad_x_weight")
        await terminal.go("5", "answers")
        await terminal.sees("grad_x_weight k 1:")
        await terminal.press("end")
        await terminal.sees("numerical floor", "fingerprint")


async def test_a_short_terminal_says_the_verdict_in_figures() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    group = next(g for g in report.summary.damage if (g.metric, g.k) == ("grad_x_weight", 4))
    random = next(row for row in group.controls if row.control == "random")
    assert group.critical
    assert random.largest
    async with run_open(daemon, RUN_ID) as terminal:
        await terminal.sees(f"{group.outcome} · k 4 zero: {group.critical.delta_nll:+.4f} nats")
        await terminal.sees(f"leading draws: random {random.largest:+.4f}", "(5: whole, and")


async def test_m_shows_another_metric_everywhere() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with run_open(daemon, RUN_ID, LARGE) as terminal:
        await terminal.sees("weights by grad_x_weight")
        await terminal.press("m")
        await terminal.sees("top weights · magnitude", "damage · magnitude", "weights by magnitude")


async def test_a_failed_run_says_why_and_what_to_do() -> None:
    daemon = FakeDaemon()
    daemon.run(RUN)
    daemon.end(RUN, "failed", RunFailed("the score is NaN", hint="try --dtype float32"))
    async with run_open(daemon, RUN) as terminal:
        await terminal.sees(
            "✗ failed", "the score is NaN", "hint: try --dtype float32", "nothing was scored before that"
        )


async def test_files_that_are_not_what_the_run_wrote_are_named() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    del daemon.reports[RUN_ID]
    async with run_open(daemon, RUN_ID) as terminal:
        await terminal.press("5")
        await terminal.sees("has no result", "its files were removed")


async def test_enter_opens_a_weight_and_escape_goes_back() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with run_open(daemon, RUN_ID) as terminal:
        await until(lambda: terminal.topk.cursor_key == "1")
        await terminal.press("down", "enter")
        await until(lambda: isinstance(terminal.app.screen, WeightScreen))
        assert terminal.app.screen.place == 2  # type: ignore[attr-defined]
        await terminal.press("escape")
        await until(lambda: isinstance(terminal.app.screen, RunScreen))
        assert terminal.topk.cursor_key == "2"


async def test_what_is_seen_is_exported_with_exact_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    daemon = FakeDaemon()
    report = finished(daemon)
    async with run_open(daemon, RUN_ID) as terminal:
        await until(lambda: len(terminal.topk.source) == len(report.topk()))
        await terminal.press("x", "c")
        await until(lambda: list(tmp_path.glob("*.csv")))
        written = next(tmp_path.glob("*.csv")).read_text().splitlines()
        assert written[0].startswith("rank,target,value,score")
        assert repr(report.topk()[0].score) in written[1]


async def test_the_damage_of_a_run_whose_events_are_gone_comes_from_its_files() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    events = daemon.events[RUN_ID]
    daemon.events[RUN_ID] = [e for e in events if e["kind"] == "state"]
    async with run_open(daemon, RUN_ID, LARGE) as terminal:
        shown = [p for p in report.damage if p.metric == "grad_x_weight" and p.selection == "critical"]
        table = terminal.app.screen.query_one(DamageTable)
        await until(
            lambda: [table.source.row(n).cells["selection"] for n in range(len(table.source))].count("critical")
        )
        assert len(shown) == 2
        await terminal.sees("● critical")

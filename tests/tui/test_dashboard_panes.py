"""What the dashboard's panes say, as plain functions of what the daemon told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.protocol import DeviceMemory, Headline, JobView, StageProgress, WorkerView
from cwa_engine.base.plain import from_plain
from cwa_engine.rows import DamagePoint
from cwa_engine.spec import RunSpec
from cwa_tui.store.events import read_job_event
from cwa_tui.store.followed_run import FollowedRun, run_after
from cwa_tui.store.job_facts import all_asked, asked_for, newest, ratios, result, sentence, state_and_result
from cwa_tui.store.stage_pace import pace_after
from cwa_tui.widgets.active_jobs import active_lines
from cwa_tui.widgets.job_preview import preview_lines
from cwa_tui.widgets.memory_bars import lanes_line, memory_bar
from cwa_tui.widgets.models_table import stays
from tests.tui.fake_client import BASELINE, NOW, FakeClient, FakeDaemon, point, warm, whole_run

GB = 10**9


def job(kind: str = "run", state: str = "queued", spec: RunSpec | None = None, **fields: Any) -> JobView:
    spec = spec or RunSpec(model="gpt2", metrics=("grad_x_weight", "wanda"), topk=(1, 10))
    return JobView(
        run_id="20261123-190000-gpt2-k7q2",
        kind=kind,
        state=state,
        model="gpt2",
        spec=spec.model_dump(mode="json"),
        device="cpu",
        created=NOW - 60,
        **fields,
    )


def at(done: int, total: int = 100, stage: str = "score") -> StageProgress:
    return StageProgress(stage=stage, done=done, total=total, unit="sequence")


def headline(**fields: Any) -> Headline:
    known: dict[str, Any] = {
        "metric": "grad_x_weight",
        "k": 10,
        "perturbation": "zero",
        "ratio": 6.5477,
        "control_ratio": 1.0001,
    }
    return Headline(**(known | fields))


# what is said of a job


def test_what_was_asked_is_the_first_metric_how_many_more_and_the_largest_k() -> None:
    assert asked_for(job()) == "grad_x_weight +1 k10"
    assert all_asked(job()) == "grad_x_weight, wanda · k 1, 10 · zero · built-in texts"
    assert asked_for(job("plan")) == "only plans" and asked_for(job("load")) == "only loads"


def test_a_ratio_stands_beside_that_of_the_worst_control() -> None:
    assert ratios(job()) == ""
    assert ratios(job(headline=headline())) == "x6.55 vs x1.0001"
    assert ratios(job(headline=headline(control_ratio=None))) == "x6.55", "nothing is made up where none was measured"
    assert ratios(job(headline=headline(control_ratio=None, control_collapsed=True))) == "x6.55 vs collapsed"
    assert ratios(job(headline=headline(ratio=None))) == "- vs x1.0001"
    assert ratios(job(headline=headline(ratio=None, collapsed=True))) == "collapsed vs x1.0001"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": "running"}, "▶ running"),
        ({"state": "running", "progress": at(50)}, "▶ score 50/100 ████░░░░"),
        ({"state": "queued", "waits_for": "k7q2 to be done"}, "○ queued: k7q2 to be done"),
        ({"state": "paused"}, "‖ paused"),
        ({"state": "done"}, "✓ done"),
        ({"state": "done", "kind": "load"}, "✓ done is warm"),
        ({"state": "done", "headline": headline()}, "✓ done x6.55 vs x1.0001"),
        ({"state": "failed", "error": {"message": "no such model", "hint": ""}}, "✗ failed: no such model"),
        ({"state": "cancelled", "error": {"message": "cancelled", "hint": ""}}, "⊘ cancelled"),
    ],
)
def test_state_and_result_share_a_column(fields: dict[str, Any], said: str) -> None:
    assert state_and_result(job(**fields), 24) == said


def test_files_that_could_not_be_copied_are_said_of_a_run_that_is_done() -> None:
    done = job(
        state="done", headline=headline(), copy_error={"message": "the disk is full", "hint": "", "retryable": False}
    )
    assert result(done) == sentence(done) == "the disk is full"


def test_progress_by_events_is_ahead_of_the_list() -> None:
    daemon = FakeDaemon()
    daemon.run("a")
    daemon.progress("a", "score", 3, 8)
    followed = FollowedRun("a")
    for event in daemon.events["a"]:
        followed = run_after(followed, read_job_event(event))
    behind = daemon.jobs["a"].model_copy(update={"progress": None, "last_seq": 1})
    progress = newest(behind, followed).progress
    assert progress and progress.done == 3
    assert newest(daemon.jobs["a"], None) is daemon.jobs["a"]
    assert newest(behind.model_copy(update={"last_seq": 99}), followed).progress is None, "the list is ahead"


def test_a_run_that_begins_anew_forgets_what_it_measured_before() -> None:
    daemon = FakeDaemon()
    whole_run(daemon, "a")
    measured = FollowedRun("a")
    for event in daemon.events["a"][:-1]:
        measured = run_after(measured, read_job_event(event))
    assert measured.damage and measured.status.baseline
    again = {"seq": measured.last_seq + 1, "time": NOW, "kind": "state", "state": "queued", "error": None}
    begun = run_after(measured, read_job_event(again))
    assert not begun.damage and not begun.rankings and begun.status.baseline is None
    assert len(begun.log.lines) > 1, "the log stays"


# how long a stage takes


def test_a_stage_ends_when_it_goes_on_as_it_went() -> None:
    pace = pace_after(None, at(10), NOW)
    assert pace.seconds_left(NOW) is None, "one look foretells nothing"
    pace = pace_after(pace, at(30), NOW + 10)
    assert pace.seconds_left(NOW + 10) == pytest.approx(70 / 2)
    assert pace.seconds_left(NOW + 15) == pytest.approx(70 / 2 - 5), "it counts down between two steps"
    assert pace.seconds_left(NOW + 500) == 0.0


def test_another_stage_and_one_that_begins_again_are_watched_anew() -> None:
    pace = pace_after(pace_after(None, at(10), NOW), at(30), NOW + 10)
    for anew in (at(31, stage="perturb"), at(5), at(31, total=200)):
        assert pace_after(pace, anew, NOW + 20).seconds_left(NOW + 20) is None


# what runs and waits


def lines(
    jobs: list[JobView], more: int = 0, run: FollowedRun | None = None, width: int = 78, height: int = 4
) -> list[str]:
    runs = {jobs[0].run_id: run} if run else {}
    return [line.plain for line in active_lines(jobs, more, runs, NOW, width, height)]


def test_a_running_job_has_its_stage_and_what_it_measured() -> None:
    run = FollowedRun("a")
    for event in (
        {"seq": 1, "time": NOW, "kind": "baseline", "baseline": BASELINE},
        {"seq": 2, "time": NOW, "kind": "damage", "point": point(10)},
        {"seq": 3, "time": NOW, "kind": "damage", "point": point(10, "random", 1, perplexity_ratio=1.0)},
    ):
        run = run_after(run, read_job_event(event))
    running = job(state="running", worked_s=30.0, running_since=NOW - 12, progress=at(3))
    first, second = lines([running], run=run)
    assert first == "▶ k7q2 gpt2  grad_x_weight +1 k10  0:42"
    assert lines([running.model_copy(update={"device": "cpu:1"})], run=run)[0] == f"{first}  on cpu:1"
    assert second.startswith("  score 3/100 █") and second.endswith("perplexity 17.86, x6.55 by zero k10")
    assert len(second) <= 78


def test_what_does_not_fit_is_counted() -> None:
    waiting = [job(waits_for="a worker that is starting") for _ in range(6)]
    assert len(lines(waiting, height=10)) == 6
    assert lines(waiting, height=4)[-1] == "  and 3 more"
    assert lines(waiting, more=20, height=10)[-1] == "  and 20 more"
    assert lines([]) == ["nothing runs and nothing waits"]


def test_loads_and_plans_say_what_they_are() -> None:
    assert lines([job("load", "running", progress=at(1))])[0].startswith("▶ k7q2 load gpt2")


# warm models and memory


def test_a_model_stays_for_a_time_for_good_or_while_it_is_used() -> None:
    model = warm().model_copy(update={"expires": NOW + 1752})
    assert stays(model, NOW) == "29:12"
    assert stays(model, NOW + 9999) == "0:00"
    assert stays(model.model_copy(update={"pinned": True}), NOW) == "pinned"
    assert stays(model.model_copy(update={"expires": None}), NOW) == "for good"
    assert stays(model.model_copy(update={"in_use": True}), NOW, "k7q2") == "used by k7q2"


sizes = st.integers(0, 80 * GB)


@given(st.lists(sizes, max_size=5), sizes, sizes, st.integers(20, 200))
def test_a_memory_bar_fills_its_width_and_names_only_what_is_there(
    models: list[int], ours: int, others: int, width: int
) -> None:
    device = DeviceMemory(device="cuda:0", total_bytes=80 * GB, used_bytes=ours, others_bytes=others)
    warm_ones = [warm(f"m{place}").model_copy(update={"size_bytes": size}) for place, size in enumerate(models)]
    bar = memory_bar(device, warm_ones, width)
    assert bar.cell_len == width or bar.plain == "cuda:0"
    assert ("others" in bar.plain) <= (others > 0)


def test_each_part_of_a_memory_bar_is_as_wide_as_its_share() -> None:
    device = DeviceMemory(device="cpu", total_bytes=100 * GB, used_bytes=75 * GB, others_bytes=25 * GB)
    bar = memory_bar(device, [warm("large").model_copy(update={"size_bytes": 50 * GB})], 105)
    parts = [len(part) + 1 for part in bar.plain.removeprefix("cpu ").strip("▏").split("▏")]
    assert parts == [50, 25, 25]
    assert "large 50.00" in bar.plain and "others 25.00" in bar.plain and "free 25.00" in bar.plain


def test_a_line_says_what_each_of_several_lanes_does_and_one_alone_needs_none() -> None:
    lanes = [
        WorkerView(device="cpu:0", pid=7, state="busy", run_id="20261123-190000-gpt2-k7q2"),
        WorkerView(device="cpu:1", pid=8, state="idle"),
        WorkerView(device="cpu:2", pid=None, state="stopped"),
    ]
    (line,) = lanes_line(lanes)
    assert line.plain == "lanes cpu:0 k7q2 · cpu:1 idle · cpu:2 no worker"
    assert lanes_line(lanes[:1]) == []


async def test_a_device_that_a_run_named_and_the_machine_does_not_have_is_no_lane() -> None:
    workers = [
        WorkerView(device=name, pid=pid, state="idle") for name, pid in (("cpu", 7), ("cuda:0", None), ("cuda:1", 8))
    ]
    cpu = DeviceMemory(device="cpu", total_bytes=100 * GB, used_bytes=75 * GB, others_bytes=25 * GB)
    daemon = (await FakeClient(FakeDaemon()).status()).model_copy(update={"workers": workers, "devices": [cpu]})
    assert [lane.device for lane in daemon.lanes] == ["cpu", "cuda:1"]


# beside the list


def test_the_preview_is_one_sentence_in_one_line_and_the_log_fills_what_is_left() -> None:
    daemon = FakeDaemon()
    whole_run(daemon, "a")
    run = FollowedRun("a")
    for event in daemon.events["a"]:
        run = run_after(run, read_job_event(event))
    done = replace_headline(job(state="done"), sentence="It is harmful.")
    assert [line.plain for line in preview_lines(done, run, NOW, 60, 1)] == ["k7q2  It is harmful."]
    for height in range(2, 60):
        shown = preview_lines(done, run, NOW, 60, height)
        assert len(shown) <= height and all(line.cell_len <= 60 for line in shown)
    text = "\n".join(line.plain for line in shown)
    assert "grad_x_weight k10 zero      x6.55 vs x1.0001" in text
    assert "1 model.layers.1.mlp.down_proj.weight[2533,1]  1" in text
    assert text.rstrip().endswith("done")


def test_the_preview_has_the_largest_of_the_leading_draws_however_few_texts_made_it_clear() -> None:
    def preview(*points: dict[str, Any]) -> str:
        told = [from_plain(DamagePoint, each) for each in points]
        damage = {(p.metric, p.k, p.perturbation, p.selection, p.seed): p for p in told}
        shown = preview_lines(job(state="done"), FollowedRun("a", damage=damage), NOW, 60, 20)
        return "\n".join(line.plain for line in shown)

    largest = point(10, "random_matched", 1, sequences=16, delta_nll=1.1, perplexity_ratio=3.004)
    small = point(10, "bottom", None, sequences=66, delta_nll=0.01, perplexity_ratio=1.01)
    out = point(10, "random_matched", 2, sequences=2, delta_nll=2.0, perplexity_ratio=7.39)
    assert "x6.55 vs x3.00" in preview(point(10, sequences=66), largest, out, small)
    assert "x6.55 vs x1.01" in preview(point(10, sequences=66), small)


def replace_headline(view: JobView, **fields: Any) -> JobView:
    return view.model_copy(update={"headline": headline(**fields)})

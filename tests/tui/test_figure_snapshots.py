"""Pictures of the screen of figures and of the card of a weight. `pytest --snapshot-update` takes them anew; look at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from textual.pilot import Pilot

from cwa_engine.base.events import CardMade, to_dict
from cwa_engine.figures import registry
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, table_of
from cwa_engine.records.run_report import RunReport
from cwa_engine.spec import RunSpec
from cwa_tui.app import CwtoolApp
from tests.tui.a_card import TARGET, card
from tests.tui.fake_client import FakeDaemon, screen_text, until
from tests.tui.finished_run import RUN_ID, finished
from tests.tui.looks import LOOKS, app_in_look


@dataclass(frozen=True, slots=True)
class Damage:
    k: int
    series: str
    change: float | None
    low: float | None
    high: float | None
    collapsed: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    layer: int
    component: str
    count: int


def figures(report: RunReport) -> Iterator[Figure]:
    """Two figures in which the same numbers stand everywhere."""
    rows = [Damage(1, "critical", 0.2, 0.1, 0.3), Damage(10, "critical", 1.9, 1.6, 2.2)]
    rows += [Damage(100, "critical", None, None, None, True), Damage(1, "random", 0.0002, -0.001, 0.001)]
    rows += [Damage(10, "random", -0.003, -0.006, 0.0005), Damage(100, "random", 0.02, 0.01, 0.03)]
    yield Figure(
        name="damage_curve",
        title="Change of the loss by zero of the top k",
        caption="A tiny model. Critical sets of k = 1, 10, 100, with 95 % intervals over texts.",
        table=table_of("damage_curve", Damage, rows),
        x=Axis("k", "weights changed, k", "log"),
        y=Axis("change", "change of the loss (nats per token)", "symlog", linear_within=1e-3),
        colour=Axis("series", "", "category", ("critical", "random")),
        layers=(
            Layer("rule", at=0.0), Layer("line"), Layer("interval", "low", "high"), Layer("point"),
            Layer("beyond", where=(("collapsed", True),)),
        ),
    )  # fmt: skip
    counts = [
        Count(layer, part, layer * at % 7) for layer in range(8) for at, part in enumerate(("q", "o", "up", "down"))
    ]
    yield Figure(
        "heat_map", "Where the top 100 lie", "A tiny model.", table_of("heat_map", Count, counts),
        Axis("layer", "layer"), Axis("component", "component", "category"), (Layer("cell"),), Axis("count", "weights"),
    )  # fmt: skip


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    made = FakeDaemon()
    finished(made)
    monkeypatch.setattr(registry, "FIGURE_KINDS", (FigureKind("known", 1, "run", "what is known", figures), *(
        kind for kind in registry.FIGURE_KINDS if kind.of == "weight"
    )))  # fmt: skip
    return made


@pytest.fixture(params=LOOKS, ids="-".join)
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon) -> CwtoolApp:
    return app_in_look(request.param[1], daemon, monkeypatch)


async def shown(app: CwtoolApp, pilot: Pilot[None], *texts: str) -> None:
    await until(lambda: all(text in screen_text(app) for text in texts))
    await pilot.pause()


def test_a_figure_of_a_run(snap_compare: Callable[..., bool], app: CwtoolApp, size: tuple[int, int]) -> None:
    async def opened(pilot: Pilot[None]) -> None:
        await until(lambda: app.session.store.job(RUN_ID) and "connecting" not in screen_text(app))
        app.open_figures("run", [RUN_ID])
        await shown(app, pilot, "1 of 2", "critical", "weights changed", "95 % intervals")

    assert snap_compare(app, terminal_size=size, run_before=opened)


def test_the_card_of_a_weight(
    snap_compare: Callable[..., bool], app: CwtoolApp, size: tuple[int, int], daemon: FakeDaemon
) -> None:
    async def opened(pilot: Pilot[None]) -> None:
        await until(lambda: app.session.store.job(RUN_ID) and "connecting" not in screen_text(app))
        app.open_card(RUN_ID, RunSpec(model="smollm2-135m"), TARGET)
        await until(lambda: daemon.examined)
        (job,) = (run_id for run_id, view in daemon.jobs.items() if view.kind == "weight")
        daemon.say(job, "state", state="running", error=None)
        daemon.say(job, **to_dict(CardMade(card())))
        await shown(app, pilot, "rank among all weights")
        await pilot.press("3")
        await shown(app, pilot, "bit across", "one stored bit flipped")

    assert snap_compare(app, terminal_size=size, run_before=opened)

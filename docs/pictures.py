"""Take the pictures of the full-screen interface: dashboard, run and comparison, of runs on the real SmolLM2-135M.

`python -m docs.pictures` makes the runs on a daemon of its own, which takes minutes; with a state folder as its argument
it shows the runs that are there.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from cwa_daemon.base.settings import Settings
from cwa_daemon.client import Client, stop_daemon
from cwa_engine.spec import RunSpec
from cwa_tui.app import CwtoolApp, connector
from cwa_tui.store.preferences import PreferenceFile

FOLDER = Path(__file__).with_name("pictures")
SIZE = (132, 38)
MODEL = "smollm2-135m"
TOPK = (1, 3, 10, 100)
SPECS = (
    RunSpec(model=MODEL, metrics=("grad_squared",), topk=TOPK, eval_limit=16, perturbations=()),
    RunSpec(model=MODEL, metrics=("grad_x_weight",), topk=TOPK, eval_limit=8, control_seeds=5),
    RunSpec(model=MODEL, metrics=("grad_x_weight",), topk=TOPK, eval_limit=16, control_seeds=5),
)
PATIENCE_S = 30.0
# The picture asks a reader's machine for no fonts of others.
FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    os.environ.pop("NO_COLOR", None)
    if len(sys.argv) > 1:
        asyncio.run(take_pictures(Settings(home=Path(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="cwtool-", dir="/tmp") as home:
        settings = Settings(home=Path(home))
        try:
            make_runs(settings)
            asyncio.run(take_pictures(settings))
        finally:
            stop_daemon(settings)


def make_runs(settings: Settings) -> None:
    with Client.connect(settings) as client:
        run_ids = [client.submit(spec) for spec in SPECS]
        for run_id in run_ids:
            print(run_id, flush=True)
            list(client.follow(run_id))


def two_to_compare(app: CwtoolApp) -> tuple[str, str]:
    """Run ids of two runs that ranked by grad_x_weight, first one that measured damage."""
    runs = [job for job in app.known_runs if job.state == "done" and "grad_x_weight" in job.spec["metrics"]]
    first = next(job for job in runs if job.spec["perturbations"])
    return first.run_id, next(job.run_id for job in runs if job is not first)


async def take_pictures(settings: Settings) -> None:
    """Dashboard, the latest run, and the two latest compared."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        app = CwtoolApp(connector(settings), preferences=PreferenceFile(Path(scratch) / "tui.json"), ascii=False)
        async with app.run_test(size=SIZE) as pilot:
            # with some seconds of the devices
            await shown(app, lambda: len(app.session.store.history) > 5 and "✓ done" in screen_text(app))
            await pilot.pause(1)
            take(app, "dashboard", pilot)
            first, second = two_to_compare(app)
            app.open_run(first)
            await shown(app, lambda: app.session.store.report(first))
            await pilot.pause(2)
            take(app, "run", pilot)
            await pilot.press("escape")
            app.open_comparison([first, second])
            await shown(app, lambda: "chance" in screen_text(app))
            await pilot.pause(2)
            take(app, "compare", pilot)


def screen_text(app: CwtoolApp) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


async def shown(app: CwtoolApp, condition: Callable[[], object]) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  nobody tells what has become true on screen
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise SystemExit(f"what was waited for is not on screen:\n{screen_text(app)}") from None


def take(app: CwtoolApp, name: str, pilot: Pilot[None]) -> None:
    picture = FONT_FACES.sub("", app.export_screenshot(title="cwtool tui", simplify=True))
    (FOLDER / f"{name}.svg").write_text(picture)
    print(f"{name}.svg: {len(picture) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()

"""Prompts for a run's model, driven by keys: what is asked of the daemon, and how both texts and their tokens are shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from cwa_engine.base.errors import ModelBroken
from cwa_engine.base.events import Event, Generated, PromptAnswered, ignore, to_dict
from cwa_engine.prompt_rows import PromptAnswer
from cwa_engine.prompting.answering import answer_prompt
from cwa_tui.screens.prompt import PromptScreen
from cwa_tui.screens.run import RunScreen
from tests.tui.fake_client import FakeDaemon, app_on, screen_lines, screen_text, sees, until
from tests.tui.finished_run import RUN_ID, finished, tiny

SMALL, LARGE = (80, 24), (160, 48)


@asynccontextmanager
async def prompt_open(
    daemon: FakeDaemon, size: tuple[int, int] = LARGE, target: str | None = None, ascii: bool = False
) -> AsyncIterator[tuple[Pilot[None], PromptScreen]]:
    async with app_on(daemon, ascii=ascii).run_test(size=size, notifications=True) as pilot:
        await until(lambda: RUN_ID in pilot.app.session.store._jobs)  # type: ignore[attr-defined]
        pilot.app.open_prompt(RUN_ID, "grad_x_weight", target)  # type: ignore[attr-defined]
        await until(lambda: isinstance(pilot.app.screen, PromptScreen) and pilot.app.screen.query("#prompt-tokens"))
        screen = pilot.app.screen
        assert isinstance(screen, PromptScreen)
        await until(lambda: screen.weights is not None)
        yield pilot, screen


async def ask(pilot: Pilot[None], daemon: FakeDaemon, text: str) -> str:
    """Type a prompt and send it; gives the job's run id."""
    before = len(daemon.prompted)
    pilot.app.screen.query_one(Input).value = text
    pilot.app.screen.query_one(Input).focus()
    await pilot.press("enter")
    await until(lambda: len(daemon.prompted) > before)
    return list(daemon.jobs)[-1]


def answer(daemon: FakeDaemon, run_id: str) -> PromptAnswer:
    """Let the job answer by the tiny model."""
    told: list[Event] = []
    made = answer_prompt(tiny(), daemon.prompted[-1], told.append)
    daemon.say(run_id, "state", state="running", error=None)
    for event in told:
        daemon.say(run_id, **to_dict(event))
    daemon.say(run_id, **to_dict(PromptAnswered(made)))
    daemon.end(run_id)
    return made


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_both_texts_stand_beside_each_other_with_figures_and_every_token(size: tuple[int, int]) -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    async with prompt_open(daemon, size) as (pilot, screen):
        await sees(pilot.app, "tiny · zero the first 4 by grad_x_weight", "type a prompt, and enter")
        run_id = await ask(pilot, daemon, "The harbour")
        spec = daemon.prompted[0]
        assert spec.weights == tuple(weight.target for weight in report.topk("grad_x_weight"))
        assert (spec.model, spec.prompt, spec.perturbations, spec.dtype) == (
            "tiny",
            "The harbour",
            ("zero",),
            "float32",
        )
        await sees(pilot.app, "waits for its turn")
        made = answer(daemon, run_id)
        await sees(pilot.app, "intact · 40 tokens", "damaged · 40 tokens", "KL in nats", "likeliest token changed for")
        assert f"mean KL {made.mean_kl:.4g}" in screen_text(pilot.app)
        assert any("intact · 40" in line and "damaged · 40" in line for line in screen_lines(pilot.app))
        assert screen.query_one("#prompt-tokens").source.total == len(made.tokens)  # type: ignore[attr-defined]


async def test_the_texts_are_seen_while_they_grow_and_a_failure_says_why() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with prompt_open(daemon) as (pilot, _):
        run_id = await ask(pilot, daemon, "The harbour")
        daemon.say(run_id, "state", state="running", error=None)
        daemon.say(run_id, **to_dict(Generated("was quiet and", "was was was")))
        await sees(pilot.app, "was quiet and", "was was was")
        daemon.end(run_id, "failed", ModelBroken("the files are gone", hint="download them again"))
        await sees(pilot.app, "the files are gone", "download them again")


async def test_f2_turns_the_weights_off_and_f3_takes_more_of_them_and_both_ask_again() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    async with prompt_open(daemon) as (pilot, _):
        answer(daemon, await ask(pilot, daemon, "The harbour"))
        await sees(pilot.app, "damaged · 40 tokens")
        await pilot.press("f2")
        await until(lambda: len(daemon.prompted) == 2)
        assert daemon.prompted[1].weights == () and daemon.prompted[1].prompt == "The harbour"
        answer(daemon, list(daemon.jobs)[-1])
        await sees(pilot.app, "no weights are damaged", "intact · 40 tokens")
        assert "damaged · 40" not in screen_text(pilot.app)
        await pilot.press("f2")
        await until(lambda: len(daemon.prompted) == 3)
        await pilot.press("f3")
        await until(lambda: len(daemon.prompted) == 4)
        assert daemon.prompted[3].weights == (report.topk("grad_x_weight")[0].target,)
        assert list(daemon.jobs)[-2] in daemon.cancelled, "what was asked before is not waited for any more"


async def test_a_weight_opens_it_for_itself_and_escape_cancels_what_nobody_waits_for() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    target = report.topk("grad_x_weight")[2].target
    async with app_on(daemon).run_test(size=LARGE) as pilot:
        await until(lambda: RUN_ID in pilot.app.session.store._jobs)  # type: ignore[attr-defined]
        pilot.app.open_weight(RUN_ID, "grad_x_weight", 3)  # type: ignore[attr-defined]
        await until(lambda: getattr(pilot.app.screen, "weight", None))
        await pilot.press("A")
        await until(lambda: isinstance(pilot.app.screen, PromptScreen))
        await until(lambda: pilot.app.screen.query("#prompt-line") and pilot.app.session.store.report(RUN_ID))  # type: ignore[attr-defined]
        run_id = await ask(pilot, daemon, "Copper, tin")
        assert daemon.prompted[0].weights == (target,)
        await sees(pilot.app, f"zero {target}")
        await pilot.press("escape")
        await until(lambda: daemon.cancelled == [run_id])


async def test_a_finished_run_opens_it_with_a_key_and_the_command_is_copied() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with app_on(daemon).run_test(size=LARGE) as pilot:
        copied: list[str] = []
        pilot.app.copy_text = copied.append  # type: ignore[attr-defined]
        await until(lambda: RUN_ID in pilot.app.session.store._jobs)  # type: ignore[attr-defined]
        pilot.app.open_run(RUN_ID)  # type: ignore[attr-defined]
        await until(lambda: isinstance(pilot.app.screen, RunScreen) and pilot.app.session.store.report(RUN_ID))  # type: ignore[attr-defined]
        await until(lambda: pilot.app.screen.check_action("prompt", ()))
        await pilot.press("A")
        await until(lambda: isinstance(pilot.app.screen, PromptScreen) and pilot.app.screen.query("#prompt-line"))
        pilot.app.screen.query_one(Input).value = "it's"
        await pilot.press("f4")
        assert copied == [f"""cwtool prompt --run {RUN_ID} --metric grad_x_weight -k 10 'it'"'"'s'"""]


async def test_without_colours_there_are_signs_and_ascii_terminals_get_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    daemon = FakeDaemon()
    target = "model.norm.weight[:]"
    finished(daemon)
    async with prompt_open(daemon, target=target, ascii=True) as (pilot, _):
        made = answer(daemon, await ask(pilot, daemon, "The harbour"))
        assert made.top1_changes
        await sees(pilot.app, "0.01+ .", "likeliest token changed: !", "intact - 40 tokens")
        assert screen_text(pilot.app).isascii()


async def test_a_collapsed_model_is_said_to_be_one() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with prompt_open(daemon) as (pilot, _):
        run_id = await ask(pilot, daemon, "The harbour")
        huge = daemon.prompted[0].model_copy(
            update={"weights": ("model.norm.weight[:]",), "perturbations": ("scale",), "scale_factor": 3e38}
        )
        made = answer_prompt(tiny(), huge, ignore)
        daemon.say(run_id, "state", state="running", error=None)
        daemon.say(run_id, **to_dict(PromptAnswered(made)))
        daemon.end(run_id)
        await sees(
            pilot.app,
            "damaged · 0 tokens, then it collapsed",
            "the damaged model collapsed: model.norm is the first layer",
        )
        await sees(pilot.app, "mean KL: none", "collapsed")


async def test_an_empty_ranking_or_a_bad_prompt_is_explained_and_nothing_is_asked() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with prompt_open(daemon) as (pilot, _):
        pilot.app.screen.query_one(Input).value = "a" * 100_001
        pilot.app.screen.query_one(Input).focus()
        await pilot.press("enter")
        await sees(pilot.app, "the prompt has 100,001 characters")
        assert daemon.prompted == []

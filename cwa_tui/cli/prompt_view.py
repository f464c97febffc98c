"""What `cwtool prompt` prints: the texts as they grow, then both texts with colours, figures and tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.text import Text

from cwa_engine.base.errors import RunFailed
from cwa_engine.base.events import Generated, Note, Progress, PromptAnswered, StageStarted
from cwa_engine.base.plain import JsonMap
from cwa_engine.prompt_rows import PromptAnswer
from cwa_tui.cli.lines import as_lines, line_width
from cwa_tui.cli.output import stderr
from cwa_tui.cli.terminal import Terminal
from cwa_tui.store.events import JobEvent, StateChanged, read_job_event
from cwa_tui.tables import prompt_answer as view
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

WIDEST_PIPE = 100  # cells of a line where there is no terminal, and COLUMNS says no less
FOOT_LINES = 4  # of a terminal, that the growing texts leave free


def followed(events: Iterable[JsonMap], said: set[str]) -> PromptAnswer:
    """Show how a job gets on, and give its answer. `said` has the notes that were shown before. Raises the job's error."""
    answer: PromptAnswer | None = None
    event: JobEvent | None = None
    console = stderr()
    with _growing(console) as show:
        for plain in events:
            event = read_job_event(plain)
            match event.what:
                case Note(text, level) if text not in said:
                    said.add(text)
                    console.print(text, style="yellow" if level == "warning" else "dim", highlight=False)
                case PromptAnswered(found):
                    answer = found
            show(event)
    if event and event.error:
        raise event.error
    if answer is None:
        state = event.what.state if event and isinstance(event.what, StateChanged) else "over"
        raise RunFailed(f"the prompt is {state} without an answer")
    return answer


@contextmanager
def _growing(console: Terminal) -> Iterator[Callable[[JobEvent], None]]:
    """Shows the texts so far on a terminal, and takes them away in the end; elsewhere nothing."""
    if not console.is_terminal:
        yield lambda event: None
        return
    from rich.live import Live

    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(event: JobEvent) -> None:
            match event.what:
                case StageStarted(stage) if stage != "prompt":
                    live.update(Text(f"{stage} ...", "dim"), refresh=True)
                case Progress(stage, done, total, unit) if stage != "prompt":
                    live.update(Text(f"{stage} {fmt.counted(done, total, unit)}", "dim"), refresh=True)
                case Generated(intact, damaged):
                    height = max(1, console.height - FOOT_LINES)
                    live.update(view.texts_so_far(intact, damaged, height), refresh=True)

        yield show


def show_answer(answer: PromptAnswer, with_tokens: bool) -> None:
    """Print an answer on standard output."""
    in_pipe = min(line_width() or 80, WIDEST_PIPE)
    console = Terminal(width=None if sys.stdout.isatty() else in_pipe, line_width=line_width())
    signs = console.no_color or console.color_system is None
    console.print(_answer(answer, signs, with_tokens), crop=False)


def _answer(answer: PromptAnswer, signs: bool, with_tokens: bool) -> RenderableType:
    parts: list[RenderableType] = [words(view.headline(answer), "bold")]
    if answer.prompt or answer.bos:
        parts += [Text("prompt", "dim"), view.Passage(view.prompt_text(answer), signs)]
    parts.append(view.both_texts(answer, signs))
    if answer.damaged_end is not None:
        parts += [Text(), view.legend(signs), *(words(sentence) for sentence in view.sentences(answer))]
    if with_tokens:
        parts += [Text(), as_lines(view.token_table(answer))]
    return Group(*parts)

"""A page about what was found: one HTML file that asks for nothing else, for a screen, for paper, and without a network.

    Path("run.html").write_text(run_page(open_run("results/gpt2")), "utf-8")

What stands on a page is data (`page_parts`); this module alone makes HTML of it. Every text is escaped, and characters that
cannot be seen are spelled out. The page forbids itself every connection, and every script but its own by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.version import __version__
from cwa_engine.base.visible import spelled_out
from cwa_engine.records.compared import Comparison
from cwa_engine.records.run_report import RunReport
from cwa_engine.reports.drawing import page_script
from cwa_engine.reports.page_of_card import card_parts
from cwa_engine.reports.page_of_comparison import comparison_parts
from cwa_engine.reports.page_of_run import run_parts
from cwa_engine.reports.page_of_study import study_parts
from cwa_engine.reports.page_parts import Page
from cwa_engine.studies.report import StudyReport
from cwa_engine.weight_rows import WeightCard

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["card_page", "comparison_page", "page_subject", "run_page", "study_page"]

Source = TypeVar("Source")
_MOST_TITLE = 160  # characters of a name in a title; a table of the page has the whole
_SUBJECT = '<meta name="cwtool" content="'


def run_page(report: RunReport) -> str:
    """The page of a finished run. Raises InvalidInput where the extra `report` is not installed."""
    return _html(run_parts, report)


def study_page(report: StudyReport) -> str:
    """The page of a study: its answer so far, and how each of its cells ended. Raises as `run_page` does."""
    return _html(study_parts, report)


def comparison_page(comparison: Comparison) -> str:
    """The page of runs beside each other. Raises as `run_page` does."""
    return _html(comparison_parts, comparison)


def card_page(card: WeightCard) -> str:
    """The page of one weight. Raises as `run_page` does."""
    return _html(card_parts, card)


def page_of(report: RunReport | StudyReport | Comparison | WeightCard, of: str) -> str:
    """The page of a report, `of` a "run", a "study", a "comparison" or a "weight". Raises as `run_page` does."""
    pages: dict[str, Callable[[Any], str]] = {
        "run": run_page,
        "study": study_page,
        "comparison": comparison_page,
        "weight": card_page,
    }
    return pages[of](report)


def page_subject(content: bytes) -> str | None:
    """What a page is about, from its first bytes: "run ID", "study ID"; None for a file that is no page of cwtool."""
    head = content[:4000].decode("utf-8", "replace")
    _, found, behind = head.partition(_SUBJECT)
    return behind.partition('"')[0] if found else None


def _html(parts: Callable[[Source], Page], source: Source) -> str:
    environment = _environment()
    # Bundling takes a second of another core, as much as reading the tables of a large run does.
    with ThreadPoolExecutor(1) as beside:
        drawing = beside.submit(page_script)
        page = parts(source)
        is_drawn = any(getattr(block, "specs", None) for section in page.sections for block in section.blocks)
        needed = [drawing.result()] if is_drawn else []
    scripts = [script_text(script) for script in (*needed, _source(environment, "page.js"))]
    return environment.get_template("page.html.jinja").render(
        page=page,
        style=_source(environment, "page.css"),
        scripts=scripts,
        hashes=[_hash_of(script) for script in scripts],
        version=__version__,
    )


@cache
def _environment() -> Environment:
    try:
        import jinja2
    except ImportError:
        raise InvalidInput("pages need jinja2, which is not installed", hint='`pip install "cwtool[report]"`') from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cwa_engine.reports"),
        autoescape=True,
        finalize=_one_line,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"json_text": json_text, "short": _short}
    return environment


def _source(environment: Environment, name: str) -> str:
    assert environment.loader
    return environment.loader.get_source(environment, name)[0]


def _one_line(value: Any) -> Any:
    """Every text that is put on the page; HTML that the template itself has made is left."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return spelled_out(value).replace("\n", "\\n").replace("\t", "\\t")
    return value


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TITLE else f"{text[:_MOST_TITLE]}…"


def json_text(value: Any) -> Any:
    """JSON for a script element that is no script: in ASCII, and without a character that could end the element."""
    from markupsafe import Markup

    text = json.dumps(_spelled(value), allow_nan=False, separators=(",", ":"))
    return Markup(text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&'"}))


def _spelled(value: Any) -> Any:
    """The same with its texts, and the names of its entries, as the page shows texts."""
    if isinstance(value, dict):
        return {_one_line(name): _spelled(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(entry) for entry in value]
    return _one_line(value)


def script_text(script: str) -> Any:
    """A script of ours as the content of a script element: nothing in it ends the element, inside its quotes or not."""
    from markupsafe import Markup

    text = script.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n").replace("\r", "\n")
    return Markup(text)


def _hash_of(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

"""Pages in a real browser: drawn without a network, sorted, filtered, light and dark, on a phone and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cwa_engine.reports.page import card_page, run_page
from tests.chromium import CHROMIUM, Browser, chromium
from tests.conftest import CommandLine
from tests.engine import figure_sources
from tests.engine.test_pages import SPELLED, hostile_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

RANKING = "[...document.querySelectorAll('#weights table')][0]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "run.html"
    path.write_text(run_page(figure_sources.measured_run()), "utf-8")
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "hostile.html"
    path.write_text(run_page(hostile_run()), "utf-8")
    return path


def drawn(browser: Browser, look: str) -> int:
    """How many figures have a picture in this look."""
    return int(browser.evaluate(f"document.querySelectorAll('.chart .{look} svg.marks').length"))


def test_all_figures_are_drawn_and_nothing_is_asked_for_or_complained_about(browser: Browser, measured: Path) -> None:
    browser.open(measured)
    assert drawn(browser, "light") == browser.evaluate("document.querySelectorAll('.chart').length") > 5
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [measured.as_uri()]


def test_a_hostile_name_is_a_text_after_all_scripts_ran(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    assert browser.complaints == []  # neither an alert nor a violation of the page's policy
    assert [url for url in browser.requests if not url.startswith("data:")] == [hostile.as_uri()]
    assert browser.evaluate("document.querySelectorAll('img, iframe, [onerror]').length") == 0
    assert (
        browser.evaluate("document.querySelectorAll('script').length - document.querySelectorAll('.chart').length") == 2
    )
    assert SPELLED in browser.evaluate("document.body.textContent")
    assert drawn(browser, "light") > 0


@pytest.mark.parametrize("width", [360, 1440])
def test_no_page_is_wider_than_its_window(browser: Browser, measured: Path, hostile: Path, width: int) -> None:
    for page in (measured, hostile):
        browser.open(page, width=width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            browser.evaluate("Math.max(...[...document.querySelectorAll('svg.marks')].map((s) => s.clientWidth))")
            <= width
        )


def test_a_table_sorts_as_numbers_by_mouse_and_by_keyboard_with_missing_values_last(
    browser: Browser, measured: Path
) -> None:
    browser.open(measured)
    heading = f"[...{RANKING}.tHead.rows[0].cells].find((cell) => cell.textContent === 'score')"
    column = browser.evaluate(f"{heading}.cellIndex")
    exact = f"[...{RANKING}.tBodies[0].rows].map((row) => row.cells[{column}]).map((c) => Number(c.dataset.v ?? c.textContent))"
    as_it_was = browser.evaluate(exact)
    browser.evaluate(f"{heading}.querySelector('button').click()")
    assert browser.evaluate(exact) == sorted(as_it_was, reverse=True)
    assert browser.evaluate(f"{heading}.getAttribute('aria-sort')") == "descending"
    browser.evaluate(f"{heading}.querySelector('button').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate(exact) == sorted(as_it_was)
    browser.press("Enter", 13, "\r")
    assert browser.evaluate(exact) == as_it_was

    layers = f"[...{RANKING}.tHead.rows[0].cells].find((cell) => cell.textContent === 'layer')"
    shown = f"[...{RANKING}.tBodies[0].rows].map((row) => row.cells[{layers}.cellIndex].textContent)"
    for _ in range(2):  # descending, then ascending
        browser.evaluate(f"{layers}.querySelector('button').click()")
        found = browser.evaluate(shown)
        missing = found.count("–")
        assert missing and found[-missing:] == ["–"] * missing


def test_a_table_shows_the_rows_that_have_all_words_typed(browser: Browser, measured: Path) -> None:
    browser.open(measured)
    browser.evaluate("document.querySelector('#weights .filter input').focus()")
    for letter in "norm layers.1":
        browser.press(letter, text=letter)
    rows = f"[...{RANKING}.tBodies[0].rows]"
    kept = browser.evaluate(f"{rows}.filter((row) => !row.hidden).map((row) => row.textContent)")
    left_out = browser.evaluate(f"{rows}.filter((row) => row.hidden).map((row) => row.textContent)")
    assert kept and left_out
    assert all("norm" in row and "layers.1" in row for row in kept)
    assert not any("norm" in row and "layers.1" in row for row in left_out)
    assert browser.evaluate("document.querySelector('#weights .filter span').textContent") == f"{len(kept)} of 100"


def test_the_look_follows_the_system_and_the_button_and_figures_follow_the_look(
    browser: Browser, measured: Path
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    shown = "[...document.querySelector('.chart').children].filter((c) => c.offsetHeight > 50).map((c) => c.className)"
    browser.open(measured)
    light = browser.evaluate(ground)
    assert [name.split()[0] for name in browser.evaluate(shown)] == ["light"] and drawn(browser, "dark") == 0
    browser.evaluate("document.getElementById('look').click()")
    assert browser.evaluate(ground) != light
    browser.open(measured, dark=True)
    assert browser.evaluate(ground) != light and drawn(browser, "dark") > 5
    assert [name.split()[0] for name in browser.evaluate(shown)] == ["dark"]


@pytest.mark.parametrize(("width", "height"), [(8.27, 11.69), (8.5, 11.0)])
def test_paper_has_the_light_look_whatever_the_screen_has(
    browser: Browser, measured: Path, tmp_path: Path, width: float, height: float
) -> None:
    browser.open(measured, dark=True)
    assert browser.printed(tmp_path / "run.pdf", width, height).stat().st_size > 50_000
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.chart .dark')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.querySelector('.chart .light')).display") == "block"
    paper = (width - 2 * 14 / 25.4) * 96  # of the page without its margins, in pixels
    browser.ask("Emulation.setDeviceMetricsOverride", width=int(paper), height=1000, deviceScaleFactor=1, mobile=False)
    assert browser.evaluate("document.documentElement.scrollWidth") <= paper
    browser.ask("Emulation.setEmulatedMedia", media="")


def test_ink_stands_out_from_its_ground_in_both_looks(browser: Browser, measured: Path) -> None:
    for dark in (False, True):
        browser.open(measured, dark=dark)
        for selector in ("body", ".kicker", "figcaption", ".outcome", "a", "#look", "th button", ".headlines dt"):
            assert browser.evaluate(f"({CONTRAST})(document.querySelector('{selector}'))") >= 4.5, (selector, dark)


# Contrast as WCAG 2 defines it, of an element's ink on the nearest ground that is not transparent.
CONTRAST = """(element) => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const level = (colour) => {
    const [r, g, b] = parts(colour).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let ground = element;
  while (parts(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  const levels = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(level).sort((a, b) => b - a);
  return (levels[0] + 0.05) / (levels[1] + 0.05);
}"""


def test_the_card_of_a_weight_is_drawn(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "card.html"
    path.write_text(card_page(figure_sources.card()), "utf-8")
    browser.open(path, width=360)
    assert browser.complaints == [] and drawn(browser, "light") >= 2
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_run_becomes_a_page_and_files_by_the_command(cwtool: CommandLine, browser: Browser) -> None:
    run = cwtool.json("run", "gpt2", "--topk", "3", "--eval-limit", "8", "--control-seeds", "3")["run_id"]
    page = Path(cwtool("report", run).stdout.strip())
    assert page == cwtool.cwd / f"{run}.html"
    browser.open(page)
    assert browser.complaints == [] and drawn(browser, "light") > 0
    assert run in browser.evaluate("document.body.textContent")

    told = cwtool.json("report", run, "--figures", "figures", "--format", "svg,png", "--output", "again.html")
    assert {Path(name).suffix for name in told["figures"]} == {".svg", ".png", ".csv"}
    assert all(Path(name).stat().st_size for name in told["figures"])
    cwtool("report", run)  # replaces its own page

    (cwtool.cwd / "mine.html").write_text("<p>mine")
    assert "is no page of cwtool" in cwtool("report", run, "-o", "mine.html", rc=2).stderr
    other = cwtool.json("run", "gpt2", "--topk", "3", "--eval-limit", "8", "--control-seeds", "3", "--seed", "1")[
        "run_id"
    ]
    assert f"is the page of run {run}" in cwtool("report", other, "-o", "again.html", rc=2).stderr
    compared = Path(cwtool("report", run, other).stdout.strip())
    assert compared.name == f"comparison-{run[-4:]}-{other[-4:]}.html"
    assert cwtool("report", "no-such-run", rc=6).stderr

"""Pages say what the records say, to the digit, whatever names and texts are in them; and they are whole and small."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import math
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cwa_engine.base.errors import InvalidInput, RunFailed
from cwa_engine.records.comparison import compare
from cwa_engine.records.export import RunRecord
from cwa_engine.records.run_report import RunReport, report_of
from cwa_engine.reports import page, page_tables
from cwa_engine.reports.page import card_page, comparison_page, page_subject, run_page, study_page
from cwa_engine.rows import TopWeight
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.report import StudyReport
from cwa_engine.studies.study import Study
from cwa_tui.cli.report import run_report
from tests.engine import figure_sources
from tests.engine.study_runs import Planted, planted_record, planted_run

HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}{% raw %}<!--\"'&amp;\u202egnp.exe\u2028\n\x00end"
SPELLED = "</script><img src=x onerror=alert(1)>{{7*7}}{% raw %}<!--\"'&amp;\\u202egnp.exe\\u2028\\n\\x00end"

WEIGHT = "model.layers.1.mlp.down_proj.weight[3,5]"


class Parsed(HTMLParser):
    """A page as a browser reads it: tags with their attributes, texts, and the cells of each table."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[tuple[str, str | None]]]] = []
        self.scripts: list[str] = []
        self._in = ""
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._in = tag if (tag, dict(attrs).get("type")) != ("script", "application/json") else "data"
            self.scripts += [""] if self._in == "script" else []
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
            self.tables[-1][-1].append(("", dict(attrs).get("data-v")))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._in = ""
        elif tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1][-1] = ("".join(self._cell), self.tables[-1][-1][-1][1])
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif not self._in:
            self.texts.append(data)
            if self._cell is not None:
                self._cell.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def measured() -> RunReport:
    """A real run of a tiny model that was asked for everything that has a figure."""
    return figure_sources.measured_run()


@pytest.fixture(scope="module")
def measured_page(measured: RunReport) -> str:
    return run_page(measured)


def study_of(report: StudyReport, folder: Path) -> StudyReport:
    """A planted study with a folder, whose last cell has failed."""
    models = (*(run.cell.spec.model for run in report.runs), "acme/lost")
    study = StudyFolder.create(Study(question="scaling", name="sizes", grid={"model": models}), folder)
    done = [CellProgress(run.cell, "done", run.report.run_id, attempt=1) for run in report.runs]
    lost = CellProgress(study.cells[-1], "failed", "20260101-000000-lost", RunFailed("it <b>has</b> no weights"), 2)
    return dataclasses.replace(report, folder=study, progress=(*done, lost))


def numbers_of(report: RunReport) -> list[float]:
    """Every number in the files of a run: in its tables, its summary and its manifest."""
    found: list[float] = []
    for name in report.hashes:
        for line in csv.reader(io.StringIO(report.files.read(name).decode())):
            found += [float(cell) for cell in line if re.fullmatch(r"-?(\d+\.?\d*(e[-+]?\d+)?|inf)", cell)]
    for name in ("summary.json", "manifest.json"):
        _collect(json.loads(report.files.read(name)), found)
    return found


def _collect(value: Any, found: list[float]) -> None:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            _collect(entry, found)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found.append(float(value))


def is_shown(shown: str, known: list[float], factor: float = 1.0) -> bool:
    """Whether a number of the page is one of these, at the precision at which it stands there."""
    number = float(shown.replace(",", ""))
    digits = shown.replace(",", "").lstrip("+-")
    mantissa, _, exponent = digits.partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.5000001 * 10.0 ** (int(exponent or 0) - decimals)
    return any(math.isfinite(each) and abs(abs(each) * factor - abs(number)) <= half for each in known)


def test_every_number_in_a_table_of_a_run_is_in_its_files(measured: RunReport, measured_page: str) -> None:
    known, checked = numbers_of(measured), 0
    html = measured_page.partition('<h2 id="damage-title">')[2]  # tables of figures are checked by their own CSV
    for table in Parsed(html).tables:
        for row in table[1:]:
            for cell, exact in row:
                is_text = not re.fullmatch(r"[-+\d.,e\[\] %]+", cell)
                for shown in [] if is_text else re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]\d+)?", cell):
                    factor = 100.0 if cell.endswith(" %") else 1.0
                    assert is_shown(shown, known, factor), (cell, row)
                    checked += 1
                assert exact is None or float(exact) in known, (cell, exact)
    assert checked > 500


def test_each_column_has_what_its_heading_says(measured: RunReport, measured_page: str) -> None:
    def column(first: str, heading: str) -> list[float | None]:
        """The exact values of a column of the first table in this section with such a column."""
        html = measured_page.partition(f'<h2 id="{first}-title">')[2]
        rows = next(table for table in Parsed(html).tables if heading in [cell for cell, _ in table[0]])
        place = [cell for cell, _ in rows[0]].index(heading)
        cells = [row[place] for row in rows[1:]]
        return [None if cell in ("–", "not finite") else float(exact or cell.replace(",", "")) for cell, exact in cells]

    controls, weights = measured.separations, measured.rankings[0].weights[:100]
    critical = [group.critical for group in measured.summary.damage if group.critical][:100]
    for section, heading, expected in (
        ("damage", "Δ loss (nats/token)", [point.delta_nll for point in critical]),
        ("damage", "perplexity ratio", [point.perplexity_ratio for point in critical]),
        ("damage", "median Δ", [row.median for row in controls]),
        ("damage", "leading draw Δ", [row.largest for row in controls]),
        ("damage", "|Δ| over leading draw", [row.ratio for row in controls]),
        ("damage", "draws ahead", [row.as_extreme for row in controls]),
        ("weights", "value", [weight.value for weight in weights]),
        ("weights", "score", [weight.score for weight in weights]),
        ("more", "Jaccard", [row.jaccard for row in measured.summary.stability]),
        ("more", "by chance", [row.chance for row in measured.summary.stability]),
    ):
        finite = [value if value is not None and math.isfinite(value) else None for value in expected]
        assert column(section, heading) == finite, heading


def test_every_number_of_a_figure_on_the_page_is_in_its_csv(measured_page: str) -> None:
    figures = measured_page.split("<figure ")[1:]
    linked = 0
    for figure in figures:
        parsed = Parsed("<figure " + figure.partition("</figure>")[0])
        links = [attrs["href"] or "" for tag, attrs in parsed.tags if tag == "a"]
        if not links:
            continue
        linked += 1
        content = base64.b64decode(links[0].partition("base64,")[2]).decode()
        cells = {cell for line in csv.reader(io.StringIO(content)) for cell in line}
        numbers = {float(cell) for cell in cells if re.fullmatch(r"-?\d+\.?\d*(e[-+]?\d+)?", cell)}
        for row in parsed.tables[0][1:]:
            for cell, exact in row:
                assert exact is None or float(exact) in numbers, (cell, exact)
    assert linked >= 5


def test_the_headline_and_the_answer_are_those_of_the_summary() -> None:
    report = figure_sources.damaged_run(run_id="20260101-000000-aaaa")
    parsed = Parsed(run_page(report))
    answer = parsed.text.partition("Figures")[0]
    group = report.summary.headline
    assert group and group.verdict and group.verdict in answer
    assert "not finite" in answer  # its largest set collapses the model
    assert f"{report.baseline.perplexity:.4g}" in answer
    for verdict in report.verdicts:
        assert verdict.sentence in parsed.text


def hostile_run() -> RunReport:
    """A run of which every name is hostile, and some are very long."""
    record = planted_record(HOSTILE * 40, damage=[Planted(), Planted(k=20)], tops={"grad_x_weight": [WEIGHT]})
    weight = dataclasses.replace(record.result.rankings[0].weights[0], target=HOSTILE * 70, component=HOSTILE)
    ranking = dataclasses.replace(record.result.rankings[0], weights=(weight,))
    model = dataclasses.replace(record.model, notes=(HOSTILE,), location=HOSTILE, files={HOSTILE: "ab"})
    result = dataclasses.replace(record.result, rankings=(ranking,))
    return report_of(dataclasses.replace(record, result=result, model=model, command=HOSTILE))


def test_names_of_models_and_texts_stay_texts() -> None:
    html = run_page(hostile_run())
    parsed = Parsed(html)
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"img", "iframe", "link", "object", "svg"})
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]
    assert [attrs.get("type") for tag, attrs in parsed.tags if tag == "script"].count(None) == 2
    assert SPELLED in parsed.text and "49" not in parsed.texts  # nothing was computed by the template
    assert not set("\x00\u202e\u2028") & set(html)
    for content in re.findall(r'<script type="application/json">(.*?)</script>', html, re.S):
        assert json.loads(content)["light"]["layer"]


def test_a_page_allows_its_own_scripts_alone_and_no_connection(measured_page: str) -> None:
    parsed = Parsed(measured_page)
    policy = next(
        attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy and "default-src 'none'" in policy and "connect-src 'none'" in policy
    assert "unsafe-eval" not in policy and "http" not in policy
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in parsed.scripts]
    assert len(hashes) == 2 and re.findall(r"'sha256-(.+?)'", policy) == hashes
    for tag, attrs in parsed.tags:
        for name in ("src", "href", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:text/csv;base64,")), (tag, attrs)


def long_rankings(metrics: tuple[str, ...], k: int) -> RunRecord:
    tops = {metric: [f"model.layers.1.mlp.down_proj.weight[{n},{n + 7}]" for n in range(k)] for metric in metrics}
    return planted_record("acme/large", damage=[Planted(metric=metric, k=k) for metric in metrics], tops=tops)


def test_a_run_with_long_rankings_makes_a_small_page_that_says_where_the_rest_is() -> None:
    metrics = ("grad_x_weight", "magnitude", "obd", "wanda", "taylor")
    report = report_of(long_rankings(metrics, 10_000))
    began = time.process_time()
    html = run_page(report)
    assert len(html.encode()) < 2_000_000
    assert time.process_time() - began < 20  # far from what it takes, for a machine that is busy
    for metric in metrics:
        assert f"The first 100 of 10,000 rows; all are in topk_{metric}.csv." in html


def test_figures_beyond_what_a_page_holds_are_named_and_not_drawn(
    measured: RunReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwa_engine.reports.page_figures.MOST_DRAWN", 30_000)
    html = run_page(measured)
    assert 0 < html.count("Not drawn here, as the page would be too large: ") < html.count("<figure ")


def test_a_run_without_damage_claims_none() -> None:
    html = run_page(planted_run("acme/ranked", tops={"magnitude": [WEIGHT]}))
    parsed = Parsed(html)
    assert "No damage was measured" in parsed.text and "Change of the loss," not in parsed.text
    assert "Which weights of the model are first by magnitude?" in parsed.text


def test_a_ratio_beyond_a_thousand_and_a_small_change_read_alike_on_a_page_and_in_the_terminal() -> None:
    run = planted_run(damage=[Planted(k=10, delta=9.4574, worst=3.2496e-05, worst_error=5e-05)])
    console = Console(file=io.StringIO(), width=200)
    console.print(run_report(run.summary, "folder"))
    for said in (Parsed(run_page(run)).text, console.file.getvalue()):  # type: ignore[attr-defined]
        assert ">1,000" in said and "+9.4574" in said and "+3.25e-05" in said
        assert "+0.0000" not in said


def test_a_page_says_how_the_run_was_made_and_how_to_repeat_it(measured: RunReport, measured_page: str) -> None:
    text = Parsed(measured_page).text
    needed = [
        f"cwtool rerun {measured.run_id}", f"cwtool verify {measured.run_id}", f"cwtool bundle {measured.run_id}",
        str(measured.fingerprint), measured.texts.sha256, measured.baseline.protocol, "cwtool run --model tiny",
        'model = "tiny"', *measured.versions.values(), *measured.hashes.values(),
    ]  # fmt: skip
    assert [each for each in needed if each not in text] == []


def test_a_study_tells_its_answer_its_failures_and_what_would_overturn_it(tmp_path: Path) -> None:
    report = study_of(figure_sources.scaling(), tmp_path)
    html = study_page(report)
    text = Parsed(html).text
    assert report.answer
    assert text.index(report.answer.sentence) < text.index("Findings")
    for finding in report.answer.findings:
        assert finding.sentence in text and f"Overturned by: {finding.overturned_by}" in text
    assert [refused for refused in report.answer.refused if refused not in text] == []
    assert "it <b>has</b> no weights" in text and "✗ failed" in text and "5 done, 1 failed" in text
    assert html.count("<figure ") >= 1


def test_a_comparison_tells_what_is_not_compared() -> None:
    other = figure_sources.damaged_run(run_id="20260101-000000-cccc", text_seed="other texts", tokens=30)
    found = compare(figure_sources.damaged_run(run_id="20260101-000000-aaaa"), other)
    text = Parsed(comparison_page(found)).text
    assert [sentence for sentence in found.sentences if sentence not in text] == []
    assert "Not compared" in text and [run.run for run in found.runs if run.run not in text] == []


def test_the_card_of_a_weight_has_a_page() -> None:
    card = figure_sources.card()
    text = Parsed(card_page(card)).text
    assert card.facts.target in text
    for rank in card.ranks:
        assert rank.metric in text
    assert f"{card.alone.delta_nll:+.4f}" in text or f"{card.alone.delta_nll:+.2e}" in text


def test_a_page_is_known_again_by_what_it_is_about() -> None:
    html = run_page(planted_run("acme/model", run_id="20260101-000000-acme"))
    assert page_subject(html.encode()) == "run 20260101-000000-acme"
    assert page_subject(b"<html>nothing of ours") is None


def test_without_jinja_a_page_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    page._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InvalidInput) as refused:
        run_page(planted_run())
    assert 'pip install "cwtool[report]"' in refused.value.hint and refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"), (0.0, "+0.0000"), (1.53144, "+1.5314"), (-2.31e-6, "-2.31e-06"), (0.001, "+0.0010"),
        (math.inf, "not finite"), (math.nan, "not finite"),
    ],
)  # fmt: skip
def test_changes_of_the_loss_keep_their_sign_and_say_what_is_small(value: float | None, said: str) -> None:
    assert page_tables.signed(value) == said


def test_a_table_leaves_out_columns_without_a_value_and_keeps_exact_numbers() -> None:
    row = TopWeight(1, "p", 0, None, None, 1 / 3, 2.0, None, "down", None, "p[0]")
    columns = [
        page_tables.Column("value", "value"),
        page_tables.Column("layer", "layer"),
        page_tables.text("weight", "target"),
    ]
    made = page_tables.table("t", [row], columns)
    assert [heading.label for heading in made.headings] == ["value", "weight"]
    assert (made.rows[0][0].text, made.rows[0][0].exact) == ("0.3333", 1 / 3)

"""What a notebook shows: numbers of the record, every text escaped, nothing from outside, and frames of all rows."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

import cwa_engine as cwa
from cwa_engine.records.comparison import compare
from cwa_engine.rich_display import RichDisplay
from cwa_engine.studies.answer import Answer, Finding
from cwa_engine.studies.questions.scaling import QUESTION
from cwa_engine.weight_rows import WeightCard
from tests.engine.conftest import TEXTS
from tests.engine.study_runs import Planted, planted_run, study_runs
from tests.models import tiny_model, tiny_tokenizer

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
TARGET = "model.layers.1.mlp.down_proj.weight[3,5]"


class Tags(HTMLParser):
    """Tags with their attributes, and the text beside them; raises for one that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(record: Any) -> Tags:
    """What a notebook shows, checked for anything that runs or comes from outside."""
    html = record._repr_html_()
    found = Tags(html)
    assert {tag for tag, _ in found.tags} <= {
        "div", "p", "b", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "img",
    }  # fmt: skip
    for _, attributes in found.tags:
        assert attributes.keys() <= {"style", "src", "alt"}
        assert attributes.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
    assert not re.search(r"url\(|https?://", re.sub(r'src="[^"]*"', "", html))
    return found


def run(model: str = "tiny", **options: Any) -> cwa.RunReport:
    cases = [Planted(k=10, delta=2.345, error=0.05)]
    return planted_run(model, damage=cases, tops={"grad_x_weight": [TARGET]}, **options)


def test_a_report_shows_its_verdict_its_damage_and_its_weights() -> None:
    report = run()
    found = shown(report)
    point = next(point for point in report.damage if point.selection == "critical")
    assert f"{point.delta_nll:.2f} [{point.delta_low:.2f}, {point.delta_high:.2f}]" in found.text
    assert report.verdicts[0].sentence in found.text and TARGET in found.text and report.run_id in found.text
    assert any(tag == "img" for tag, _ in found.tags)


@pytest.mark.parametrize("kind", ["run", "comparison", "answer", "figure", "card"])
def test_hostile_names_are_shown_as_text(kind: str) -> None:
    report = run(HOSTILE)
    records: dict[str, Any] = {
        "run": lambda: report,
        "comparison": lambda: compare(report, run(HOSTILE, seed=3, run_id="20260101-000000-other-abcd")),
        "answer": lambda: Answer("scaling", HOSTILE, (Finding(HOSTILE, HOSTILE),), refused=(HOSTILE,)),
        "figure": lambda: replace(cwa.figures_of(report)[0], title=HOSTILE, caption=HOSTILE),
        "card": lambda: replace(card(), model=HOSTILE, unknown=(HOSTILE,)),
    }
    record = records[kind]()
    assert isinstance(record, RichDisplay)
    assert HOSTILE in shown(record).text


def card() -> WeightCard:
    return cwa.weight_card(tiny_model("llama"), TARGET, tokenizer=tiny_tokenizer(), texts=TEXTS)


def test_a_card_shows_the_loss_without_the_weight_and_its_ranks() -> None:
    made = card()
    found = shown(made)
    assert TARGET in found.text
    for row in made.ranks:
        assert row.rank is None or f"rank by {row.metric}{row.rank:,} of {row.of:,}" in found.text


def test_without_the_extra_a_figure_shows_its_table_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = cwa.figures_of(run())[0]
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    found = shown(figure)
    assert "cwtool[report]" in found.text and any(tag == "table" for tag, _ in found.tags)
    assert not any(tag == "img" for tag, _ in found.tags)


def test_rows_of_comparisons_answers_and_figures_come_as_frames() -> None:
    report = run()
    found = compare(report, run(seed=3, run_id="20260101-000000-other-abcd"))
    for name in ("runs", "pairs", "differences", "overlaps", "shares", "distances", "damage", "damage_differences"):
        rows = getattr(found, name)
        frame = found.frame(name)
        assert len(frame) == len(rows)
        for column in frame.columns:
            assert not rows or column in rows[0].__dataclass_fields__
    assert list(found.frame("runs")["perplexity"]) == [each.perplexity for each in found.runs]
    with pytest.raises(cwa.InvalidInput, match="no rows called 'overlap'") as refused:
        found.frame("overlap")
    assert "overlaps" in refused.value.hint
    figure = cwa.figures_of(report)[0]
    assert len(figure.frame()) == len(figure.table.rows) > 0
    answer = QUESTION.answer(study_runs([run(f"tiny-{size}", parameters=size) for size in (10**5, 10**6)]))
    name = answer.tables[0].table.name.removesuffix(".csv")
    assert len(answer.frame(name)) == len(answer.tables[0].rows) == 2

"""Widths, cuts and numbers of narrow tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_tui.tables.columns import PADDING, Column, Cut, fit, shorten
from cwa_tui.text import format as fmt

COLUMNS = (
    Column("name", "name", 10, most=30),
    Column("state", "state", 8),
    Column("layer", "layer", 5, optional=1),
    Column("age", "age", 6, optional=2),
)


def test_of_the_columns_that_do_not_fit_the_most_wanted_stays() -> None:
    assert list(fit(COLUMNS, 100)) == ["name", "state", "layer", "age"]
    assert list(fit(COLUMNS, 31)) == ["name", "state", "layer"]
    assert list(fit(COLUMNS, 28)) == ["name", "state"]
    assert list(fit(COLUMNS, 5)) == ["name", "state"]


@given(st.integers(22, 300))
def test_columns_never_need_more_room_than_there_is(room: int) -> None:
    assert sum(width + PADDING for width in fit(COLUMNS, room).values()) <= room


def test_a_growing_column_takes_what_is_left_and_no_more_than_it_can_use() -> None:
    assert fit(COLUMNS, 44)["name"] == 17
    assert fit(COLUMNS, 200)["name"] == 30


@given(st.text(max_size=60), st.integers(1, 40), st.sampled_from(["start", "middle", "end", "parts"]))
def test_shortened_text_fits_and_short_text_is_left_alone(text: str, width: int, cut: Cut) -> None:
    short = shorten(text, width, cut)
    assert len(short) <= width
    assert short == text or "…" in short


def test_text_is_cut_where_it_tells_least() -> None:
    assert shorten("model.layers.11.mlp.down_proj.weight[507,9]", 20, "start") == "…_proj.weight[507,9]"
    assert shorten("model.layers.11.mlp.down_proj.weight[507,9]", 30, "parts") == "…mlp.down_proj.weight[507,9]"
    assert shorten("20261123-143205-smollm2-135m-k7q2", 20, "middle") == "20261123-1…135m-k7q2"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0.4, "0:00"), (42, "0:42"), (185, "3:05"), (7805, "2:10:05"), (273600, "3 d 4 h")],
)
def test_a_clock_reads_like_one(seconds: float | None, said: str) -> None:
    assert fmt.clock(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-3, "0 s"), (12, "12 s"), (200, "3 min"), (7300, "2 h"), (400000, "4 d")]
)
def test_an_age_is_one_number(seconds: float, said: str) -> None:
    assert fmt.age(1000.0, 1000.0 + seconds) == said


def test_a_bar_has_a_fixed_range() -> None:
    assert [fmt.bar(part, 8, 4) for part in (0, 4, 8, 9)] == ["░░░░", "██░░", "████", "████"]
    assert fmt.bar(0, 0, 3) == "░░░"


def test_progress_gives_up_its_bar_before_its_numbers() -> None:
    assert fmt.progress("score", 3, 8, 20) == "score 3/8 ███░░░░░"
    assert fmt.progress("perturb", 1024, 3584, 20) == "perturb 1024/3584 █░"
    assert fmt.progress("perturb", 10240, 35840, 20) == "perturb 10240/35840"
    assert fmt.progress("load", 12_000_000, 538_060_032, 24, "byte") == "load 12.0 MB/538.1 MB ░░"


@given(st.floats(-99_999, 99_999))
def test_a_short_delta_has_a_sign_and_fits(value: float) -> None:
    said = fmt.short_delta(value)
    assert len(said) <= 8
    assert said[0] in "+-"


def test_a_name_gives_up_cells_where_the_other_columns_would_not_fit() -> None:
    columns = [Column("rank", "rank", 4), Column("name", "name", 40, most=60, least=10), Column("score", "score", 9)]
    assert fit(columns, 80) == {"rank": 4, "name": 60, "score": 9}
    assert fit(columns, 45) == {"rank": 4, "name": 26, "score": 9}
    assert fit(columns, 20)["name"] == 10

"""What is planned is what is taken: blocks of a sweep, CPU memory for offload, plans that are made again, the ladder's page."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import growth, ladder
from benchmarks.tables import known_rows, table, with_section
from cwa_engine import planning
from cwa_engine.base.events import Progress, ignore
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models import memory
from cwa_engine.models.empty import empty_model
from cwa_engine.models.loading import load_model
from cwa_engine.pipeline import read_texts
from cwa_engine.planning import plan
from cwa_engine.rows import PlanRow
from cwa_engine.run import Stages
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.scoring import score
from cwa_engine.spec import RunSpec
from tests.engine.test_guide import PUBLISHED
from tests.models import save_tiny

ACCESS = HubAccess()
TEXTS = [f"Text number {number} says that rivers run to the sea." for number in range(8)]


@pytest.mark.parametrize("halves", [1, 2])
def test_a_sweep_has_no_statistics_of_a_block_while_it_makes_those_of_the_next(llama: Any, halves: int) -> None:
    spec = RunSpec(model="tiny", topk=(2,), gradients="sweep", perturbations=())
    offered: list[weakref.ref[Tensor]] = []
    left_over: list[int] = []

    def before_the_next(event: object) -> None:
        if isinstance(event, Progress) and event.stage == "score":
            left_over.append(sum(reference() is not None for reference in offered))

    class Consumer:
        def offer(self, statistics: Statistics, part: int | None = None) -> None:
            found = [stats.gradient for stats in statistics.values()]
            offered.extend(weakref.ref(gradient) for gradient in found if gradient is not None)

    used, run = read_texts(llama, spec, before_the_next, Stages(ignore), TEXTS)
    score(run, [used.scoring[number::halves] for number in range(halves)], Consumer)
    assert len(offered) > llama.anatomy.blocks and len(left_over) > halves * llama.anatomy.blocks
    assert not any(left_over)


def test_what_was_counted_for_a_plan_serves_the_next_one_of_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    spec = RunSpec(model=str(folder), topk=(3,), eval_limit=4)

    def made(free: int, asked: RunSpec = spec) -> Any:
        return plan(asked, ACCESS, "cuda:0", room=lambda dtype, weights: free, cpu_bytes=1 << 40)

    before = made(1 << 40)
    monkeypatch.setattr(planning, "peak_bytes", None)
    assert made(1 << 40) == before
    assert not any(row.fits for row in made(1000).rows)
    with pytest.raises(TypeError):  # other texts are counted anew
        made(1 << 40, spec.model_copy(update={"seq_len": 16}))


def test_offload_fits_only_where_cpu_memory_has_room_for_the_blocks(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    spec = RunSpec(model=str(folder), topk=(3,), eval_limit=4)

    def offloaded(cpu_bytes: int) -> Any:
        found = plan(spec, ACCESS, "cuda:0", room=lambda dtype, weights: 1 << 40, cpu_bytes=cpu_bytes)
        return next(row for row in found.rows if (row.dtype, row.gradients) == ("float32", "offload"))

    roomy = offloaded(1 << 40)
    blocks = sum(p.numel() for p in load_model(str(folder)).model.model.layers.parameters())
    assert roomy.fits and roomy.cpu_bytes > 4 * blocks * 0.3  # two of the blocks are on the device
    assert not offloaded(roomy.cpu_bytes).fits


def test_the_growth_table_says_how_many_weights_its_models_have() -> None:
    for millions in growth.SIZES:
        model = empty_model(growth.config(millions), torch.float32)
        assert growth.weights_of(millions) == sum(parameter.numel() for parameter in model.parameters())


def test_a_row_that_is_measured_again_takes_its_place_and_leaves_other_sections_as_they_are() -> None:
    page = "# Results\n\n## One\n\n| a | b |\n| --- | ---: |\n| 1 | x |\n\n## Two\n\nwords\n"
    assert known_rows(page, "One") == [("1", "x")]
    changed = with_section(page, "One", table(("a", "b"), [("1", "y"), ("2", "z")]))
    assert known_rows(changed, "One") == [("1", "y"), ("2", "z")]
    assert changed.endswith("\n\n## Two\n\nwords\n") and changed.startswith("# Results\n\n## One\n")
    assert known_rows(with_section(changed, "Three", table(("c",), [("3",)])), "Three") == [("3",)]


def test_what_fits_into_less_memory_fits_into_more_and_only_the_device_in_view_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    spec = RunSpec(model=str(folder), topk=(3,), eval_limit=24)

    def of_this_machine() -> Any:
        raise AssertionError("a plan for another device asked for this machine's memory")

    monkeypatch.setattr(memory, "available_memory", of_this_machine)
    fits: dict[tuple[str, str], list[bool]] = {}
    sizes: set[int] = set()  # of batches that fit
    for free in (int(100_000 * 1.1**step) for step in range(90)):
        for row in plan(spec, ACCESS, "cuda:0", room=lambda dtype, weights, free=free: free, cpu_bytes=1 << 40).rows:
            fits.setdefault((row.dtype, row.gradients), []).append(bool(row.fits))
            sizes |= {row.batch_size} if row.fits else set()
    assert len(sizes) > 4, sizes
    for way, found in fits.items():
        assert found == sorted(found), way
        assert not found[0] and found[-1], way


def rows_on_the_page() -> list[list[str]]:
    table_of_models = ladder.PAGE.read_text().partition(ladder.BEGIN)[2].partition(ladder.END)[0]
    lines = [line for line in table_of_models.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_ladder_has_the_weights_of_model_cards_and_every_device() -> None:
    assert [row[:2] for row in rows_on_the_page()] == [
        [f"{name} ({PUBLISHED[name]:,} weights)", f"{card.gigabytes} GB ({card.name})"]
        for name in ladder.MODELS
        for card in ladder.CARDS
    ], "run `python -m benchmarks.ladder`"


def test_the_ladder_says_what_the_planner_says_today() -> None:
    assert list(ladder.row_of(ladder.MODELS[0], ladder.CARDS[0], ladder.Speed())) == rows_on_the_page()[0], (
        "run `python -m benchmarks.ladder`"
    )


def test_the_sweep_takes_a_third_more_than_six_operations_for_each_weight_and_token() -> None:
    card, parameters, tokens = ladder.Card("a card", 80, 1e12, 1e12), 10**9, 512
    spec = RunSpec(model="any", topk=(100,), perturbations=(), eval_limit=16)

    def seconds(gradients: str, speed: ladder.Speed) -> float:
        row = PlanRow("bfloat16", gradients, 0, 0, 0, 4, True, True)
        return ladder.cost(spec, row, parameters, tokens, card, speed).seconds

    half = ladder.Speed(share=0.5, copies=1e9)
    baseline = 8 * 2 * parameters * tokens / 0.5e12  # 8 texts are measured, and 8 are scored
    assert seconds("resident", half) - baseline == pytest.approx(8 * 6 * parameters * tokens / 0.5e12)
    assert seconds("sweep", half) - baseline == pytest.approx(8 * 8 * parameters * tokens / 0.5e12)
    # 2 GB of blocks: once for each of 4 batches of 4 texts on the way forward, and once for each half on the way back.
    assert seconds("offload", half) - seconds("sweep", half) == pytest.approx((4 + 2) * 2.0)

"""What a run needs is told before anything is loaded, and a run does what its plan says."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cwa_engine import planning
from cwa_engine.base import events
from cwa_engine.base.errors import InvalidInput, ModelNotFound
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.hub.sources import HubAccess
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.fake_model import LiveBytes, fake_model, peak_bytes
from cwa_engine.models.loading import LoadedModel, load_model, load_without_weights
from cwa_engine.pipeline import analyze
from cwa_engine.plan_ways import recommended, ways_that_fit
from cwa_engine.planning import choose, plan, working_bytes
from cwa_engine.rows import Plan, PlanRow
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.memory import statistics_bytes
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec
from tests.architectures import tiny_architecture
from tests.engine.conftest import wrap
from tests.engine.test_evaluation import sequences_of
from tests.models import hub_cache, save_tiny

ACCESS = HubAccess()


def test_a_fake_model_is_the_model_without_its_memory(loaded: Any) -> None:
    fake = fake_model(loaded.source, loaded.model.config, loaded.tokenizer, torch.float32)
    assert fake.anatomy == loaded.anatomy
    assert fake.size_bytes == loaded.size_bytes


def live_bytes(loaded: LoadedModel, sequences: Sequence[TokenSequence], needs: Needs, source: str) -> int:
    """The most bytes of tensors that live at once while a model is scored, without those of its weights."""
    gc.collect()
    with LiveBytes([*loaded.model.parameters(), *loaded.model.buffers()]) as real:
        if source == "resident":
            resident(loaded, sequences, needs, 1)
        else:
            list(map(len, sweep(loaded, sequences, needs, 1)))
    return real.peak


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "llama"])
@pytest.mark.parametrize(
    "needs", [Needs.GRADIENT, Needs.GRADIENT | Needs.FISHER | Needs.INPUTS, Needs.GRADIENT | Needs.TOKEN_FISHER]
)
@pytest.mark.parametrize("source", planning.SOURCES)
def test_the_bytes_of_a_fake_model_are_those_of_the_model(family: str, needs: Needs, source: str) -> None:
    loaded = wrap(tiny_architecture(family))
    sequences = sequences_of(loaded)[:2]
    foretold, simulated = working_bytes(loaded, sequences, needs, source, 1)
    assert simulated
    assert foretold == pytest.approx(planning.OVERHEAD * live_bytes(loaded, sequences, needs, source), rel=0.15)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_plan_counts_the_second_derivatives_too(family: str) -> None:
    loaded = wrap(tiny_architecture(family))
    sequences = sequences_of(loaded)[:2]
    foretold, simulated = working_bytes(loaded, sequences, Needs.GRADIENT | Needs.HESSIAN, "resident", 1)
    gc.collect()
    with LiveBytes([*loaded.model.parameters(), *loaded.model.buffers()]) as real:
        kept = resident(loaded, sequences, Needs.GRADIENT, 1)
        hutchinson_diagonal(loaded, sequences, 3, 0)
        del kept
    assert simulated
    assert foretold == pytest.approx(planning.OVERHEAD * real.peak, rel=0.15)


@pytest.mark.parametrize("source", planning.SOURCES)
def test_experts_are_counted_as_they_are_used(source: str) -> None:
    """Each token by two of eight experts: neither as if one did them all, nor as if all did each."""
    config = transformers.MixtralConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    loaded = wrap(transformers.AutoModelForCausalLM.from_config(config).eval())
    sequences, needs = sequences_of(loaded)[:2], Needs.GRADIENT | Needs.FISHER
    foretold, simulated = working_bytes(loaded, sequences, needs, source, 1)
    assert simulated
    assert foretold == pytest.approx(planning.OVERHEAD * live_bytes(loaded, sequences, needs, source), rel=0.05)


def test_a_model_whose_paths_depend_on_values_is_planned_roughly(tmp_path: Path) -> None:
    folder = save_tiny("mixtral", tmp_path / "model")
    asked = RunSpec(model=str(folder), topk=(3,), eval_limit=4, metrics=("grad_x_weight", "wanda"))
    found = plan(asked, ACCESS, "cpu")  # what each expert reads is recorded expert by expert
    assert not found.rows[0].simulated
    assert found.rows[0].working_bytes > 4 * found.parameters
    assert {row.dtype for row in found.rows} == {"float32", "bfloat16"}


def test_half_the_precision_has_half_the_weights_and_one_block_needs_less_than_all(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    found = plan(RunSpec(model=str(folder), topk=(3,)), ACCESS, "cpu")
    at = {(row.dtype, row.gradients): row for row in found.rows}
    assert at["float32", "resident"].weights_bytes == 2 * at["bfloat16", "resident"].weights_bytes
    assert found.parameters == load_model(str(folder)).anatomy.numel
    assert (found.sequences, found.device) == (66, "cpu")
    assert found.command == f"cwtool run --model {folder} --metric grad_x_weight --topk 3"
    assert not found.options  # the usual way fits: there is nothing to give up


@pytest.mark.parametrize(
    ("fits", "flags"),
    [
        ({"float32 resident"}, ""),
        ({"float32 sweep", "bfloat16 resident"}, "--gradients sweep --fast-perturbation"),
        ({"bfloat16 resident"}, "--dtype bfloat16"),
        ({"bfloat16 sweep"}, "--dtype bfloat16 --gradients sweep --fast-perturbation"),
        ({"float32 offload"}, "--eval-limit 10 --offload cpu --no-perturbation"),
        (set(), None),
    ],
)
def test_the_command_is_for_the_most_that_fits(fits: set[str], flags: str | None) -> None:
    rows = [
        PlanRow(dtype, source, 1, 1, 2, 1, f"{dtype} {source}" in fits, True)
        for dtype in ("float32", "bfloat16")
        for source in (*planning.SOURCES, "offload")
    ]
    command, why = recommended(ways_that_fit(RunSpec(model="gpt2", topk=(5,)), rows, "float32"), rows, 10)
    usual = "cwtool run --model gpt2 --metric grad_x_weight --topk 5"
    assert (command and set(command.split())) == (None if flags is None else set(f"{usual} {flags}".split()))
    assert why


def test_where_less_text_would_do_a_plan_offers_it_before_another_precision_or_offload(tmp_path: Path) -> None:
    """With the numbers, and each of them holds: asked for as it is offered, it fits in the same memory."""
    folder = save_tiny("llama", tmp_path / "model")
    wide = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **wide}))  # a plan reads no weights
    asked = RunSpec(model=str(folder), topk=(3,), seq_len=64, eval_limit=40)

    def within(spec: RunSpec, free: int) -> Plan:
        return plan(spec, ACCESS, "cuda:0", room=lambda dtype, weights: free, cpu_bytes=1 << 40)

    rows = {(row.dtype, row.gradients): row.total_bytes for row in within(asked, 0).rows}
    least = rows["float32", "sweep"]  # with one text at a time
    free = int(0.95 * least / planning.SHARE)
    found = within(asked, free)
    assert found.options[-1].gradients == "offload" or rows["float32", "offload"] > planning.SHARE * free
    less = [option for option in found.options if option.dtype == "float32" and option.gradients == "sweep"]
    assert less
    for option in less:
        assert option.needed_bytes <= planning.SHARE * free
        words = option.command.split()
        fields = {
            name: int(words[words.index(flag) + 1])
            for name, flag in (("eval_limit", "--eval-limit"), ("seq_len", "--seq-len"))
            if flag in words
        }
        assert (fields["eval_limit"], fields.get("seq_len", 512)) != (40, 64)  # one of them is less
        again = within(asked.model_copy(update=fields), free).rows[1]
        assert (again.dtype, again.gradients, again.fits) == ("float32", "sweep", True)


@pytest.mark.parametrize("fields", [{"metrics": ("hutchinson_diag",)}, {"fidelity": 2}])
def test_a_plan_recommends_nothing_that_a_run_would_refuse(tmp_path: Path, fields: Any) -> None:
    """What needs all gradients at once is not planned with those of one block, however little is free."""
    folder = save_tiny("llama", tmp_path / "model")
    asked = RunSpec(model=str(folder), topk=(3,), eval_limit=4, seq_len=16, **fields)
    with pytest.raises(InvalidInput, match="gradients of all weights at once"):
        RunSpec(**{**asked.model_dump(), "gradients": "sweep"})
    found = plan(asked, ACCESS, "cuda:0", room=lambda dtype, weights: 400_000, cpu_bytes=1 << 40)
    assert {row.gradients for row in found.rows} == {"resident"}
    assert found.command is None and not found.options
    assert "the least, bfloat16 with resident, needs" in found.why


def test_a_plan_is_of_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    """Also on an accelerator, where the usual one is what is stored: float32 here."""
    folder = save_tiny("llama", tmp_path / "model")
    asked = RunSpec(model=str(folder), topk=(3,), eval_limit=4, seq_len=16, dtype="bfloat16")

    def within(free: int) -> Plan:
        return plan(asked, ACCESS, "cuda:0", room=lambda dtype, weights: free, cpu_bytes=1 << 40)

    least = {(row.dtype, row.gradients): row.total_bytes for row in within(0).rows}
    between = (least["bfloat16", "resident"] + least["float32", "resident"]) / 2
    found = within(int(between / planning.SHARE))
    assert found.why.startswith("all gradients fit at once: ") and not found.options
    assert found.command and "--dtype bfloat16" in found.command and "sweep" not in found.command


def test_an_accelerator_gets_as_many_sequences_at_once_as_fit(llama: Any) -> None:
    sequences, needs = sequences_of(llama), Needs.GRADIENT
    one, _ = working_bytes(llama, sequences, needs, "resident", 1)
    sizes = [planning.batch_that_fits(llama, sequences, needs, "resident", "cuda", room)[0] for room in (one, 1 << 40)]
    assert sizes == [1, len(sequences)]
    four, _ = working_bytes(llama, sequences, needs, "resident", 4)
    size, needed, _ = planning.batch_that_fits(llama, sequences, needs, "resident", "cuda", four)
    assert 2 <= size <= 6 and needed <= four


def test_a_model_that_is_larger_than_the_accelerator_is_planned_with_its_blocks_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 8}))  # a plan reads no weights
    whole = plan(RunSpec(model=str(folder), topk=(3,), eval_limit=4), ACCESS, "cpu").rows[0]
    monkeypatch.setattr(planning, "free_bytes", lambda device: 1 << 40)
    rows = {row.gradients: row for row in plan(RunSpec(model=str(folder), eval_limit=4), ACCESS, "cuda:0").rows[:3]}
    assert list(rows) == ["resident", "sweep", "offload"]
    assert rows["offload"].weights_bytes < whole.weights_bytes
    assert rows["offload"].total_bytes < rows["sweep"].total_bytes
    assert rows["resident"].batch_size > 1


def test_a_model_on_an_accelerator_is_counted_once_and_not_at_all_where_there_is_plenty_of_room(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[object] = []
    count = peak_bytes
    monkeypatch.setattr(planning, "peak_bytes", lambda fake, work: counted.append(fake) or count(fake, work))
    there, sequences = dataclasses.replace(llama, device=torch.device("cuda:0")), sequences_of(llama)
    asked = RunSpec(model="tiny", topk=(3,))
    monkeypatch.setattr(planning, "free_bytes", lambda device: 1 << 40)
    assert choose(there, asked, sequences).batch_size == len(sequences) and not counted
    one, _ = working_bytes(there, sequences, Needs.GRADIENT, "resident", 1)
    statistics = statistics_bytes(there, Needs.GRADIENT)
    monkeypatch.setattr(planning, "free_bytes", lambda device: int(1.6 * (one + statistics)))
    tight = choose(there, asked, sequences)
    assert tight.gradients == "resident" and 1 <= tight.batch_size < len(sequences) and counted
    before = len(counted)
    assert choose(there, asked, sequences) == tight and len(counted) == before


@pytest.mark.parametrize(
    ("free", "fields", "gradients", "said"),
    [
        (1 << 40, {}, "resident", "all weights fit at once"),
        (1000, {}, "sweep", "one block after the other: all need"),
        (1000, {}, "sweep", "even one block needs"),
        (1000, {"gradients": "resident"}, "resident", "as asked"),
        (1 << 40, {"gradients": "sweep"}, "sweep", "as asked"),
    ],
)
def test_a_run_says_what_it_chose_and_why(
    llama: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch, free: int, fields: Any, gradients: str, said: str
) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda device: free)
    asked = RunSpec(model="tiny", data_file=data_file, topk=(2,), perturbations=(), **fields)
    notes: list[Any] = []
    result = analyze(llama, asked, lambda event: notes.append(events.to_dict(event)))
    assert (result.gradients, result.batch_size) == (gradients, 1)
    assert any(said in note.get("text", "") for note in notes)


def test_nothing_is_chosen_where_no_gradients_are_needed(llama: Any) -> None:
    assert choose(llama, RunSpec(model="tiny", metrics=("magnitude",)), sequences_of(llama)).why == ""


def test_a_plan_needs_no_weights_on_disk(tmp_path: Path) -> None:
    hub_cache(tmp_path, {"tiny/llama": "llama"})
    for path in tmp_path.rglob("*.safetensors"):
        path.resolve().unlink(missing_ok=True)
        path.unlink()
    access = HubAccess(cache_dir=str(tmp_path), offline=True)
    assert fake_model(*load_without_weights("tiny/llama", None, access), torch.float32).anatomy.numel > 10_000
    with pytest.raises(ModelNotFound):
        load_without_weights("tiny/lama", None, access)  # codespell:ignore lama

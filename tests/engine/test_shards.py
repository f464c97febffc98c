"""A model over several devices gives what it gives on one, and no step mixes what lies on two of them.

There is no GPU here. Whole runs are on simulated ones, which have values and refuse what mixes two of them. What autograd does
on each device is looked at with tensors without values on "cpu:0" and "cpu:1", which PyTorch itself keeps apart as it keeps
"cuda:0" and "cuda:1" apart. tests/gpu has the real ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook
from accelerate.utils import send_to_device
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_engine import planning
from cwa_engine.base.errors import DoesNotFit, InvalidInput
from cwa_engine.base.events import ignore
from cwa_engine.evaluation.perplexity import nll_from, padded, sequence_nll
from cwa_engine.evaluation.resume import cache_states
from cwa_engine.hub.sources import HubAccess
from cwa_engine.local_run import model_record
from cwa_engine.machine.memory import Memory
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS, EditContext, Options
from cwa_engine.models import shards as module
from cwa_engine.models.checksum import checksum
from cwa_engine.models.fake_model import FakeModel, fake_model
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.shards import plan_shards, split, split_evenly
from cwa_engine.pipeline import analyze
from cwa_engine.prompt_spec import PromptSpec
from cwa_engine.prompting.answering import answer_prompt
from cwa_engine.records.export import run_tables
from cwa_engine.rows import Plan
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec
from cwa_engine.weights.card import weight_card
from tests.architectures import tiny_architecture
from tests.engine.conftest import TEXTS, fingerprint, wrap
from tests.engine.test_evaluation import sequences_of
from tests.engine.test_on_a_gpu import on
from tests.models import save_tiny
from tests.simulated_gpu import simulated_gpu

TWO = (torch.device("cuda:0"), torch.device("cuda:1"))
CHAINS = ("gpt2", "llama")
Mismatch = torch._subclasses.fake_tensor.FakeTensorDeviceMismatchError


def fake_on_two(loaded: LoadedModel) -> FakeModel:
    shards = split_evenly("tiny", loaded.model, loaded.anatomy, TWO)
    return fake_model(loaded.source, loaded.model.config, loaded.tokenizer, torch.float32, shards)


def everything(data_file: Path, **fields: Any) -> RunSpec:
    return RunSpec(
        model="tiny", data_file=data_file, topk=(3,), metrics=("grad_x_weight", "obd", "taylor", "wanda", "magnitude"),
        individually=True, control_seeds=1, seq_len=24, **fields,
    )  # fmt: skip


@pytest.fixture
def two_are_this_cpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Every device is this CPU; gives where blocks' inputs and outputs were sent."""
    sent: list[torch.device] = []

    def send(what: Any, device: torch.device, **options: Any) -> Any:
        sent.append(device)
        return send_to_device(what, device, **options)

    monkeypatch.setattr(module, "send_to_device", send)
    monkeypatch.setattr("cwa_engine.models.loading.torch_device", lambda name: torch.device("cpu"))
    return sent


@pytest.mark.parametrize(
    ("family", "gradients"), [("gpt2", "resident"), ("mixtral", "resident"), ("llama", "sweep"), ("opt", "sweep")]
)
def test_a_model_over_two_devices_is_found_to_the_last_bit_as_on_one(
    family: str, gradients: Any, tmp_path: Path, data_file: Path, two_are_this_cpu: list[torch.device]
) -> None:
    folder = str(save_tiny(family, tmp_path / "model"))
    one = dict(run_tables(analyze(load_model(folder), everything(data_file, gradients=gradients))))
    assert not two_are_this_cpu
    loaded = load_model(folder, device="cuda:0+cuda:1")
    before = fingerprint(loaded.model)
    assert dict(run_tables(analyze(loaded, everything(data_file, gradients=gradients)))) == one
    assert two_are_this_cpu
    assert fingerprint(loaded.model) == before


def test_the_files_of_a_run_say_where_the_model_lay(tmp_path: Path, two_are_this_cpu: list[torch.device]) -> None:
    record = model_record(load_model(str(save_tiny("llama", tmp_path / "model")), device="cuda:0+cuda:1"))
    assert record.device == "cpu+cpu"
    assert record.notes[-1].startswith("its blocks lie on 2 devices: ")


@pytest.mark.parametrize(
    ("family", "gradients", "metrics"),
    [("llama", "sweep", ("grad_x_weight", "obd", "super_weight")), ("gpt2", "resident", ("taylor", "wanda", "obs"))],
)
def test_a_run_over_two_simulated_devices_gives_the_files_of_a_run_on_one(
    family: str,
    gradients: Any,
    metrics: tuple[str, ...],
    tmp_path: Path,
    data_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ranking, damage, controls; then a card, a prompt and the checksum. A step over both devices raises."""
    folder = save_tiny(family, tmp_path / "model")
    if family == "llama":  # with a border between two blocks
        deep().model.save_pretrained(folder)
    asked = RunSpec(
        model="tiny", data_file=data_file, topk=(3,), metrics=metrics, controls=("random",), control_seeds=1, seq_len=24,
        gradients=gradients, batch_size=2, eval_limit=4,
    )  # fmt: skip
    plain = load_model(str(folder))
    intact = checksum(plain.model)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with simulated_gpu("cuda"):
        two = load_model(str(folder), device="cuda:0+cuda:1", dtype="float32")
        one = on("cuda:0", plain)
        assert {str(p.device) for p in two.model.parameters()} == {"cuda:0", "cuda:1"}
        assert dict(run_tables(analyze(two, asked))) == dict(run_tables(analyze(one, asked)))
        name = [n for n, parameter in two.anatomy.parameters.items() if parameter.is_down and not parameter.is_vector][
            -1
        ]
        assert str(two.model.get_parameter(name).device) == "cuda:1"
        card = RunSpec(model="tiny", weights=(f"{name}[3,5]",), metrics=metrics, dose=(0.5,))
        assert same_but_for_time(weight_card(two, card, texts=TEXTS[:4])) == same_but_for_time(
            weight_card(one, card, texts=TEXTS[:4])
        )
        prompt = PromptSpec(model="tiny", prompt="Copper, tin,", weights=(f"{name}[3,5]",), new_tokens=4)
        assert answer_prompt(two, prompt, ignore).damaged == answer_prompt(one, prompt, ignore).damaged
        assert checksum(two.model) == intact


def same_but_for_time(card: Any) -> Any:
    return dataclasses.replace(card, timings={}, device="")


@pytest.mark.parametrize("family", CHAINS)
@pytest.mark.parametrize(
    ("needs", "size"),
    [
        (Needs.GRADIENT, 2),
        (Needs.GRADIENT | Needs.FISHER, 2),
        (Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER, 1),
        (Needs.INPUTS | Needs.INPUT_GRAM | Needs.SPIKES, 1),
    ],
)
@pytest.mark.parametrize("source", [resident, sweep])
def test_every_statistic_is_made_on_the_device_of_its_weight(
    family: str, needs: Needs, size: int, source: Callable[..., Any]
) -> None:
    fake = fake_on_two(wrap(tiny_architecture(family)))
    with fake.running():
        found = source(fake, sequences_of(fake)[:3], needs, size)
        parts = [found] if isinstance(found, dict) else list(found)
    places = {name: fake.model.get_parameter(name).device for name in fake.anatomy.parameters}
    assert set(places.values()) == {torch.device("cpu:0"), torch.device("cpu:1")}
    statistics = {name: stats for part in parts for name, stats in part.items()}
    assert set(statistics) == set(places)
    for name, stats in statistics.items():
        tensors = (stats.gradient, stats.fisher, stats.token_fisher, stats.input_norm, stats.input_factor)
        assert all(tensor.device == places[name] for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("family", CHAINS)
def test_second_derivatives_resumed_passes_and_cached_steps_mix_no_devices(family: str) -> None:
    fake = fake_on_two(wrap(tiny_architecture(family)))
    texts = sequences_of(fake)[:3]
    with fake.running():
        hutchinson_diagonal(fake, texts[:1], 2, 0)
        cached = cache_states(fake, texts, 2)
    with fake.running(), torch.inference_mode():
        for number, first in itertools.product(range(len(cached.batches)), range(len(cached.chain.blocks) + 1)):
            sums = nll_from(fake, cached.chain, cached.start(number, first), cached.texts[number])
            assert sums.device == fake.device
        ids = padded(fake, texts[:1]).ids
        before = fake.model(input_ids=ids, use_cache=True).past_key_values
        assert fake.model(input_ids=ids[:, :1], past_key_values=before, use_cache=True).logits.device == fake.device


@pytest.mark.parametrize("broken", ["pre_forward", "post_forward"])
def test_a_hidden_state_that_is_not_brought_over_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the tests above can fail: each half of what brings hidden states over is needed."""
    monkeypatch.setattr(module._OnItsDevice, broken, getattr(ModelHook, broken))  # which changes nothing
    fake = fake_on_two(wrap(tiny_architecture("llama")))
    with fake.running(), pytest.raises(Mismatch, match="same device"):
        sequence_nll(fake, sequences_of(fake)[:1])


@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if name != "quantize"])  # it looks at a value
def test_a_weight_on_the_second_device_is_rewritten_there(name: str) -> None:
    fake = fake_on_two(wrap(tiny_architecture("llama")))
    (weight,) = (p.detach() for n, p in fake.model.named_parameters() if n.endswith("layers.1.mlp.up_proj.weight"))
    with fake.running():
        edit = EditContext("w", weight, Options(), torch.Generator())
        assert PERTURBATIONS[name].rewrite(weight.view(-1)[:5].clone(), edit).device == torch.device("cpu:1")


def outside_of(fake: FakeModel) -> list[torch.nn.Module]:
    return [fake.model.get_submodule("lm_head"), fake.model.get_submodule("transformer.wte")]


def test_tied_weights_stay_one_and_lie_on_the_first_device() -> None:
    fake = fake_on_two(wrap(tiny_architecture("gpt2")))
    head, embedding = (module.get_parameter("weight") for module in outside_of(fake))
    assert head is embedding
    assert head.device == fake.device == torch.device("cpu:0")
    assert fake.size_bytes == wrap(tiny_architecture("gpt2")).size_bytes


def slowly_split(blocks: Sequence[int], outside: int, room: Sequence[int]) -> float:
    """How full the fullest device is in the best of all splits, by trying each."""
    best = float("inf")
    for cuts in itertools.combinations(range(len(blocks) + 1), len(room) - 1):
        edges = [0, *cuts, len(blocks)]
        if any(start == stop for start, stop in itertools.pairwise(edges[1:])):
            continue
        held = [sum(blocks[start:stop]) for start, stop in itertools.pairwise(edges)]
        held[0] += outside
        best = min(best, max(size / each for size, each in zip(held, room, strict=True)))
    return best


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=4, max_size=9),
    st.integers(0, 100),
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
)
def test_no_split_in_order_leaves_the_fullest_device_less_full(
    blocks: list[int], outside: int, room: list[int]
) -> None:
    places = split(blocks, outside, room)
    assert list(places) == sorted(places) and set(places) | {0} == set(range(len(room)))
    held = [sum(size for size, at in zip(blocks, places, strict=True) if at == device) for device in range(len(room))]
    held[0] += outside
    fullest = max(size / each for size, each in zip(held, room, strict=True))
    assert fullest == pytest.approx(slowly_split(blocks, outside, room))


def memory(*free: int, total: int = 1000) -> list[Memory]:
    return [Memory("device", total, each) for each in free]


def test_more_blocks_go_where_more_is_free_and_a_little_less_changes_nothing() -> None:
    loaded = deep()
    equal = plan_shards("tiny", loaded.model, loaded.anatomy, TWO, memory(10**8, 10**8, total=10**8))
    little = plan_shards("tiny", loaded.model, loaded.anatomy, TWO, memory(10**8, 10**8 - 10**6, total=10**8 + 1))
    half = plan_shards("tiny", loaded.model, loaded.anatomy, TWO, memory(10**8, 5 * 10**7, total=10**8))
    assert equal.of_block == little.of_block
    assert equal.of_block.count(TWO[1]) > half.of_block.count(TWO[1]) >= 1
    assert sum(equal.weights) == sum(p.nbytes for p in (*loaded.model.parameters(), *loaded.model.buffers()))


def deep() -> LoadedModel:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=192, num_hidden_layers=5, num_attention_heads=2
    )
    return wrap(transformers.AutoModelForCausalLM.from_config(config).eval())


def test_what_cannot_lie_on_several_devices_is_refused_by_name(
    tmp_path: Path, two_are_this_cpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_tiny("llama", tmp_path / "model"))
    with pytest.raises(InvalidInput, match="has 2 blocks, too few for 3 devices"):
        load_model(folder, device="cuda:0+cuda:1+cuda:2")
    with pytest.raises(InvalidInput, match="come to one device"):
        load_model(folder, device="cuda:0+cuda:1", offload=True)
    monkeypatch.setattr(module, "device_memory", lambda device: Memory("device", 10**5, 10**4))
    with pytest.raises(DoesNotFit, match="does not fit on these devices: it needs"):
        load_model(folder, device="cuda:0+cuda:1")
    monkeypatch.undo()
    monkeypatch.setattr("cwa_engine.models.loading.torch_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(module._OnItsDevice, "post_forward", lambda self, block, output: output * 1.5)
    with pytest.raises(InvalidInput, match="its logits differ there by"):
        load_model(folder, device="cuda:0+cuda:1")


def test_a_plan_over_two_devices_needs_no_more_than_each_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep_one = deep()
    folder = save_tiny("llama", tmp_path / "model")
    deep_one.model.save_pretrained(folder)
    asked = RunSpec(model=str(folder), eval_limit=2, seq_len=32)
    monkeypatch.setattr(planning, "free_bytes", lambda device: 1 << 40)
    one = {row.gradients: row for row in planning.plan(asked, HubAccess(), "cuda:0").rows[:3]}
    both = planning.plan(asked, HubAccess(), "cuda:0+cuda:1")
    two = {row.gradients: row for row in both.rows[:2]}
    assert list(two) == ["resident", "sweep"]  # no offload
    assert both.free_bytes == 2 << 40
    assert two["resident"].weights_bytes == one["resident"].weights_bytes
    # Each of two has about half of the whole; what the tail takes of the first counts twice.
    assert one["resident"].total_bytes < two["resident"].total_bytes < 1.5 * one["resident"].total_bytes
    assert two["resident"].fits
    less = int(0.9 * two["resident"].total_bytes / 2 / planning.SHARE)  # on each
    monkeypatch.setattr(planning, "free_bytes", lambda device: less)
    assert not planning.plan(asked, HubAccess(), "cuda:0+cuda:1").rows[0].fits


def test_a_plan_takes_each_of_two_devices_for_as_large_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    deep().model.save_pretrained(folder)
    asked = RunSpec(model=str(folder), eval_limit=2, seq_len=32)

    def planned(*free: int) -> Plan:
        monkeypatch.setattr(planning, "free_bytes", lambda device: free[device.index])
        return planning.plan(asked, HubAccess(), "cuda:0+cuda:1")

    alike = planned(1 << 40, 1 << 40).rows[0]
    each = int(1.05 * alike.total_bytes / 2 / planning.SHARE)
    small = each * 4 // 5
    both = planned(2 * each - small, small)  # as much together: the smaller one gets fewer blocks
    assert both.free_bytes == 2 * each
    assert both.rows[0].fits
    assert not planned(small, small).rows[0].fits


def test_gradients_of_all_weights_are_kept_where_each_device_has_room_for_its_own() -> None:
    """Half of the bytes on each of two devices do where they would not do on one."""
    deep_one = deep()
    fake = fake_on_two(deep_one)
    texts = sequences_of(fake)[:2]
    needed, counted = planning.working_bytes(fake, texts, Needs.GRADIENT, "resident", 1)
    one, _ = planning.working_bytes(deep_one, texts, Needs.GRADIENT, "resident", 1)
    assert counted
    assert one < needed < 1.6 * one

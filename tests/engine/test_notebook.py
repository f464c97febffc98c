"""What a notebook does: `import cwa_engine as cwa`, models and texts that are in memory, options by keyword."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cwa_engine as cwa
from cwa_engine.data.corpus import load_texts
from tests.engine.conftest import TEXTS, fingerprint
from tests.models import save_tiny, tiny_model, tiny_tokenizer

FAST: dict[str, Any] = {"metrics": ["grad_x_weight"], "topk": [3], "control_seeds": 2, "controls": ["random"]}


def analyze(model: Any, **options: Any) -> cwa.RunReport:
    return cwa.analyze(model, tokenizer=tiny_tokenizer(), **{"texts": TEXTS, **FAST, **options})


def test_importing_the_engine_imports_nothing_heavy_and_every_name_is_there() -> None:
    code = (
        "import sys, cwa_engine as cwa\n"
        "assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules), 'importing costs too much'\n"
        "assert cwa.InvalidInput.__module__ == 'cwa_engine.base.errors' and 'torch' not in sys.modules\n"
        "for name in cwa.__all__: assert getattr(cwa, name) is not None and name in dir(cwa), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        _ = cwa.analyse  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_that_there_are() -> None:
    stub = ast.parse(Path(cwa.__file__).with_suffix(".pyi").read_text())
    seen = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(cwa.__all__)


def test_a_model_and_texts_in_memory_give_what_files_of_both_give(tmp_path: Path, data_file: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    ours, stored = analyze(tiny_model("llama")), cwa.analyze(str(folder), data_file=data_file, **FAST)
    assert ours.topk() == stored.topk()
    assert (ours.damage, ours.evaluations, ours.verdicts) == (stored.damage, stored.evaluations, stored.verdicts)
    assert ours.baseline == stored.baseline
    assert ours.texts.sha256 == stored.texts.sha256
    assert (ours.texts.source, ours.model.kind) == ("texts in memory", "memory")


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_the_model_is_bit_for_bit_and_flag_for_flag_as_it_was(family: str) -> None:
    model = tiny_model(family).train()
    first = next(iter(model.parameters()))
    frozen = list(model.parameters())[1].requires_grad_(False)
    next(iter(model.children())).eval()
    first.grad = gradient = torch.ones_like(first)
    before, modes = fingerprint(model), {name: module.training for name, module in model.named_modules()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):  # as a notebook may have it
        report = analyze(model)
    assert report.damage
    assert fingerprint(model) == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert first.grad is gradient and torch.equal(gradient, torch.ones_like(first))
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert analyze(tiny_model(family)).topk() == report.topk()  # neither mode nor flags had a part in it


def test_the_model_is_as_it_was_where_the_analysis_fails() -> None:
    model = tiny_model("llama").train()
    before = fingerprint(model)

    def stop(event: Any) -> None:
        if event.kind == "damage":
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        analyze(model, emit=stop)
    assert model.training and fingerprint(model) == before


def test_a_wrapped_model_can_be_analysed_again_and_its_report_names_the_weights_of_that_time() -> None:
    model = tiny_model("llama")
    loaded = cwa.wrap(model, tiny_tokenizer(), name="mine")
    reports = [cwa.analyze(loaded, texts=TEXTS, **FAST) for _ in range(2)]
    assert reports[0].topk() == reports[1].topk()
    assert reports[0].model.name == "mine (in memory)"
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    changed = cwa.analyze(loaded, texts=TEXTS, **FAST)
    assert reports[0].model.files == reports[1].model.files != changed.model.files
    with pytest.raises(cwa.InvalidInput, match="a LoadedModel has its tokenizer"):
        cwa.analyze(loaded, tokenizer=tiny_tokenizer(), texts=TEXTS)


def test_a_rerun_from_the_manifest_never_takes_another_model_or_other_texts() -> None:
    spec = analyze(tiny_model("llama")).spec
    with pytest.raises(cwa.ModelNotFound):
        cwa.load_model(spec.model)
    with pytest.raises(cwa.DataError, match="texts in memory cannot be read"):
        load_texts(spec.data_file, name=spec.data_name)
    assert spec.sha256() != analyze(tiny_model("llama"), texts=TEXTS[1:]).spec.sha256()


@pytest.mark.parametrize(
    ("options", "named", "hint"),
    [
        ({"metric": ["magnitude"]}, "'metric'", "'metrics'"),
        ({"top_k": [3]}, "'top_k'", "'topk'"),
        ({"perturb": ["zero"]}, "'perturb'", "'perturbations'"),
        ({"data_name": "x"}, "'data_name'", ""),
        ({"output": "results"}, "output", "save"),
        ({"topk": ["many"]}, "topk", ""),
        ({"topk": [0]}, "0 is too small", ""),
        ({"metrics": ["magnitud"]}, "'magnitud'", "'magnitude'"),
        ({"dtype": "float16"}, "the model is in memory", "dtype"),
        ({"data_file": "notes.txt"}, "texts are given", "data_file"),
        ({"texts": "one text"}, "no list of texts", '["..."]'),
        ({"texts": []}, "holds no text", ""),
        ({"texts": ["a text", 3]}, "text 2 of texts in memory is a int", ""),
        ({"texts": ["a text", "\ud800"]}, "text 2 of texts in memory is not Unicode", ""),
        ({"texts": [" ", "\n"]}, "holds no text", ""),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_meant_is_named(options: dict[str, Any], named: str, hint: str) -> None:
    with pytest.raises(cwa.InvalidInput) as refused:
        analyze(tiny_model("llama"), **options)
    assert named in refused.value.message
    assert hint in refused.value.hint


def test_blank_texts_are_left_out_and_the_limit_counts_the_others() -> None:
    said: list[Any] = []
    report = analyze(tiny_model("llama"), texts=["", *TEXTS], eval_limit=4, emit=said.append)
    assert report.texts.texts == 4
    assert any("1 of 5 rows of texts in memory have no text" in event.text for event in said if event.kind == "note")


def other_dtypes(model: Any) -> Any:
    model.model.norm.to(torch.float64)
    return model


def not_finite(model: Any) -> Any:
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    return model


def without_head(model: Any) -> Any:
    return model.model


def on_meta(model: Any) -> Any:
    return model.to("meta")


def not_contiguous(model: Any) -> Any:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().t().contiguous().t())
    return model


def sees_later_tokens(model: Any) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64,
        )
    )  # fmt: skip


def classifies(model: Any) -> Any:
    from transformers import LlamaForSequenceClassification

    return LlamaForSequenceClassification(model.config)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (other_dtypes, "weights in float32 and float64"),
        (not_finite, "model.norm.weight of .* NaN or infinite"),
        (without_head, "no logits of all its 300 tokens"),
        (classifies, "no logits of all its 300 tokens"),
        (on_meta, "no weights in memory"),
        (not_contiguous, "lm_head.weight of .* is not contiguous"),
        (sees_later_tokens, "sees later tokens"),
        (lambda model: torch.nn.Linear(2, 2), r"torch\S+Linear is no model of transformers"),
        (lambda model: model.to(torch.float8_e4m3fn), "weights in float8_e4m3fn"),
    ],
)
def test_what_cannot_be_analysed_is_refused_with_a_reason(changed: Callable[[Any], Any], named: str) -> None:
    with pytest.raises((cwa.InvalidInput, cwa.ModelBroken), match=named):
        cwa.wrap(changed(tiny_model("llama")), tiny_tokenizer())


def test_a_tokenizer_that_is_none_or_of_a_larger_model_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(cwa.InvalidInput, match="no tokenizer is given"):
        cwa.analyze(model, texts=TEXTS)
    smaller = copy.deepcopy(model)
    smaller.resize_token_embeddings(60)
    with pytest.raises(cwa.ModelBroken, match="knows only 60"):
        cwa.wrap(smaller, tiny_tokenizer())


def test_the_files_of_a_run_in_memory_are_those_of_a_run(tmp_path: Path) -> None:
    report = analyze(tiny_model("llama"))
    folder = report.save(tmp_path / "run")
    assert cwa.open_run(folder) == report
    assert json.loads((folder / "manifest.json").read_text())["model"]["kind"] == "memory"
    with pytest.raises(cwa.OutputTaken):
        report.save(folder)

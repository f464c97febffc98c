"""On two real devices: a model that lies over both gives the files of a run on one, and its weights come back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from cwa_engine.models.checksum import checksum
from cwa_engine.models.loading import load_model
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.spec import RunSpec
from tests.models import tiny_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no two NVIDIA devices"),
]


@pytest.mark.parametrize("gradients", ["resident", "sweep"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_over_both_gives_the_files_of_a_run_on_one(
    gradients: Literal["resident", "sweep"], dtype: str, tmp_path: Path, data_file: Path
) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    asked = RunSpec(
        model="tiny", data_file=data_file, topk=(20,), metrics=("grad_x_weight", "obd", "wanda", "super_weight"),
        control_seeds=2, seq_len=32, gradients=gradients, batch_size=4,
    )  # fmt: skip
    one = load_model(str(tmp_path / "model"), dtype=dtype, device="cuda:0")
    two = load_model(str(tmp_path / "model"), dtype=dtype, device="cuda:0+cuda:1")
    assert {str(weight.device) for weight in two.model.parameters()} == {"cuda:0", "cuda:1"}
    intact = checksum(two.model)
    assert dict(run_tables(analyze(two, asked))) == dict(run_tables(analyze(one, asked)))
    assert checksum(two.model) == intact == checksum(one.model)

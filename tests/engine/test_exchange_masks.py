"""Masks: what is written loads beside the model, what is read back names the same weights, and nothing is unpickled."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import cwa_engine as cwa
from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.exchange import masks
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.structures import find_weights
from cwa_engine.rows import StoredParameter
from cwa_engine.targets import parse_target
from cwa_engine.weight_files.reading import place_in, read_weights
from tests.engine.conftest import TEXTS
from tests.engine.study_runs import planted_run
from tests.models import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "gpt2", "mixtral")  # stored as [out, in], as [in, out], and in stacks of experts


def ranked(family: str, **options: Any) -> tuple[Any, cwa.RunReport]:
    model = tiny_model(family)
    asked: dict[str, Any] = {
        "metrics": ["magnitude"],
        "topk": [7],
        "perturbations": [],
        "include": ["*.layers.*", "*.h.*"][family == "gpt2"],
    }
    return model, cwa.analyze(
        model, tokenizer=tiny_tokenizer(), texts=TEXTS, **{**asked, "include": [asked["include"]], **options}
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("structure", ["weight", "row", "column", "head"])
def test_a_mask_is_true_at_the_ranked_weights_of_the_model_and_nowhere_else(
    family: str, structure: str, tmp_path: Path
) -> None:
    k = 5 if structure == "weight" else 2
    model, report = ranked(family, structure=structure, topk=[k + 1], matrices=False)
    [path] = cwa.export(report, tmp_path / "m.safetensors", "safetensors", k=k)
    loaded = load_file(path)
    expected: dict[str, Any] = {}
    for weight in report.topk()[:k]:
        mask = expected.setdefault(
            weight.parameter, torch.zeros_like(model.get_parameter(weight.parameter), dtype=torch.bool)
        )
        out_in = mask.mT if stored_in_out(model, weight.parameter) else mask  # a view
        index = [int(part) if part.isdigit() else slice(*(int(end) if end else None for end in part.split(":")))
                 for part in weight.target.partition("[")[2].rstrip("]").split(",")]  # fmt: skip
        out_in[tuple(index)] = True
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def stored_in_out(model: Any, parameter: str) -> bool:
    owner = model.get_submodule(parameter.rpartition(".")[0])
    return type(owner).__name__ == "Conv1D" and parameter.endswith(".weight")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("structure", ["weight", "row", "column"])
@pytest.mark.parametrize("form", ["mask", "indices"])
def test_a_mask_that_is_read_back_gives_the_same_weights(
    family: str, structure: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "indices":
        monkeypatch.setattr(masks, "MOST_MASK_BYTES", 0)
    model, report = ranked(family, structure=structure, matrices=False)
    [path] = cwa.export(report, tmp_path / "m.safetensors", "safetensors")
    with safe_open(path, "numpy") as file:
        assert file.metadata()["cwtool.form"] == form
        assert file.metadata()["cwtool.run"] == report.run_id
        assert file.metadata()["cwtool.k"] == "7"
    again = cwa.analyze(
        model, tokenizer=tiny_tokenizer(), texts=TEXTS, metrics=[], weights=read_weights(path), perturbations=[]
    )
    ours = {(row.target, row.value) for row in report.topk()}
    if form == "mask" or structure == "weight":
        assert {(row.target, row.value) for row in again.topk("given")} == ours
    else:  # single weights stand for rows and columns
        assert len(again.topk("given")) > len(ours)


def test_the_weights_of_a_run_that_was_given_weights_can_be_written_too(tmp_path: Path) -> None:
    target = "model.layers.1.mlp.down_proj.weight[3,5]"
    report = cwa.analyze(
        tiny_model("llama"), tokenizer=tiny_tokenizer(), texts=TEXTS, metrics=[], weights=[target], perturbations=[]
    )
    [path] = cwa.export(report, tmp_path / "m.safetensors", "safetensors")
    [(name, mask)] = load_file(path).items()
    assert name == "model.layers.1.mlp.down_proj.weight" and mask.nonzero().tolist() == [[3, 5]]


def test_masks_of_a_7b_model_take_neither_its_memory_nor_its_room_on_disk(tmp_path: Path) -> None:
    shape = (4096, 11008)
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(20)]
    report = planted_run("big", tops={"grad_x_weight": [f"{name}[3968,7003]" for name in names]}, layers=20)
    import dataclasses

    report = dataclasses.replace(report, stored=tuple(StoredParameter(name, shape) for name in names))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = masks.write_masks(report, tmp_path / "m.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # KB; the masks have 900 MB
    assert path.stat().st_size > 900e6 and path.stat().st_blocks * 512 < 2e6
    with safe_open(path, "numpy") as file:
        assert np.argwhere(file.get_tensor(names[7])).tolist() == [[3968, 7003]]


def test_a_run_that_does_not_say_how_its_model_is_stored_is_refused(tmp_path: Path) -> None:
    report = planted_run("old", tops={"grad_x_weight": ["model.layers.1.mlp.down_proj.weight[3,5]"]})
    with pytest.raises(DataError, match="does not say how the model stores") as refused:
        cwa.export(report, tmp_path / "m.safetensors", "safetensors")
    assert "cwtool rerun" in refused.value.hint and not list(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match="k 9 is not in the ranking"):
        cwa.export(report, tmp_path / "m.safetensors", "safetensors", k=9)


PARAMETERS = {
    name: Parameter(name, order, shape, layer, "down", transposed=transposed)
    for order, (name, shape, layer, transposed) in enumerate(
        [
            ("model.layers.1.mlp.down_proj.weight", (6, 8), 1, False),
            ("model.layers.2.mlp.down_proj.weight", (6, 8), 2, False),
            ("model.layers.12.mlp.down_proj.weight", (6, 8), 12, False),
            ("model.layers.2.mlp.c_fc.weight", (8, 6), 2, True),
            ("model.norm.weight", (8,), None, False),
        ]
    )
}


@given(st.data())
def test_any_mask_of_other_tools_selects_what_it_says(data: st.DataObject) -> None:
    import tempfile

    name, parameter = data.draw(st.sampled_from(sorted(PARAMETERS.items())))
    count = data.draw(st.integers(1, 6))
    chosen = data.draw(st.lists(st.integers(0, parameter.numel - 1), min_size=count, max_size=count, unique=True))
    kind = data.draw(st.sampled_from([torch.bool, torch.uint8, torch.float32, torch.int64]))
    mask = torch.zeros(parameter.numel, dtype=kind)
    mask[chosen] = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        save_file({name.removesuffix(".weight"): mask.reshape(parameter.shape)}, path)
        assert selected(read_weights(path)) == {(name, place) for place in chosen}


def selected(targets: list[str]) -> set[tuple[str, int]]:
    """(parameter, flat index) of each weight that the targets name in the model of `PARAMETERS`."""
    from cwa_engine.models.structures import parameter_of

    found = set()
    for text in targets:
        target = parse_target(text)
        name = parameter_of(target, PARAMETERS).name
        found |= {(name, int(index)) for index in find_weights(target, PARAMETERS)}
    return found


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def test_arrays_of_numpy_are_masks_or_places(tmp_path: Path) -> None:
    name, fused = "model.layers.2.mlp.down_proj.weight", "model.layers.2.mlp.c_fc.weight"
    mask = np.zeros((6, 8), dtype=bool)
    mask[3, 5] = True
    save_arrays(tmp_path / "a.npz", {name: mask, fused: np.array([[7, 2], [0, 1]]), "model.norm": np.array([4])})
    expected = {(name, 3 * 8 + 5), (fused, 7 * 6 + 2), (fused, 1), ("model.norm.weight", 4)}
    assert selected(read_weights(tmp_path / "a.npz")) == expected
    rows = np.array([(name, 3, 5), (fused, 7, 2)], dtype=[("parameter", "U60"), ("row", "i8"), ("col", "i8")])
    np.save(tmp_path / "a.npy", rows)
    assert selected(read_weights(tmp_path / "a.npy")) == {(name, 29), (fused, 44)}
    save_arrays(tmp_path / "flat.npz", {fused: np.array([44, 1])})
    assert selected(read_weights(tmp_path / "flat.npz")) == {(fused, 44), (fused, 1)}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: torch.save({"a": torch.ones(2)}, path.with_suffix(".pt")), "is a pickle"),
        (lambda path: torch.save({"a": torch.ones(2)}, path.with_suffix(".txt")), "is a pickle"),
        (lambda path: np.save(path.with_suffix(".npy"), np.array([{}], dtype=object), allow_pickle=True), "Python objects"),
        (lambda path: np.save(path.with_suffix(".npy"), np.arange(3)), "does not say which parameters"),
        (lambda path: save_file({"a": torch.tensor([0.5])}, path.with_suffix(".safetensors")), "a has values other"),
        (lambda path: save_file({"a": torch.zeros(3)}, path.with_suffix(".safetensors")), "names no weight"),
        (lambda path: save_file({"a": torch.ones(300, 300) - torch.eye(300)}, path.with_suffix(".safetensors")), "89,700"),
        (lambda path: save_file({"a": torch.ones(2).bfloat16()}, path.with_suffix(".safetensors")), "dtype"),
        (lambda path: path.with_suffix(".safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{}"), "no whole safetensors file"),
        (lambda path: path.with_suffix(".npz").write_bytes(b"PK"), "is not read"),
        (lambda path: path.with_suffix(".json").write_text("{"), "is not JSON"),
    ],
)  # fmt: skip
def test_files_that_hold_no_weights_are_refused_by_name(write: Any, said: str, tmp_path: Path) -> None:
    write(tmp_path / "weights")
    [path] = tmp_path.iterdir()
    with pytest.raises(DataError, match=said) as refused:
        read_weights(path)
    assert path.name in refused.value.message and refused.value.hint


def test_a_mask_made_for_another_model_is_refused_with_both_shapes() -> None:
    target = parse_target("model.layers.2.mlp.down_proj.weight[stored 3,5 of 6,9]")
    with pytest.raises(InvalidInput, match="has the shape 6 x 8, not 6 x 9"):
        find_weights(target, PARAMETERS)
    with pytest.raises(InvalidInput, match="may be of 3 parameters"):
        find_weights(parse_target("down_proj[stored 3,5]"), PARAMETERS)
    with pytest.raises(InvalidInput, match=r"no parameter model\.layers\.2\.mlp\.down_porj") as refused:
        find_weights(parse_target("model.layers.2.mlp.down_porj.weight[3,5]"), PARAMETERS)
    assert "down_proj" in refused.value.hint
    with pytest.raises(InvalidInput, match=r"axis 0 0 to 5|lies outside"):
        find_weights(parse_target("2.mlp.down_proj[stored 6,5]"), PARAMETERS)


LISTS = {
    "plain.txt": "# of a paper\nmodel.layers.2.mlp.down_proj.weight[3, 5]\n",
    "brackets.txt": "- `model.layers[2].mlp.down_proj.weight[3][5]`\n",
    "round.txt": "layers.2.mlp.down_proj.weight (3, 5);\n",
    "words.txt": "Layer 2, mlp.down_proj, [3, 5]\n",
    "bare.txt": "2 mlp.down_proj 3 5\n",
    "table.md": "| Model | No. | Type | Weight | Coordinates |\n|-|:-:|-|-|-|\n| Llama | 2 | mlp | down_proj | [3, 5] |\n",
    "rows.csv": "layer,module,row,col\n2,mlp.down_proj,3,5\n",
    "rows.tsv": "layer\tmodule\trow\tcol\n2\tdown_proj\t3\t5\n",
    "features.csv": "parameter,out_feature,in_feature\nmodel.layers.2.mlp.down_proj.weight,3,5\n",
    "objects.json": json.dumps([{"layer": 2, "module": "mlp.down_proj", "row": 3, "col": 5}]),
    "wrapped.json": json.dumps({"model": "x", "super_weights": [[2, "mlp.down_proj", [3, 5]]]}),
    "named.json": json.dumps({"model.layers.2.mlp.down_proj.weight": [[3, 5]]}),
    "texts.json": json.dumps(["model.layers.2.mlp.down_proj.weight[3,5]"]),
    "lines.jsonl": '{"name": "2.mlp.down_proj", "indices": [3, 5]}\n{"name": "2.mlp.down_proj", "flat_index": 29}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_other_tools_name_the_weight_that_they_mean(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LISTS[name])
    assert selected(read_weights(tmp_path / name)) == {("model.layers.2.mlp.down_proj.weight", 3 * 8 + 5)}


def test_rows_and_columns_of_other_tools_are_of_the_tensor_as_it_is_stored(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("parameter,row,col\nmodel.layers.2.mlp.c_fc.weight,7,2\n")
    assert selected(read_weights(tmp_path / "a.csv")) == {("model.layers.2.mlp.c_fc.weight", 7 * 6 + 2)}
    (tmp_path / "b.csv").write_text("parameter,out_feature,in_feature\nmodel.layers.2.mlp.c_fc.weight,2,7\n")
    assert selected(read_weights(tmp_path / "b.csv")) == {("model.layers.2.mlp.c_fc.weight", 7 * 6 + 2)}


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.txt", "model.norm.weight[1]\n\nhello world\n", "line 3"),
        ("a.csv", "layer,module,row,col\n2,mlp.down_proj,3,5\n2,mlp.down_proj,x,5\n", "line 3"),
        ("a.md", "|layer|module|index|\n|-|-|-|\n|2|down_proj|[1, -2]|\n", "line 3"),
        ("a.json", '[{"name": "a.weight", "row": 1}, {"row": 1, "col": 2}]', r"entry \[1\]"),
        ("a.json", '{"a.weight": [[1, 2], [1.5, 2]]}', r"entry a\.weight\[1\]"),
        (
            "a.md",
            "|Model|layer|module|index|\n|--|--|--|--|\n|A|2|down_proj|[1, 2]|\n|B|2|down_proj|[1, 2]|\n",
            "line 4.*another model",
        ),
    ],
)
def test_what_names_no_weight_is_refused_with_its_line(name: str, content: str, where: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=where):
        read_weights(tmp_path / name)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_words(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for ending in (".txt", ".json", ".csv", ".npy", ".npz", ".safetensors"):
            path = Path(folder) / f"w{ending}"
            path.write_bytes(content)
            try:
                for target in read_weights(path):
                    parse_target(target)
            except DataError as refused:
                assert refused.message


def test_a_weight_that_the_model_lacks_is_found_again_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("layer,module,row,col\n2,mlp.down_proj,3,5\n\n2,mlp.down_proj,9,5\n")
    [_, beyond] = read_weights(path)
    with pytest.raises(InvalidInput) as refused:
        find_weights(parse_target(beyond), PARAMETERS)
    assert place_in(path, refused.value.message) == "line 4"
    assert place_in(path, "another error") == ""

"""Models that strangers made to hang, to take all memory or to run code: each is refused by name, within seconds.

Every one is loaded where no more than 600 MB can be had, so that whoever asked for more would say "memory", and not what is
wrong with the model.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cwa_engine.base.cancellation import cancellable
from cwa_engine.base.errors import Cancelled, ModelBroken, ModelNotFound, OutOfMemory
from cwa_engine.hub.sources import HubAccess
from cwa_engine.machine.memory_limit import memory_limit
from cwa_engine.models.checkpoint import stored_tensors
from cwa_engine.models.loading import load_model, load_without_weights
from tests.models import edit_json, save_tiny

Spoil = Callable[[Path], object]
WITHIN_S = 60.0  # on a machine that is busy with other things; alone the slowest takes 5
MOST_BYTES = 600_000_000


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported with the first model counts as nobody's memory."""
    load_model(str(save_tiny("gpt2", tmp_path_factory.mktemp("warm"))))


def take_memory(size: int) -> None:
    torch.empty(10**9)  # more than this process may have freed before, and can take again


def sparse(path: Path, size: int, content: bytes = b"") -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)


def fifo(name: str) -> Spoil:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def link(name: str, target: str) -> Spoil:
    return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).symlink_to(target))


def listening(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "s"))


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def config(**fields: Any) -> Spoil:
    return lambda folder: edit_json(folder / "config.json", **fields)


def tokenizer(**fields: Any) -> Spoil:
    return lambda folder: edit_json(folder / "tokenizer.json", **fields)


def safetensors(header: Any, data: bytes = b"", length: int | None = None, size: int | None = None) -> Spoil:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    written = struct.pack("<Q", len(content) if length is None else length) + content + data

    def spoil(folder: Path) -> None:
        sparse(folder / "model.safetensors", size or len(written), written)

    return spoil


def index(weight_map: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def as_bin(write: Callable[[Path, dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        write(folder / "pytorch_model.bin", tensors)

    return spoil


def bomb(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A zip file whose 200 MB of zeros are 0.2 MB."""
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as before:
        entries = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name, content in entries.items():
            if name.endswith("/data/0"):
                with after.open(name, "w", force_zip64=True) as entry:
                    for _ in range(200):
                        entry.write(bytes(1_000_000))
            else:
                after.writestr(name, content)


def expanded(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save({**tensors, "lm_head.weight": torch.zeros(1).expand(10**6, 10**7)}, path)


DEEP = '{"a":' * 200_000 + "1" + "}" * 200_000
OVERLAPPING = {f"t{n}": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]} for n in range(10_000)}
ONE = {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}
NEGATIVE = {"dtype": "F32", "shape": [-10, -100], "data_offsets": [0, 4000]}
SPLIT: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
PANICS = {**SPLIT, "pattern": {"Regex": "(a+)+$"}}
BAD_REGEX = {**SPLIT, "pattern": {"Regex": "(" * 500}}
DOUBLES = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}

HOSTILE: dict[str, tuple[Spoil, str]] = {
    "config of 500 MB": (lambda folder: sparse(folder / "config.json", 500_000_000, b"{}"), "has 500 MB"),
    "config is a pipe": (fifo("config.json"), "is a pipe"),
    "weights are a pipe": (fifo("model.safetensors"), "is a pipe"),
    "tokenizer is a pipe": (fifo("tokenizer.json"), "is a pipe"),
    "generation config is a pipe": (fifo("generation_config.json"), "is a pipe"),
    "a template is a pipe": (
        lambda folder: ((folder / "additional_chat_templates").mkdir(), fifo("additional_chat_templates/x.jinja")(folder)),
        "is a pipe",
    ),
    "a socket": (listening, "a socket"),
    "weights lead to /dev/zero": (link("model.safetensors", "/dev/zero"), "a device"),
    "tokenizer leads to /dev/zero": (link("tokenizer.json", "/dev/zero"), "a device"),
    "config leads to a pipe elsewhere": (
        lambda folder: (os.mkfifo(folder.parent / "pipe"), link("config.json", "../pipe")(folder)), "is a pipe",
    ),
    "config is nested deeply": (text("config.json", DEEP), "nested too deeply"),
    "tokenizer config is nested deeply": (text("tokenizer_config.json", DEEP), "nested too deeply"),
    "tokenizer config of 1 GB": (lambda folder: sparse(folder / "tokenizer_config.json", 10**9, b"{}"), "has 1,000 MB"),
    "config is a list": (text("config.json", "[1, 2]"), "is not a JSON object"),
    "config is one huge number": (text("config.json", '{"num_hidden_layers": ' + "9" * 10_000 + "}"), "not JSON"),
    "a thousand million layers": (config(num_hidden_layers=10**9), "num_hidden_layers = 1,000,000,000"),
    "a thousand layers": (config(num_hidden_layers=1000), "the weights files hold 21 tensors"),
    "layers of a text config": (config(text_config={"num_hidden_layers": 10**9}), "num_hidden_layers = 1,000,000,000"),
    "a thousand million labels": (config(num_labels=10**9), "num_labels = 1,000,000,000"),
    "a wide model": (config(hidden_size=10**7), "files hold"),
    "a vocabulary of 10^14": (config(vocab_size=10**14), "files hold"),
    "header of 10^15 bytes": (safetensors({}, length=10**15), "longer than the file"),
    "header of 4 GB": (safetensors({}, length=4 * 10**9, size=5 * 10**9), "its header has 4,000 MB"),
    "header is nested deeply": (safetensors(DEEP.encode()), "not JSON"),
    "header is a list": (safetensors([]), "not a JSON object"),
    "a tensor of 10^15 numbers": (safetensors({"t": ONE}), "t a place or size that does not fit"),
    "tensors one over the other": (safetensors(OVERLAPPING, bytes(4000)), "a place or size that does not fit"),
    "a tensor of negative shape": (safetensors({"t": NEGATIVE}, bytes(4000)), "t a place or size that does not fit"),
    "an index that leads outside": (index({"x": "../outside.safetensors"}), "not a file in the model's folder"),
    "an index that leads to a device": (index({"x": "/dev/zero"}), "not a file in the model's folder"),
    "an index of numbers": (index({"x": 5}), "no weight_map"),
    "an index without a map": (index([1]), "no weight_map"),
    "a pickle that is compressed": (as_bin(bomb), "is compressed"),
    "a tensor larger than its bytes": (as_bin(expanded), "larger than the file"),
    "a pickle of no tensors": (as_bin(lambda path, tensors: torch.save([1, 2], path)), "not tensors by name"),
    "a tokenizer of 4 GB": (lambda folder: sparse(folder / "tokenizer.json", 4 * 10**9, b"{}"), "has 4,000 MB"),
    "a tokenizer nested deeply": (text("tokenizer.json", DEEP), "tokenizer.json of"),
    "a regular expression that is none": (tokenizer(pre_tokenizer=BAD_REGEX), "tokenizer.json of"),
    "a regular expression that panics": (tokenizer(pre_tokenizer=PANICS), "retry-limit-in-match over"),
    "a normalizer that doubles forty times": (
        tokenizer(normalizer={"type": "Sequence", "normalizers": [DOUBLES] * 40}), "of memory|does not finish",
    ),
}  # fmt: skip


@pytest.fixture
def within() -> Iterator[None]:
    began = time.monotonic()
    with memory_limit(MOST_BYTES):
        yield
    assert time.monotonic() - began < WITHIN_S


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_refused_by_name(kind: str, tmp_path: Path, within: None) -> None:
    spoil, said = HOSTILE[kind]
    folder = save_tiny("llama", tmp_path / "m")
    spoil(folder)
    with pytest.raises(ModelBroken, match=said):
        load_model(str(folder))


@pytest.mark.parametrize(
    "kind", ["config of 500 MB", "config is a pipe", "a thousand million layers", "a tokenizer of 4 GB"]
)
def test_a_plan_refuses_them_as_well(kind: str, tmp_path: Path, within: None) -> None:
    spoil, said = HOSTILE[kind]
    folder = save_tiny("llama", tmp_path / "m")
    spoil(folder)
    with pytest.raises(ModelBroken, match=said):
        load_without_weights(str(folder), None, HubAccess(offline=True))


def test_a_table_of_masks_that_no_memory_could_hold_is_refused(tmp_path: Path, within: None) -> None:
    folder = save_tiny("gpt2", tmp_path / "m")
    edit_json(folder / "config.json", n_positions=10**6, max_position_embeddings=10**6)
    with pytest.raises(ModelBroken, match=r"asks for tables of|files hold"):
        load_model(str(folder))


def test_a_folder_that_may_not_be_read_is_named_and_no_defect(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    folder = save_tiny("llama", tmp_path / "m")
    folder.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(ModelNotFound, match="cannot be read: permission denied"):
            load_model(str(folder))
    finally:
        os.seteuid(0)


def test_a_hanging_tokenizer_ends_when_its_job_is_cancelled(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    tokenizer(normalizer={"type": "Sequence", "normalizers": [DOUBLES] * 30})(folder)
    asked = 0

    def cancel() -> None:
        nonlocal asked
        asked += 1
        if asked > 3:
            raise Cancelled("cancelled")

    with cancellable(cancel), pytest.raises(Cancelled):
        load_model(str(folder))
    assert asked == 4


def test_beyond_the_limit_memory_is_refused_and_afterwards_there_is_as_much_as_before() -> None:
    with memory_limit(50_000_000), pytest.raises((RuntimeError, MemoryError)):
        take_memory(0)
    assert len(np.ones(10**7)) == 10**7


def test_a_pickle_that_is_mapped_counts_once(tmp_path: Path) -> None:
    """Its file is not counted beside the tensors that are copied out of it."""
    torch.save({"t": torch.ones(5 * 10**7)}, tmp_path / "pytorch_model.bin")
    with memory_limit(250_000_000):
        assert stored_tensors(tmp_path)["t"].load().sum() == 5 * 10**7


def test_a_load_that_takes_more_than_it_may_is_out_of_memory(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    with memory_limit(50_000_000), pytest.raises(OutOfMemory):
        load_model(str(folder), make_room=take_memory)
    load_model(str(folder))


# GGUF


def string(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def gguf(tensors: int, keys: int, *parts: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(parts)


NAMED = string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
BLOCKS = string(b"llama.block_count") + struct.pack("<II", 4, 2 * 10**9)
LIST = string(b"tokenizer.ggml.tokens") + struct.pack("<I", 9)
GGUF: dict[str, tuple[bytes, int, str]] = {
    "2^60 tensors": (gguf(2**60, 0), 0, "longer than the file"),
    "2^60 keys": (gguf(0, 2**60), 0, "longer than the file"),
    "2^60 keys of nothing": (gguf(0, 2**60), 10**10, "twice"),
    "a string of 2^60": (gguf(0, 1, struct.pack("<Q", 2**60)), 0, "longer than the file"),
    "a string of 10 GB that are there": (gguf(0, 1, struct.pack("<Q", 10**10 - 100)), 10**10, "its header has more"),
    "a list of 2^60 numbers": (gguf(0, 1, LIST, struct.pack("<IQ", 0, 2**60)), 0, "entries"),
    "a list of 2^60 strings": (gguf(0, 1, LIST, struct.pack("<IQ", 8, 2**60)), 10**10, "entries"),
    "lists of lists": (gguf(0, 1, LIST, struct.pack("<IQ", 9, 1) * 1000), 0, "a list of lists"),
    "2^31 axes": (gguf(1, 0, string(b"t"), struct.pack("<I", 2**31)), 10**10, "axes"),
    "a tensor of 2^60": (gguf(1, 0, string(b"t"), struct.pack("<IQIQ", 1, 2**60, 0, 0)), 0, "ends before the end of t"),
    "a tensor of no axes": (gguf(2**60, 0), 10**10, "has the shape"),
    "2,000 million blocks": (gguf(0, 2, NAMED, BLOCKS), 100_000, "block_count = 2,000,000,000"),
}


@pytest.mark.parametrize("kind", GGUF)
def test_a_hostile_gguf_file_is_refused_by_name(kind: str, tmp_path: Path, within: None) -> None:
    content, size, said = GGUF[kind]
    sparse(tmp_path / "m.gguf", max(size, len(content)), content)
    with pytest.raises(ModelBroken, match=said):
        load_model(str(tmp_path / "m.gguf"))


def test_a_gguf_file_that_is_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ModelNotFound, match="no folder and no GGUF file"):
        load_model(str(tmp_path / "m.gguf"))

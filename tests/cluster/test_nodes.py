"""What keeps one study from being computed with two models, and what is sent to a node that lacks it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cwa_daemon.cluster.bringing import report_of_files, write_home
from cwa_daemon.cluster.carried import SameModels, check_paths, read_from, texts_of, unpacked
from cwa_daemon.cluster.home import Home
from cwa_daemon.cluster.joining import first_line, owner_of
from cwa_daemon.cluster.messages import RunFiles
from cwa_daemon.cluster.runs import KnownRuns, RayRun
from cwa_daemon.cluster.store import check_store, holds, make_store, put_folder
from cwa_daemon.cluster.temporary import own_temporary
from cwa_engine import RunSpec
from cwa_engine.base.errors import (
    Altered,
    DataError,
    InvalidInput,
    ModelBroken,
    ModelNotFound,
    OutputError,
    StateNotWritten,
)
from cwa_engine.hub.imported import lend_import
from cwa_engine.hub.sources import resolve
from cwa_engine.records.checksums import SUMS
from cwa_engine.run_folders import RunFolders


def report(location: Path | str, kind: str, **model: Any) -> Any:
    """As much of a report as is looked at."""
    about = SimpleNamespace(kind=kind, location=str(location), revision=None, files={})
    spec = SimpleNamespace(model=str(location), revision=None)
    return SimpleNamespace(model=SimpleNamespace(**{**vars(about), **model}), spec=spec)


def test_a_node_with_other_files_of_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    same, other = (hashlib.sha256(content).hexdigest() for content in (b"weights", b"others"))
    compared = SameModels()
    compared.compare(report(tmp_path, "folder", files={"model.safetensors": same}), "node7", away=True)
    with pytest.raises(ModelBroken, match=r"model\.safetensors of .* is another file on node7"):
        compared.compare(report(tmp_path, "folder", files={"model.safetensors": other}), "node7", away=True)
    linked = report(tmp_path, "folder", files={"model.safetensors": other})
    linked.model.location = "/where/that/node/has/it"  # one path may lead to several places
    with pytest.raises(ModelBroken, match="node7"):
        compared.compare(linked, "node7", away=True)
    with pytest.raises(ModelBroken, match=r"pytorch_model\.bin of .* is another file on node7"):  # which is not here
        compared.compare(report(tmp_path, "folder", files={"pytorch_model.bin": same}), "node7", away=True)
    (tmp_path / "model.safetensors").write_bytes(b"others")  # copied anew
    compared.compare(report(tmp_path, "folder", files={"model.safetensors": other}), "node7", away=True)


def test_nodes_are_compared_with_one_another_where_the_model_is_not_here(tmp_path: Path) -> None:
    elsewhere, compared = tmp_path / "on-the-nodes", SameModels()
    compared.compare(report(elsewhere, "folder", files={"model.safetensors": "1" * 64}), "node1", away=True)
    compared.compare(report(elsewhere, "folder", files={"model.safetensors": "1" * 64}), "node2", away=True)
    with pytest.raises(ModelBroken, match="on node3 than on another node"):
        compared.compare(report(elsewhere, "folder", files={"model.safetensors": "2" * 64}), "node3", away=True)


def test_two_nodes_with_two_commits_of_a_model_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    one, other = "1" * 40, "2" * 40
    compared = SameModels()
    compared.compare(report("some/model", "hub", revision=one), "node1", away=True)
    with pytest.raises(ModelBroken, match="node2 has commit 222222222222 of some/model, and other runs"):
        compared.compare(report("some/model", "hub", revision=other), "node2", away=True)
    refs = tmp_path / "hub" / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(other)
    with pytest.raises(ModelBroken, match="node1 has commit 111111111111"):  # this machine has the other one
        SameModels().compare(report("some/model", "hub", revision=one), "node1", away=True)


def test_a_node_that_lacks_a_folder_is_named(tmp_path: Path) -> None:
    spec = RunSpec(model=str(tmp_path / "model"))
    with pytest.raises(ModelNotFound, match=r"node7 has no .*/model"):
        check_paths(spec, str(tmp_path / "model"), "node7")
    (tmp_path / "model").mkdir()
    check_paths(spec, str(tmp_path / "model"), "node7")
    with pytest.raises(InvalidInput, match=r"node7 has no .*/tasks"):
        check_paths(spec.model_copy(update={"task_path": tmp_path / "tasks"}), "", "node7")


def test_texts_arrive_as_they_were_sent_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("One text.\n\nAnother text.\n")
    spec = RunSpec(model="gpt2", data_file=path)
    assert texts_of(RunSpec(model="gpt2"), 10**6) is None  # the built-in passages are everywhere
    texts = texts_of(spec, 10**6)
    assert texts
    there = unpacked(texts, tmp_path / "node")
    assert there.read_bytes() == path.read_bytes()
    read = read_from(spec, texts, there)
    assert (read.data_file, read.data_name) == (there, str(path))
    broken = type(texts)(b"other", texts.sha256, "broken.txt", texts.shown, None)
    with pytest.raises(DataError, match="did not come as they were sent"):
        unpacked(broken, tmp_path / "node")


def test_a_run_folder_that_did_not_come_whole_is_not_written(tmp_path: Path) -> None:
    files = {"manifest.json": b"{}", "log.txt": b"said"}
    sums = "".join(f"{hashlib.sha256(each).hexdigest()}  {name}\n" for name, each in sorted(files.items())).encode()
    fingerprint = hashlib.sha256(sums).hexdigest()
    for wrong in ({**files, SUMS: sums, "log.txt": b"sald"}, {**files, SUMS: sums + b" "}, files,
                  {**files, SUMS: sums, "../log.txt": b"said"}):  # fmt: skip
        with pytest.raises(Altered):
            report_of_files("run-abcd", RunFiles("run-abcd", wrong, fingerprint))
    with pytest.raises(Altered):  # one file is missing
        write_home(tmp_path / "runs", RunFiles("run-abcd", {"manifest.json": b"{}", SUMS: sums}, fingerprint))
    assert list((tmp_path / "runs").iterdir()) == []
    write_home(tmp_path / "runs", RunFiles("run-abcd", {**files, SUMS: sums}, fingerprint))
    assert {path.name for path in (tmp_path / "runs" / "run-abcd").iterdir()} == {*files, SUMS}
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_home(tmp_path / "file", RunFiles("run-abcd", {**files, SUMS: sums}, fingerprint))


def test_a_store_that_a_node_lacks_or_that_is_another_one_here_is_not_taken_for_the_same(tmp_path: Path) -> None:
    files = {"manifest.json": b"{}", "log.txt": b"said"}
    sums = "".join(f"{hashlib.sha256(each).hexdigest()}  {name}\n" for name, each in sorted(files.items())).encode()
    run, fingerprint = tmp_path / "run-abcd", hashlib.sha256(sums).hexdigest()
    run.mkdir()
    for name, each in {**files, SUMS: sums}.items():
        (run / name).write_bytes(each)
    shared = tmp_path / "sh\u00e4red runs"
    with pytest.raises(OutputError, match="node7 has no folder"):
        check_store(str(shared), "node7")
    with pytest.raises(OSError):  # nor does it make a folder of its own, which nobody else sees
        put_folder(run, str(shared))
    assert not shared.exists()
    make_store(str(shared))
    check_store(str(shared), "node7")
    for store in (str(shared), f"local://{tmp_path}/other"):
        place = put_folder(run, store)
        assert holds(place, fingerprint)
        assert not holds(place, "0" * 64) and not holds(f"{store}/run-other", fingerprint)
        (Path(place.removeprefix("local://")) / SUMS).write_bytes(sums + b"\n")
        assert not holds(place, fingerprint)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        make_store(str(tmp_path / "file" / "store"))


def test_a_disk_that_was_full_costs_the_events_that_it_did_not_take(tmp_path: Path) -> None:
    home = Home(tmp_path / "ray")
    known = KnownRuns(home, RunFolders(tmp_path / "runs"))
    stage = {"kind": "stage_started", "stage": "load", "time": 0.0}
    home.append("run-abcd", stage)
    with (tmp_path / "ray/events/run-abcd.jsonl").open("ab") as file:
        file.write(b'{"kind": "stage_sta')  # as far as there was room
    home.append("run-abcd", {**stage, "stage": "score"})
    assert [event.stage for event in RayRun(known, "run-abcd").events()] == ["load", "score"]  # type: ignore[attr-defined]


def test_a_key_that_cannot_be_written_down_is_an_error_with_a_name(tmp_path: Path) -> None:
    home = Home(tmp_path / "ray")
    known = KnownRuns(home, RunFolders(tmp_path / "runs", home.keys))
    (tmp_path / "ray").mkdir()
    home.keys.touch()  # where a folder should be
    with pytest.raises(StateNotWritten, match="cannot be written"):
        known.keep_key("key0", "run-abcd")


def test_a_name_that_was_given_to_a_model_leads_to_it_where_only_its_path_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path / "state of a node"))
    monkeypatch.setattr("cwa_engine.hub.imported._lent", {})
    model = tmp_path / "model"
    model.mkdir()
    assert resolve("my-model").kind == "hub"
    lend_import("My-Model", str(model))
    assert resolve("my-model").location == str(model)
    assert not (tmp_path / "state of a node").exists()


def test_a_ray_that_another_command_has_for_itself_is_told_from_one_to_join(tmp_path: Path) -> None:
    own = own_temporary("ray", 40)
    try:
        assert owner_of(f"{own}/session_2026-01-01_00-00-00_000000_1") == os.getpid()
    finally:
        own.rmdir()
    assert owner_of("/tmp/ray/session_2026-01-01_00-00-00_000000_1") == 0


def test_an_error_of_rays_is_told_by_its_first_line_and_two_versions_with_both() -> None:
    versions = (
        "The cluster was started with:\n  Ray: 2.60.0\n  Python: 3.11.2\nThis process was started with:\n  Ray: 2.1.0"
    )
    assert first_line(RuntimeError(f"Version mismatch: {versions}")).endswith("was started with: Ray: 2.1.0")
    assert first_line(RuntimeError("\nIt failed.\nA page follows")) == "It failed."
    assert first_line(RuntimeError()) == "RuntimeError"

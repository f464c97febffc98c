"""A bundle has all of a run or a study and nothing private, and whatever is changed in it afterwards is refused and named."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_engine.base.errors import Altered, CwaError, InvalidInput, NotFound, OutputTaken
from cwa_engine.bundles.archive import Packed, sums_of, write_archive
from cwa_engine.bundles.packing import PackedBundle, pack
from cwa_engine.bundles.privacy import redaction_of
from cwa_engine.bundles.verifying import opened, verify_bundle
from cwa_engine.pipeline import analyze
from cwa_engine.records.checksums import fingerprint_of
from cwa_engine.records.export import ModelRecord, RunRecord, write_run
from cwa_engine.records.run_report import RunReport, open_run
from cwa_engine.spec import RunSpec
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.registration import register
from cwa_engine.studies.report import StudyReport
from cwa_engine.studies.study import Study
from tests.engine.conftest import wrap, write_texts
from tests.engine.study_runs import study_runs
from tests.engine.test_bundle_archive import entry, sealed
from tests.models import tiny_model

HOME = "/home/ann"


def made_run(root: Path, seed: int = 0, model: str = f"{HOME}/models/tiny", number: int = 1) -> RunReport:
    """A real run whose manifest, summary and log name folders of a home."""
    texts = write_texts(root)
    spec = RunSpec(
        model=model, data_file=texts, metrics=("grad_x_weight",), topk=(1, 2), control_seeds=3, seed=seed, fidelity=4,
        controls=("random",),
    )  # fmt: skip
    result = analyze(wrap(tiny_model("llama")), spec)
    record = ModelRecord(model, model, "folder", None, {"model.safetensors": "ab" * 32}, "float32", "cpu", "", 5)
    command = f"cwtool run {model} --data-file '{texts}' -o ~/results/secret --seed {seed}"
    run_id = f"20260101-00000{number}-tiny-abc{number}"
    log = ["load ...", f"warning: {HOME}/.cache/model/config.json says nothing of https://example.org/a/b"]
    write_run(root / run_id, RunRecord(run_id, spec, command, record, result, 1.5, log))
    return open_run(root / run_id, fingerprint_of(root / run_id))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return made_run(tmp_path_factory.mktemp("hidden-project"))


@pytest.fixture(scope="module")
def packed(run: RunReport, tmp_path_factory: pytest.TempPathFactory) -> PackedBundle:
    return pack(run, tmp_path_factory.mktemp("bundles") / "run.zip")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyReport:
    """Two seeds of one model, and a third that failed."""
    root = tmp_path_factory.mktemp("hidden-project")
    runs = [made_run(root, seed, number=seed + 1) for seed in (0, 1)]
    asked = {"model": f"{HOME}/models/tiny", "data_file": str(root / "texts.txt"), "topk": (1, 2)}
    folder = StudyFolder.create(Study(run=asked, grid={"seed": (0, 1, 2)}), root / "studies")
    register(folder)
    cells = folder.cells
    failed = CwaError(f"{HOME}/models/tiny cannot be read")
    progress = [CellProgress(cell, "done", run.run_id, attempt=1) for cell, run in zip(cells, runs, strict=False)]
    progress.append(CellProgress(cells[2], "failed", "20260101-000003-tiny-abc3", failed, 1))
    found = [type(each)(cell, each.report) for cell, each in zip(cells, study_runs(runs), strict=False)]
    return StudyReport(folder, tuple(progress), tuple(found), None)


def content_of(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def packed_again(content: dict[str, bytes], target: Path) -> Path:
    """The files as a bundle with hashes and seal made anew, as one who wants to deceive would."""
    write_archive(target, [Packed(name, each) for name, each in content.items() if name != "SHA256SUMS"])
    return target


def test_a_sound_bundle_agrees_and_every_figure_in_it_was_made_anew(packed: PackedBundle) -> None:
    found = verify_bundle(packed.path, packed.sha256)
    assert (found.agrees, found.altered, found.disagreements) == (True, {}, ())
    assert found.compared >= 5 and found.runs[0].compared > 100 and found.runs[0].agrees
    assert hashlib.sha256(packed.path.read_bytes()).hexdigest() == packed.sha256


def test_the_same_run_gives_the_same_bytes(run: RunReport, packed: PackedBundle, tmp_path: Path) -> None:
    again = pack(run, tmp_path / "again.zip")
    assert again.path.read_bytes() == packed.path.read_bytes()


def test_tables_are_those_of_the_run_byte_for_byte_and_other_tools_read_the_file(
    run: RunReport, packed: PackedBundle
) -> None:
    content = content_of(packed.path)
    assert run.folder
    for name in run.hashes:
        assert content[f"runs/{run.run_id}/{name}"] == (run.folder / name).read_bytes()
    lines = [line.split("  ") for line in content["SHA256SUMS"].decode().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert sums == {name: hashlib.sha256(each).hexdigest() for name, each in content.items() if name != "SHA256SUMS"}


def test_no_folder_of_the_machine_is_in_a_bundle_but_what_it_called_things_is(
    run: RunReport, packed: PackedBundle
) -> None:
    everything = b"\n".join(content_of(packed.path).values()).decode()
    for private in (HOME, "hidden-project", "ann/", "results/secret", ".cache", str(run.folder)):
        assert private not in everything, private
    for kept in ("tiny", "texts.txt", "config.json", "https://example.org/a/b", str(run.fingerprint)):
        assert kept in everything, kept
    assert set(packed.about.runs[0].rewritten) == {"manifest.json", "summary.json", "log.txt"}


def test_with_paths_kept_the_files_and_the_fingerprint_are_those_of_the_run(run: RunReport, tmp_path: Path) -> None:
    kept = pack(run, tmp_path / "kept.zip", keep_paths=True)
    assert kept.about.runs[0].fingerprint == kept.about.runs[0].as_written == run.fingerprint
    content = content_of(kept.path)
    assert run.folder
    for file in run.folder.iterdir():
        assert content[f"runs/{run.run_id}/{file.name}"] == file.read_bytes()
    assert verify_bundle(kept.path).agrees


def test_two_folders_of_one_name_stay_two_and_a_token_is_cut() -> None:
    cut = redaction_of([{"model": "/a/one/m"}, {"model": "/a/two/m"}, {"model": "m"}])
    names = {cut.text("/a/one/m"), cut.text("/a/two/m"), "m"}
    assert len(names) == 3 and not any("/" in name for name in names)
    assert cut.text("HF_TOKEN=hf_abcdefghijklmnopqrst") == "HF_TOKEN=hf_"
    assert cut.text("cwtool --host box run /a/one/m2 --exclude x") == "cwtool --host HOST run m2 --exclude x"
    assert cut.text("a/b and 1/2 and https://x.org/a/b") == "a/b and 1/2 and https://x.org/a/b"


def test_each_claim_names_a_figure_and_rows_that_are_there(run: RunReport, packed: PackedBundle) -> None:
    content = content_of(packed.path)
    claims = json.loads(content["claims.json"])["claims"]
    verdicts = {claim["claim"] for claim in claims if claim["kind"] == "verdict"}
    assert verdicts == {verdict.sentence for verdict in run.verdicts}
    for claim in claims:
        assert claim["kind"] == "fidelity" or claim["figures"], claim
        assert [name for name in claim["figures"] if name not in content] == []
        for named in claim["files"]:
            assert named["file"] in content
            if named["file"].endswith(("perturbation.csv", "evaluation.csv")):
                rows = list(csv.DictReader(io.StringIO(content[named["file"]].decode())))
                chosen = [row for row in rows if all(row[key] == str(value) for key, value in named["where"].items())]
                assert chosen, named


def test_a_figure_that_follows_from_nothing_is_found_though_every_hash_is_right(
    run: RunReport, packed: PackedBundle, tmp_path: Path
) -> None:
    content = content_of(packed.path)
    figure = next(name for name in content if "damage_curve" in name and name.endswith(".csv"))
    rows = content[figure].decode().replace("1,critical,", "7,critical,", 1)
    assert rows.encode() != content[figure]
    found = verify_bundle(packed_again({**content, figure: rows.encode()}, tmp_path / "bundle.zip"))
    assert not found.agrees and found.altered == {} and found.disagreements[0].where.startswith(figure)
    for name in ("methods.md", "limitations.md", "claims.json", "README.md"):
        other = content[name].replace(b"e", b"3", 1)
        found = verify_bundle(packed_again({**content, name: other}, tmp_path / f"{name}.zip"))
        assert [entry.where.split(",")[0] for entry in found.disagreements] == [name]
    for extra in ("extra.txt", f"runs/{run.run_id}/extra.txt", "runs/other/evaluation.csv", "methods.svg"):
        found = verify_bundle(packed_again({**content, extra: b""}, tmp_path / "extra.zip"))
        assert [entry.where for entry in found.disagreements] == [extra]
        (tmp_path / "extra.zip").unlink()


def test_of_another_version_the_statistics_are_recomputed_and_it_is_said_what_is_not(
    packed: PackedBundle, tmp_path: Path
) -> None:
    content = content_of(packed.path)
    about = {**json.loads(content["bundle.json"]), "cwtool": "0.0.1"}
    other = {**content, "bundle.json": json.dumps(about).encode(), "methods.md": b"in other words"}
    found = verify_bundle(packed_again(other, tmp_path / "other.zip"))
    assert found.agrees and found.runs[0].compared > 100 and found.compared == 0
    assert any("cwtool 0.0.1 made them" in what for what in found.unknown)


def test_without_the_library_that_draws_a_bundle_has_the_tables_of_figures(
    run: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise InvalidInput("vl-convert is not installed")

    monkeypatch.setattr("cwa_engine.reports.drawing.write_figure", refuse)
    bundle = pack(run, tmp_path / "plain.zip").path
    names = content_of(bundle).keys()
    assert not [name for name in names if name.endswith(".svg")] and [
        name for name in names if name.startswith("figures/")
    ]
    assert verify_bundle(bundle).agrees


def test_a_loss_that_was_changed_is_found_though_every_hash_is_right(
    run: RunReport, packed: PackedBundle, tmp_path: Path
) -> None:
    content, folder = content_of(packed.path), f"runs/{run.run_id}"
    lines = content[f"{folder}/evaluation.csv"].decode().splitlines()
    lines[1] = f"{lines[1].rpartition(',')[0]},99.5"
    changed = {**content, f"{folder}/evaluation.csv": ("\n".join(lines) + "\n").encode()}
    own = {name.removeprefix(f"{folder}/"): each for name, each in changed.items() if name.startswith(folder)}
    manifest = json.loads(own["manifest.json"])
    manifest["tables"]["evaluation.csv"] = hashlib.sha256(own["evaluation.csv"]).hexdigest()
    own["manifest.json"] = (json.dumps(manifest, indent=2) + "\n").encode()
    own["SHA256SUMS"] = sums_of({n: hashlib.sha256(c).hexdigest() for n, c in own.items() if n != "SHA256SUMS"})
    about = json.loads(changed["bundle.json"])
    about["runs"][0]["fingerprint"] = hashlib.sha256(own["SHA256SUMS"]).hexdigest()
    changed |= {f"{folder}/{name}": each for name, each in own.items()} | {"bundle.json": json.dumps(about).encode()}
    found = verify_bundle(packed_again(changed, tmp_path / "bundle.zip"))
    assert not found.agrees and found.altered == {}
    assert any("baseline" in entry.where for entry in found.runs[0].disagreements)


def refused(bundle: Path) -> str:
    """Why a bundle is refused: what is wrong in it, or the error. Fails where it is not."""
    try:
        found = verify_bundle(bundle)
    except CwaError as error:
        assert error.hint and bundle.name in error.message
        return error.message
    assert not found.agrees
    return " ".join(f"{name}: {what}" for name, what in found.altered.items())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_byte_of_a_real_bundle_may_be_changed_and_is_refused(packed: PackedBundle, data: st.DataObject) -> None:
    content = bytearray(packed.path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    bundle = packed.path.with_name("changed.zip")
    bundle.write_bytes(bytes(content))
    assert refused(bundle)


def test_an_altered_file_is_named(packed: PackedBundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed.path) as opened:
        for entry in opened.infolist():
            content = bytearray(packed.path.read_bytes())
            content[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 16
            (tmp_path / "bundle.zip").write_bytes(bytes(content))
            assert entry.filename in refused(tmp_path / "bundle.zip")


def test_the_file_must_be_the_one_that_was_published(packed: PackedBundle) -> None:
    found = verify_bundle(packed.path, "0" * 64)
    assert not found.agrees and "not the file that was published" in found.altered[packed.path.name]


@pytest.mark.parametrize("left", [0, 3, 4, 100, 5000, -1, -22, -87, -200])
def test_a_file_that_is_cut_off_is_refused(packed: PackedBundle, tmp_path: Path, left: int) -> None:
    (tmp_path / "cut.zip").write_bytes(packed.path.read_bytes()[:left])
    assert "cut off" in refused(tmp_path / "cut.zip") or "no bundle" in refused(tmp_path / "cut.zip")


def test_files_more_or_fewer_than_the_list_says_are_named(packed: PackedBundle, tmp_path: Path) -> None:
    content = content_of(packed.path)

    def without_new_sums(files: dict[str, bytes], name: str) -> Path:
        def make(into: zipfile.ZipFile) -> None:
            for each, bytes_of_it in files.items():
                entry(each, bytes_of_it)(into)

        return sealed(make, tmp_path / name)

    fewer = {name: each for name, each in content.items() if name != "methods.md"}
    assert "methods.md: missing" in refused(without_new_sums(fewer, "fewer.zip"))
    assert "more.txt: not in SHA256SUMS" in refused(without_new_sums({**content, "more.txt": b"x"}, "more.zip"))
    other = {**content, "methods.md": b"We did nothing."}
    assert "methods.md: altered" in refused(without_new_sums(other, "other.zip"))


def test_what_is_not_there_or_of_another_format_is_told(packed: PackedBundle, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        verify_bundle(tmp_path / "none.zip")
    content = content_of(packed.path)
    for about, why in ((b'{"format": 99}', "reads 1"), (b"[]", "format"), (b"no json", "not readable")):
        bundle = packed_again({**content, "bundle.json": about}, tmp_path / f"{len(about)}.zip")
        assert why in refused(bundle)
    told = json.loads(content["bundle.json"])
    told["runs"][0]["run_id"] = "../../etc"
    assert "no id" in refused(packed_again({**content, "bundle.json": json.dumps(told).encode()}, tmp_path / "id.zip"))


def test_a_run_that_was_altered_is_not_packed_and_nothing_is_left(run: RunReport, tmp_path: Path) -> None:
    assert run.folder
    folder = tmp_path / run.run_id
    shutil.copytree(run.folder, folder)
    report = open_run(folder, fingerprint_of(folder))
    with (folder / "evaluation.csv").open("a") as file:
        file.write("more\n")
    with pytest.raises(Altered, match=r"evaluation\.csv"):
        pack(report, tmp_path / "bundle.zip")
    assert [path.name for path in tmp_path.iterdir()] == [run.run_id]


def test_a_file_that_is_there_is_not_replaced(run: RunReport, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_text("mine")
    with pytest.raises(OutputTaken):
        pack(run, tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").read_text() == "mine"


def test_a_study_is_packed_with_all_its_runs_and_nothing_private(study: StudyReport, tmp_path: Path) -> None:
    packed = pack(study, tmp_path / "study.zip")
    content = content_of(packed.path)
    within = f"studies/{study.folder.id}"
    assert {f"{within}/{name}" for name in ("study.json", "answer.json", "cells.csv")} <= content.keys()
    assert {name.split("/")[1] for name in content if name.startswith("runs/")} == {r.report.run_id for r in study.runs}
    everything = b"\n".join(content.values()).decode()
    assert HOME not in everything and "hidden-project" not in everything
    assert packed.about.left_out == (f"{within}/registration.json",)
    assert json.loads(content[f"{within}/answer.json"])["registration"] in content["methods.md"].decode()
    found = verify_bundle(packed.path)
    assert (found.agrees, found.altered, found.disagreements) == (True, {}, ())
    with opened(packed.path) as contents:
        assert contents.study and [row.state for row in contents.study.cells] == ["done", "done", "failed"]


def test_a_study_with_its_paths_keeps_its_registration(study: StudyReport, tmp_path: Path) -> None:
    packed = pack(study, tmp_path / "study.zip", keep_paths=True)
    name = f"studies/{study.folder.id}/registration.json"
    assert content_of(packed.path)[name] == (study.folder.path / "registration.json").read_bytes()
    assert verify_bundle(packed.path).agrees


def test_an_answer_that_the_runs_do_not_give_is_found(study: StudyReport, tmp_path: Path) -> None:
    content = content_of(pack(study, tmp_path / "study.zip").path)
    name = f"studies/{study.folder.id}/cells.csv"
    other = {**content, name: content[name].replace(b"failed", b"cancelled")}
    found = verify_bundle(packed_again(other, tmp_path / "other.zip"))
    assert not found.agrees


def test_a_study_without_a_run_has_nothing_to_pack(study: StudyReport, tmp_path: Path) -> None:
    empty = StudyReport(study.folder, study.progress, (), None)
    with pytest.raises(InvalidInput, match="no run of the study is done"):
        pack(empty, tmp_path / "study.zip")

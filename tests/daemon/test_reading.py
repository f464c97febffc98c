"""Files of finished runs, read over the wire: as the run wrote them, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient, Client, reading
from cwa_daemon.protocol import PIECE_BYTES
from cwa_engine.base.errors import Altered, InvalidInput, NotFound
from cwa_engine.records.run_report import open_run
from tests.conftest import SHORT, CommandLine, free_address, reached_as_box


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Iterator[tuple[CommandLine, str]]:
    """A machine that other ones may ask, and a run that is done there."""
    from cwa_daemon.client import stop_daemon

    folder = tmp_path_factory.mktemp("box")
    box = CommandLine(folder / "state", folder, hub)
    reached_as_box(box, CommandLine(folder / "elsewhere", folder, hub), free_address())
    yield box, box.json("run", *SHORT, "--topk", "3")["run_id"]
    stop_daemon(box.settings)


@pytest.fixture(params=["here", "on another machine"])
def client(finished: tuple[CommandLine, str], request: pytest.FixtureRequest) -> Iterator[Client]:
    box, _ = finished
    away = Settings(home=box.home.parent / "elsewhere", host="box")
    with Client.connect(box.settings if request.param == "here" else away) as client:
        yield client


def test_every_file_of_a_run_arrives_as_the_run_wrote_it(client: Client, finished: tuple[CommandLine, str]) -> None:
    box, run_id = finished
    files = sorted((box.settings.runs / run_id).iterdir())
    assert len(files) > 5
    for path in files:
        assert client.read_file("latest", path.name) == path.read_bytes()
    with pytest.raises(NotFound, match=r"has no topk_obd.csv"):
        client.read_file(run_id, "topk_obd.csv")
    with pytest.raises(NotFound, match="there is no run 'nothing'"):
        client.read_file("nothing", "summary.json")


def test_a_report_says_what_the_files_say_and_reads_large_tables_when_they_are_asked_for(
    client: Client, finished: tuple[CommandLine, str]
) -> None:
    box, run_id = finished
    report, written = client.report("latest"), open_run(box.settings.runs / run_id)
    assert report == written
    assert report.damage == written.damage
    assert report.verdicts == written.verdicts
    assert report.log == written.log
    assert report.topk() == written.topk()
    assert report.evaluations == written.evaluations
    assert report.folder == (None if client.host else written.folder)


async def test_a_client_that_awaits_is_told_how_a_large_table_is_read(finished: tuple[CommandLine, str]) -> None:
    box, run_id = finished
    client = await AsyncClient.connect(box.settings)
    report = await client.report(run_id)
    assert report.damage
    with pytest.raises(InvalidInput, match=r"topk_grad_x_weight.csv of .* may be large") as raised:
        report.topk()
    assert raised.value.hint == f'`await client.read_file("{run_id}", "topk_grad_x_weight.csv")` reads it'
    assert (await client.read_file(run_id, "topk_grad_x_weight.csv")).startswith(b"rank,")
    await client.close()


def test_a_report_of_a_run_on_this_machine_can_be_used_after_the_client_is_closed(
    finished: tuple[CommandLine, str],
) -> None:
    box, run_id = finished
    with Client.connect(box.settings) as client:
        report = client.report(run_id)
    assert report.topk()[0].rank == 1


@pytest.mark.parametrize("name", ["summary.json", "SHA256SUMS"])
def test_a_file_that_was_altered_is_refused_also_where_its_hash_was_altered_with_it(
    own_cwtool: CommandLine, name: str
) -> None:
    run_id = own_cwtool.json("run", *SHORT)["run_id"]
    folder = own_cwtool.settings.runs / run_id
    sums, summary = folder / "SHA256SUMS", folder / "summary.json"
    before = hashlib.sha256(summary.read_bytes()).hexdigest()
    summary.write_bytes(summary.read_bytes() + b" ")
    if name == "SHA256SUMS":
        sums.write_text(sums.read_text().replace(before, hashlib.sha256(summary.read_bytes()).hexdigest()))
    with own_cwtool.client() as client:
        with pytest.raises(Altered, match=rf"{name} is (altered|not as it was when the run ended)"):
            client.read_file(run_id, "summary.json")
        with pytest.raises(Altered):
            client.report(run_id)


class Daemon:
    """A daemon that has one run with these files, as an older version serves them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[tuple[str, int]] = []

    async def ask(self, op: str, **fields: object) -> dict[str, object]:
        if op == "files":
            return {"run_id": "run", "folder": "/there", "files": {}}
        name, offset = str(fields["name"]), fields.get("offset", 0)
        assert isinstance(offset, int)
        self.asked.append((name, offset))
        if name not in self.files:
            raise NotFound(f"run run has no {name}")
        return {"run_id": "run", "data": self.files[name][offset : offset + PIECE_BYTES]}


async def test_a_large_file_is_read_in_pieces_and_a_run_of_an_early_version_by_the_hashes_of_its_manifest() -> None:
    table = b"rank,score\n" * (PIECE_BYTES // 4)
    manifest = json.dumps({"tables": {"topk_obd.csv": hashlib.sha256(table).hexdigest()}}).encode()
    daemon = Daemon({"manifest.json": manifest, "topk_obd.csv": table})
    reader = await reading.open_reader("latest", daemon.ask)
    assert (reader.run_id, reader.fingerprint) == ("run", None)
    assert await reader.read("topk_obd.csv") == table
    pieces = [offset for name, offset in daemon.asked if name == "topk_obd.csv"]
    assert pieces == [0, PIECE_BYTES, 2 * PIECE_BYTES]
    daemon.files["topk_obd.csv"] += b"\n"
    with pytest.raises(Altered, match=r"topk_obd.csv is altered"):
        await reader.read("topk_obd.csv")

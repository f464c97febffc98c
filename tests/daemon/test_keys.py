"""From another machine nobody comes in without an allowed key, and nothing goes over the wire in the clear."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest
import zmq

from cwa_daemon import protocol
from cwa_daemon.admin.lifecycle import wait_until_gone
from cwa_daemon.base import keys
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient
from cwa_engine.base.errors import InvalidInput, NotFound, Refused
from cwa_engine.spec import RunSpec
from tests.conftest import SHORT, CommandLine, free_address, reached_as_box


@pytest.fixture
def address() -> str:
    return free_address()


@pytest.fixture
def elsewhere(own_cwtool: CommandLine, address: str, tmp_path: Path) -> CommandLine:
    """The command line of another machine: it has its own state folder and knows the first one's daemon as "box"."""
    away = CommandLine(tmp_path / "elsewhere", tmp_path, Path(own_cwtool.env["HF_HOME"]))
    return reached_as_box(own_cwtool, away, address)


def test_an_allowed_client_runs_and_reads_results_on_the_other_machine(
    elsewhere: CommandLine, own_cwtool: CommandLine
) -> None:
    assert elsewhere.json("--host", "box", "daemon", "status")["home"] == str(own_cwtool.home)
    run_id = elsewhere("--host", "box", "run", *SHORT, "--detach").stdout.strip()
    assert elsewhere("--host", "box", "logs", "-f", run_id).stdout.rstrip().endswith("done")
    there = elsewhere.json("--host", "box", "results", "show", run_id)
    assert there["damage"] == own_cwtool.json("results", "show", run_id)["damage"]
    assert not elsewhere.settings.lock_file.exists()  # no daemon was started here


def test_texts_of_this_machine_are_handed_over_and_never_looked_up_on_the_other(
    elsewhere: CommandLine, own_cwtool: CommandLine
) -> None:
    path = elsewhere.cwd / "texts.txt"
    path.write_text("\n\n".join(f"This is text number {number}." for number in range(6)))
    asked = ["run", "--model", "gpt2", "--topk", "2", "--no-perturbation", "--data-file", "texts.txt"]
    run_id = elsewhere("--host", "box", *asked, "--detach").stdout.strip()
    path.unlink()
    elsewhere("--host", "box", "logs", "-f", run_id)
    found = elsewhere.json("--host", "box", "results", "show", run_id)["texts"]
    assert (found["source"], found["texts"]) == (str(path), 6)
    kept = Path(own_cwtool.json("jobs", "show", run_id)["spec"]["data_file"])
    assert kept.is_relative_to(own_cwtool.home / "texts") and kept.name == "texts.txt"
    assert "does not exist" in elsewhere("--host", "box", *asked, rc=2).stderr


def test_a_key_that_is_not_allowed_is_told_at_once_what_to_do(elsewhere: CommandLine, own_cwtool: CommandLine) -> None:
    public = elsewhere("daemon", "keys", "new", "--force").stdout.strip()
    said = " ".join(elsewhere("--host", "box", "daemon", "status", rc=4).stderr.split())
    assert "does not allow your key" in said and f"keys allow NAME {shlex.quote(public)}" in said
    own_cwtool("daemon", "keys", "allow", "ann", public)
    elsewhere("--host", "box", "daemon", "status")


async def test_a_revoked_key_is_out_at_once_also_where_it_is_connected(
    elsewhere: CommandLine, own_cwtool: CommandLine
) -> None:
    client = await AsyncClient.connect(Settings(home=elsewhere.home, host="box"))
    assert (await client.status()).home == str(own_cwtool.home)
    keys.revoke(own_cwtool.settings, "ann")
    with pytest.raises(Refused, match="not allowed here any more"):
        await client.submit(RunSpec(model="gpt2"))
    await client.close()
    with pytest.raises(Refused, match="does not allow your key"):
        await AsyncClient.connect(Settings(home=elsewhere.home, host="box"))


def test_whoever_is_not_there_or_is_somebody_else_is_named(
    elsewhere: CommandLine, own_cwtool: CommandLine, address: str
) -> None:
    other = elsewhere("daemon", "keys").stdout.strip()
    elsewhere("daemon", "hosts", "add", "impostor", address, other)
    assert "has not the key of impostor" in elsewhere("--host", "impostor", "ps", rc=3).stderr
    pid = own_cwtool.json("daemon", "status")["pid"]
    own_cwtool("daemon", "keys", "allow", "ann", other, "--role", "admin")
    assert "the daemon of box stops" in elsewhere("--host", "box", "daemon", "stop").stdout
    assert wait_until_gone(pid, 60)
    assert "no daemon of box answers at" in elsewhere("--host", "box", "ps", rc=3).stderr


def test_a_plain_connection_gets_no_answer(elsewhere: CommandLine, address: str) -> None:
    context = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.setsockopt(zmq.RCVTIMEO, 1500)
    plain.connect(address)
    plain.send(protocol.encode({"id": 0, "op": "hello", "major": 1, "minor": 0, "version": "x"}))
    with pytest.raises(zmq.Again):
        plain.recv()
    context.destroy(linger=0)
    elsewhere("--host", "box", "daemon", "status")


@pytest.mark.parametrize("listen", ["ipc:///tmp/x", "tcp://*", "localhost:5571", "udp://1.2.3.4:5"])
def test_only_tcp_addresses_can_be_listened_at(own_cwtool: CommandLine, listen: str) -> None:
    own_cwtool("daemon", "keys", "new")
    assert "no address to listen at" in own_cwtool("daemon", "start", "--listen", listen, rc=3).stderr
    own_cwtool("daemon", "status", rc=3)


def test_without_keys_a_daemon_does_not_listen(own_cwtool: CommandLine, address: str) -> None:
    assert "cwtool daemon keys new" in own_cwtool("daemon", "start", "--listen", address, rc=3).stderr


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", ".hidden", "a/b", "a" * 99, "a\nb"])
def test_a_name_cannot_lead_out_of_the_folder_of_keys(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="no name for a key"):
        keys.allow(Settings(home=tmp_path), name, keys.make_pair(Settings(home=tmp_path), force=True).public)


@pytest.mark.parametrize("public", ["", "x", "#" * 40, "ü" * 40, " " * 40, "x" * 41])
def test_what_is_no_key_is_not_allowed(tmp_path: Path, public: str) -> None:
    with pytest.raises(InvalidInput, match="no public key"):
        keys.allow(Settings(home=tmp_path), "ann", public)


def test_keys_are_files_for_their_owner_alone_and_are_not_replaced_by_accident(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "state")
    pair = keys.make_pair(settings, force=False)
    keys.allow(settings, "ann", pair.public)
    keys.add_host(settings, "box", "tcp://box:5571", pair.public)
    for path in settings.home.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    with pytest.raises(InvalidInput, match="keys already"):
        keys.make_pair(settings, force=False)
    assert keys.own_pair(settings) == pair
    assert pair.secret not in repr(keys.hosts(settings))


def test_a_public_key_never_looks_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([(b"-" + b"a" * 39, b"b" * 40), (b"c" * 40, b"d" * 40)])
    monkeypatch.setattr(zmq, "curve_keypair", lambda: next(drawn))
    assert keys.make_pair(Settings(home=tmp_path), force=False).public == "c" * 40


def test_an_unknown_host_or_key_is_named_with_what_is_near(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    keys.add_host(settings, "gpu-box", "tcp://box:5571", keys.make_pair(settings, force=False).public)
    with pytest.raises(NotFound, match="gpu-bax") as raised:
        keys.find_host(settings, "gpu-bax")
    assert "gpu-box" in raised.value.hint
    keys.remove_host(settings, "gpu-box")
    with pytest.raises(NotFound, match="no key is allowed as 'ann'"):
        keys.revoke(settings, "ann")

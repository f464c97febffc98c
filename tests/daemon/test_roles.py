"""What a key from another machine may do: viewers see, runners run their own, admins do all; and nobody borrows a token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cwa_daemon import protocol
from cwa_daemon.base import keys
from cwa_daemon.base.roles import Role
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient, stop_daemon
from cwa_daemon.control.permissions import NEEDS
from cwa_engine.base.errors import InvalidInput, Refused
from cwa_engine.hub.sources import HubAccess
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine, free_address, reached_as_box

RUN = RunSpec(model="gpt2", topk=(2,), eval_limit=4, perturbations=())


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Iterator[CommandLine]:
    """A machine whose daemon listens."""
    folder = tmp_path_factory.mktemp("box")
    box = CommandLine(folder / "state", folder, hub)
    reached_as_box(box, CommandLine(folder / "elsewhere", folder, hub), free_address())
    yield box
    stop_daemon(box.settings)


@pytest.fixture
def client_of(box: CommandLine, tmp_path: Path) -> Callable[[str, Role], Awaitable[AsyncClient]]:
    """Connects as a new user of another machine, whose key has a role at the box."""

    async def connect(name: str, role: Role) -> AsyncClient:
        away = Settings(home=tmp_path / name, host="box")
        known = keys.hosts(Settings(home=box.home.parent / "elsewhere"))["box"]
        keys.allow(box.settings, name, keys.make_pair(away, force=False).public, role)
        keys.add_host(away, "box", known.address, known.public)
        return await AsyncClient.connect(away)

    return connect


Connect = Callable[[str, Role], Awaitable[AsyncClient]]


def test_every_request_has_a_role_that_it_needs() -> None:
    assert set(NEEDS) == set(protocol.Request.__subclasses__()) - {protocol.Hello}


async def test_a_viewer_sees_everything_and_changes_nothing(client_of: Connect, box: CommandLine) -> None:
    run_id = box("run", "--model", "gpt2", "--topk", "2", "--no-perturbation", "--detach").stdout.strip()
    viewer = await client_of("vera", Role.VIEWER)
    assert [event["kind"] async for event in viewer.follow(run_id)][-1] == "state"
    assert (await viewer.job(run_id)).owner == ""
    assert (await viewer.result(run_id)).summary["run_id"] == run_id
    assert await viewer.jobs() and await viewer.results() and (await viewer.status()).version
    assert (await viewer.topk(run_id))[1]
    changes = [
        viewer.submit(RUN), viewer.load(RUN), viewer.plan(RUN), viewer.retry(run_id), viewer.cancel(run_id), viewer.pause(),
        viewer.resume(), viewer.unload("gpt2"), viewer.prune(0), viewer.shutdown(),
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(Refused, match=r"the key of vera is a viewer's, and '.*' needs (runner|admin)"):
            await change
    assert (await viewer.status()).running == 0
    await viewer.close()


async def test_a_runner_looks_after_its_own_jobs_alone(client_of: Connect, box: CommandLine) -> None:
    theirs = box("run", "--model", "gpt2", "--topk", "2", "--no-perturbation", "--detach").stdout.strip()
    runner, other = await client_of("rita", Role.RUNNER), await client_of("otto", Role.RUNNER)
    own = await runner.submit(RUN)
    assert [event async for event in runner.follow(own)][-1]["state"] == "done"
    assert (await other.job(own)).owner == "rita" and box.json("jobs", "show", own)["owner"] == "rita"
    assert "rita" in box("jobs", "show", own).stdout
    for run_id, client, owner in ((theirs, runner, "the user of that machine"), (own, other, "rita")):
        for change in (client.cancel, client.retry, client.pause, client.resume):
            with pytest.raises(Refused, match=f"is a job of {owner}"):
                await change(run_id)
    again = await runner.retry(own)
    assert (await runner.job(again)).owner == "rita"
    assert await runner.cancel(again) in ("queued", "running", "cancelled", "done")
    for beyond in (runner.unload("gpt2"), runner.prune(0, with_results=True), runner.shutdown()):
        with pytest.raises(Refused, match="needs admin"):
            await beyond
    assert (await runner.job(own)).state == "done"
    await runner.close()
    await other.close()


async def test_an_admin_touches_what_is_anothers(client_of: Connect) -> None:
    admin, runner = await client_of("ada", Role.ADMIN), await client_of("rosa", Role.RUNNER)
    own = await runner.submit(RUN)
    await admin.cancel(own)
    async for _ in admin.follow(own):
        pass
    assert (await admin.jobs(limit=1))[0].owner == "rosa"
    assert (await admin.prune(10**9)).jobs == []
    await admin.close()
    await runner.close()


async def test_another_role_holds_from_the_next_request_on(client_of: Connect, box: CommandLine) -> None:
    client = await client_of("nora", Role.VIEWER)
    with pytest.raises(Refused):
        await client.pause()
    keys.allow(box.settings, "nora", keys.own_pair(client.settings).public, Role.RUNNER)
    assert await client.pause() == []
    await client.close()


def test_keys_that_were_allowed_before_there_were_roles_stay_admins_and_are_shown_so(own_cwtool: CommandLine) -> None:
    own_cwtool("daemon", "keys", "new")
    public = keys.own_pair(own_cwtool.settings).public
    (own_cwtool.home / "allowed.json").write_text(json.dumps({"ann": public}))
    assert f"allowed: ann {public} as admin" in own_cwtool("daemon", "keys").stderr
    assert own_cwtool.json("daemon", "keys")["allowed"] == {"ann": {"public": public, "role": "admin"}}
    assert "is allowed as ann already" in own_cwtool("daemon", "keys", "allow", "bob", public, rc=2).stderr
    own_cwtool("daemon", "keys", "allow", "ann", public)
    assert own_cwtool.json("daemon", "keys")["allowed"]["ann"]["role"] == "runner"
    assert (
        "'viewer', 'runner', 'admin'"
        in own_cwtool("daemon", "keys", "allow", "ann", public, "--role", "x", rc=2).stderr
    )


async def test_a_client_elsewhere_chooses_no_folder_of_the_daemons_machine(
    client_of: Connect, box: CommandLine, tmp_path: Path
) -> None:
    admin = await client_of("amy", Role.ADMIN)
    (tmp_path / "secret.txt").write_text("not for clients\n\nelsewhere")
    submitted: dict[str, Any] = {"client_key": "x" * 10, "kind": "run"}
    for spec, said in (
        (RUN.model_copy(update={"output": tmp_path / "out"}), "does not write to"),
        (RUN.model_copy(update={"data_file": tmp_path / "secret.txt"}), "was not handed over"),
        (RUN.model_copy(update={"data_file": box.settings.texts / ".." / "keys.json"}), "was not handed over"),
        (RUN.model_copy(update={"dataset": str(tmp_path)}), "is a folder of this machine"),
    ):
        with pytest.raises(InvalidInput, match=said):
            await admin._request("submit", spec=spec.model_dump(mode="json"), **submitted)
    for chosen in ("cache_dir", "datasets_cache", "endpoint"):
        with pytest.raises(InvalidInput, match=f"does not choose {chosen}"):
            access = {chosen: str(tmp_path / "elsewhere")}
            await admin._request("submit", spec=RUN.model_dump(mode="json"), access=access, **submitted)
    assert not (tmp_path / "out").exists()
    await admin.close()


async def test_a_broken_list_of_keys_lets_nobody_in_and_is_named(client_of: Connect, box: CommandLine) -> None:
    client = await client_of("lost", Role.ADMIN)
    path = box.home / "allowed.json"
    whole = path.read_text()
    for content in ("{", "[]", '{"lost": 7}', '{"lost": {"public": "x", "role": "king"}}'):
        path.write_text(content)
        with pytest.raises(Refused, match="the list of allowed keys cannot be read"):
            await client.status()
        said = " ".join(box("daemon", "keys", rc=2).stderr.split())
        assert "allowed.json cannot be read" in said and "until then no key is let in" in said
        box("ps")  # this machine's user is not concerned
    path.write_text(whole)
    assert (await client.status()).version
    await client.close()


def test_a_client_without_a_token_does_not_use_the_daemons(tmp_path: Path, hub: Path) -> None:
    from tests.models import hub_cache
    from tests.stand_in_hub import stand_in_hub

    hub_cache(tmp_path / "served", {"lab/present": "llama"})
    served = next((tmp_path / "served").glob("models--lab--present/snapshots/*"))
    machine = CommandLine(tmp_path / "state", tmp_path, tmp_path / "hf")
    del machine.env["HF_HUB_OFFLINE"]
    with stand_in_hub(tmp_path / "hf", served) as env:
        machine.env |= {name: env[name] for name in ("HF_ENDPOINT", "NO_PROXY")}
        away = CommandLine(tmp_path / "elsewhere", tmp_path, hub)
        address, public = free_address(), machine("daemon", "keys", "new").stdout.strip()
        machine("daemon", "start", "--listen", address, HF_TOKEN="hf_of_the_daemon_123")
        try:
            away("daemon", "hosts", "add", "box", address, public)
            machine("daemon", "keys", "allow", "ann", away("daemon", "keys", "new").stdout.strip())
            gated = ("run", "--model", "lab/gated", "--topk", "2", "--no-perturbation", "--eval-limit", "4")
            assert "needs a token" in away("--host", "box", *gated, rc=4).stderr
            assert "needs a token" in machine(*gated, rc=4).stderr
            asyncio.run(_says_nothing_of_a_token(machine))
        finally:
            stop_daemon(machine.settings)


async def _says_nothing_of_a_token(machine: CommandLine) -> None:
    """As a program may that knows the protocol: no access is given at all."""
    client = await AsyncClient.connect(machine.settings)
    spec = RUN.model_copy(update={"model": "lab/gated"}).model_dump(mode="json")
    reply = await client._request("submit", spec=spec, client_key="y" * 10)
    events = [event async for event in client.follow(reply["run_id"])]
    assert "needs a token" in events[-1]["error"]["message"]
    assert HubAccess(token="").sent_token is False
    await client.close()

"""A bundle is uploaded to the Hub as a data set with a card; what stands in the way is told, and the file stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cwa_engine.base.errors import InvalidInput, Refused, UploadFailed
from cwa_engine.bundles.contents import About, BundledRun
from cwa_engine.bundles.packing import PackedBundle
from cwa_engine.bundles.upload import checked_repo, upload
from cwa_engine.hub.sources import HubAccess
from tests.upload_hub import TOKEN, UploadHub, upload_hub

ABOUT = About("run", "20260101-000000-tiny-abcd", (BundledRun("20260101-000000-tiny-abcd", "ab", "ab"),), False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # read at import, so no variable does it
    with upload_hub() as served:
        yield served


@pytest.fixture
def packed(tmp_path: Path) -> PackedBundle:
    path = tmp_path / "run.zip"
    path.write_bytes(b"the bundle" * 1000)
    return PackedBundle(path, hashlib.sha256(path.read_bytes()).hexdigest(), 10_000, ABOUT)


def access(hub: UploadHub, token: str = TOKEN, offline: bool = False) -> HubAccess:
    return HubAccess(token=token, endpoint=hub.endpoint, offline=offline)


def test_the_bundle_arrives_byte_for_byte_with_a_card(hub: UploadHub, packed: PackedBundle) -> None:
    address = upload(packed, "ann/super-weights", private=True, access=access(hub))
    assert address == f"{hub.endpoint}/datasets/ann/super-weights"
    assert hub.files["run.zip"] == packed.path.read_bytes()
    assert hub.created[0]["type"] == "dataset" and hub.tokens == {TOKEN}
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    _, head, text = hub.files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["cwtool", "interpretability", "weights"]
    assert f"cwtool verify run.zip --fingerprint {packed.sha256}" in text


def test_a_data_set_that_is_there_gets_the_new_file(hub: UploadHub, packed: PackedBundle) -> None:
    upload(packed, "ann/super-weights", private=False, access=access(hub))
    packed.path.write_bytes(b"another")
    upload(packed, "ann/super-weights", private=False, access=access(hub))
    assert hub.files["run.zip"] == b"another"


def test_what_forbids_the_upload_is_told(hub: UploadHub, packed: PackedBundle) -> None:
    with pytest.raises(Refused, match="there is no token") as raised:
        upload(packed, "ann/x", private=False, access=access(hub, token=""))
    assert "HF_TOKEN" in raised.value.hint
    with pytest.raises(UploadFailed, match="HF_HUB_OFFLINE forbids"):
        upload(packed, "ann/x", private=False, access=access(hub, offline=True))
    assert hub.tokens == set(), "nothing was asked"
    with pytest.raises(Refused, match="may not write to ann/x"):
        upload(packed, "ann/x", private=False, access=access(hub, token="hf_other"))
    hub.refusing = 500
    with pytest.raises(UploadFailed, match="answers 500"):
        upload(packed, "ann/x", private=False, access=access(hub))
    nobody = HubAccess(token=TOKEN, endpoint="http://127.0.0.1:9", offline=False)
    with pytest.raises(UploadFailed, match=r"not uploaded to http://127\.0\.0\.1:9: ConnectError"):
        upload(packed, "ann/x", private=False, access=nobody)
    assert packed.path.exists() and hub.files == {}


def test_a_name_that_is_no_data_set_is_refused() -> None:
    assert checked_repo("datasets/ann/x.y-z") == "ann/x.y-z"
    for name in ("x", "ann/", "/x", "a/b/c", "a/../b", "ann/x y", "a/b--c", "a/" + "b" * 100):
        with pytest.raises(InvalidInput, match="names no data set"):
            checked_repo(name)

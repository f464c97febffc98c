"""Models by every kind of name, and every way in which loading fails."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cwa_engine.errors import InvalidInput, ModelBroken, ModelGated, ModelNotFound
from cwa_engine.models.loading import load_model
from cwa_engine.models.sources import HubAccess, SourceKind, cached_models, fingerprint, resolve
from tests.models import edit_json, save_tiny, tiny_model, truncate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model")


@pytest.fixture
def offline(hub: Path) -> HubAccess:
    return HubAccess(cache_dir=str(hub / "hub"), offline=True)


def test_a_folder_is_loaded_with_the_weights_that_were_saved(folder: Path) -> None:
    loaded = load_model(str(folder))
    for name, parameter in tiny_model("llama").named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter)
    assert not loaded.model.training
    assert set(loaded.files) == {"model.safetensors", "config.json"}


def test_a_cached_model_is_loaded_offline_by_its_hub_id_with_revision_and_file_hashes(offline: HubAccess) -> None:
    loaded = load_model("EleutherAI/pythia-70m", access=offline)
    assert loaded.revision is not None and len(loaded.revision) == 40
    assert len(loaded.files["model.safetensors"]) == 64
    assert max(cached_models(offline)) > ("EleutherAI/pythia-70m", 0)


def test_dtype_auto_is_float32_on_a_cpu_and_a_named_dtype_is_taken(folder: Path) -> None:
    edit_json(folder / "config.json", dtype="bfloat16")
    assert load_model(str(folder)).dtype == "float32"
    assert load_model(str(folder), dtype="bfloat16").dtype == "bfloat16"


def test_an_unknown_model_is_named_with_its_neighbours(offline: HubAccess) -> None:
    with pytest.raises(ModelNotFound, match="'gtp2' is not in the cache") as raised:
        load_model("gtp2", access=offline)
    assert "did you mean 'gpt2'" in raised.value.hint


def test_a_gated_model_names_the_token_and_the_licence_page(offline: HubAccess) -> None:
    with pytest.raises(ModelGated) as raised:
        load_model("meta-llama/Llama-3.1-8B", access=offline)
    assert "HF_TOKEN" in raised.value.hint
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B" in raised.value.hint


@pytest.fixture
def gatekeeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that answers as the Hub does for a gated repository."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
    yield address
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("token", "why"), [(None, "needs a token"), ("hf_wrong", "not been granted to this token")])
def test_the_hubs_own_refusal_of_a_gated_model_is_understood(
    gatekeeper: str, tmp_path: Path, token: str | None, why: str
) -> None:
    with pytest.raises(ModelGated, match=why) as raised:
        load_model("someone/secret-model", access=HubAccess(token=token, cache_dir=str(tmp_path)))
    assert "https://huggingface.co/someone/secret-model" in raised.value.hint


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_truncated_weights_file_is_called_broken(folder: Path) -> None:
    truncate(folder / "model.safetensors")
    with pytest.raises(ModelBroken, match="broken or truncated"):
        load_model(str(folder))


def test_weights_that_the_files_lack_are_never_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelBroken, match=r"has no weights for model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelBroken):
        load_model(str(folder))


def test_a_missing_shard_is_noticed(folder: Path) -> None:
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(ModelBroken):
        load_model(str(folder))


def test_a_config_that_is_no_json_is_called_broken(folder: Path) -> None:
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ModelBroken):
        load_model(str(folder))


def test_a_model_that_is_no_causal_language_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelBroken):
        load_model(str(folder))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWTOOL_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(ModelBroken):
        load_model(str(tmp_path / "model.gguf"))
    assert list((tmp_path / "cache/converted").iterdir()) == []
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ModelNotFound, match="not a GGUF file"):
        load_model(str(tmp_path / "weights.pt"))


def test_a_device_that_this_machine_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="no device 'cuda:63'"):
        load_model(str(folder), device="cuda:63")


def test_a_warm_copy_is_told_from_a_folder_that_has_changed(folder: Path) -> None:
    source = resolve(str(folder))
    before = fingerprint(source)
    assert fingerprint(source) == before
    save_tiny("llama", folder, seed=1)
    assert fingerprint(source) != before


def test_an_alias_without_its_package_is_the_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwa_engine.models.sources.packaged_gguf", lambda package: None)
    source = resolve("SmolLM2-135M")
    assert (source.kind, source.location) == (SourceKind.HUB, "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_token_is_never_shown() -> None:
    assert "hf_secret" not in repr(HubAccess(token="hf_secret"))

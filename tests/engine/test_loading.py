"""Models by every kind of name, and every way in which loading fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cwa_engine.base.errors import InvalidInput, ModelBroken, ModelGated, ModelNotFound
from cwa_engine.hub.sources import HubAccess, SourceKind, cached_models, fingerprint, resolve
from cwa_engine.models.checkpoint import stored_tensors
from cwa_engine.models.loading import load_model, load_without_weights
from tests.models import FAMILIES, edit_json, hub_cache, save_tiny, tiny_model, truncate
from tests.stand_in_hub import COMMIT, stand_in_hub


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


def test_a_cached_model_is_loaded_offline_by_its_hub_id_with_revision_and_file_hashes(
    offline: HubAccess, hub: Path
) -> None:
    loaded = load_model("EleutherAI/pythia-70m", access=offline)
    repository = hub / "hub" / "models--EleutherAI--pythia-70m"
    assert loaded.revision == (repository / "refs" / "main").read_text()
    snapshot = repository / "snapshots" / loaded.revision
    assert loaded.files == {
        name: hashlib.sha256((snapshot / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }
    assert max(cached_models(offline)) > ("EleutherAI/pythia-70m", 0)


def test_the_environment_says_where_the_cache_is_and_that_the_hub_is_not_asked(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_model("gpt2").source.location == "gpt2"


def test_a_revision_may_be_part_of_the_name_and_is_refused_where_there_are_none(
    folder: Path, offline: HubAccess, hub: Path
) -> None:
    commit = (hub / "hub/models--gpt2/refs/main").read_text()
    assert load_model("gpt2@main", access=offline).revision == commit
    for attempt in (load_model, lambda name, revision: load_without_weights(name, revision, offline)):
        for local in (str(folder), "smollm2-135m"):  # which an installed package brings
            with pytest.raises(InvalidInput, match="has no revision 'main'"):
                attempt(local, "main")


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """A cache with one model, which a test may break: its snapshot folder."""
    hub_cache(tmp_path / "hub", {"gpt2": "gpt2"})
    return next((tmp_path / "hub/models--gpt2/snapshots").iterdir())


def test_a_cached_model_that_lacks_its_weights_is_called_incomplete(own_cache: Path) -> None:
    (own_cache / "model.safetensors").unlink()
    with pytest.raises(ModelBroken, match="the cached copy of gpt2 is not complete"):
        load_model("gpt2", access=HubAccess(cache_dir=str(own_cache.parents[2]), offline=True))


def test_a_revision_that_is_not_cached_is_named_and_not_the_model(own_cache: Path) -> None:
    with pytest.raises(ModelNotFound, match="revision 'v2' of gpt2 is not in the cache") as raised:
        load_model("gpt2", revision="v2", access=HubAccess(cache_dir=str(own_cache.parents[2]), offline=True))
    assert "did you mean" not in raised.value.hint


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no name is resolved; huggingface_hub does not wait before it tries again."""

    def unresolved(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unresolved)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("no_network")
def test_a_cached_model_needs_no_network_even_if_the_index_of_another_format_lies_beside_it(own_cache: Path) -> None:
    index = {"weight_map": {"wte.weight": "pytorch_model-00001-of-00002.bin"}}  # whose shards are not downloaded
    (own_cache / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    access = HubAccess(cache_dir=str(own_cache.parents[2]), offline=False)
    assert load_model("gpt2", access=access).revision == own_cache.name
    tiny_model("gpt2").save_pretrained(own_cache, max_shard_size="20KB")
    (own_cache / "model.safetensors").unlink(missing_ok=True)
    assert load_model("gpt2", access=access).revision == own_cache.name
    next(own_cache.glob("model-*.safetensors")).unlink()
    with pytest.raises(ModelNotFound, match="the Hub cannot be reached"):
        load_model("gpt2", access=access)


@pytest.mark.usefixtures("no_network")
def test_a_model_is_not_called_unknown_or_broken_when_the_network_is(tmp_path: Path) -> None:
    access = HubAccess(cache_dir=str(tmp_path), offline=False)
    with pytest.raises(ModelNotFound, match="'gtp2' is not in the cache, and the Hub cannot be reached") as raised:
        load_model("gtp2", access=access)
    assert "did you mean 'gpt2'" in raised.value.hint
    with pytest.raises(ModelGated, match="the Hub cannot be reached"):
        load_model("meta-llama/Llama-3.1-8B", access=access)


def test_dtype_auto_is_float32_on_a_cpu_and_a_named_dtype_is_taken(folder: Path) -> None:
    edit_json(folder / "config.json", dtype="bfloat16")
    assert load_model(str(folder)).dtype == "float32"
    assert load_model(str(folder), dtype="bfloat16").dtype == "bfloat16"


def test_an_unknown_model_is_named_with_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="'gtp2' is not in the cache") as raised:
        load_model("gtp2", access=HubAccess(cache_dir=str(tmp_path), offline=True))
    assert "did you mean 'gpt2'" in raised.value.hint


def test_neighbours_are_also_looked_for_among_the_models_on_disk(tmp_path: Path) -> None:
    hub_cache(tmp_path, {"mylab/zebrafish-7": "gpt2"})
    with pytest.raises(ModelNotFound) as raised:
        load_model("mylab/zebrafsh-7", access=HubAccess(cache_dir=str(tmp_path), offline=True))
    assert "did you mean 'mylab/zebrafish-7'" in raised.value.hint


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-by-that-name/model", "./nowhere", "a b", "a--b", "a/b/c", "x\0y"])
def test_a_name_that_can_be_no_model_is_refused_whatever_it_looks_like(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder"):
        load_model(name, access=HubAccess(cache_dir=str(tmp_path), offline=True))


def test_a_gated_model_names_the_token_and_the_licence_page(offline: HubAccess) -> None:
    with pytest.raises(ModelGated) as raised:
        load_model("meta-llama/Llama-3.1-8B", access=offline)
    assert "HF_TOKEN" in raised.value.hint
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B" in raised.value.hint


ASK = """
import json, sys, time
from cwa_engine.base.errors import CwaError
from cwa_engine.models.loading import load_without_weights, load_model
from cwa_engine.hub.sources import HubAccess
time.sleep = lambda seconds: None  # huggingface_hub waits half a minute before it gives up on a 503
answers = []
for name, token in json.loads(sys.argv[1]):
    try:
        load_model(name, access=HubAccess(token=token, cache_dir=sys.argv[2]))
    except CwaError as error:
        answers.append(error.to_dict())
print(json.dumps(answers))
"""
ASKED = [("lab/gated", None), ("lab/gated", "hf_wrong"), ("lab/absent", "hf_wrong"), ("lab/overloaded", None)]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, str]]:
    """What a process with HF_ENDPOINT set is told about each of `ASKED`."""
    home = tmp_path_factory.mktemp("huggingface")
    with stand_in_hub(home) as env:
        command = [sys.executable, "-c", ASK, json.dumps(ASKED), str(home / "hub")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(ASKED, json.loads(done.stdout), strict=True))


LOAD = """
import json
from cwa_engine.models.loading import load_without_weights, load_model
said, read = [], []
first = load_model("lab/present", say=said.append, read=lambda done, total: read.append((done, total)))
again = load_model("lab/present", say=said.append)  # from the cache
print(json.dumps([first.revision, again.revision, said, read]))
"""


def test_a_model_is_downloaded_once_and_its_bytes_are_counted_as_they_come(folder: Path, tmp_path: Path) -> None:
    wanted = [path for path in folder.iterdir() if path.name != "config.json"]  # which is looked into first
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")  # is for other programs
    with stand_in_hub(tmp_path / "home", folder) as env:
        done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, again, said, read = json.loads(done.stdout)
    assert first == again == COMMIT
    size = sum(path.stat().st_size for path in wanted)
    weights = sum(tensor.size_bytes for tensor in stored_tensors(folder).values())
    assert said == [f"downloading lab/present: {len(wanted)} files, {size / 1e6:.1f} MB"]
    came, kept = ([done for done, total in read if total == whole] for whole in (size, weights))
    assert (came, kept) == (sorted(came), sorted(kept))
    assert (came[-1], kept[-1]) == (size, weights)
    assert len(came) + len(kept) == len(read)


CANCEL = """
from cwa_engine.base.errors import Cancelled
from cwa_engine.models.loading import load_without_weights, load_model
def read(done, total):
    raise Cancelled("enough")
try:
    load_model("lab/present", read=read)
except Cancelled as error:
    print(error, load_model("lab/present").revision)
"""


def test_a_download_ends_when_it_is_cancelled_and_the_next_one_is_whole(folder: Path, tmp_path: Path) -> None:
    with stand_in_hub(tmp_path / "home", folder) as env:
        command = [sys.executable, "-c", CANCEL]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["enough", COMMIT], done.stderr


@pytest.mark.parametrize(("token", "why"), [(None, "needs a token"), ("hf_wrong", "not been granted to this token")])
def test_the_hubs_own_refusal_of_a_gated_model_is_understood(
    refusals: dict[Any, dict[str, str]], token: str | None, why: str
) -> None:
    error = refusals["lab/gated", token]
    assert error["code"] == "model_gated"
    assert why in error["message"]
    assert "https://huggingface.co/lab/gated" in error["hint"]
    assert "HF_TOKEN" in error["hint"]
    assert "hf_wrong" not in str(error)


def test_a_repository_that_the_hub_does_not_have_is_told_from_a_hub_that_does_not_work(
    refusals: dict[Any, dict[str, str]],
) -> None:
    absent, overloaded = refusals["lab/absent", "hf_wrong"], refusals["lab/overloaded", None]
    assert (absent["code"], overloaded["code"]) == ("model_not_found", "model_not_found")
    assert "'lab/absent' is not in the cache or on the Hub" in absent["message"]
    assert "the Hub answered 503" in overloaded["message"]


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
    shape = r"has weights of another shape for model\.layers\.0\.mlp\.down_proj\.weight, .* and 3 more"
    with pytest.raises(ModelBroken, match=shape):
        load_model(str(folder))


def test_a_missing_shard_is_noticed(folder: Path) -> None:
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(ModelBroken, match=shards[1].name):
        load_model(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_its_tokenizer_is_refused_and_none_is_made_up(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelBroken):
        load_model(str(tmp_path / "model"))


def test_a_folder_without_weights_is_called_broken(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelBroken, match=r"no file named model\.safetensors"):
        load_model(str(folder))


def test_a_config_that_is_no_json_is_called_broken(folder: Path) -> None:
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ModelBroken):
        load_model(str(folder))


def test_a_model_that_is_no_causal_language_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelBroken):
        load_model(str(folder))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(ModelBroken):
        load_model(str(tmp_path / "model.gguf"))
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ModelNotFound, match="no folder and no GGUF file"):
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
    monkeypatch.setattr("cwa_engine.hub.sources.packaged_gguf", lambda package: None)
    source = resolve("SmolLM2-135M")
    assert (source.kind, source.location) == (SourceKind.HUB, "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_token_is_never_shown() -> None:
    assert "hf_secret" not in repr(HubAccess(token="hf_secret"))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    save_tiny("gpt2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "of-its-own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(ModelBroken, match="comes with its own code, which is not run"):
        load_model(str(tmp_path))
    assert not (tmp_path / "ran").exists()


class Malicious:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.trace), "w")


def test_a_pickle_checkpoint_cannot_run_anything(tmp_path: Path) -> None:
    save_tiny("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Malicious(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelBroken):
        load_model(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_reading_of_weights_is_told_in_bytes_up_to_all_of_them(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    told: list[tuple[int, int]] = []
    needed: list[int] = []
    loaded = load_model(
        str(tmp_path), dtype="bfloat16", read=lambda done, total: told.append((done, total)), make_room=needed.append
    )
    assert told == sorted(told) and len(told) > 5
    total = sum(tensor.size_bytes for tensor in stored_tensors(tmp_path).values())
    assert told[-1] == (total, total)
    assert needed == [total // 2]  # stored in float32, wanted in half of that
    assert loaded.size_bytes == needed[0]

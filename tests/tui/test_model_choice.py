"""Models to choose from, and what is known of a name before a run is queued."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwa_daemon.protocol import DeviceMemory
from cwa_engine.hub.sources import HubAccess
from cwa_tui.form.model_choice import KnownModels, ModelChoice, Place, Room, Standing, matching, model_choices
from tests.tui.fake_client import warm

DISK = {"acme/tiny": 200_000_000, "gpt2": 548_000_000}


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModels:
    monkeypatch.chdir(tmp_path)
    access = HubAccess("", str(tmp_path / "hub"), False, "https://hub.example", "", False)
    return KnownModels(model_choices([warm("my/model")], DISK), access)


def test_warm_models_come_first_then_those_on_disk_then_the_guide(known: KnownModels) -> None:
    places = [choice.place for choice in known.choices]
    assert places == sorted(places, key=list(Place).index)
    assert [choice.name for choice in known.choices[:3]] == ["my/model", "acme/tiny", "gpt2"]
    assert [choice.name for choice in known.choices].count("gpt2") == 1


def test_a_warm_model_of_the_guide_is_listed_once_with_its_facts() -> None:
    choices = model_choices([warm("smollm2-135m")], {"HuggingFaceTB/SmolLM2-135M-Instruct": 98_000_000})
    (found,) = [choice for choice in choices if "135M-Instruct" in choice.hub_id]
    assert (found.place, found.licence) == (Place.WARM, "Apache-2.0")


def test_the_filter_takes_parts_of_names_licences_and_places(known: KnownModels) -> None:
    assert [choice.name for choice in matching(known.choices, "on disk ac")] == ["acme/tiny"]
    assert {choice.licence for choice in matching(known.choices, "mit")} >= {"MIT"}
    assert all("pythia" in choice.name for choice in matching(known.choices, "PYTHIA apache"))


@pytest.mark.parametrize(
    ("typed", "standing"),
    [
        ("my/model", Standing.HERE),
        ("acme/tiny", Standing.HERE),
        ("GPT2", Standing.HERE),
        ("gpt2@v7", Standing.DOWNLOAD),  # another revision than the one on disk
        ("distilgpt2", Standing.DOWNLOAD),
        ("acme/other", Standing.ASK),
        ("smolm2-135m", Standing.ASK),
        ("meta-llama/Llama-3.2-1B", Standing.WRONG),  # needs a token, and there is none
        ("/no/such/folder", Standing.WRONG),
        ("two words", Standing.WRONG),
        ("", Standing.WRONG),
    ],
)
def test_what_is_known_of_a_name(known: KnownModels, typed: str, standing: Standing) -> None:
    verdict = known.verdict(typed)
    assert verdict.standing is standing
    assert verdict.said


def test_offline_a_model_that_is_not_on_disk_is_refused(tmp_path: Path) -> None:
    known = KnownModels(model_choices([], DISK), HubAccess("", str(tmp_path), True, "https://hub.example", "", True))
    assert known.verdict("gpt2").standing is Standing.HERE
    verdict = known.verdict("distilgpt2")
    assert (verdict.standing, verdict.said) == (Standing.WRONG, "distilgpt2 is not on disk")
    assert "HF_HUB_OFFLINE" in verdict.hint


def test_a_folder_is_a_model_if_it_has_a_config(known: KnownModels, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert known.verdict("./mine").standing is Standing.WRONG
    (folder / "config.json").touch()
    assert known.verdict("./mine").said == f"the folder {folder}"
    assert known.verdict(str(folder)).standing is Standing.HERE


def test_names_that_look_like_a_mistyped_one_are_near(known: KnownModels) -> None:
    assert "smollm2-135m" in known.near("smolm2-135m")
    assert known.near("acme/tinny")[0] == "acme/tiny"
    assert known.near("zzzzqqq") == ()


def test_models_of_another_machine_are_left_to_its_daemon(known: KnownModels) -> None:
    away = KnownModels(model_choices([], {}), known.access, host="lab")
    assert away.verdict("acme/other").standing is Standing.THERE
    assert "lab" in away.verdict("acme/other").said


def device(name: str, total_gb: float, used_gb: float) -> DeviceMemory:
    return DeviceMemory(device=name, total_bytes=int(total_gb * 1e9), used_bytes=int(used_gb * 1e9))


SEVEN_B = ModelChoice("x/7b", Place.GUIDE, "x/7b", parameters_m=7000)


@pytest.mark.parametrize(
    ("dtype", "free_gb", "verdict"),
    [  # 7 B weights: 28 GB in float32, 14 GB in half; with all gradients 2.2 times, with those of one block 1.2 times
        ("float32", 70, "fits"),
        ("float32", 40, "tight"),
        ("float32", 30, "too large"),
        ("bfloat16", 31, "fits"),
        ("auto", 31, "too large"),  # on a CPU auto is float32
    ],
)
def test_whether_a_model_fits_goes_by_its_weights(dtype: str, free_gb: float, verdict: str) -> None:
    room = Room.on("cpu", dtype, [device("cpu", free_gb + 5, 5)], [])
    assert room.fits(SEVEN_B) == verdict
    assert "about" in room.said(SEVEN_B)


def test_auto_takes_the_accelerator_in_two_bytes_and_counts_idle_models_as_free() -> None:
    devices = [device("cpu", 500, 0), device("cuda:0", 32, 31)]
    assert Room.on("auto", "auto", devices, []).fits(SEVEN_B) == "too large"
    idle = warm("other").model_copy(update={"device": "cuda:0", "size_bytes": 30_000_000_000})
    assert Room.on("auto", "auto", devices, [idle]).fits(SEVEN_B) == "fits"
    busy = idle.model_copy(update={"in_use": True})
    assert Room.on("cuda", "auto", devices, [busy]).fits(SEVEN_B) == "too large"


def test_a_cpu_lane_has_the_memory_of_the_cpu_and_devices_together_that_of_all() -> None:
    devices = [device("cpu", 40, 0), device("cuda:0", 20, 8), device("cuda:1", 20, 8)]
    assert (
        Room.on("cpu:1", "auto", devices, []).fits(SEVEN_B)
        == Room.on("cpu", "auto", devices, []).fits(SEVEN_B)
        == "tight"
    )
    assert Room.on("cuda:0", "auto", devices, []).fits(SEVEN_B) == "too large"
    assert Room.on("cuda:0+cuda:1", "auto", devices, []).fits(SEVEN_B) == "tight"


def test_what_is_not_known_is_not_judged() -> None:
    assert Room.on("cuda:3", "auto", [device("cpu", 10, 0)], []).fits(SEVEN_B) == ""
    assert Room.on("cpu", "auto", [device("cpu", 10, 0)], []).fits(ModelChoice("x", Place.WARM)) == ""
    assert Room.on("auto", "auto", [], []).fits(SEVEN_B) == ""

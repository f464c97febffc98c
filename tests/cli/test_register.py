"""`cwtool study register`: a study of a file is written down, and `study show` says what that is worth."""

from __future__ import annotations

from tests.conftest import CommandLine
from tests.engine.conftest import write_texts

STUDY = """
[run]
metrics = ["magnitude"]
topk = [2]
perturbations = []
data-file = "texts.txt"
[grid]
model = ["gpt2", "distilgpt2"]
"""


def test_a_study_of_a_file_is_registered_run_and_shown(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    write_texts(cwtool.cwd)
    (cwtool.cwd / "study.toml").write_text(STUDY)
    registered = cwtool.json("study", "register", "study.toml")
    assert registered["holds"] and len(registered["sha256"]) == 64
    assert "is registered already" in cwtool("study", "register", "study.toml", rc=2).stderr
    assert "is registered already" in cwtool("study", "register", registered["study"], rc=2).stderr
    cwtool("study", "run", "study.toml")
    shown = cwtool.json("study", "show", registered["study"])
    assert shown["registered"] is True and registered["sha256"] in shown["registration"]

    (cwtool.cwd / "late.toml").write_text(STUDY.replace("topk = [2]", "topk = [3]"))
    cwtool("study", "run", "late.toml")
    late = cwtool.json("study", "register", "latest")
    assert not late["holds"] and "after 2 runs" in late["standing"]
    assert cwtool.json("study", "show")["registered"] is False
    assert "no study" in cwtool("study", "register", "nothing-like-it", rc=6).stderr

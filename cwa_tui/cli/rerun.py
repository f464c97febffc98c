"""Repeating a run from its manifest, and telling whether the same came out."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from cwa_engine.records.checksums import Check
from cwa_engine.spec import RunSpec, parse_spec
from cwa_tui.visible import words

_CIRCUMSTANCES = ("model", "data", "versions", "machine")


def repeated(manifest: dict[str, Any]) -> RunSpec:
    """What the run was asked, with the model's revision as it was then; its files stay where they are."""
    revision = manifest["model"]["revision"] or manifest["spec"]["revision"]
    return parse_spec({**manifest["spec"], "revision": revision, "output": None})


def compare(before: dict[str, Any], after: dict[str, Any], first: Check, again: Check) -> dict[str, Any]:
    """Which tables of two runs have the same bytes now, and what was different about the circumstances.

    `before`, `after` are the manifests, `first` and `again` the files as they are. Runs agree where all tables do and no
    file of either was altered since it was written.
    """
    names = sorted({*before["tables"], *after["tables"]})
    tables = {name: first.hashes.get(name) == again.hashes.get(name) is not None for name in names}
    changed = [
        f"{part} {name}: {before[part].get(name)} then, {after[part].get(name)} now"
        for part in _CIRCUMSTANCES
        for name in before[part]
        if before[part].get(name) != after[part].get(name)
    ]
    altered = {before["run_id"]: first.altered, after["run_id"]: again.altered}
    return {
        "first": before["run_id"],
        "again": after["run_id"],
        "agree": all(tables.values()) and not any(altered.values()),
        "tables": tables,
        "altered": {run_id: files for run_id, files in altered.items() if files},
        "as_first_written": {name: again.hashes.get(name) == before["tables"].get(name) for name in names},
        "changed": changed,
    }


def comparison(found: dict[str, Any]) -> Text:
    """The same in words."""
    lines = [f"{name}: {'the same bytes' if same else 'DIFFERENT'}" for name, same in found["tables"].items()]
    for run_id, files in found["altered"].items():
        for name, what in files.items():
            again = name in found["tables"] and found["as_first_written"][name]
            lines.append(f"{name} of {run_id} is {what}{'; the bytes it had at first came out again' if again else ''}")
    lines += [f"changed since: {change}" for change in found["changed"]]
    verdict = "agree, byte for byte" if found["agree"] else "do NOT agree"
    return words("\n".join([*lines, f"{found['first']} and {found['again']} {verdict}"]), overflow="fold")

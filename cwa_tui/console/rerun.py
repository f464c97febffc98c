"""Repeating a run from its manifest, and telling whether the same came out."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from cwa_engine.spec import RunSpec, parse_spec
from cwa_tui.visible import words

_CIRCUMSTANCES = ("model", "data", "versions", "machine")


def repeated(manifest: dict[str, Any]) -> RunSpec:
    """What the run was asked, with the model's revision as it was then; its files stay where they are."""
    revision = manifest["model"]["revision"] or manifest["spec"]["revision"]
    return parse_spec({**manifest["spec"], "revision": revision, "output": None})


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Which tables of two runs have the same bytes, and what was different about the circumstances, by their manifests."""
    tables = {
        name: before["tables"].get(name) == after["tables"].get(name)
        for name in {**before["tables"], **after["tables"]}
    }
    changed = [
        f"{part} {name}: {before[part].get(name)} then, {after[part].get(name)} now"
        for part in _CIRCUMSTANCES
        for name in before[part]
        if before[part].get(name) != after[part].get(name)
    ]
    return {
        "first": before["run_id"],
        "again": after["run_id"],
        "agree": all(tables.values()),
        "tables": tables,
        "changed": changed,
    }


def comparison(found: dict[str, Any]) -> Text:
    """The same in words."""
    lines = [f"{name}: {'the same bytes' if same else 'DIFFERENT'}" for name, same in found["tables"].items()]
    lines += [f"changed since: {change}" for change in found["changed"]]
    verdict = "agree, byte for byte" if found["agree"] else "do NOT agree"
    return words("\n".join([*lines, f"{found['first']} and {found['again']} {verdict}"]), overflow="fold")

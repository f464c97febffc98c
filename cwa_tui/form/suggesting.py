"""What may be picked for what is being typed into a field of the form. No Textual in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.options import Kind, OptionField
from cwa_tui.form.model_choice import KnownModels, Room

MOST = 5


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A text that may be picked, and what it is in a few words."""

    text: str
    about: str = ""


def for_model(typed: str, models: KnownModels, room: Room) -> list[Suggestion]:
    """Models whose name holds or resembles what is typed; for a path, folders and GGUF files."""
    name = typed.strip()
    if _is_path(name):
        return [] if models.host else paths(name, (".gguf",))
    exact = models.find(name)
    if not name or (exact and name in (exact.name, exact.hub_id)):
        return []
    found = []
    for near in models.near(name, MOST):
        choice = models.find(near)
        facts = (choice.licence, choice.place.value, room.fits(choice)) if choice else ()
        found.append(Suggestion(near, ", ".join(part for part in facts if part)))
    return found


def for_text(entry: OptionField, typed: str, known: Sequence[str]) -> list[Suggestion]:
    """Known values that hold what is typed; of a path, what is in its folder."""
    typed = typed.strip()
    if entry.kind is Kind.PATH:
        return paths(typed) if _is_path(typed) else []
    if not typed or typed in known:
        return []
    return [Suggestion(name) for name in known if typed.lower() in name.lower()][:MOST]


def paths(typed: str, endings: tuple[str, ...] = ()) -> list[Suggestion]:
    """Folders, and files with these endings, whose path begins with what is typed."""
    folder, _, start = typed.rpartition("/")
    shown = f"{folder}/" if "/" in typed else ""
    try:
        entries = sorted(os.scandir(Path(shown or ".").expanduser()), key=lambda entry: entry.name)
        found = []
        for entry in entries:
            if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
                continue
            if entry.is_dir():
                found.append(Suggestion(f"{shown}{entry.name}/", "folder"))
            elif not endings or entry.name.endswith(endings):
                found.append(Suggestion(f"{shown}{entry.name}"))
        return [each for each in found if each.text != typed][:MOST]
    except (OSError, RuntimeError, ValueError):  # no such folder, no such user
        return []


def _is_path(typed: str) -> bool:
    return typed.startswith(("/", "~/", "./", "../"))

"""Fewer bytes over a slow line. Called before Textual is imported, which reads its settings then. No Textual in it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

# 15 frames a second instead of 60; no animations, whose every frame is sent; the mouse by cells and not by pixels
_CALM = {"TEXTUAL_FPS": "15", "TEXTUAL_ANIMATIONS": "none", "TEXTUAL_SMOOTH_SCROLL": "0"}


def calm_down(environ: MutableMapping[str, str]) -> None:
    """Over SSH, give Textual settings for a slow line where the user has set none."""
    if is_over_ssh(environ):
        for name, value in _CALM.items():
            environ.setdefault(name, value)


def is_over_ssh(environ: Mapping[str, str]) -> bool:
    """Whether this terminal is on another machine."""
    return bool(environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"))

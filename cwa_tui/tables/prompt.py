"""What is typed into the last line of a table: a filter after `/`, or where to jump after `:`. No Textual in it."""

from __future__ import annotations

from enum import Enum, auto

FILTER, JUMP = "/", ":"
_HINTS = {FILTER: "filter: words, or column:word, column>number", JUMP: "jump to a rank, a row or a name"}


class Pressed(Enum):
    """What a key did."""

    TYPED = auto()
    DONE = auto()
    DROPPED = auto()
    NOTHING = auto()  # it is for somebody else


class Prompt:
    """One line of text, as long as it is open."""

    def __init__(self) -> None:
        self.kind = ""  # FILTER or JUMP; empty while nothing is typed
        self.text = ""

    @property
    def is_open(self) -> bool:
        return bool(self.kind)

    @property
    def line(self) -> str:
        """What the line shows, with a hint as long as it is empty."""
        hint = "" if self.text else f"  {_HINTS[self.kind]}"
        return f"{self.kind}{self.text}▏{hint}"

    def open(self, kind: str, text: str = "") -> None:
        self.kind, self.text = kind, text

    def close(self) -> None:
        self.kind = ""

    def paste(self, text: str) -> None:
        """Take the first line of a text."""
        self.text += text.splitlines()[0]

    def press(self, key: str, character: str | None) -> Pressed:
        """Take a key. Enter and escape close the line; `kind` and `text` are read before."""
        match key:
            case "enter":
                return Pressed.DONE
            case "escape":
                return Pressed.DROPPED
            case "backspace" | "ctrl+h":
                if not self.text:
                    return Pressed.DROPPED
                self.text = self.text[:-1]
            case "ctrl+u":
                self.text = ""
            case _ if character is not None and character.isprintable():
                self.text += character
            case _:
                return Pressed.NOTHING
        return Pressed.TYPED

"""What the TUI remembers between two starts: one JSON file in the state folder. No Textual in it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cwa_engine.base.files import write_whole
from cwa_engine.base.places import state_folder
from cwa_engine.base.plain import JsonMap, from_plain
from cwa_tui.tables.rows import TableLook

log = logging.getLogger(__name__)

FILE = "tui.json"


@dataclass(frozen=True, slots=True)
class Preferences:
    """All that is remembered. A field that the file lacks has its default."""

    theme: str = ""
    last_screen: tuple[str, ...] = ()  # "run" or "study" and its id; the dashboard where it is empty
    bell: bool = False  # when a run ends that was followed
    tables: dict[str, TableLook] = field(default_factory=dict)  # by the table's id
    draft: JsonMap = field(default_factory=dict)  # of the form for a new run, as typed


class PreferenceFile:
    """The preferences as they are now; each change is written at once. A file that cannot be read is set aside."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or state_folder() / FILE
        self.now = self._read()

    def change(self, **fields: Any) -> None:
        """Replace fields. What cannot be written holds until the end of the program, and is logged."""
        changed = replace(self.now, **fields)
        if changed == self.now:
            return
        self.now = changed
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(asdict(changed), indent=1).encode(), mode=0o600)
        except (OSError, TypeError, ValueError) as error:
            log.warning("%s cannot be written: %s", self._path, error)

    def table(self, name: str) -> TableLook:
        return self.now.tables.get(name, TableLook())

    def change_table(self, name: str, preference: TableLook) -> None:
        self.change(tables={**self.now.tables, name: preference})

    def _read(self) -> Preferences:
        try:
            return from_plain(Preferences, json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            return Preferences()
        except OSError as error:
            log.warning("%s cannot be read: %s", self._path, error)
        except ValueError as error:
            aside = self._path.with_suffix(".damaged")
            log.warning("%s is damaged (%s) and was moved to %s", self._path, error, aside)
            self._path.replace(aside)
        return Preferences()

"""Paths of the machine cut out of what is handed over: of a folder or file its last part stays. torch-free.

A run's manifest, summary and log name folders: of the model, of the texts, in the command line. With them come names of users
and of projects. All else in these files is kept: versions, platform, processor, number of cores and device, for a result may
depend on them, and what the tables hold of the texts (tokens in spikes.csv), for it is what was found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# An absolute path of two parts or more, where none of an address begins: /home/ann/texts.txt, ~/texts.txt.
_PATH = re.compile(r"(?<![\w/:.~\-])(~?(?:/[^\s/'\"`,;:()\[\]{}<>|]+){2,}/?|~/[^\s'\"`,;:()\[\]{}<>|]+)")
_END = r"(?![\w\-]|\.\w)"  # of a path: no longer name goes on
_HOST = re.compile(r"(--host[ =])[^\s-]\S*")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
# Keys whose value may be a path, and is one whole.
_NAMED = ("model", "data_file", "data_name", "output", "location", "name", "source", "dataset", "task_path")


@dataclass(frozen=True)
class Redaction:
    """What stands for each path. Two paths never get the same name."""

    names: Mapping[str, str]  # path -> what is written instead, the longest path first
    cuts: bool = True  # False where everything stays as it is

    def text(self, given: str) -> str:
        """The text without paths, names of hosts, and what looks like a token of the Hub."""
        if not self.cuts:
            return given
        for path, name in self.names.items():
            given = re.sub(re.escape(path) + _END, lambda _, name=name: name, given)  # type: ignore[misc]
        given = _PATH.sub(lambda found: _last_parts(found[0], 1), given)
        return _HOST.sub(r"\1HOST", _TOKEN.sub("hf_", given))

    def plain(self, value: Any) -> Any:
        """The same of all texts in what JSON holds, keys among them."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.plain(each) for each in value]
        return value

    def json(self, content: bytes) -> bytes:
        """A JSON file, written as runs write theirs; the same bytes where it has no path. Raises ValueError."""
        value = json.loads(content)
        cut = self.plain(value)
        return content if cut == value else (json.dumps(cut, indent=2, allow_nan=False) + "\n").encode()


NOTHING_CUT = Redaction({}, cuts=False)


def redaction_of(values: Iterable[Any]) -> Redaction:
    """Names for all paths that stand alone in these maps, as JSON has them: manifests, a study."""
    texts = set(_named(list(values)))
    paths = sorted(text for text in texts if text.startswith(("/", "~/")) and text.strip("/~"))
    taken = texts - set(paths)
    names: dict[str, str] = {}
    for path in paths:
        depths = range(1, path.count("/") + 1)
        shown = next((name for depth in depths if (name := _last_parts(path, depth)) not in taken), path.strip("/"))
        names[path] = shown
        taken.add(shown)
    return Redaction({path: names[path] for path in sorted(names, key=len, reverse=True)})


def _named(value: Any, key: str = "") -> Iterator[str]:
    """Texts that are the whole value of a key that names a model or a file."""
    if isinstance(value, str) and key in _NAMED:
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _named(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _named(each, key)


def _last_parts(path: str, depth: int) -> str:
    parts = [part for part in path.split("/") if part not in ("", "~", "..")]
    return "_".join(parts[-depth:])

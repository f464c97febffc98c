"""A study is registered before anything is measured: what is asked, the rule of the answer and the texts, hashed. torch-free.

The content is written once, into registration.json of the study's folder, with its SHA-256 and the time. Whether the study
still is what was registered, and whether runs had been made by then, is worked out anew each time, from hashes and from the
times of the journal and of the runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeGuard

from cwa_engine.base.errors import CwaError, DataError, InvalidInput, OutputError
from cwa_engine.base.files import scratch_path, sync_folder, write_synced
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.source_code import code_sha256
from cwa_engine.base.version import __version__
from cwa_engine.data.corpus import BUILTIN, data_sha256, load_texts
from cwa_engine.spec import RunSpec
from cwa_engine.studies import questions
from cwa_engine.studies.answer import StudyRun
from cwa_engine.studies.folder import REGISTRATION, StudyFolder
from cwa_engine.studies.registry import study_question

FORMAT = 1
_ANSWERING = ("studies", "records", "base")  # folders of the engine whose code makes an answer of runs


@dataclass(frozen=True, slots=True)
class Standing:
    """What a registration is worth. `before` are the runs of the study that were made earlier than it."""

    registered: float | None = None  # seconds since the epoch; None for a study that is not registered
    sha256: str = ""  # of the registered content
    before: tuple[str, ...] = ()  # run ids, or "cell 3" for one whose run is not known
    runs: int = 0  # of the study, at any time
    differs: tuple[str, ...] = ()  # in words, what is not as it was registered
    altered: bool = False  # the file is not what was written

    @property
    def holds(self) -> bool:
        """Whether the study is as it was registered, and was so before its first run."""
        return self.registered is not None and not (self.before or self.differs or self.altered)

    @property
    def sentence(self) -> str:
        """In words, for a report."""
        if self.altered:
            return "registration.json is not what was written: the content does not have the hash that stands beside it"
        if self.registered is None:
            return "not registered"
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.registered))
        if self.before:
            count = f"{len(self.before)} run{'s' * (len(self.before) != 1)} of it had been made"
            said = f"registered at {moment}, after {count}"
        else:
            said = f"registered at {moment}, before {'the first of its runs' if self.runs else 'any run was made'}"
        if self.differs:
            said += f"; differs from what was registered: {', '.join(self.differs)}"
        return f"{said} (SHA-256 {self.sha256})"


def register(folder: StudyFolder) -> JsonMap:
    """Write down what a study asks, by which rule, and of which texts, with the time; give what was written.

    Raises InvalidInput for a study that is registered already, DataError for texts that cannot be read, and OutputError.
    """
    content = {"registered": round(time.time(), 3), **_content(folder)}
    registration = {"sha256": content_sha256(content), "content": content}
    target, scratch = folder.path / REGISTRATION, scratch_path(folder.path / REGISTRATION)
    try:
        write_synced(scratch, json.dumps(registration, indent=2).encode())
        os.link(scratch, target)  # which fails where the file is there: it is never replaced
        sync_folder(folder.path)
    except FileExistsError:
        known = standing(folder).sentence
        raise InvalidInput(
            f"{folder.id} is registered already: {known}", hint="a changed study is another one: ask for it anew"
        ) from None
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}", hint="make room there") from error
    finally:
        scratch.unlink(missing_ok=True)
    return registration


def content_sha256(content: JsonMap) -> str:
    """SHA-256 of the content as JSON with sorted keys and without blanks, in ASCII: what anybody can compute again."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def standing(folder: StudyFolder, runs: Sequence[StudyRun] = ()) -> Standing:
    """Whether a study is what was registered, and whether that was before its runs.

    `runs` are those that are done. They tell when they began, so that a run which was there before the study counts as
    made before, and which texts they measured.
    """
    try:
        registration = folder.registration
    except DataError:
        return Standing(altered=True)
    if registration is None:
        return Standing()
    content, stated = registration.get("content"), registration.get("sha256")
    if not _is_whole(content) or content_sha256(content) != stated:
        return Standing(altered=True)
    registered = float(content["registered"])
    before = tuple(_made_before(folder, runs, registered))
    differs = (*_differences(content, _content(folder, unread_is_none=True)), *_other_texts(content, runs))
    count = len({cell for cell, _, _ in _submissions(folder)} | {run.cell.number for run in runs})
    return Standing(registered, str(stated), before, count, tuple(dict.fromkeys(differs)))


def surely_first(folder: StudyFolder) -> bool:
    """Whether the journal and the file alone show that a study was registered before its runs. No texts are read.

    Of a run that was there before the study they do not tell when it was made: then this is False, and `standing` knows.
    """
    try:
        registration = folder.registration or {}
        submissions, _ = folder.journal.read()
    except CwaError:
        return False
    content = registration.get("content")
    if not _is_whole(content) or content_sha256(content) != registration.get("sha256"):
        return False
    earliest = min(folder.journal.first_times().values(), default=math.inf)
    known = content.get("study_sha256") == folder.study.sha256()
    return known and content["registered"] <= earliest and not any(each.reused for each in submissions.values())


def _is_whole(content: Any) -> TypeGuard[JsonMap]:
    """Whether this has the parts that are read again."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("registered"), int | float)
        and isinstance(content.get("texts"), dict)
        and all(isinstance(entry, dict) for entry in content["texts"].values())
    )


def _content(folder: StudyFolder, unread_is_none: bool = False) -> JsonMap:
    """What is registered, but for the time: as things are now."""
    return {
        "format": FORMAT,
        "cwtool": __version__,
        "study": folder.study.to_plain(),
        "study_sha256": folder.study.sha256(),
        "specs": {str(cell.number): cell.spec.sha256() for cell in folder.cells},
        "question": _question(folder.study.question),
        "code_sha256": code_sha256(),
        "texts": {
            str(cell.number): text for cell, text in zip(folder.cells, _texts(folder, unread_is_none), strict=True)
        },
    }


def _question(name: str) -> JsonMap | None:
    """The question, its rule in words as its module has it, and the hash of the code that answers."""
    if not name:
        return None
    question = study_question(name)
    module = import_module(question.answer.__module__)
    return {
        "name": name,
        "asks": question.asks,
        "rule": str(getattr(module, "RULE", module.__doc__ or "")).strip(),
        "answering_code_sha256": _answering_code(),
    }


@functools.cache
def _answering_code() -> str:
    root = Path(questions.__file__).parents[2]
    paths = sorted(path for part in _ANSWERING for path in (root / part).rglob("*.py"))
    sources = [path.relative_to(root).as_posix().encode() + path.read_bytes() for path in paths]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def _texts(folder: StudyFolder, unread_is_none: bool) -> Iterator[JsonMap]:
    """Of each cell where its texts come from, and the hash of all of them, as the manifest of a run has it."""
    known: dict[Any, JsonMap] = {}
    for cell in folder.cells:
        spec = cell.spec
        key = spec.data_file, spec.dataset, spec.text_column, spec.eval_limit
        if key not in known:
            known[key] = {"source": _source(spec), "sha256": _hash_of_texts(spec, unread_is_none)}
        yield known[key]


def _source(spec: RunSpec) -> str:
    return str(spec.data_name or spec.data_file or spec.dataset or BUILTIN)


def _hash_of_texts(spec: RunSpec, unread_is_none: bool) -> str | None:
    try:
        return data_sha256(
            load_texts(spec.data_file, spec.eval_limit, spec.dataset, spec.text_column, name=spec.data_name)
        )
    except CwaError:
        if unread_is_none:
            return None
        raise


_IN_WORDS: Mapping[str, str] = {
    "study": "what is asked",
    "study_sha256": "what is asked",
    "specs": "the specs of its runs",
    "question": "the rule of the answer or its code",
    "code_sha256": "the code that runs compute with",
    "cwtool": "the version of cwtool",
    "texts": "the texts, or they cannot be read any more",
    "format": "the format of the registration",
}


def _differences(then: JsonMap, now: JsonMap) -> Iterator[str]:
    """In words, what is not as it was registered. The name of a study is no part of what it asks."""
    for name, said in _IN_WORDS.items():
        if name != "study" and then.get(name) != now[name]:
            yield f"{said} ({then.get(name)}, now {now[name]})" if name == "cwtool" else said


def _other_texts(content: JsonMap, runs: Iterable[StudyRun]) -> Iterator[str]:
    """Runs that measured other texts than were registered for their cell."""
    for run in runs:
        registered = content["texts"].get(str(run.cell.number), {}).get("sha256")
        if registered and registered != run.report.texts.sha256:
            yield f"run {run.report.run_id} measured other texts"


def _made_before(folder: StudyFolder, runs: Iterable[StudyRun], registered: float) -> Iterator[str]:
    """Runs of the study that were submitted, or had begun, before it was registered."""
    submitted = {cell: (moment, run_id) for cell, moment, run_id in _submissions(folder)}
    started = {run.cell.number: (run.report.summary.started, run.report.run_id) for run in runs}
    for cell in sorted(submitted.keys() | started.keys()):
        moment, run_id = submitted.get(cell, (registered, ""))
        began, known_id = started.get(cell, (registered, ""))
        if min(moment, began) < registered:
            yield known_id or run_id or f"cell {cell}"


def _submissions(folder: StudyFolder) -> Iterator[tuple[int, float, str]]:
    """(cell, time of its first submission, run id if the journal has one) of what the journal tells."""
    submissions, _ = folder.journal.read()
    times = folder.journal.first_times()
    for cell, submission in submissions.items():
        yield cell, times.get(cell, 0.0), submission.run_id

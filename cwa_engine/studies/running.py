"""A study is run: its cells are submitted in order, each once, and waited for. torch-free.

Every submission has a key of what its run depends on, so a runner that was asked before gives the run that it has. That is
how a study goes on after the death of anything, and how two studies with a cell in common run it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from cwa_engine.base.errors import (
    CwaError,
    DaemonUnreachable,
    InvalidInput,
    NotFound,
    OutputError,
    QueueFull,
    Refused,
    StateNotWritten,
    VersionMismatch,
)
from cwa_engine.runner import Runner, RunState
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.identity import Identity, commit_identity, identity_of
from cwa_engine.studies.journal import Submission
from cwa_engine.studies.progress import CellProgress, cell_progress, progress_of
from cwa_engine.studies.registry import study_question
from cwa_engine.studies.report import done_runs
from cwa_engine.studies.study import Cell

__all__ = ["Say", "Show", "cancel_study", "progress_of", "run_study"]

Say = Callable[[str], None]
Show = Callable[[tuple[CellProgress, ...]], None]

MOST_OFTEN_S = 0.5  # between two looks at all runs of a study while one of them tells what it does
# What ends a study and not a cell: no other cell would fare better.
_OF_ALL_CELLS = (DaemonUnreachable, StateNotWritten, Refused, VersionMismatch)


def _ignore(what: object) -> None: ...


def run_study(
    folder: StudyFolder,
    runner: Runner,
    say: Say = _ignore,
    *,
    retry: bool = False,
    wait: bool = True,
    show: Show = _ignore,
) -> tuple[CellProgress, ...]:
    """Submit what is not submitted, wait until all has ended, and give how each cell ended.

    Calling it again goes on where it stopped: what is queued, running or done is not submitted again, unless the model, the
    texts or the code are others by now, or the files of its run are altered or gone; `say` hears of that. A cell that fails
    stops no other. `retry` submits those that failed or were cancelled once more. `wait=False` returns as soon as all is
    submitted, and raises QueueFull where that would take waiting. `show` hears of each change.

    Once the grid has ended, the question may ask for further runs, made from the reports of those that are done: they are
    written into the study's folder and run as all others. Without `wait` they are asked for by the next call.

    Raises DaemonUnreachable and the like where no cell could run any more.
    """
    running = _Running(folder, runner, say, show)
    running.submit_all(retry, wait)
    running.follow_all(wait)
    if running.add_further():
        running.submit_all(False, wait)
        running.follow_all(wait)
    return running.look()


def cancel_study(folder: StudyFolder, runner: Runner) -> tuple[CellProgress, ...]:
    """Cancel the runs of a study that have not ended, but for those that were there before it: they are another's."""
    _check_place(folder, runner)
    for cell in progress_of(folder, runner):
        if cell.state in ("queued", "running") and not cell.reused:
            runner.attach(cell.run_id).cancel()
    return progress_of(folder, runner)


def _check_place(folder: StudyFolder, runner: Runner) -> None:
    """Raises InvalidInput for a study whose runs are elsewhere: all its cells would run again."""
    if folder.where != runner.where:
        raise InvalidInput(
            f"the runs of {folder.id} are in {folder.where or 'the daemon of this machine'}, "
            f"not in {runner.where or 'the daemon of this machine'}",
            hint="go on with it where it was begun, or ask for the study anew under another --name",
        )


class _Running:
    """One process that goes on with a study."""

    def __init__(self, folder: StudyFolder, runner: Runner, say: Say, show: Show) -> None:
        self._folder, self._runner, self._say, self._show = folder, runner, say, show
        _check_place(folder, runner)
        self._journal = folder.journal
        self._submissions, damaged = self._journal.read()
        self._states: Mapping[str, RunState] = {}
        if damaged:
            say(
                f"{damaged} lines of {self._journal.path} cannot be read; runs that they told of are found by their content"
            )

    # what there is

    def unfinished(self) -> list[Submission]:
        """What was submitted and has not ended, by what was seen last."""
        return [each for each in self._submissions.values() if each.run_id and not each.ended]

    def look(self) -> tuple[CellProgress, ...]:
        """Ask where all runs are, write down which have ended, and show it."""
        self._states = self._runner.states([each.run_id for each in self.unfinished()])
        ended = []
        for submission in self.unfinished():
            state = self._states.get(submission.run_id)
            if state is None:
                gone = NotFound(f"its run {submission.run_id} is not there any more", hint="resume the study")
                ended.append(replace(submission, ended="failed", error=gone))
            elif state.ended:
                ended.append(replace(submission, ended=state.name, error=state.error))
        self._ended(*ended)
        progress = tuple(
            cell_progress(cell, self._submissions.get(cell.number), self._states) for cell in self._folder.cells
        )
        self._show(progress)
        return progress

    def follow_all(self, wait: bool) -> None:
        while wait and self.unfinished():
            self.follow_one()

    def follow_one(self) -> None:
        """Wait until a run has ended. All others are looked at whenever it tells something."""
        waiting = self.unfinished()
        states = self._runner.states([each.run_id for each in waiting])
        running = [each for each in waiting if each.run_id in states and states[each.run_id].name == "running"]
        followed, looked = (running or waiting)[0], time.monotonic()
        if followed.run_id in states:
            for _ in self._runner.attach(followed.run_id).events():
                if time.monotonic() - looked >= MOST_OFTEN_S:
                    self.look()
                    looked = time.monotonic()
        self.look()

    def _ended(self, *submissions: Submission) -> None:
        if submissions:
            self._submissions |= {each.cell: each for each in submissions}
            self._journal.ended(submissions)

    # what is asked for

    def add_further(self) -> bool:
        """Whether the question asks for other runs behind the grid than before, now that all of it has ended.

        What it asks for is written down, also where that is nothing.
        """
        study = self._folder.study
        further = study_question(study.question).further if study.question else None
        progress = self.look()[: len(self._folder.grid)]
        if further is None or not all(cell.ended for cell in progress):
            return False
        specs = tuple(further(study, done_runs(progress, self._runner)[1]))
        if specs == self._folder.further and not self._folder.awaits_further:
            return False
        self._folder.write_further(specs)
        return bool(specs)

    def submit_all(self, retry: bool, wait: bool) -> None:
        self._states = self._runner.states([each.run_id for each in self.unfinished()])
        for cell in self._folder.cells:
            known = self._submissions.get(cell.number)
            identity = identity_of(cell.spec, self._runner.elsewhere)
            attempt = self._next_attempt(cell, known, identity, retry)
            if attempt:
                self._submit(cell, identity, attempt, wait)
        self.look()

    def _next_attempt(self, cell: Cell, known: Submission | None, identity: Identity, retry: bool) -> int:
        """Which attempt is to be submitted; 0 where there is nothing to do."""
        if known is None:
            return 1
        if not known.run_id and not known.ended:  # a process died in between: the same key gives the same run
            return known.attempt if identity == known.identity else 1
        found = self._states.get(known.run_id)
        state = known.ended or (found.name if found else "gone")
        if state in ("queued", "running"):
            return 0
        if state == "done":
            if changes := self._changes(known, identity):
                self._say(f"{cell.label}: it runs again, for {' and '.join(changes)} since {known.run_id}")
                return 1
            if not (wrong := self._damage(known.run_id)):
                return 0
            self._say(f"{cell.label}: it runs again, for {wrong}")
        elif state == "gone":
            self._say(f"{cell.label}: it runs again, for {known.run_id} is not there any more")
        elif not retry:
            return 0
        return known.attempt + 1

    def _changes(self, known: Submission, identity: Identity) -> list[str]:
        """What has changed since a run that is done, in words. Of a model that came from the Hub, the run says the commit."""
        then = known.identity
        if identity.model.startswith("commit") and identity.model != then.model:
            try:
                commit = self._runner.attach(known.run_id).report().model.revision
            except CwaError:  # a run that is altered is told of as such
                commit = None
            then = replace(then, model=commit_identity(commit) if commit else then.model)
        return identity.changes_since(then)

    def _damage(self, run_id: str) -> str:
        """What is wrong with the files of a run that is done, in words; empty for nothing."""
        try:
            altered = self._runner.attach(run_id).altered()
        except NotFound:
            return f"the files of {run_id} are gone"
        return f"{', '.join(altered)} of {run_id} is not what the run wrote" if altered else ""

    def _submit(self, cell: Cell, identity: Identity, attempt: int, wait: bool) -> None:
        """Submit a cell. A run that is there is taken if its files are sound; one from before the study, if it did not fail."""
        while True:
            key = identity.key(attempt, self._folder.id)
            submission = Submission(cell.number, attempt, key, identity)
            self._journal.submitting(submission)
            self._submissions[cell.number] = submission
            try:
                run_id, state = self._asked(cell, key, wait)
            except (QueueFull, OutputError, *_OF_ALL_CELLS):
                raise
            except CwaError as error:  # refused: its texts cannot be read, or its name makes no sense
                self._say(f"{cell.label}: {error.message}")
                self._ended(replace(submission, ended="failed", error=error))
                return
            reused = state.created < self._folder.created
            if useless := self._useless(run_id, state, reused):
                self._say(f"{cell.label}: an earlier run of the same {useless}; it runs again")
                attempt += 1
                continue
            submission = replace(submission, run_id=run_id, reused=reused)
            self._submissions[cell.number] = submission
            self._journal.submitted(submission)
            return

    def _useless(self, run_id: str, state: RunState, reused: bool) -> str:
        """Why a run that was there is not taken, in words; empty where it is."""
        if reused and state.name in ("failed", "cancelled"):
            return f"({run_id}) has {'failed' if state.name == 'failed' else 'been cancelled'}"
        wrong = self._damage(run_id) if state.name == "done" else ""
        return f"is of no use, for {wrong}" if wrong else ""

    def _asked(self, cell: Cell, key: str, wait: bool) -> tuple[str, RunState]:
        while True:
            try:
                handle = self._runner.submit(cell.spec, key)
            except QueueFull:
                if not wait:
                    raise
                if self.unfinished():
                    self.follow_one()
                else:
                    self._runner.wait_for_room()
            else:
                return handle.run_id, handle.state()

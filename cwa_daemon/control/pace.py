"""How long models took to load and jobs to compute, as seen by this daemon, and so when a busy lane will be free."""

from __future__ import annotations

from dataclasses import dataclass

from cwa_daemon.control.job import Job


@dataclass(frozen=True, slots=True)
class Course:
    """How far a job is, in seconds; `computed_s` is None before its model is there."""

    job: Job
    loading_s: float
    computed_s: float | None


class Pace:
    """What was measured last, of each model and kind of job."""

    def __init__(self) -> None:
        self._load_s: dict[str, float] = {}  # model -> seconds
        self._compute_s: dict[tuple[str, str], float] = {}  # model and kind of job -> seconds

    def ended(self, course: Course, was_warm: bool) -> None:
        """A job has come to a good end."""
        job = course.job
        if not was_warm:
            self._load_s[job.model] = course.loading_s
        if course.computed_s is not None:
            self._compute_s[job.model, job.kind] = course.computed_s

    def load_s(self, model: str) -> float | None:
        """Seconds that its loading takes; None where none was seen."""
        return self._load_s.get(model)

    def compute_s(self, job: Job) -> float | None:
        """Seconds that such a job computes; None where none was seen."""
        return self._compute_s.get((job.model, job.kind))

    def left_s(self, course: Course) -> float | None:
        """Seconds until a job ends; None where nothing tells, as of one that takes longer than the last such job."""
        whole, load_s = self.compute_s(course.job), self.load_s(course.job.model)
        if whole is None:
            return None
        if course.computed_s is None:
            return None if load_s is None or course.loading_s > load_s else load_s - course.loading_s + whole
        return whole - course.computed_s if course.computed_s <= whole else None

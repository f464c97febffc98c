"""What the form for a new run asks of the rest of the program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cwa_daemon.protocol import DeviceMemory, JobOptions, WarmModel
from cwa_engine.base.errors import CwaError
from cwa_engine.hub.sources import HubAccess, models_on_disk
from cwa_engine.rows import Plan
from cwa_engine.spec import RunSpec
from cwa_tui.form.draft import Draft
from cwa_tui.widgets.form_plan import MakePlan, Say


async def _no_plan(spec: RunSpec, say: Say) -> Plan:
    raise CwaError("there is nobody to ask for a plan")


@dataclass(frozen=True)
class FormDoors:
    """What the form asks of the rest. `submit` gives the run id; `plan` calls its `say` with what it waits for.

    `keep` is called with the draft whenever the form closes, `copy` with the command line.
    """

    submit: Callable[[RunSpec, str, JobOptions], Awaitable[str]]
    plan: MakePlan = _no_plan
    keep: Callable[[Draft], None] = lambda draft: None
    copy: Callable[[str], None] = lambda command: None
    warm: Callable[[], Sequence[WarmModel]] = tuple
    devices: Callable[[], Sequence[DeviceMemory]] = tuple
    lanes: Callable[[], Sequence[str]] = tuple  # names of devices that a run may go to, of one or of several together
    runs: Callable[[], Sequence[str]] = tuple  # run ids, the latest first
    on_disk: Callable[[HubAccess], Mapping[str, int]] = models_on_disk
    access: HubAccess = field(default_factory=HubAccess.from_environment)
    host: str = ""
    plan_after_s: float | None = 1.5  # of silence, after which a run of a model that is here is planned; None: never

"""The warm models: what is in memory, for how long, how many jobs each served, and which run uses it."""

from __future__ import annotations

from collections.abc import Mapping

from cwa_daemon.protocol import StatusView, WarmModel
from cwa_engine.records.run_id import short_id
from cwa_tui.tables.columns import Column
from cwa_tui.tables.rows import TableRow
from cwa_tui.text import format as fmt
from cwa_tui.widgets.row_table import RowTable


class ModelsTable(RowTable):
    """One warm model a row."""

    COLUMNS = (
        Column("name", "warm model", 13, most=40, cut="start"),
        Column("size", "size", 8, right=True),
        Column("expires", "stays", 12),
        Column("dtype", "dtype", 8),
        Column("device", "device", 6, optional=1),
        Column("jobs", "jobs", 4, right=True, optional=2),
        Column("used", "last used", 9, right=True, optional=3),
        Column("parameters", "weights", 7, right=True, optional=4),
    )

    most_rows = 3  # on screen at once

    @property
    def line_count(self) -> int:
        """Lines on screen; none where no model is warm."""
        return 1 + min(len(self.source), self.most_rows) if len(self.source) else 0

    def show_models(self, daemon: StatusView | None, now: float) -> None:
        users = _users(daemon) if daemon else {}
        rows = [_row(model, now, users.get(model.device, "")) for model in (daemon.models if daemon else [])]
        self.show(rows)
        self.display = bool(rows)
        self.styles.height = self.line_count


def model_key(model: WarmModel) -> str:
    """The key of a row: a model of one name may be warm in two dtypes, or on two devices."""
    return f"{model.name} {model.revision} {model.dtype} {model.device}"


def stays(model: WarmModel, now: float, user: str = "") -> str:
    """`for k7q2` while a run uses it, `pinned`, `29:12` until it is unloaded, `for good`."""
    if model.in_use:
        return f"used by {user}" if user else "in use"
    if model.pinned:
        return "pinned"
    if model.expires is None:
        return "for good"
    return fmt.clock(max(0.0, model.expires - now))


def _users(daemon: StatusView) -> Mapping[str, str]:
    """Device -> short id of the job that its worker is at."""
    return {worker.device: short_id(worker.run_id) for worker in daemon.workers if worker.run_id}


def _row(model: WarmModel, now: float, user: str) -> TableRow:
    cells = {
        "name": model.name,
        "dtype": model.dtype,
        "device": model.device,
        "size": fmt.size(model.size_bytes),
        "jobs": str(model.jobs_served),
        "expires": stays(model, now, user),
        "parameters": fmt.millions(model.parameters / 1e6),
        "used": "now" if model.in_use else fmt.age(model.last_used, now),
    }
    values = {
        "size": model.size_bytes,
        "jobs": model.jobs_served,
        "expires": model.expires,
        "parameters": model.parameters,
        "used": model.last_used,
    }
    return TableRow(model_key(model), cells, values=values)

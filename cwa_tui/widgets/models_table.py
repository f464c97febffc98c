"""The warm models: what is in memory, and how many jobs each served."""

from __future__ import annotations

from cwa_daemon.protocol import StatusView, WarmModel
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.rows import TableRow
from cwa_tui.widgets.row_table import RowTable

_NOTHING = "no model is warm: the first run of a model loads it, and it stays warm (press n)"


class ModelsTable(RowTable):
    """One warm model a row."""

    COLUMNS = (
        Column("name", "model", 14, most=36, cut="start"),
        Column("dtype", "dtype", 8),
        Column("device", "device", 6),
        Column("size", "size", 8, right=True),
        Column("jobs", "jobs", 4, right=True),
        Column("used", "last used", 9, right=True),
    )

    def show_models(self, daemon: StatusView | None, now: float) -> None:
        models = daemon.models if daemon else []
        self.show([_row(model, now) for model in models], nothing=_NOTHING if daemon else "")


def model_key(model: WarmModel) -> str:
    """The key of a row: a model of one name may be warm in two dtypes, or on two devices."""
    return f"{model.name} {model.revision} {model.dtype} {model.device}"


def _row(model: WarmModel, now: float) -> TableRow:
    cells = {
        "name": model.name,
        "dtype": model.dtype,
        "device": model.device,
        "size": fmt.size(model.size_bytes),
        "jobs": str(model.jobs_served),
        "used": "in use" if model.in_use else fmt.age(model.last_used, now),
    }
    return TableRow(model_key(model), cells)

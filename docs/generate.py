"""Write the tables of docs/ from the registries: `make docs`. A test fails if they are out of date."""

from __future__ import annotations

from pathlib import Path

from cwa_daemon.protocol import JobOptions
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.methods.metrics import METRICS
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.options import GENERAL, OptionField, option_fields
from cwa_engine.spec import RunSpec

DOCS = Path(__file__).parent


def metrics_page() -> str:
    """docs/metrics.md: metrics, perturbations and controls, from their registries."""
    lines = [
        "# Metrics, perturbations and controls",
        "",
        "Made from the registries by `make docs`; do not edit.",
        "",
        "l_t is the negative log-likelihood of a scored token t in nats, L its mean over all scored tokens of the scoring",
        "texts, and L_s its mean over those of sequence s. For a weight w, g = dL/dw, and F is the mean over tokens of",
        "(dl_t/dw)², estimated with random signs. ‖x‖² is the mean over sequences of the sum over tokens of x², where x is the",
        "input of the weight. Statistics are accumulated in float32. [method.md](method.md#scores) has the derivations.",
        "",
        "| metric | score | meaning | source |",
        "|---|---|---|---|",
        *(f"| `{name}` | {_cell(m.formula)} | {_cell(m.summary)} | {_cell(m.source)} |" for name, m in METRICS.items()),
        "",
        "| perturbation | what it does |",
        "|---|---|",
        *(f"| `{name}` | {_cell(p.summary)} |" for name, p in PERTURBATIONS.items()),
        "",
        "| control | which weights |",
        "|---|---|",
        *(f"| `{name}` | {_cell(c.summary)} |" for name, c in CONTROLS.items()),
        "",
    ]
    return "\n".join(lines)


def options_page() -> str:
    """docs/options.md: the options of a run, from the fields of `RunSpec` and `JobOptions`."""
    lines = [
        "# Options of a run",
        "",
        "Made from the fields of `RunSpec` and `JobOptions` by `make docs`; do not edit.",
        "",
        "The form for a new run in `cwtool tui` has the options with a label. In Python an option is a field of `RunSpec`, or",
        "of `JobOptions` if the last column says so.",
        "",
    ]
    entries = [(entry, model) for model in (RunSpec, JobOptions) for entry in option_fields(model).values()]
    for group in dict.fromkeys(entry.option.group for entry, _ in entries):
        lines += [f"## {'Model and machine' if group == GENERAL else group}", ""]
        lines += ["| option | what it does | default | commands | field |", "|---|---|---|---|---|"]
        lines += [_option_row(entry, model) for entry, model in entries if entry.option.group == group]
        lines += [""]
    return "\n".join(lines)


def _option_row(entry: OptionField, model: type) -> str:
    option = entry.option
    flags = [f"`{entry.flag}`"] + ([f"`{entry.no_flag}`"] if option.no or entry.default is True else [])
    usual = "" if entry.is_required else option.shown_default or _default(entry.default)
    field = f"`{entry.field}`" + ("" if model is RunSpec else f" of `{model.__name__}`")
    return f"| {', '.join(flags)} | {_cell(option.help)} | {_cell(usual)} | {', '.join(option.commands)} | {field} |"


def _default(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (DOCS / "metrics.md").write_text(metrics_page())
    (DOCS / "options.md").write_text(options_page())

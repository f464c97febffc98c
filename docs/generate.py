"""Write the tables of docs/ from the registries: `make docs`. A test fails if they are out of date."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cwa_daemon.protocol import JobOptions
from cwa_engine.guide.catalog import CatalogModel, Tier, catalog
from cwa_engine.guide.topics import Topic, topics, troubles
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.methods.metrics import METRICS
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.options import GENERAL, OptionField, option_fields
from cwa_engine.spec import RunSpec
from docs.figures_page import figures_page
from docs.reference_pages import cli_page, errors_page, protocol_page, records_page

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


def guide_page() -> str:
    """docs/guide.md: which model to take, from the files of the guide."""
    lines = [
        "# Which model to take",
        "",
        "Made from `cwa_engine/guide/*.toml` by `make docs`; do not edit. `cwtool models` says the same on the command line:",
        "",
        "| command | what it does |",
        "|---|---|",
        "| `cwtool models list` | lists the guide, and what is on disk: `--for TOPIC`, `--tier small`, `--on-disk` |",
        "| `cwtool models search WORDS` | answers a question: `which metric`, `smallest reliable size`, `code`, `apache` |",
        "| `cwtool models show MODEL` | size, licence, caveats, and what a run of it needs on this machine |",
        "| `cwtool models plan MODEL` | memory for each dtype, and the command line that fits; options are those of `run` |",
        "| `cwtool models pull MODEL` | downloads what is missing, and checks that it can be loaded |",
        "| `cwtool models import PATH --name NAME` | gives a local model a name for `--model`; `models forget` takes it back |",
        "| `cwtool models trouble [SYMPTOM]` | steps for a model that will not load, does not fit, or is slow |",
        "",
        "A model that is not on disk is planned from the config in the guide, with every byte of a text as a token: an upper",
        "bound, and the plan says so. Nothing is downloaded for it.",
        "",
        "## What a size allows",
        "",
        "| tier | weights | what it usually allows |",
        "|---|---|---|",
        *(f"| {tier} | {tier.sizes.removesuffix(' weights')} | {tier.allows} |" for tier in Tier),
        "",
    ]
    for kind, heading in (
        ("purpose", "By purpose"),
        ("question", "By research question"),
        ("workflow", "Workflows"),
        ("subject", "What else to know"),
    ):
        lines += [f"## {heading}", ""]
        for topic in topics():
            if topic.kind == kind:
                lines += _topic(topic)
    lines += [
        "## All models",
        "",
        "Weights are exact and count tied ones once; they are counted on a model built from its config. A gated model asks for",
        "an approval on its page, and then for HF_TOKEN.",
        "",
        "| model | alias | weights | tier | architecture | tokenizer | licence |",
        "|---|---|---|---|---|---|---|",
        *(_model_row(entry) for entry in catalog()),
        "",
    ]
    return "\n".join(lines)


def troubleshooting_page() -> str:
    """docs/troubleshooting.md: what to do by symptom, then every error with its exit code."""
    lines = [
        "# Troubleshooting",
        "",
        "Made from `cwa_engine/guide/troubles.toml` and the tree of errors by `make docs`; do not edit.",
        "",
        "Every error says what happened and, behind it, what to do next. `cwtool doctor` looks at the machine, the daemon, the",
        "Hub and the disk; `cwtool models trouble SYMPTOM` has this page on the command line, and `cwtool daemon logs` what",
        "the daemon and its workers wrote. Symptoms come first, the likeliest cause on top.",
        "",
    ]
    for trouble in troubles():
        lines += [f"## {trouble.title}", ""]
        for number, step in enumerate(trouble.steps, start=1):
            commands = ", ".join(f"`{command}`" for command in step.commands)
            lines.append(f"{number}. It may be that {step.because}. {step.do} {commands}")
        lines.append("")
    lines += [
        "## Errors and exit codes",
        "",
        "A script reads the exit code, or with `--json` the `code` of the error.",
        "",
        errors_page(),
        "",
    ]
    return "\n".join(lines)


def _topic(topic: Topic) -> list[str]:
    models = ", ".join(f"`{entry.alias or entry.name}`" for entry in topic.recommended)
    return [
        f"### {topic.title}",
        "",
        f"{topic.answer} (`--for {topic.name}`)",
        "",
        *([f"Models: {models}", ""] if models else []),
        "```sh",
        *topic.commands,
        "```",
        "",
    ]


def _model_row(entry: CatalogModel) -> str:
    licence = f"{entry.licence}, gated" if entry.gated else entry.licence
    cells = (f"`{entry.name}`", f"`{entry.alias}`" if entry.alias else "", f"{entry.parameters:,}", entry.tier.value)
    return f"| {' | '.join((*cells, entry.architecture, entry.tokenizer, licence))} |"


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


PAGES: Mapping[str, Callable[[], str]] = {
    "metrics.md": metrics_page,
    "options.md": options_page,
    "guide.md": guide_page,
    "figures.md": figures_page,
    "troubleshooting.md": troubleshooting_page,
    "reference/cli.md": cli_page,
    "reference/records.md": records_page,
    "reference/protocol.md": protocol_page,
}


def main(folder: Path = DOCS) -> None:
    """Write every page into a folder."""
    for name, page in PAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(page())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""The science of cwtool: rank the critical weights of a causal language model, damage them, measure what that does.

In a notebook or script:

    import cwa_engine as cwa

    report = cwa.analyze("gpt2", metrics=["grad_x_weight"], topk=[10])
    print(report.topk()[0].target, report.verdicts[0].sentence)
    report.save("results/gpt2")

`cwa.wrap` takes a model that is in memory, `cwa.open_run` reads what a run has written, `cwa.compare` puts runs beside each
other, `cwa.weight_card` examines one weight, `cwa.query` asks SQL of all runs, `cwa.LocalRunner` runs many specs,
`cwa.Study(...).run(on="ray")` asks a question of many runs, on Ray, in this process, or wherever a `cwa.Runner` runs them.
All errors are `cwa.CwaError`s, with a `hint` what to do next.

Nothing is imported before it is used: importing this package costs neither torch nor numpy nor pydantic. It knows nothing
of sockets, terminals or jobs; `cwa_daemon.client` speaks to the daemon. `__init__.pyi` has the types of what is here.
"""

from __future__ import annotations

from importlib import import_module

from cwa_engine.base.importing import without_collections
from cwa_engine.base.version import __version__
from cwa_engine.rich_display import draw_with

_ERRORS = (
    "Altered", "Cancelled", "CwaError", "DataError", "DoesNotFit", "InvalidInput", "ModelBroken", "ModelGated",
    "ModelNotFound", "NotFound", "OutOfMemory", "OutputError", "OutputTaken", "RunFailed", "WeightsNotRestored",
)  # fmt: skip
_MODULES = {
    **dict.fromkeys(_ERRORS, "base.errors"),
    "Comparison": "records.compared",
    "LoadedModel": "models.loading",
    "LocalRunner": "local_runner",
    "QueryAnswer": "queries.asking",
    "RunHandle": "runner",
    "RunReport": "records.run_report",
    "RunSpec": "spec",
    "RunState": "runner",
    "Runner": "runner",
    "Study": "studies.notebook",
    "StudyReport": "studies.report",
    "WeightCard": "weight_rows",
    "analyze": "notebook",
    "compare": "records.comparison",
    "export": "exchange.writing",
    "figures_of": "display",
    "load_model": "models.loading",
    "open_run": "records.run_report",
    "query": "queries.asking",
    "run_study": "studies.notebook",
    "weight_card": "notebook",
    "wrap": "models.in_memory",
    "write_figure": "reports.drawing",
}

__all__ = ["__version__", *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    with without_collections():
        found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


draw_with(lambda record: str(import_module(f"{__name__}.display").html_of(record)))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

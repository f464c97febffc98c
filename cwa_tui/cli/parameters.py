"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from cwa_tui.cli import completion

EXPORTED = ("csv", "json", "parquet", "markdown", "latex", "safetensors")  # formats, as cwa_engine.exchange has them
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
RunId = Annotated[
    str,
    typer.Argument(
        help="Run id, or its first or last characters; if left out, the latest run.", autocompletion=completion.run_ids
    ),
]
FinishedRunId = Annotated[
    str,
    typer.Argument(
        help="Run id, or its first or last characters; if left out, the latest finished run.",
        autocompletion=completion.finished_run_ids,
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        help="Alias, Hub id, folder or .gguf file; with --host, one of the other machine.",
        show_default=False,
        autocompletion=completion.models,
    ),
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to list.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the run id and return at once.")]

"""The planner against measured memory: what `cwtool plan` foretells, and what a run then takes, on a CPU.

`python -m benchmarks.planned [MILLIONS ...]` measures these sizes, all of them if none is named, and writes the rows into
RESULTS.md. Each run is a process of its own, one at a time; models have random weights, but for SmolLM2-135M, and
nothing but their configs is there when they are planned.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from benchmarks import cases, growth
from benchmarks.measure import RESULTS, peak_above
from benchmarks.tables import known_rows, table, with_section
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models.guide_config import byte_tokenizer
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.pipeline import analyze
from cwa_engine.planning import KERNELS_BYTES, plan
from cwa_engine.spec import RunSpec

TITLE = "The planner against measured memory: scoring by `grad_x_weight` on a CPU in float32"
COLUMNS = ("model", "texts scored", "gradients", "beside the weights: planned", "measured", "planned / measured",
           "whole process: planned", "measured", "planned / measured")  # fmt: skip
REAL = "smollm2-135m"
TEXTS = (2, 4)  # that are scored: from four on, those of two halves are kept apart
TOKENS, REAL_TOKENS = 128, 512


@dataclass(frozen=True)
class Case:
    """A run whose memory is planned and measured."""

    millions: int  # 0 for SmolLM2-135M
    texts: int
    gradients: str

    @property
    def label(self) -> str:
        return f"{growth.weights_of(self.millions) / 1e6:,.0f}M" if self.millions else "SmolLM2-135M"

    def spec(self, model: str) -> RunSpec:
        return RunSpec(
            model=model,
            dtype="float32",
            topk=(100,),
            eval_limit=2 * self.texts,  # half of them are scored
            seq_len=TOKENS if self.millions else REAL_TOKENS,
            gradients=self.gradients,
            perturbations=(),
        )


@dataclass(frozen=True)
class Bytes:
    """What scoring takes beside the weights, and the whole process."""

    working: int
    total: int


def cases_of(sizes: Sequence[int]) -> Iterator[Case]:
    for millions in sizes:
        for texts in TEXTS:
            for gradients in ("resident", "sweep"):
                yield Case(millions, texts, gradients)


def foretold(case: Case) -> Bytes:
    """What the planner says of a model that has a config and a tokenizer, and no weights."""
    with tempfile.TemporaryDirectory() as folder:
        if case.millions:
            growth.config(case.millions).save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
        found = plan(case.spec(folder if case.millions else REAL), HubAccess(), "cpu")
    row = next(row for row in found.rows if (row.dtype, row.gradients) == ("float32", case.gradients))
    return Bytes(row.working_bytes + KERNELS_BYTES, row.total_bytes)


def measured(case: Case) -> Bytes:
    """What a run takes in this process, which must have done nothing else before."""
    loaded = _loaded(case)
    cases.touch(loaded)
    gc.collect()
    before = int(psutil.Process().memory_info().rss)
    working = peak_above(lambda: analyze(loaded, case.spec("model")))
    return Bytes(working, before + working)


def _loaded(case: Case) -> LoadedModel:
    if not case.millions:
        return load_model(REAL, dtype="float32")
    loaded, _ = cases.llama(growth.config(case.millions))
    return replace(loaded, tokenizer=byte_tokenizer())


def row_of(case: Case) -> tuple[str, ...]:
    planned, taken = (_in_a_new_process(what, case) for what in ("foretold", "measured"))
    print("planned", case, planned, taken, sep=" · ", flush=True)
    cells = [
        (f"{mine / 1e9:.2f} GB", f"{real / 1e9:.2f} GB", f"{mine / real:.2f}")
        for mine, real in ((planned.working, taken.working), (planned.total, taken.total))
    ]
    return (case.label, str(case.texts), case.gradients, *cells[0], *cells[1])


def _in_a_new_process(what: str, case: Case) -> Bytes:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.planned", what, json.dumps(asdict(case))],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return Bytes(**json.loads(done.stdout.splitlines()[-1]))


def write(path: Path, sizes: Sequence[int] = (0, *growth.SIZES)) -> None:
    """Measure and put the rows into the file of results; rows of other sizes stay."""
    order = [(one.label, str(one.texts), one.gradients) for one in cases_of((0, *growth.SIZES))]
    for case in cases_of(sizes):
        row = row_of(case)
        before = path.read_text()
        rows = {known[:3]: known for known in known_rows(before, TITLE)} | {row[:3]: row}
        path.write_text(
            with_section(before, TITLE, table(COLUMNS, sorted(rows.values(), key=lambda r: order.index(r[:3]))))
        )


def main() -> None:
    if sys.argv[1:2] in (["foretold"], ["measured"]):
        case = Case(**json.loads(sys.argv[2]))
        print(json.dumps(asdict(foretold(case) if sys.argv[1] == "foretold" else measured(case))))
        return
    asked = [int(size) for size in sys.argv[1:]]
    sizes = [0, *growth.SIZES]
    if unknown := set(asked) - set(sizes):
        raise SystemExit(f"sizes are {', '.join(map(str, sizes))} million weights (0: {REAL}), not {min(unknown)}")
    write(RESULTS, asked or sizes)


if __name__ == "__main__":
    main()

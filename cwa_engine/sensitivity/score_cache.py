"""Rankings kept between runs: what selection and perturbation need again, so that nothing is scored twice.

An entry is one metric's ranking for one set of scoring inputs. It is only a cache: an entry that cannot be read counts as
absent, and a folder that cannot be written only makes the next run slower.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from cwa_engine.base.files import write_whole
from cwa_engine.base.source_code import code_sha256
from cwa_engine.base.version import __version__
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.models.memory import device_name
from cwa_engine.rows import Ranking, ScoreBin, Spike, TopWeight
from cwa_engine.run import RunContext

DEPTH = 1000  # places kept at least, so that another --topk finds what it needs


@dataclass(frozen=True, slots=True)
class Kept:
    """A ranking, the run that made it, and how many places of each group it has."""

    ranking: Ranking
    run_id: str
    depth: int


@dataclass(frozen=True)
class ScoreCache:
    """Entries in a folder of at most `limit_bytes`; the least recently used go first. `run_id` signs what is put in."""

    folder: Path
    limit_bytes: int
    run_id: str = ""

    def get(self, key: str, depth: int, with_lowest: bool) -> Kept | None:
        """The entry, if it has so many places and, where that is asked, the lowest."""
        path = self._path(key)
        try:
            entry = json.loads(path.read_text())
            ranking = dict(entry["ranking"])
            rows = {name: _rows(kind, ranking[name]) for name, kind in _ROWS.items()}
            names = {"parameters": tuple(ranking["parameters"]), "halves": tuple(map(tuple, ranking["halves"]))}
            kept = Kept(Ranking(**{**ranking, **rows, **names}), entry["run_id"], entry["depth"])
        except (OSError, ValueError, KeyError, TypeError):  # absent, damaged, or of another version
            return None
        if kept.depth < depth or (with_lowest and not kept.ranking.lowest):
            return None
        with contextlib.suppress(FileNotFoundError):  # another worker has made room meanwhile
            os.utime(path)
        return kept

    def put(self, key: str, ranking: Ranking, depth: int) -> None:
        """Keep a ranking, and drop what exceeds the limit. Raises OSError where the folder cannot be written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fields = {field.name: getattr(ranking, field.name) for field in dataclasses.fields(Ranking)}
        columns = {name: _columns(kind, fields[name]) for name, kind in _ROWS.items()}
        entry = {"run_id": self.run_id, "depth": depth, "ranking": {**fields, **columns}}
        write_whole(self._path(key), json.dumps(entry).encode())
        self._evict()

    def _evict(self) -> None:
        entries = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # another worker makes room as well
                found = path.stat()
                entries.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit_bytes:
                return
            total -= size
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


_ROWS: Mapping[str, type] = {"weights": TopWeight, "lowest": TopWeight, "spikes": Spike, "bins": ScoreBin}


def _columns(kind: type, rows: Sequence[object]) -> list[list[Any]]:
    """A list for each field: a hundred thousand rows are written five times as fast as with their fields named in each."""
    return [[getattr(row, field.name) for row in rows] for field in dataclasses.fields(kind)]


def _rows(kind: type, columns: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(itertools.starmap(kind, zip(*columns, strict=True)))


def score_keys(run: RunContext, sequences: Sequence[TokenSequence], labels: Sequence[str]) -> dict[str, str]:
    """Label of a ranking -> a hash of all that it depends on, to the last bit; how many are selected is no part of it."""
    loaded, spec = run.loaded, run.spec
    inputs: dict[str, Any] = {
        "model": [loaded.source.location, loaded.revision, sorted(loaded.files.items()), loaded.dtype],
        "device": [
            loaded.device_name if loaded.shards else loaded.device.type,
            *map(device_name, loaded.devices),
            run.gradients,
            run.halves,
            run.batch_size.size,
            torch.get_num_threads(),
        ],
        "texts": [hashlib.sha256(repr((text.unscored, text.ids)).encode()).hexdigest() for text in sequences],
        "chance": [spec.seed, spec.probes],
        "units": [spec.structure, spec.scope, spec.include, spec.exclude],
        "code": [__version__, code_sha256(), torch.__version__, transformers.__version__],
    }
    shared = json.dumps(inputs, sort_keys=True)
    return {label: hashlib.sha256(f"{label} {shared}".encode()).hexdigest() for label in labels}

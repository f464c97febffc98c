"""Two kinds of contracts for `lint-imports`: a table of allowed imports, and no circles of modules.

The tables stand in pyproject.toml. A room is a subpackage or a top-level module of the package; the rows go from the lowest
room to the highest, and a room may import only from those of its row, which stand above it. So rooms form no loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

GUARDED = frozenset({"torch", "transformers", "zmq", "msgpack", "typer", "textual", "rich", "ray"})


@dataclass(frozen=True, slots=True)
class Table:
    """Which room of a package may import what, lowest room first."""

    package: str
    rows: dict[str, frozenset[str]]

    @classmethod
    def parse(cls, package: str, lines: list[str]) -> Table:
        """Lines are "room: what it may import"; the package's own `__init__` is a room of the package's name.

        Names without a dot are rooms of the same package or packages of others; `cwa_engine.base.*` is all of a package,
        `cwa_daemon.client` that module alone.
        """
        split = (line.partition(":") for line in lines)
        return cls(package, {room.strip(): frozenset(allowed.split()) for room, _, allowed in split})

    def room_of(self, module: str) -> str:
        """The room of a module of this package."""
        return module.split(".")[1] if "." in module else module

    def defects(self) -> Iterator[str]:
        """Rows that name a room which stands below them, or none."""
        above: set[str] = set()
        for room, allowed in self.rows.items():
            for name in sorted(allowed):
                if name in self.rows and name not in above:
                    yield f"the row of {room} names {name}, which does not stand above it"
                elif name not in self.rows and "." not in name and name not in {*GUARDED, *_PACKAGES}:
                    yield f"the row of {room} names {name}, which is no room"
            above.add(room)

    def allows(self, importer: str, imported: str) -> bool:
        """Whether a module of this package may import another module, or a package of others."""
        room = self.room_of(importer)
        allowed = self.rows.get(room, frozenset())
        if _root(imported) == self.package:
            return self.room_of(imported) in {room, *allowed}
        if _root(imported) not in {*GUARDED, *_PACKAGES}:
            return True
        beginnings = {".".join(imported.split(".")[:length]) for length in range(1, imported.count(".") + 2)}
        return (
            imported in allowed or _root(imported) in allowed & GUARDED or any(f"{b}.*" in allowed for b in beginnings)
        )


class AllowedImports(Contract):
    """Each room of a package imports only what its row of the table allows."""

    package = fields.StringField()
    rooms = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        table = Table.parse(str(self.package), list(self.rooms))  # type: ignore[call-overload]
        found = list(table.defects())
        for importer in sorted(graph.modules):
            if _root(importer) != table.package:
                continue
            if table.room_of(importer) not in table.rows:
                found.append(f"{importer} is in no room of the table")
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if not table.allows(importer, imported):
                    found.append(f"{importer} may not import {imported}")
        return _check(found)

    def render_broken_contract(self, check: ContractCheck) -> None:
        _render(check)


class NoCircles(Contract):
    """No two modules import each other, also by way of others; imports for type checking count."""

    packages = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        ours = {module for module in graph.modules if _root(module) in list(self.packages)}  # type: ignore[call-overload]
        imports = {module: graph.find_modules_directly_imported_by(module) & ours for module in ours}
        return _check([f"these know each other: {', '.join(circle)}" for circle in circles(imports)])

    def render_broken_contract(self, check: ContractCheck) -> None:
        _render(check)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules in which each reaches each other; `imports` is module -> what it imports."""
    reachable: dict[str, set[str]] = {}
    for start, first in imports.items():
        seen: set[str] = set()
        ahead = list(first)
        while ahead:
            if (module := ahead.pop()) not in seen:
                seen.add(module)
                ahead += imports[module]
        reachable[start] = seen
    groups = {
        frozenset(other for other in reachable[module] if module in reachable[other])
        for module in imports
        if module in reachable[module]
    }
    return sorted(sorted(group) for group in groups)


_PACKAGES = frozenset({"cwa_engine", "cwa_daemon", "cwa_tui"})


def _root(module: str) -> str:
    return module.partition(".")[0]


def _check(found: list[str]) -> ContractCheck:
    return ContractCheck(kept=not found, metadata={"found": found})


def _render(check: ContractCheck) -> None:
    metadata: Any = check.metadata
    for sentence in metadata["found"]:
        output.print_error(sentence)

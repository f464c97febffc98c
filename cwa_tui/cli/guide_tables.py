"""What `cwtool models` prints: models of the guide one a line, one model field by field, answers of the guide."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cwa_tui.cli.lines import Field, LineTable, Row
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

if TYPE_CHECKING:
    from cwa_engine.guide.catalog import CatalogModel
    from cwa_engine.guide.topics import Topic, Trouble
    from cwa_engine.rows import ModelOnDisk

_DTYPES = (("float32", 4), ("bfloat16 or float16", 2))


def catalog_table(
    entries: Sequence[CatalogModel], cached: dict[str, int], recommended: Collection[CatalogModel] = ()
) -> LineTable:
    """Models of the guide with their size on disk, then models on disk that are not in the guide.

    Those that are recommended for what was asked have a sign.
    """
    fields = [
        Field("model", least=36, cut="start"),
        Field("weights", right=True),
        Field("tier", optional=3),
        Field("on disk", right=True),
        Field("advice", optional=1),
        Field("alias", optional=2),
        Field("token", optional=4),
        Field("licence", optional=5),
        Field("family", optional=6),
    ]
    rows = [
        Row(
            {
                "model": entry.name,
                "weights": fmt.millions(entry.parameters_m),
                "tier": entry.tier,
                "on disk": fmt.size(cached[entry.name]) if entry.name in cached else "-",
                "advice": "first" if entry in recommended else "",
                "alias": entry.alias or "",
                "token": "HF_TOKEN" if entry.gated else "",
                "licence": entry.licence,
                "family": entry.family,
            }
        )
        for entry in entries
    ]
    if not recommended:
        others = sorted(set(cached) - {entry.name for entry in entries})
        rows += [Row({"model": name, "weights": "-", "on disk": fmt.size(cached[name])}) for name in others]
    return LineTable(fields, rows)


def plain_entry(entry: CatalogModel) -> dict[str, Any]:
    """A model of the guide for JSON."""
    from cwa_engine.rows import to_plain

    plain: dict[str, Any] = to_plain(entry)
    return {**plain, "parameters_m": entry.parameters_m, "tier": entry.tier.value, "page": entry.licence_page}


def description(entry: CatalogModel) -> str:
    """All that a search may find of a model beside its name."""
    said = (entry.tokenizer, entry.licence, entry.architecture, entry.model_type, entry.tier, entry.good_for)
    return " ".join((entry.name, *said, *entry.caveats))


def model_page(given: str, entry: CatalogModel | None, disk: dict[str, int]) -> RenderableType:
    """A model, field by field."""
    from cwa_engine.hub.imported import imported_models

    table = _fields()
    name = entry.name if entry else given
    rows: list[tuple[str, str]] = [("model", name)]
    if entry:
        access = (
            f"asks for an approval, then for HF_TOKEN: {entry.licence_page}"
            if entry.gated
            else "no approval is asked for"
        )
        memory = ", ".join(f"{fmt.size(entry.parameters * each)} in {dtype}" for dtype, each in _DTYPES)
        rows += [
            ("alias", entry.alias or ""),
            ("family", f"{entry.family}, {entry.architecture} ({entry.model_type})"),
            ("weights", f"{entry.parameters:,}, tied ones once"),
            ("memory", f"{memory}: the weights alone"),
            ("tier", f"{entry.tier} ({entry.tier.sizes}): {entry.tier.allows}"),
            ("tokenizer", entry.tokenizer),
            ("licence", f"{entry.licence}; {access}"),
            ("revision", f"{entry.revision}, known from published work" if entry.revision else ""),
            ("good for", entry.good_for),
            ("questions", ", ".join(_topics_of(entry))),
            *(("mind", caveat) for caveat in entry.caveats),
        ]
    elif imported := imported_models().get(given):
        rows += [
            ("imported", imported.path),
            ("family", imported.architecture),
            ("weights", f"{imported.parameters:,}, tied ones once"),
        ]
    rows.append(("on disk", fmt.size(disk[name]) if name in disk else f"no; `cwtool models pull {given}` downloads it"))
    _add(table, rows)
    return table


def _topics_of(entry: CatalogModel) -> list[str]:
    """The topics for which a model is recommended or helps."""
    from cwa_engine.guide.topics import topics

    return [topic.name for topic in topics() if topic.name in entry.questions or entry in topic.recommended]


def pulled_page(found: ModelOnDisk) -> RenderableType:
    """A model that is on disk and complete."""
    table = _fields()
    rows = [
        ("model", found.model),
        ("files", found.location if found.kind != "hub" else f"{found.location} at {found.revision}"),
        ("architecture", f"{found.architecture} ({found.model_type})"),
        ("weights", f"{found.parameters:,}, tied ones once"),
        ("on disk", f"{fmt.size(found.size_bytes)}, read as {found.dtype}"),
        *(("note", note) for note in found.notes),
    ]
    _add(table, rows)
    return table


def topic_list(topics: Iterable[Topic]) -> RenderableType:
    """What the guide can be asked, one a line."""
    fields = [Field("topic"), Field("kind", optional=1), Field("what it answers", least=20)]
    rows = [Row({"topic": t.name, "kind": t.kind, "what it answers": t.title}) for t in topics]
    return LineTable(fields, rows, caption="`cwtool models search TOPIC` answers it")


def answers(topics: Sequence[Topic], troubles: Sequence[Trouble]) -> RenderableType:
    """The answers of the guide: what to do, and the command lines for it."""
    parts: list[RenderableType] = []
    for topic in topics:
        parts += [words(topic.title, "bold"), _indented(topic.answer), *_commands(topic.commands), ""]
    for trouble in troubles:
        parts.append(words(trouble.title, "bold"))
        for number, step in enumerate(trouble.steps, start=1):
            parts += [_indented(f"{number}. It may be that {step.because}. {step.do}"), *_commands(step.commands, 5)]
        parts.append("")
    return Group(*parts)


def _indented(said: str) -> RenderableType:
    return Padding(words(said), (0, 0, 0, 2), expand=False)


def _commands(lines: Iterable[str], left: int = 4) -> list[RenderableType]:
    return [Padding(words(line, "cyan", overflow="fold"), (0, 0, 0, left), expand=False) for line in lines]


def _fields() -> Table:
    return Table(show_header=False, box=None, padding=(0, 2, 0, 0))


def _add(table: Table, rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        if value:
            table.add_row(Text(name, "dim"), words(value, overflow="fold"))

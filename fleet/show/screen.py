"""What people see: others' text as it is, any terminal, any width. Showing never decides what is done.

A name of a folder, a vehicle or a class, and what comes from a broker, may hold brackets, characters that the
terminal does not know, or bytes that are no text at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_NAME_CELLS = 12
"""Names are cut to this before any column goes, unless a table says otherwise."""


def screen(**options: Any) -> Console:
    """A console that prints text as it is; `options` are rich's."""
    return Console(markup=False, emoji=False, **options)


@dataclass(frozen=True)
class Column:
    """One column of a table whose first one holds names."""

    title: str
    lesser: int = 0
    """Where there is no room, the column with the highest number goes first; one with 0 never goes."""
    left: bool = False


class FittedTable:
    """A table of figures for any width: names are cut first, then lesser columns go, one by one."""

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        title: str = "",
        box: Box | None = None,
        padding: int = 1,
        name_cells: int = _NAME_CELLS,
    ) -> None:
        self._columns = columns
        self._name_cells = name_cells
        self._title = title
        self._box = box
        self._padding = padding
        self._rows: list[tuple[tuple[str, ...], str]] = []
        self._section: int | None = None
        self.caption = ""
        """A remark below the table."""

    def add_row(self, *cells: str, style: str = "") -> None:
        """`cells` in the columns' order; the last ones may be missing."""
        self._rows.append((cells, style))

    def add_section(self) -> None:
        """Rule off what follows."""
        self._section = len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        shown = list(range(len(self._columns)))
        while True:
            for tight, name_cells in ((False, None), (False, self._name_cells), (True, self._name_cells)):
                table = self._table(shown, tight=tight, name_cells=name_cells)
                wanted = console.measure(table, options=options.update(max_width=10_000)).maximum
                if wanted <= room:
                    yield table
                    yield from self._left_out(shown)
                    return
            lesser = max(shown, key=lambda index: (self._columns[index].lesser, index))
            if self._columns[lesser].lesser == 0:
                yield self._table(shown, tight=True, name_cells=max(1, self._name_cells - (wanted - room)))
                yield from self._left_out(shown)
                return
            shown.remove(lesser)

    def _left_out(self, shown: Sequence[int]) -> RenderResult:
        names = [column.title for index, column in enumerate(self._columns) if index not in shown]
        if names:
            yield Text(f"no room for: {', '.join(' '.join(name.split()) for name in names)}", style="dim")

    def _table(self, shown: Sequence[int], *, tight: bool, name_cells: int | None) -> Table:
        table = Table(
            title=Text(self._title) if self._title else None,
            title_justify="left",
            caption=Text(self.caption) if self.caption else None,
            caption_justify="left",
            box=self._box,
            pad_edge=False,
            show_edge=not tight,
            padding=(0, 0 if tight and self._box is not None else self._padding),
        )
        for index in shown:
            column = self._columns[index]
            title = "\n".join(column.title.split()) if tight else column.title
            is_name = index == 0
            table.add_column(
                Text(title),
                justify="left" if is_name or column.left else "right",
                no_wrap=True,
                overflow="ellipsis",
                max_width=name_cells if is_name else None,
            )
        for number, (cells, style) in enumerate(self._rows):
            if number == self._section:
                table.add_section()
            table.add_row(*(Text(cells[index]) for index in shown if index < len(cells)), style=style)
        return table

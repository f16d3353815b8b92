"""Where commands print: a console for people, and one that writes the tables as CSV for spreadsheets and scripts."""

import csv
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from models.text import spreadsheet_cell

UNBOUNDED = 100_000
"""Characters of a line that nobody looks at on a screen: nothing is wrapped or cut there."""
RULE_MAX = 80
"""Characters of a line that divides what is printed."""


class PlainConsole(Console):
    """A console that prints texts as they are, and never wraps what does not go to a terminal.

    Square brackets in a text are no markup to it: names of plans and users may contain anything.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = UNBOUNDED

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401  rich's
        """Print as rich does, and the title of a table on a line of its own, which is not wrapped to its width."""
        for made in objects:
            if isinstance(made, Table) and made.title:
                super().print(Text(str(made.title), style="bold"))
                made.title = None
        super().print(*objects, **options)

    def heading(self, title: str) -> None:
        """Print a line with a title in it."""
        self.print(Rule(Text(title)), width=min(self.width, RULE_MAX))


class CsvConsole(PlainConsole):
    """A console that prints the rows of tables as CSV (RFC 4180), and everything else to standard error.

    A header is written when the columns are not those of the table before.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        super().__init__(stderr=True)
        self._writer = csv.writer(out or sys.stdout, lineterminator="\n")
        self._header: list[str] = []

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401  rich's
        """Write the rows of a table, or print anything else for people."""
        for made in objects:
            if not isinstance(made, Table):
                super().print(*objects, **options)
                return
            self._write(made)

    def _write(self, table: Table) -> None:
        header = [_plain(column.header) for column in table.columns]
        if header != self._header:
            self._writer.writerow(header)
            self._header = header
        self._writer.writerows(
            zip(*([spreadsheet_cell(_plain(cell)) for cell in column.cells] for column in table.columns), strict=True)
        )


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)

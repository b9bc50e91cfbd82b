"""Results that show themselves: as a table, as a figure, and as both in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inheritune.report.table import Table
    from inheritune.report.view import View


class Shown:
    """What a function of the package found.

    How each kind of result is shown is in `report.view`, which stands above most of them: it is imported when it is
    asked.
    """

    def table(self) -> Table:
        """The figures that matter most; `str` gives it as Markdown, and a notebook shows it."""
        return self._view().tables[0]

    def plot(self) -> Figure:
        """The same as a matplotlib figure.

        Raises:
            UserError: there is nothing to draw.
        """
        return self._view().figure()

    def _repr_html_(self) -> str:
        return self._view().html()

    def _view(self) -> View:
        from inheritune.report.view import view

        return view(self)

"""The report of a run: one HTML file, its curves as an SVG, and its verdict for the terminal."""

from inheritune.report.page import curve_figure, write_report
from inheritune.report.verdict import rounds_table, verdict_sentence

__all__ = ["curve_figure", "rounds_table", "verdict_sentence", "write_report"]

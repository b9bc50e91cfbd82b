"""The report of a run: one HTML file, and its verdict for the terminal."""

from inheritune.report.run_report import write_report
from inheritune.report.verdict import terminal_rounds, verdict_sentence, verdict_words

__all__ = ["terminal_rounds", "verdict_sentence", "verdict_words", "write_report"]

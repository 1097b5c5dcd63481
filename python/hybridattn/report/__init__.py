"""report.html, one self-contained page about a finished run.

`page` assembles it from what it says in words (`explain`) and its parts with figures (`sections`, `figures`).
"""

from hybridattn.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]

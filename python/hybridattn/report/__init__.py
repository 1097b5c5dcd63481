"""report.html: one self-contained page about a finished run (`page`), its plots (`plots`)."""

from hybridattn.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]

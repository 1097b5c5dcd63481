"""One line that moves on a terminal; on anything else, a line now and then."""

from __future__ import annotations

import time

from rich.console import Console


class ProgressLine:
    """Called with the text of the moment.

    On a terminal the line is replaced in place; elsewhere it is printed at most every `every` seconds, and whenever
    its first word (the step) changes.
    """

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console = console
        self.every = every
        self._step = ""
        self._printed = 0.0

    def __call__(self, text: str) -> None:
        step = text.split("  ")[0]
        now = time.monotonic()
        if self.console.is_terminal:
            end = "\n" if step != self._step and self._step else ""
            self.console.file.write(f"{end}\r\x1b[2K{text[: self.console.width - 1]}")
            self.console.file.flush()
        elif step != self._step or now - self._printed >= self.every:
            self.console.print(text, highlight=False, soft_wrap=True)
            self._printed = now
        self._step = step

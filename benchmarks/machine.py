"""What a measurement ran on, and how busy that machine was with other things meanwhile."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from hybridattn import info

QUIET = 0.05
"""Share of the processor that others may take in a measurement that is worth keeping."""

_PACKAGES = ("python", "hybridattn", "torch", "transformers")


def describe() -> dict[str, Any]:
    """Processor, cores, instruction sets, memory, versions and the commit that was measured."""
    found = info.collect()
    return {
        "cpu": found.cpu,
        "cores": found.cores,
        "instruction_sets": found.instruction_sets,
        "memory_gib": found.memory_gib,
        "versions": {name: found.versions[name] for name in _PACKAGES},
        "build": found.build,
        "commit": _commit(),
    }


def _commit() -> str:
    """Abbreviated commit, with "-dirty" for uncommitted changes; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


class Bystanders:
    """Share of the machine's processor time that went to other processes inside a ``with`` block (Linux).

    Attributes:
        share: of all cores, 0 to 1, known after the block; None where the system does not tell.
    """

    share: float | None = None

    def __enter__(self) -> Bystanders:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        if self._start is None or (end := self._now()) is None:
            return
        busy, own, wall = (after - before for before, after in zip(self._start, end, strict=True))
        self.share = round(max(0.0, busy - own) / max(wall * (os.cpu_count() or 1), 1e-9), 3)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds of processor time of everybody, of this process, and of the clock."""
        try:
            with open("/proc/stat", encoding="ascii") as lines:
                user, nice, system, _idle, _wait, interrupt, soft, steal = map(int, lines.readline().split()[1:9])
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")
        return busy, time.process_time(), time.perf_counter()


def wait_until_quiet(deadline: float) -> None:
    """Returns when others have left the processor alone for a second, or at `deadline` (of time.monotonic)."""
    while time.monotonic() < deadline:
        with Bystanders() as others:
            time.sleep(1)
        if others.share is None or others.share <= QUIET:
            return

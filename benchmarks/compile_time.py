"""What including each public header costs a user: seconds and memory of the compiler, and lines after preprocessing.

`python benchmarks/compile_time.py` compiles one file per header that only includes it; `--only ops/gla.h` some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from benchmarks import machine

INCLUDE = Path(__file__).resolve().parent.parent / "include"
LATEST = Path("build/benchmarks/compile_time.json")
BUILD = INCLUDE.parent / "build/python"
YARDSTICK = "torch/torch.h"
"""What a program that uses PyTorch pays anyway."""


def public_headers(include: Path) -> list[str]:
    """Headers as one includes them, but for the parts of kernels (-inl.h), which are not included alone."""
    found = sorted(path.relative_to(include).as_posix() for path in (include / "hybridattn").rglob("*.h"))
    return [header for header in found if not header.endswith("-inl.h")]


def matching(headers: list[str], patterns: list[str]) -> list[str]:
    """Headers whose path contains one of `patterns`; all of them for none.

    Raises:
        ValueError: a pattern that no header contains.
    """
    for pattern in patterns:
        if not any(pattern in header for header in headers):
            raise ValueError(f"compile_time: no header contains '{pattern}', there are {', '.join(headers)}")
    return [header for header in headers if not patterns or any(pattern in header for pattern in patterns)]


def build_options(commands: list[dict[str, str]]) -> list[str]:
    """Macros, include folders, language and optimisation with which the Python module is compiled.

    Raises:
        ValueError: no file of `bindings/` among the commands of a compilation database.
    """
    for entry in commands:
        if "bindings/" not in entry["file"] or not entry["file"].endswith(".cpp"):
            continue
        words = shlex.split(entry["command"])
        kept = [word for word in words if word.startswith(("-D", "-I", "-O", "-std=", "-fopenmp"))]
        folders = [words[at + 1] for at, word in enumerate(words) if word == "-isystem"]
        return kept + [f"-isystem{folder}" for folder in folders]
    raise ValueError(f"compile_time: {BUILD} compiles no file of bindings/, run `make build` first")


def compilation_database() -> list[dict[str, str]]:
    """Every command of the Python module's build.

    Raises:
        ValueError: there is no such build.
    """
    if not (BUILD / "build.ninja").exists():
        raise ValueError(f"compile_time: {BUILD} is not there, run `make build` first")
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if ninja is None:
        raise ValueError("compile_time: ninja is not there, run `make setup`")
    done = subprocess.run([ninja, "-C", str(BUILD), "-t", "compdb"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# Runs a command and prints what its processes took. A small process must start the compiler: the system counts the memory
# of whoever starts a program as that program's own peak.
_STARTER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(code)
"""


def compile_once(command: list[str], source: Path) -> tuple[float, float]:
    """Seconds of processor time (so that other programs do not count) and MiB of the compiler on one file.

    Raises:
        RuntimeError: it does not compile; with the compiler's error.
    """
    whole = [sys.executable, "-I", "-S", "-c", _STARTER, *command, str(source)]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"compile_time: {' '.join(command)} {source} failed: {done.stderr.strip()}")
    seconds, mib = done.stdout.split()[-2:]
    return float(seconds), float(mib)


def preprocessed_lines(command: list[str], source: Path) -> int:
    done = subprocess.run([*command, "-E", "-P", str(source)], capture_output=True, text=True, check=True)
    return done.stdout.count("\n")


def measure(header: str, compiler: list[str], options: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Cost of one header: the median of `rounds` compilations to an object file."""
    source = folder / "include_it.cpp"
    source.write_text(f"#include <{header}>\n", encoding="utf-8")
    object_file = ["-c", "-o", str(folder / "include_it.o")]
    taken = [compile_once([*compiler, *options, *object_file], source) for _ in range(rounds)]
    return {
        "header": header,
        "seconds": round(statistics.median(seconds for seconds, _ in taken), 2),
        "mib": round(max(mib for _, mib in taken)),
        "lines": preprocessed_lines([*compiler, *options], source),
        "object_kib": round((folder / "include_it.o").stat().st_size / 1024),
    }


def show(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"One file that includes the header, and nothing else; {YARDSTICK} first", title_justify="left")
    table.add_column("header", no_wrap=True)
    for heading in ("seconds", "MiB", "lines", "object KiB"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result["header"], f"{result['seconds']:.2f}", f"{result['mib']:,}", f"{result['lines']:,}",
            f"{result['object_kib']:,}",
        )  # fmt: skip
    console.print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/compile_time.py", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="headers whose path contains TEXT")
    parser.add_argument("--rounds", type=int, default=1, help="compilations of each, the median counts")
    parser.add_argument("--flags", default="", help="options of the compiler, after those of the module's build")
    parser.add_argument("--out", type=Path, default=LATEST, help="JSON file")
    options = parser.parse_args(argv)
    try:
        headers = matching(public_headers(INCLUDE), options.only)
        flags = build_options(compilation_database()) + shlex.split(options.flags)
    except ValueError as error:
        sys.exit(str(error))
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    console = Console() if sys.stdout.isatty() else Console(width=130)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for header in [YARDSTICK, *headers]:
            with console.status(header):
                results.append(measure(header, compiler, flags, options.rounds, Path(folder)))
    show(results, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]
    public = [flag for flag in flags if not flag.startswith(("-I", "-isystem"))]  # folders are this machine's own
    described = machine.describe() | {"compiler": version, "flags": public}
    options.out.write_text(json.dumps({"machine": described, "results": results}, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

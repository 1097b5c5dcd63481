"""Checks every link between the pages and writes the Python reference.

Run:  python docs/build.py        (or `make docs`)

Links to files must lead to a file, links to headings to a heading; each dead one is printed and the exit status is 1. The
reference, one page per public module made of its docstrings, goes to build/docs.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("hybridattn", "data", "distill", "evaluate", "hf", "nn", "ops", "report", "run", "select")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names that headings get in a rendered page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    text = CODE.sub(lambda match: "" if match.group().startswith("```") else "x", page.read_text(encoding="utf-8"))
    dead = []
    for target in LINK.findall(text):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            dead.append(f"{page.relative_to(ROOT)}: {target}")
    return dead


def described(name: str, value: object) -> list[str]:
    """A class or function with its signature and docstring."""
    try:
        signature = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        signature = ""
    lines = [f"### {name}", "", "```python", f"{name}{signature}", "```", "", inspect.getdoc(value) or "", ""]
    if inspect.isclass(value):
        for method, function in inspect.getmembers(value, inspect.isfunction):
            if not method.startswith("_") and method in vars(value) and inspect.getdoc(function):
                lines += [f"**{method}**`{inspect.signature(function)}`: {inspect.getdoc(function)}", ""]
    return lines


def reference(module_name: str) -> str:
    module = importlib.import_module(module_name)
    lines = [f"# {module_name}", "", inspect.getdoc(module) or "", ""]
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            lines += described(name, value)
    return "\n".join(lines)


def main() -> int:
    pages = [path for path in ROOT.rglob("*.md") if not {".venv", "build", "runs"} & set(path.relative_to(ROOT).parts)]
    dead = [link for page in sorted(pages) for link in dead_links(page)]
    for link in dead:
        print(f"dead link  {link}")
    out = ROOT / "build" / "docs"
    out.mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        full = name if name == "hybridattn" else f"hybridattn.{name}"
        (out / f"{full}.md").write_text(reference(full), encoding="utf-8")
    print(f"{len(pages)} pages, {len(dead)} dead links; reference of {len(MODULES)} modules -> {out.relative_to(ROOT)}")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())

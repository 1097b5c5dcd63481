"""Prints what pyproject.toml requires, to run and to develop, one a line; CMake too where the system's is too old."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

OLDEST_CMAKE = (3, 24)

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")

version = (0, 0)
if shutil.which("cmake"):
    answer = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=True).stdout
    if found := re.search(r"(\d+)\.(\d+)", answer):
        version = (int(found[1]), int(found[2]))
if version < OLDEST_CMAKE:
    print("cmake>=3.24")

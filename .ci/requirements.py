"""Prints what pyproject.toml requires, to run and to develop, one requirement a line, and CMake where the system's is old."""

import re
import shutil
import subprocess
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

OLDEST_CMAKE = (3, 24)

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")

version = (0, 0)
if shutil.which("cmake"):
    answer = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.search(r"(\d+)\.(\d+)", answer).groups()
    version = (int(major), int(minor))
if version < OLDEST_CMAKE:
    print("cmake>=3.24")

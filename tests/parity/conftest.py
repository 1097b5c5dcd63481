"""The C++ program that the parity tests compare with, built when it is out of date."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
Run = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="session")
def parity_program() -> Path:
    built = subprocess.run(["make", "_parity"], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-6000:] + built.stderr[-6000:]
    return ROOT / "build" / "tests" / "tests" / "cpp" / "ha_parity"


@pytest.fixture
def cpp(parity_program: Path, tmp_path: Path) -> Run:
    """Runs a command of the program: cpp(command, tensors, **fields) -> its tensors; AssertionError with its message."""

    def run(command: str, tensors: dict[str, Tensor], **fields: Any) -> dict[str, Tensor]:
        request, answer = tmp_path / "request.safetensors", tmp_path / "answer.safetensors"
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, request, {"request": json.dumps(fields, default=str)})
        done = subprocess.run([str(parity_program), command, str(request), str(answer)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return load_file(answer)

    return run

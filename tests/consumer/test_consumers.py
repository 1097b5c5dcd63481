"""Every way to use hybridattn from another C++ project builds and runs: installed prefix, wheel, subdirectory."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hybridattn import __version__, evaluate
from hybridattn.data import Batch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INCLUDE = ROOT / "include" / "hybridattn"

CMAKE_FILES = (
    "hybridattn-config.cmake",
    "hybridattn-config-version.cmake",
    "hybridattn-targets.cmake",
    "HybridattnDependencies.cmake",
    "HybridattnTorch.cmake",
)

pytestmark = pytest.mark.timeout(1200)


def run(*command: object, env: dict[str, str] | None = None) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout[-6000:]}\n{result.stderr[-6000:]}"
    return result.stdout


def build(folder: Path, *options: str) -> Path:
    """Configures and compiles the consumer project, unoptimised: it is the linking that is tested."""
    run("cmake", "-G", "Ninja", "-S", HERE, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}", *options)
    run("cmake", "--build", folder, "-j", "2")
    return folder


def expected_output() -> str:
    """What main.cpp computes, by hand: its state's rows stay equal, so one number a column describes them."""
    row, total = 0.0, 0.0
    for _ in range(3):
        row += 0.5 * (1.0 - 2 * row)
        total += 2 * (2 * row) * 2**-0.5
    return f"hybridattn {__version__}, {total:.4f}\n"


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The headers and the CMake package, installed as `cmake --install` does."""
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder / "build", f"-DPython_EXECUTABLE={sys.executable}")
    run("cmake", "--install", folder / "build", "--prefix", folder / "installed")
    return folder / "installed"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel. It shares the build folder of the editable installation, so nothing is compiled twice."""
    folder = tmp_path_factory.mktemp("wheel")
    # fmt: off
    run("flock", ROOT / "build" / ".lock", sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation",
        "--no-deps", "-w", folder, ROOT)
    # fmt: on
    (path,) = folder.glob("hybridattn-*.whl")
    return path


@pytest.fixture(scope="session")
def unpacked(wheel: Path) -> Path:
    """The wheel as pip would lay it out."""
    folder = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_find_package_from_an_installed_prefix(prefix: Path, tmp_path: Path) -> None:
    assert run(build(tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}") / "consumer") == expected_output()


def test_find_package_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    # -S: without the start-up files of the editable installation, which would hide the wheel.
    env = os.environ | {"PYTHONPATH": f"{unpacked}{os.pathsep}{sysconfig.get_path('purelib')}"}
    python = (sys.executable, "-S", "-m", "hybridattn")
    cmake_dir = run(*python, "--cmakedir", env=env).strip()
    assert Path(cmake_dir).is_relative_to(unpacked)
    assert run(*python, "--includes", env=env).strip() == f"-I{unpacked / 'hybridattn' / 'include'}"
    assert run(build(tmp_path, f"-Dhybridattn_DIR={cmake_dir}") / "consumer") == expected_output()


def test_add_subdirectory(tmp_path: Path) -> None:
    folder = build(tmp_path, f"-DSOURCE_DIR={ROOT}")
    assert run(folder / "consumer") == expected_output()
    assert not (folder / "hybridattn" / "tests").exists(), "a subdirectory builds none of this project's own targets"


def test_two_files_that_include_everything_link_into_one_program(prefix: Path, tmp_path: Path) -> None:
    folder = build(tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}", "-DEVERYTHING=ON")
    assert run(folder / "everything") == "one definition\n"


def test_the_cpp_trainer_makes_a_hybrid_that_python_loads(prefix: Path, tmp_path: Path) -> None:
    """The example, on a few documents and steps: Python measures the same KL on the folder it wrote."""
    teacher = ROOT / "examples" / "tiny_teacher" / "teacher"
    # fmt: off
    run("cmake", "-G", "Ninja", "-S", ROOT / "examples" / "cpp_trainer", "-B", tmp_path / "build",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=None")
    run("cmake", "--build", tmp_path / "build", "-j", "2")
    run(sys.executable, ROOT / "examples" / "tiny_teacher" / "prepare.py",
        "--out", tmp_path, "--documents", "64", "--questions", "1")
    output = run(tmp_path / "build" / "trainer", teacher, tmp_path / "tokens.safetensors", tmp_path / "out", "2", "3")
    # fmt: on
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert f"softmax in layers {', '.join(map(str, result['softmax_layers']))}" in output
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (tmp_path / "out", teacher)]
    assert models[0].softmax_layers == sorted(result["softmax_layers"])
    batch = Batch(load_file(tmp_path / "tokens.safetensors")["held_out"])
    assert evaluate.kl(*models, [batch]).mean().item() == pytest.approx(result["kl"], rel=1e-4)
    assert result["kl"] < result["kl_before_match"]


def test_the_umbrella_includes_every_header() -> None:
    # Headers that others include several times, or inside a namespace, are named -inl.h.
    paths = [path for path in INCLUDE.rglob("*.h") if not path.name.endswith("-inl.h")]
    headers = {f"hybridattn/{path.relative_to(INCLUDE)}" for path in paths} - {"hybridattn/hybridattn.h"}
    lines = (INCLUDE / "hybridattn.h").read_text().splitlines()
    included = {line.split('"')[1] for line in lines if line.startswith("#include")}
    assert included == headers


def test_no_header_includes_python_or_all_of_torch() -> None:
    forbidden = (
        "torch/torch.h",
        "ATen/ATen.h",
        "torch/all.h",
        "torch/extension.h",
        "pybind11/",
        "Python.h",
        "torch/csrc/utils/",
    )
    for path in INCLUDE.rglob("*.h"):
        for line in path.read_text().splitlines():
            assert not (line.startswith("#include") and any(word in line for word in forbidden)), f"{path}: {line}"


def test_rooms_include_only_what_stands_above_them() -> None:
    rooms = {
        "core": set(),
        "kernels": {"core"},
        "ops": {"core", "kernels"},
        "nn": {"core", "ops"},
        "io": {"core"},
        "models": {"core", "ops", "nn", "io"},
        "transfer": {"core", "ops", "nn", "models"},
        "distill": {"core", "ops", "nn", "io"},
        "select": {"core"},
    }
    torch_headers = re.compile(r'#include ["<](ATen|c10|torch)/')
    for path in INCLUDE.rglob("*.h"):
        room = path.relative_to(INCLUDE).parts[0]
        if room not in rooms:
            assert path.parent == INCLUDE, f"{path}: a new room; say here what it may include"
            continue
        if room == "kernels":
            assert not torch_headers.search(path.read_text()), f"{path}: kernels know nothing of torch"
        for line in path.read_text().splitlines():
            if found := re.match(r'#include ["<]hybridattn/(\w+)/', line):
                other = found[1]
                assert other in rooms[room] | {room}, f"{path} may not include from {other}/"


def test_wheel_holds_exactly_the_package_the_headers_and_the_cmake_files(wheel: Path) -> None:
    def files(folder: Path) -> set[Path]:
        return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    expected = {
        *(str(path.relative_to(ROOT / "python")) for path in files(ROOT / "python" / "hybridattn")),
        *(f"hybridattn/{path.relative_to(ROOT)}" for path in files(INCLUDE)),
        *(f"hybridattn/share/cmake/hybridattn/{name}" for name in CMAKE_FILES),
        f"hybridattn/_C{sysconfig.get_config_var('EXT_SUFFIX')}",
        "hybridattn/_build.py",
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - metadata == expected
    assert {"METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= {n.split("/", 1)[1] for n in metadata}


def test_wheel_declares_its_command_and_its_cmake_prefix(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    text = archive.read(name).decode()
    assert "[console_scripts]\nhybridattn = hybridattn.cli:main" in text
    assert "[cmake.prefix]\nhybridattn = hybridattn" in text

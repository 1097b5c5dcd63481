"""The package finds its own files, refuses another PyTorch than it was built for, and offers the names it promises."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import hybridattn
from hybridattn import _build, installation


def test_compiled_part_is_of_this_pytorch_and_registered_its_ops() -> None:
    assert torch.__version__.split("+")[0].split(".")[:2] == _build.TORCH_VERSION.split(".")[:2]
    assert hasattr(torch.ops.hybridattn, "chunk_gated_delta_rule")


def test_another_minor_version_of_pytorch_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        ImportError, match=r"built against PyTorch 2\.12\.1, but PyTorch 2\.13\.0.*--no-build-isolation"
    ):
        installation.check_torch_version("2.12.1", "2.13.0")
    with pytest.raises(ImportError, match=r"pip install torch==2\.12\.1"):
        installation.check_torch_version("2.12.1", "3.12.1")


def test_a_patch_release_or_another_device_build_is_accepted() -> None:
    installation.check_torch_version("2.13.0", "2.13.1+cu130")


def test_import_refuses_a_module_built_for_another_pytorch(tmp_path: Path) -> None:
    script = """
import sys, types
import torch
built = types.ModuleType("hybridattn._build")
built.TORCH_VERSION = "1.0.0"
sys.modules["hybridattn._build"] = built
import hybridattn
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode != 0
    assert "ImportError: hybridattn was built against PyTorch 1.0.0" in result.stderr


def test_sources_alone_say_how_to_build_them(tmp_path: Path) -> None:
    sources = next(folder for folder in hybridattn.__path__ if (Path(folder) / "installation.py").exists())
    script = f"import sys; sys.path.insert(0, {str(Path(sources).parent)!r}); import hybridattn"
    # -S leaves out the start-up file of the editable installation, so that only the sources are seen.
    site = str(Path(torch.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.append({site!r})\n{script}"], capture_output=True, text=True
    )
    if "_build.py" in {path.name for path in Path(sources).iterdir()}:
        pytest.skip("an ordinary installation: sources and compiled part are in one folder")
    assert "ImportError: hybridattn's compiled part is missing" in result.stderr


def test_headers_and_cmake_files_are_where_the_functions_say() -> None:
    assert (Path(hybridattn.get_include()) / "hybridattn" / "hybridattn.h").is_file()
    assert (Path(hybridattn.get_cmake_dir()) / "hybridattn-config.cmake").is_file()


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hybridattn, "__path__", [str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"share/cmake/hybridattn/hybridattn-config\.cmake is in none of"):
        hybridattn.get_cmake_dir()


@pytest.mark.parametrize("name", hybridattn.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(hybridattn, name) is not None
    assert name in dir(hybridattn)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'hybridattn' has no attribute 'flux_capacitor'"):
        _ = hybridattn.flux_capacitor


def test_functions_win_over_modules_of_the_same_name() -> None:
    script = "import hybridattn.convert, hybridattn as ha; assert callable(ha.convert)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="hybridattn")
    assert callable(command.load())


def test_import_does_not_load_what_it_does_not_need() -> None:
    script = "import sys, hybridattn; print(*sorted({'datasets', 'matplotlib', 'typer', 'rich'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []

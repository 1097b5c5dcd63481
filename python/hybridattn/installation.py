"""Where this installation keeps headers and CMake files; whether its compiled part fits the installed PyTorch."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import hybridattn

_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps hybridattn"


def _find(relative: str) -> Path:
    # An editable installation has two folders: the sources, and what CMake installed.
    for folder in hybridattn.__path__:
        path = Path(folder) / relative
        if path.exists():
            return path
    raise FileNotFoundError(
        f"hybridattn: {relative} is in none of {list(hybridattn.__path__)}; reinstall with `{_REBUILD}`"
    )


def get_include() -> str:
    """The folder to give a C++ compiler as include path, so that `#include <hybridattn/hybridattn.h>` works.

    Raises FileNotFoundError when the installation is incomplete.
    """
    return str(_find("include/hybridattn/version.h").parents[1])


def get_cmake_dir() -> str:
    """The folder with hybridattn-config.cmake, for `find_package(hybridattn PATHS ...)` or `-Dhybridattn_DIR=`.

    Raises FileNotFoundError when the installation is incomplete.
    """
    return str(_find("share/cmake/hybridattn/hybridattn-config.cmake").parent)


def check_torch_version(built: str, running: str) -> None:
    """Raise ImportError, with the remedy, unless both versions of PyTorch have the same major and minor number.

    libtorch's C++ interface changes with every minor release, so a module built against another one may crash.
    """
    if built.split(".")[:2] != running.split(".")[:2]:
        raise ImportError(
            f"hybridattn was built against PyTorch {built}, but PyTorch {running} is installed. Rebuild it with "
            f"`{_REBUILD}`, or install the matching version with `pip install torch=={built}`."
        )


def load_compiled_module() -> ModuleType:
    """Import `hybridattn._C`, which registers the ops, after checking that it fits the installed PyTorch.

    Raises ImportError when it was never built or was built against another PyTorch.
    """
    import torch  # first: it loads the libraries that _C links to

    try:
        build = import_module("hybridattn._build")
    except ModuleNotFoundError:
        raise ImportError(
            "hybridattn's compiled part is missing: run `make setup` in a checkout, or install the package with "
            "`pip install --no-build-isolation hybridattn` (a source folder alone cannot be imported)."
        ) from None
    check_torch_version(build.TORCH_VERSION, torch.__version__)
    return import_module("hybridattn._C")

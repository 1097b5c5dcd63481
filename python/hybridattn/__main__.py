"""`python -m hybridattn --includes | --cmakedir` for build scripts; anything else is the command line tool."""

import sys

from hybridattn.installation import get_cmake_dir, get_include

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--includes"]:
            print(f"-I{get_include()}")
        case ["--cmakedir"]:
            print(get_cmake_dir())
        case _:
            from hybridattn.cli import main

            main()

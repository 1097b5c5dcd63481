# Written by CMake at build time: what the compiled part was built with.
TORCH_VERSION: str
COMPILER: str
BUILD_TYPE: str

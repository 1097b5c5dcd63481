# Finds PyTorch's C++ libraries and defines the target hybridattn::torch.
# Looked up by hand because TorchConfig.cmake refuses a CUDA build of PyTorch where no CUDA toolkit is installed, which these headers
# do not need. Order: a target `torch` that the project already has, Torch_DIR, CMAKE_PREFIX_PATH, the active Python.
include_guard(GLOBAL)

if(TARGET torch)
  add_library(hybridattn::torch INTERFACE IMPORTED GLOBAL)
  target_link_libraries(hybridattn::torch INTERFACE torch)
  return()
endif()

# Outside the lookup below: its result is what later configure runs compare with.
find_package(Python COMPONENTS Interpreter QUIET)
set(hints "${Torch_DIR}/../../.." "${TORCH_INSTALL_PREFIX}")
if(Python_EXECUTABLE)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "import torch; print(torch.__path__[0])"
                  OUTPUT_VARIABLE python_torch OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  list(APPEND hints "${python_torch}")
endif()
find_path(HYBRIDATTN_TORCH_INCLUDE_DIR torch/csrc/autograd/custom_function.h HINTS ${hints} PATH_SUFFIXES include)
if(NOT HYBRIDATTN_TORCH_INCLUDE_DIR)
  message(FATAL_ERROR "hybridattn: no PyTorch found for ${Python_EXECUTABLE}. Install it into the active Python "
                      "(pip install torch==2.13.0) or set Torch_DIR to libtorch's share/cmake/Torch.")
endif()
get_filename_component(HYBRIDATTN_TORCH_PREFIX "${HYBRIDATTN_TORCH_INCLUDE_DIR}" DIRECTORY)

file(STRINGS "${HYBRIDATTN_TORCH_INCLUDE_DIR}/torch/headeronly/version.h" lines
     REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) [0-9]+")
string(REGEX REPLACE "[^0-9;]" "" HYBRIDATTN_TORCH_VERSION "${lines}")
string(REPLACE ";" "." HYBRIDATTN_TORCH_VERSION "${HYBRIDATTN_TORCH_VERSION}")
if(HYBRIDATTN_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "hybridattn: PyTorch 2.10 or newer is needed, ${HYBRIDATTN_TORCH_PREFIX} is ${HYBRIDATTN_TORCH_VERSION}.")
endif()
message(STATUS "hybridattn: PyTorch ${HYBRIDATTN_TORCH_VERSION} in ${HYBRIDATTN_TORCH_PREFIX}")

set(torch_library "${HYBRIDATTN_TORCH_PREFIX}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}")
add_library(hybridattn::torch INTERFACE IMPORTED GLOBAL)
target_include_directories(hybridattn::torch SYSTEM INTERFACE
  "${HYBRIDATTN_TORCH_INCLUDE_DIR}" "${HYBRIDATTN_TORCH_INCLUDE_DIR}/torch/csrc/api/include")
# libtorch carries no symbols of its own; the linker must keep it all the same, because it loads CUDA's kernels where there are any.
target_link_libraries(hybridattn::torch INTERFACE
  "-Wl,--push-state,--no-as-needed" "${torch_library}torch${CMAKE_SHARED_LIBRARY_SUFFIX}" "-Wl,--pop-state"
  "${torch_library}torch_cpu${CMAKE_SHARED_LIBRARY_SUFFIX}" "${torch_library}c10${CMAKE_SHARED_LIBRARY_SUFFIX}")
